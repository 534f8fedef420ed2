//! The sections of a `run.toml` other than scheme and passes: plain data with defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::resolved::Products;
use super::size::ByteSize;
use crate::numeric::Bf16Unit;

/// `[model]`: what is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawModel {
    /// A directory, a `.gguf` file, or a Hub id `org/name[@revision]`.
    pub path: String,
    /// Type in which weights that are not quantized are computed and stored.
    #[serde(default)]
    pub dtype: RawDtype,
    /// Architecture, where `model_type` of the checkpoint's `config.json` is missing or wrong.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none", default)]
    pub model_type: Option<String>,
    /// What becomes of a head that is the embedding's own tensor.
    #[serde(default)]
    pub tie_policy: RawTiePolicy,
}

/// What becomes of a head that is the embedding's own tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawTiePolicy {
    /// It stays one tensor, which no pass can change for one of the two alone.
    #[default]
    Keep,
    /// The head gets a copy of its own.
    Untie,
}

/// Type of the weights that are not quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawDtype {
    /// As stored.
    #[default]
    Auto,
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// bfloat16.
    Bfloat16,
}

/// `[calibration]`: which text, and how much of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawCalibration {
    /// A file or the name of a data set.
    pub source: String,
    /// Number of windows. Default: 128, or all of a file of token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<NonZeroUsize>,
    /// Tokens per window. Default: 2048 (at most the model's positions), or the width of a file of token ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<NonZeroUsize>,
    /// Seed of the choice of windows.
    pub seed: u64,
    /// Where beginning-of-sequence tokens go.
    pub bos: RawBos,
    /// Column or key that holds the text. Default: `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_column: Option<String>,
    /// Split of a named data set. Default: the data set's own choice for calibration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// Where beginning-of-sequence tokens go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawBos {
    /// None is added.
    #[default]
    None,
    /// One starts each document.
    Document,
    /// One starts each window, in place of its last token.
    Sequence,
}

/// `[harness]`: how the block loop runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawHarness {
    /// What is quantized between two collections of statistics. Default: `block`, or `layer` where a pass compares two streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<RawSequence>,
    /// Which activations later layers see. Default: `quantized`, or `both` where a pass needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagate: Option<RawPropagate>,
    /// What the matrix products of the sweeps over calibration data round their operands to: those with the weights, and those of the
    /// statistics. `bf16` takes half the time on a CPU with `avx512_bf16`, and is refused on others; `auto` is `bf16` where the CPU has
    /// it and `f32` where not. Sums are in f32 either way.
    pub products: RawProducts,
    /// Memory that the run may use.
    pub budget: ByteSize,
    /// Worker threads. Default: one per core. The result does not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
    /// Continue unfinished work in the output directory.
    pub resume: bool,
    /// What happens to a site that cannot be solved.
    pub on_failure: RawOnFailure,
    /// Where blocks run: `cpu`, or `cuda:N` in a build with that feature. Statistics and solvers are on the CPU; so is what learns.
    pub device: String,
    /// Stored name of the list of decoder blocks, such as `model.layers`. The architecture knows it; if given, it has to be that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_name: Option<String>,
    /// Run everything but the quantization: weights stay in high precision, and passes that round are left out.
    pub no_quantize: bool,
}

/// What is quantized between two collections of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawSequence {
    /// A decoder block.
    Block,
    /// A group of layers that share their input.
    Layer,
}

/// Which activations are propagated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawPropagate {
    /// Those of the unquantized model.
    Reference,
    /// Those of the model as quantized so far.
    Quantized,
    /// Both streams.
    Both,
}

/// What the operands of matrix products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawProducts {
    /// What is faster on this CPU.
    #[default]
    Auto,
    /// Not rounded.
    F32,
    /// To 8 significant bits.
    Bf16,
}

impl RawProducts {
    /// The choice made for this CPU.
    pub fn here(self) -> Products {
        match self {
            Self::Auto if Bf16Unit::detect().is_some_and(Bf16Unit::pays) => Products::Bf16,
            Self::Auto | Self::F32 => Products::F32,
            Self::Bf16 => Products::Bf16,
        }
    }
}

/// What happens to a site that cannot be solved even with more damping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawOnFailure {
    /// It is rounded to nearest, with a warning.
    #[default]
    Rtn,
    /// The run ends.
    Error,
}

/// `[eval]`: how perplexity is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawEval {
    /// A file or the name of a data set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// `gptq`, `brevitas` or `hf-stride`.
    pub protocol: String,
    /// Tokens per window. Default: 2048, at most the model's positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_len: Option<NonZeroUsize>,
    /// At most so many windows. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_windows: Option<NonZeroUsize>,
    /// Tokens from one window to the next, where the protocol has a stride.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stride: Option<NonZeroUsize>,
}

/// `[output]`: what is written where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawOutput {
    /// Directory of the result. A plan needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Ids of the exporters: one, or a list.
    #[serde(deserialize_with = "one_or_list")]
    #[schemars(schema_with = "one_or_list_schema")]
    pub format: Vec<String>,
    /// Keep the native form beside the exported one.
    pub keep_native: bool,
    /// `ENGINE[@VERSION]` that has to load the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Largest size of a shard.
    pub max_shard: ByteSize,
}

/// `[plugins]`: what must be there, and which one is meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawPlugins {
    /// Plugin id → version requirement, such as `">=0.1"`.
    pub require: BTreeMap<String, String>,
    /// Id of an algorithm or a number format → the plugin or crate that it is taken from, where several offer it.
    pub prefer: BTreeMap<String, String>,
    /// Whether plugins that were added may be loaded at run time.
    pub allow_dynamic: bool,
}

impl Default for RawPlugins {
    fn default() -> Self {
        Self { require: BTreeMap::new(), prefer: BTreeMap::new(), allow_dynamic: true }
    }
}

impl Default for RawCalibration {
    fn default() -> Self {
        let source = "wikitext2".to_owned();
        Self { source, samples: None, seq_len: None, seed: 0, bos: RawBos::None, text_column: None, split: None }
    }
}

impl Default for RawHarness {
    fn default() -> Self {
        Self {
            sequence: None,
            propagate: None,
            products: RawProducts::Auto,
            budget: ByteSize(8 << 30),
            threads: None,
            resume: false,
            on_failure: RawOnFailure::Rtn,
            device: "cpu".to_owned(),
            block_name: None,
            no_quantize: false,
        }
    }
}

impl Default for RawEval {
    fn default() -> Self {
        Self { data: None, protocol: "gptq".to_owned(), seq_len: None, max_windows: None, stride: None }
    }
}

impl Default for RawOutput {
    fn default() -> Self {
        let format = vec!["compressed-tensors".to_owned()];
        Self { path: None, format, keep_native: false, target: None, max_shard: ByteSize(5_000_000_000) }
    }
}

fn one_or_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct NamesVisitor;
    impl<'de> Visitor<'de> for NamesVisitor {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name or an array of names")
        }
        fn visit_str<E: de::Error>(self, name: &str) -> Result<Vec<String>, E> {
            Ok(vec![name.to_owned()])
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = seq.next_element()? {
                names.push(name);
            }
            if names.is_empty() { Err(de::Error::invalid_length(0, &self)) } else { Ok(names) }
        }
    }
    deserializer.deserialize_any(NamesVisitor)
}

fn one_or_list_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }] })
}
