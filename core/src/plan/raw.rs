//! A run as plain data: what the layers add up to, typed and strict, before any model or plugin is known.

use schemars::JsonSchema;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

pub use super::section::{
    RawBos, RawCalibration, RawDtype, RawEval, RawHarness, RawModel, RawOnFailure, RawOutput, RawPlugins, RawProducts, RawPropagate,
    RawSequence, RawTiePolicy,
};
pub use super::size::ByteSize;
pub use super::spec::{
    RawConvention, RawGranularity, RawGroup, RawPluginGranularity, RawQuant, RawQuantChange, RawRange, RawReduce, RawScale,
    RawScaleRounding, RawSpec, RawSpecChange, RawTiming, RawZeroPoint,
};
use crate::error::{Error, Result};

/// The version of the file format that is read and written.
pub const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawRun {
    /// Version of the file format: 1.
    #[serde(deserialize_with = "schema_version")]
    #[schemars(range(min = 1, max = 1))]
    pub schema: u32,
    /// What is quantized.
    pub model: RawModel,
    /// Which text calibrates it.
    #[serde(default)]
    pub calibration: RawCalibration,
    /// What each kind of tensor becomes.
    #[serde(default)]
    pub scheme: RawScheme,
    /// Exceptions from the scheme; the last match wins.
    #[serde(default, rename = "override")]
    pub overrides: Vec<RawOverride>,
    /// The algorithms, in order.
    #[serde(default, rename = "pass")]
    pub passes: Vec<RawPass>,
    /// How the block loop runs.
    #[serde(default)]
    pub harness: RawHarness,
    /// How perplexity is measured.
    #[serde(default)]
    pub eval: RawEval,
    /// What is written where.
    #[serde(default)]
    pub output: RawOutput,
    /// Which plugins must be there.
    #[serde(default)]
    pub plugins: RawPlugins,
}

/// `[scheme]`: what each kind of tensor becomes. Absent parts stay in high precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawScheme {
    /// Weights of the linear layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<RawSpec>,
    /// Inputs of the linear layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<RawSpec>,
    /// Outputs of the linear layers but the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<RawSpec>,
    /// Queries of attention, after the position embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queries: Option<RawSpec>,
    /// Keys as cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<RawSpec>,
    /// Values as cached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<RawSpec>,
    /// Attention probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probs: Option<RawSpec>,
    /// The token embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed: Option<RawSpec>,
    /// The output head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<RawSpec>,
    /// Selectors of sites that stay in high precision; they count as the first override.
    pub skip: Vec<String>,
}

/// `[[override]]`: another spec for the sites that a selector matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawOverride {
    /// Selector: a regular expression over role names such as `blocks.3.mlp.down`.
    #[serde(rename = "match")]
    pub selector: String,
    /// The number of sites that must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<usize>,
    /// Whether matching nothing is fine.
    #[serde(default)]
    pub allow_empty: bool,
    /// See [`RawScheme::weights`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<RawSpecChange>,
    /// See [`RawScheme::inputs`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<RawSpecChange>,
    /// See [`RawScheme::outputs`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<RawSpecChange>,
    /// See [`RawScheme::queries`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries: Option<RawSpecChange>,
    /// See [`RawScheme::keys`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<RawSpecChange>,
    /// See [`RawScheme::values`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<RawSpecChange>,
    /// See [`RawScheme::probs`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probs: Option<RawSpecChange>,
}

/// `[[pass]]`: one algorithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawPass {
    /// Id of the algorithm.
    pub algo: String,
    /// Regions that a transform works on. Default: all that allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regions: Option<Vec<String>>,
    /// Selector of the sites it works on. Default: all that the scheme quantizes.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Selectors of sites that it leaves alone.
    #[serde(default)]
    pub skip: Vec<String>,
    /// Its options, checked by the algorithm itself.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

impl RawRun {
    /// The run as a complete `run.toml`, defaults written out; reading it again gives the same run.
    ///
    /// # Errors
    /// An internal error if the data cannot be written, which no run that was read can cause.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::internal(format!("cannot write the configuration as TOML: {e}")))
    }
}

impl Default for RawScheme {
    fn default() -> Self {
        Self {
            weights: None,
            inputs: None,
            outputs: None,
            queries: None,
            keys: None,
            values: None,
            probs: None,
            embed: None,
            head: None,
            skip: vec!["head".to_owned(), "embed".to_owned()],
        }
    }
}

/// The JSON Schema of `run.toml`, for editors. It describes the canonical spelling; aliases are read but not listed.
pub fn run_schema() -> serde_json::Value {
    schemars::schema_for!(RawRun).to_value()
}

fn schema_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    if version == SCHEMA { Ok(version) } else { Err(de::Error::custom(format!("this version reads schema {SCHEMA}, got {version}"))) }
}
