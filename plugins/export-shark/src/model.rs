//! Models as sharktank computes them: its names for their tensors, and the properties that describe them.
//!
//! One graph serves all: `llama` has biases where the dataset has some, so that Mistral and Qwen2 are the same to it.

use qfw_core::checkpoint::gguf::Architecture;
use qfw_core::model::{Dims, Stretch, model_type};
use qfw_core::numeric::Activation;
use qfw_core::registry::Registry;
use qfw_core::{Error, Result};
use serde_json::{Value, json};

/// `general.architecture` of all of them.
const ARCHITECTURE: &str = "llama";

/// `model_type` of what is the same to it.
const FAMILIES: [&str; 3] = ["llama", "mistral", "qwen2"];

/// A buffer that older checkpoints store, and that no dataset has.
const BUFFER: &str = ".rotary_emb.inv_freq";

const OTHERS: &str = "use `--format compressed-tensors` or `qfw`";

fn unsupported(what: &str, hint: &str) -> Error {
    Error::plan("plan::container", what.to_owned()).hint(hint)
}

/// Refuses models that sharktank has no graph for.
///
/// # Errors
/// If this is one.
pub(crate) fn family(model_type: &str) -> Result<()> {
    if FAMILIES.contains(&model_type) {
        return Ok(());
    }
    let why = match model_type {
        "gpt2" | "opt" => format!("sharktank has no model for `{model_type}`: no learned positions and no LayerNorm"),
        "qwen3" => "sharktank's `llama` has no norms with weights on queries and keys, as `qwen3` has".to_owned(),
        other => format!("whether a model of sharktank is a `{other}` model is not known here"),
    };
    let route =
        if ["gpt2", "qwen3"].contains(&model_type) { "use `--format gguf`, `onnx` or `qfw`" } else { "use `--format onnx` or `qfw`" };
    Err(unsupported(&why, &format!("known are {}; {route}", FAMILIES.join(", "))))
}

/// sharktank's names, which are those of GGUF.
///
/// # Errors
/// Never.
pub(crate) fn names() -> Result<&'static Architecture> {
    Architecture::named(ARCHITECTURE).ok_or_else(|| Error::internal("GGUF has no names for `llama`"))
}

/// A model.
pub(crate) struct Model {
    pub dims: Dims,
    names: &'static Architecture,
}

impl Model {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// If sharktank's graph computes something else.
    pub(crate) fn of(config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Self> {
        let model_type = model_type(config)?;
        family(model_type)?;
        let dims = Registry::builtin()?.architecture(model_type)?.parse(config, has_tensor)?;
        computes_alike(&dims)?;
        Ok(Self { dims, names: names()? })
    }

    /// The name of a tensor in the dataset; `None` for what it does not have: buffers, and a head beside the embedding it is tied to.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub(crate) fn place(&self, tensor: &str) -> Result<Option<String>> {
        let head = tensor.starts_with("lm_head.");
        if tensor.ends_with(BUFFER) || (head && self.dims.tied_head) {
            return Ok(None);
        }
        let canonical = match tensor.strip_prefix(&self.dims.prefix) {
            Some(rest) if !head => format!("model.{rest}"),
            _ => tensor.to_owned(),
        };
        match self.names.place(&canonical) {
            Some((name, _)) => Ok(Some(name)),
            None => {
                let what = format!("`{tensor}` has no place in a `{ARCHITECTURE}` of sharktank");
                Err(unsupported(&what, "remove the tensor if the model does not read it, or use `--format qfw`"))
            }
        }
    }

    /// The properties.
    ///
    /// # Errors
    /// If there is no rotary embedding.
    pub(crate) fn properties(&self) -> Result<Value> {
        let d = &self.dims;
        let rope = d.rope.as_ref().ok_or_else(|| Error::internal("a model without a rotary embedding"))?;
        let mut properties = json!({ "general.architecture": ARCHITECTURE });
        for (key, value) in [
            ("context_length", json!(d.max_positions)),
            ("embedding_length", json!(d.hidden)),
            ("block_count", json!(d.blocks)),
            ("feed_forward_length", json!(d.ffn)),
            ("attention.head_count", json!(d.heads)),
            ("attention.head_count_kv", json!(d.kv_heads)),
            ("attention.layer_norm_rms_epsilon", json!(d.norm_eps)),
            ("vocab_size", json!(d.vocab)),
            // The channels of a head, too.
            ("rope.dimension_count", json!(d.head_dim)),
            ("rope.freq_base", json!(rope.base())),
            ("rope.interleave_emb", json!(false)),
        ] {
            properties[format!("{ARCHITECTURE}.{key}")] = value;
        }
        for prefix in ["SHARK", "AMD_SHARK"] {
            properties[format!("{prefix}_DATASET_VERSION")] = json!(1);
        }
        Ok(properties)
    }
}

/// Refuses what the graph computes otherwise.
fn computes_alike(d: &Dims) -> Result<()> {
    if d.activation != Activation::Silu {
        let what = format!("`{ARCHITECTURE}` of sharktank has SiLU, and this model has {:?}", d.activation);
        return Err(unsupported(&what, OTHERS));
    }
    if d.qk_norm {
        return Err(unsupported("`llama` of sharktank has no norms with weights on queries and keys", OTHERS));
    }
    if let Some(window) = d.windows.iter().flatten().find(|w| **w < d.max_positions) {
        let what =
            format!("`{ARCHITECTURE}` of sharktank has no sliding windows, and this model sees {window} of {} positions", d.max_positions);
        return Err(unsupported(
            &what,
            "set `sliding_window` in config.json to null, if texts are to be shorter than that; or use `--format qfw`",
        ));
    }
    let usual = (d.head_dim as f64).powf(-0.5);
    if d.score_scale.iter().any(|s| (s / usual - 1.0).abs() > 1e-6) {
        let what = format!("`{ARCHITECTURE}` of sharktank divides attention scores by √{} in every block", d.head_dim);
        return Err(unsupported(&what, OTHERS));
    }
    match d.rope.as_ref().map(|r| r.stretch()) {
        Some(Stretch::Plain) => Ok(()),
        Some(_) => {
            let what = format!("`{ARCHITECTURE}` of sharktank has no scaling of rotary positions, and this model has one (`rope_scaling`)");
            Err(unsupported(&what, "use `--format gguf`, `compressed-tensors` or `qfw`"))
        }
        None => Err(unsupported("`llama` of sharktank has rotary positions, and this model has none", OTHERS)),
    }
}
