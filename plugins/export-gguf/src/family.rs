//! The architectures of llama.cpp that models become: their tensors, and the keys that describe them.

use qfw_core::checkpoint::gguf::{Architecture, Layout, Value as Key};
use qfw_core::model::{Dims, Rope, Stretch, model_type};
use qfw_core::numeric::Activation;
use qfw_core::registry::Registry;
use qfw_core::{Error, Result};
use serde_json::Value;

/// `model_type`, and `general.architecture` of the files that llama.cpp's own converter makes of it.
const FAMILIES: [(&str, &str); 5] = [("llama", "llama"), ("mistral", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gpt2", "gpt2")];

/// Buffers that older checkpoints store, and that no file has.
const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

fn unsupported(what: &str, hint: &str) -> Error {
    Error::plan("plan::container", what.to_owned()).hint(hint)
}

/// The architecture that models of a type become.
///
/// # Errors
/// If there is none.
pub(crate) fn architecture(model_type: &str) -> Result<&'static Architecture> {
    let id = FAMILIES.iter().find(|(theirs, _)| *theirs == model_type).map(|(_, id)| *id);
    let known = FAMILIES.map(|(theirs, _)| theirs).join(", ");
    let why = if model_type == "opt" {
        "llama.cpp has no architecture for `opt`".to_owned()
    } else {
        format!("which architecture of llama.cpp a `{model_type}` model is, is not known here")
    };
    let unknown = || unsupported(&why, &format!("known are {known}; use `--format compressed-tensors` or `qfw`"));
    id.and_then(Architecture::named).ok_or_else(unknown)
}

/// A model as a file has it.
pub(crate) struct Family {
    pub architecture: &'static Architecture,
    pub dims: Dims,
    /// One factor per rotary frequency, by which it is divided, where the file has them as a tensor.
    pub factors: Option<Vec<f32>>,
    /// Keys of the rotary embedding.
    rope: Vec<(&'static str, Key)>,
}

impl Family {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// If no architecture of llama.cpp computes what it does.
    pub(crate) fn of(config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Self> {
        let model_type = model_type(config)?;
        let architecture = architecture(model_type)?;
        let dims = Registry::builtin()?.architecture(model_type)?.parse(config, has_tensor)?;
        computes_alike(architecture.id, &dims)?;
        let (mut rope, mut factors) = (Vec::new(), None);
        if let Some(embedding) = &dims.rope {
            (rope, factors) = rotary(embedding)?;
        }
        if factors.is_some() && architecture.id != "llama" {
            let what = format!("llama.cpp has no place for factors of rotary frequencies in `{}`", architecture.id);
            return Err(unsupported(&what, "use `--format compressed-tensors` or `qfw`"));
        }
        Ok(Self { architecture, dims, factors, rope })
    }

    /// The name and layout of a tensor in the file; `None` for buffers.
    ///
    /// # Errors
    /// If the architecture has no such tensor.
    pub(crate) fn place(&self, tensor: &str) -> Result<Option<(String, Layout)>> {
        let canonical = if self.architecture.id == "gpt2" { "" } else { "model." };
        let name = match tensor.strip_prefix(&self.dims.prefix) {
            Some(rest) if !tensor.starts_with("lm_head.") => format!("{canonical}{rest}"),
            _ => tensor.to_owned(),
        };
        if let Some(place) = self.architecture.place(&name) {
            return Ok(Some(place));
        }
        if BUFFERS.iter().any(|b| tensor.ends_with(b)) {
            return Ok(None);
        }
        let what = format!("`{tensor}` has no place in a `{}` file of llama.cpp", self.architecture.id);
        Err(unsupported(&what, "remove the tensor if the model does not read it, or use `--format qfw`"))
    }

    /// The keys that describe the model, in the order of llama.cpp's converter.
    pub(crate) fn keys(&self) -> Vec<(String, Key)> {
        let (a, d) = (self.architecture.id, &self.dims);
        let uint = |n: usize| Key::Uint(n as u64);
        let mut keys = vec![
            ("block_count", uint(d.blocks)),
            ("context_length", uint(d.max_positions)),
            ("embedding_length", uint(d.hidden)),
            ("feed_forward_length", uint(d.ffn)),
            ("attention.head_count", uint(d.heads)),
        ];
        let epsilon = Key::F32(d.norm_eps as f32);
        if a == "gpt2" {
            keys.push(("attention.layer_norm_epsilon", epsilon));
        } else {
            keys.push(("attention.head_count_kv", uint(d.kv_heads)));
            keys.extend(self.rope.iter().cloned());
            keys.push(("attention.layer_norm_rms_epsilon", epsilon));
            keys.push(("attention.key_length", uint(d.head_dim)));
            keys.push(("attention.value_length", uint(d.head_dim)));
            keys.push(("vocab_size", uint(d.vocab)));
            keys.push(("rope.dimension_count", uint(d.head_dim)));
        }
        keys.into_iter().map(|(key, value)| (format!("{a}.{key}"), value)).collect()
    }
}

/// Refuses what the graphs of llama.cpp compute otherwise.
fn computes_alike(id: &str, d: &Dims) -> Result<()> {
    let float = "use `--format compressed-tensors` or `qfw`";
    let activation = if id == "gpt2" { Activation::GeluTanh } else { Activation::Silu };
    if d.activation != activation {
        let what = format!("`{id}` of llama.cpp has another activation than the `{:?}` of this model", d.activation);
        return Err(unsupported(&what, float));
    }
    if let Some(window) = d.windows.iter().flatten().find(|w| **w < d.max_positions) {
        let what = format!("`{id}` of llama.cpp has no sliding windows, and this model sees {window} of {} positions", d.max_positions);
        return Err(unsupported(
            &what,
            "set `sliding_window` in config.json to null, if texts are to be shorter than that; or use `--format qfw`",
        ));
    }
    let usual = (d.head_dim as f64).powf(-0.5);
    if d.score_scale.iter().any(|s| (s / usual - 1.0).abs() > 1e-6) {
        return Err(unsupported(&format!("`{id}` of llama.cpp divides attention scores by √{} in every block", d.head_dim), float));
    }
    if d.rope.is_some() && !d.head_dim.is_multiple_of(2) {
        return Err(unsupported(&format!("`{id}` of llama.cpp rotates pairs of channels, and heads have {} here", d.head_dim), float));
    }
    if id.starts_with("qwen") && (d.o_bias || d.mlp_bias) {
        return Err(unsupported(&format!("`{id}` of llama.cpp has no bias in its output and feed-forward layers"), float));
    }
    if id == "qwen2" && d.heads * d.head_dim != d.hidden {
        let what = format!("`qwen2` of llama.cpp has heads of {} channels, and this model has {}", d.hidden / d.heads.max(1), d.head_dim);
        return Err(unsupported(&what, float));
    }
    Ok(())
}

/// The keys and factors of a rotary embedding.
type Rotary = (Vec<(&'static str, Key)>, Option<Vec<f32>>);

/// What llama.cpp is told of a rotary embedding.
fn rotary(rope: &Rope) -> Result<Rotary> {
    let float = |x: f64| Key::F32(x as f32);
    let mut keys = vec![("rope.freq_base", float(rope.base()))];
    let mut stretched = |kind: &str, factor: f64| {
        keys.push(("rope.scaling.type", Key::Text(kind.to_owned())));
        keys.push(("rope.scaling.factor", float(factor)));
    };
    match rope.stretch() {
        Stretch::Plain => {}
        Stretch::Linear(factor) => stretched("linear", *factor),
        Stretch::Divided => return Ok((keys, Some(rope.divisors().into_iter().map(|d| d as f32).collect()))),
        Stretch::Yarn(yarn) if !yarn.usual => {
            let what = "llama.cpp's YaRN has no `truncate = false`, `mscale` or `mscale_all_dim`";
            return Err(unsupported(what, "use `--format compressed-tensors` or `qfw`"));
        }
        Stretch::Yarn(yarn) => {
            stretched("yarn", yarn.factor);
            keys.push(("rope.scaling.original_context_length", Key::Uint(yarn.trained as u64)));
            // llama.cpp multiplies its factor with YaRN's own, 0.1 ln s + 1; the configuration states the product.
            let attention = yarn.attention.map(|a| a / (0.1 * yarn.factor.ln() + 1.0));
            for (key, stated) in [
                ("rope.scaling.attn_factor", attention),
                ("rope.scaling.yarn_beta_fast", yarn.fast),
                ("rope.scaling.yarn_beta_slow", yarn.slow),
            ] {
                keys.extend(stated.map(|x| (key, float(x))));
            }
        }
        Stretch::Other(kind) => {
            let what = format!("llama.cpp has no rope scaling `{kind}` in these architectures");
            return Err(unsupported(&what, "use `--format compressed-tensors` or `qfw`"));
        }
    }
    Ok((keys, None))
}
