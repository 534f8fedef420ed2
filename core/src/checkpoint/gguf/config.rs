//! The metadata of a GGUF file as the `config.json` of a Hugging Face checkpoint.
//!
//! Two things have no counterpart and are decided here. The data type of a model whose matrices are quantized is given as `float16`,
//! the type of the scales in it. LLaMA 3's rotary factors, which a file holds as a tensor and not as the rule that made them, become
//! `rope_scaling` of type `llama3` where Meta's constants give these very factors; other factors are listed under the private key
//! [`ROPE_FACTORS`]. Never are both there.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use super::header::GgufFile;
use super::names::Architecture;
use super::shape::Sizes;
use super::view::{GgufTensors, head_is_tied};
use crate::checkpoint::{StoredDtype, TensorSource};
use crate::error::{Error, Result};

/// Private configuration key: one factor per rotary frequency, by which the frequency is divided.
pub const ROPE_FACTORS: &str = "qfw_rope_factors";

/// The configuration of the model in `file`, whose tensors are `tensors`.
pub(super) fn config(file: &GgufFile, tensors: &GgufTensors) -> Result<Value> {
    let architecture = Architecture::of(file)?;
    let sizes = Sizes::of(file, architecture)?;
    if let Some(experts) = file.metadata.uint(&format!("{}.expert_count", architecture.id))?.filter(|n| *n > 0) {
        return Err(Error::input("gguf::config", format!("a {} model with {experts} experts is not supported", architecture.id))
            .hint("give a dense model"));
    }
    let mut config = Map::new();
    config.insert("architectures".into(), json!([architecture.class]));
    config.insert("model_type".into(), json!(architecture.id));
    if architecture.id == "gpt2" {
        gpt2(file, &sizes, &mut config)?;
    } else {
        decoder(file, architecture, &sizes, tensors, &mut config)?;
    }
    let embedding = if architecture.id == "gpt2" { "wte.weight" } else { "model.embed_tokens.weight" };
    let embedding = tensors.info(embedding).filter(|i| i.shape.len() == 2).ok_or_else(|| {
        Error::input("gguf::missing-tensor", "the matrix `token_embd.weight` is missing").hint("the file is incomplete; get it again")
    })?;
    config.insert("vocab_size".into(), json!(embedding.shape[0]));
    config.insert("tie_word_embeddings".into(), json!(head_is_tied(file)?));
    for (key, theirs) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
        if let Some(id) = file.metadata.uint(&format!("tokenizer.ggml.{key}_token_id"))? {
            config.insert(format!("{theirs}_token_id"), json!(id));
        }
    }
    config.insert("torch_dtype".into(), json!(torch_dtype(tensors)));
    config.insert("use_cache".into(), json!(true));
    Ok(Value::Object(config))
}

fn gpt2(file: &GgufFile, sizes: &Sizes, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("n_embd".into(), json!(sizes.hidden));
    config.insert("n_layer".into(), json!(sizes.blocks));
    config.insert("n_head".into(), json!(sizes.heads));
    config.insert("n_inner".into(), json!(sizes.ffn));
    config.insert("n_positions".into(), json!(sizes.context));
    config.insert("n_ctx".into(), json!(sizes.context));
    config.insert("activation_function".into(), json!("gelu_new"));
    config.insert("layer_norm_epsilon".into(), json!(norm_epsilon(file, "gpt2.attention.layer_norm_epsilon")?));
    Ok(())
}

fn decoder(
    file: &GgufFile,
    architecture: &Architecture,
    sizes: &Sizes,
    tensors: &GgufTensors,
    config: &mut Map<String, Value>,
) -> Result<()> {
    let a = architecture.id;
    config.insert("hidden_size".into(), json!(sizes.hidden));
    config.insert("intermediate_size".into(), json!(sizes.ffn));
    config.insert("num_hidden_layers".into(), json!(sizes.blocks));
    config.insert("num_attention_heads".into(), json!(sizes.heads));
    config.insert("num_key_value_heads".into(), json!(sizes.kv_heads));
    config.insert("head_dim".into(), json!(sizes.head_dim));
    config.insert("hidden_act".into(), json!("silu"));
    config.insert("max_position_embeddings".into(), json!(sizes.context));
    config.insert("rms_norm_eps".into(), json!(norm_epsilon(file, &format!("{a}.attention.layer_norm_rms_epsilon"))?));
    let theta = file.metadata.float(&format!("{a}.rope.freq_base"))?.unwrap_or(10_000.0);
    config.insert("rope_theta".into(), json!(theta));
    let rotary = file.metadata.uint(&format!("{a}.rope.dimension_count"))?.unwrap_or(sizes.head_dim);
    if rotary != sizes.head_dim {
        let message = format!("rotary positions on {rotary} of {} dimensions of a head are not supported", sizes.head_dim);
        return Err(Error::input("gguf::config", message).hint("give the Hugging Face checkpoint"));
    }
    let mut scaling = rope_scaling(file, a)?;
    if let Some(factors) = rope_factors(file, rotary)? {
        match llama3_rule(&factors, theta) {
            Some(rule) if scaling.is_null() => scaling = rule,
            _ => {
                config.insert(ROPE_FACTORS.into(), json!(factors.iter().map(|f| super::metadata::shortest(*f)).collect::<Vec<_>>()));
            }
        }
    }
    config.insert("rope_scaling".into(), scaling);
    config.insert("attention_bias".into(), json!(tensors.info("model.layers.0.self_attn.q_proj.bias").is_some()));
    if a == "llama" {
        config.insert("mlp_bias".into(), json!(tensors.info("model.layers.0.mlp.up_proj.bias").is_some()));
    }
    Ok(())
}

fn norm_epsilon(file: &GgufFile, key: &str) -> Result<f64> {
    file.metadata.float(key)?.ok_or_else(|| {
        Error::input("gguf::missing-key", format!("metadata `{key}` is missing")).hint("convert the model again with a current llama.cpp")
    })
}

/// `rope_scaling` from the metadata: null, linear or yarn.
fn rope_scaling(file: &GgufFile, a: &str) -> Result<Value> {
    let float = |key: &str| file.metadata.float(&format!("{a}.rope.{key}"));
    let kind = match file.metadata.text(&format!("{a}.rope.scaling.type"))? {
        Some(kind) => kind,
        // Files from before the key had this one instead.
        None => {
            return Ok(float("scale_linear")?.filter(|f| *f != 1.0).map_or(Value::Null, |f| json!({"rope_type": "linear", "factor": f})));
        }
    };
    let factor = float("scaling.factor")?;
    let factor_of = || {
        factor.filter(|f| *f > 0.0).ok_or_else(|| {
            Error::input("gguf::missing-key", format!("metadata `{a}.rope.scaling.factor` is missing or not positive"))
                .hint("convert the model again with a current llama.cpp")
        })
    };
    match kind {
        "none" => Ok(Value::Null),
        "linear" => Ok(json!({"rope_type": "linear", "factor": factor_of()?})),
        "yarn" => {
            let factor = factor_of()?;
            let mut yarn = Map::from_iter([("rope_type".to_owned(), json!("yarn")), ("factor".to_owned(), json!(factor))]);
            if let Some(context) = file.metadata.uint(&format!("{a}.rope.scaling.original_context_length"))? {
                yarn.insert("original_max_position_embeddings".into(), json!(context));
            }
            // llama.cpp multiplies its factor with YaRN's own 0.1 ln s + 1; Hugging Face states the product.
            if let Some(attention) = float("scaling.attn_factor")?.filter(|f| *f != 1.0) {
                yarn.insert("attention_factor".into(), json!(attention * (0.1 * factor.ln() + 1.0)));
            }
            for key in ["beta_fast", "beta_slow"] {
                if let Some(beta) = float(&format!("scaling.yarn_{key}"))? {
                    yarn.insert(key.into(), json!(beta));
                }
            }
            Ok(Value::Object(yarn))
        }
        _ => Err(Error::input("gguf::config", format!("rotary scaling of type `{kind}` is not supported; linear and yarn are"))
            .hint("give the Hugging Face checkpoint")),
    }
}

/// The factors in `rope_freqs.weight`, unless all are one.
fn rope_factors(file: &GgufFile, rotary: u64) -> Result<Option<Vec<f32>>> {
    let Some(stored) = file.tensors.get("rope_freqs.weight") else { return Ok(None) };
    if stored.format.name != "F32" || stored.shape != [usize::try_from(rotary / 2).unwrap_or(usize::MAX)] {
        let message = format!("tensor `rope_freqs.weight` is {} {:?} and should be F32 [{}]", stored.format.name, stored.shape, rotary / 2);
        return Err(Error::input("gguf::shape", message).hint("the file is damaged; get it again"));
    }
    let mut bytes = vec![0; stored.row_bytes];
    std::os::unix::fs::FileExt::read_exact_at(&file.file, &mut bytes, stored.offset).map_err(|e| Error::io(&file.path, "read", e))?;
    let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if let Some(bad) = factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
        return Err(Error::input("gguf::config", format!("tensor `rope_freqs.weight` holds {bad}; its factors have to be positive"))
            .hint("the file is damaged; get it again"));
    }
    Ok(factors.iter().any(|f| *f != 1.0).then_some(factors))
}

/// The `rope_scaling` of type llama3 that gives `factors`, if Meta's constants do. With frequency f_i = θ^(-2i/d), wavelength
/// λ_i = 2π / f_i and context c = 8192: 1 where λ < c/4, s where λ > c, and 1 / ((1 - t)/s + t) between, t = (c/λ - 1) / (4 - 1).
fn llama3_rule(factors: &[f32], theta: f64) -> Option<Value> {
    let s = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let (context, low, high) = (8192.0, 1.0, 4.0);
    let agrees = factors.iter().enumerate().all(|(i, factor)| {
        let wavelength = TAU * theta.powf(i as f64 / factors.len() as f64);
        let expected = if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            s
        } else {
            let t = (context / wavelength - low) / (high - low);
            1.0 / ((1.0 - t) / s + t)
        };
        (f64::from(*factor) - expected).abs() <= 1e-4 * expected
    });
    agrees.then(|| {
        json!({"rope_type": "llama3", "factor": s, "low_freq_factor": low, "high_freq_factor": high,
               "original_max_position_embeddings": 8192})
    })
}

/// The type of most elements of the matrices where they are floats, `float16` where they are quantized.
fn torch_dtype(tensors: &GgufTensors) -> &'static str {
    let mut counts = [(0_usize, "float16"), (0, "bfloat16"), (0, "float32")];
    for name in tensors.names() {
        if let Some(info) = tensors.info(&name).filter(|i| i.shape.len() > 1) {
            let slot = match info.dtype {
                StoredDtype::BF16 => 1,
                StoredDtype::F32 => 2,
                _ => 0,
            };
            counts[slot].0 += info.shape.iter().product::<usize>();
        }
    }
    counts.iter().max_by_key(|(count, _)| *count).map_or("float16", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors of Llama 3.2 1B (θ = 500000, d = 64, factor 32), computed with transformers' `_compute_llama3_parameters`.
    #[test]
    fn the_factors_of_llama_3_are_recognized() {
        let mut factors = [1.0_f32; 32];
        factors[15..18].copy_from_slice(&[1.65133, 3.29226, 9.66673]);
        factors[18..].fill(32.0);
        assert_eq!(llama3_rule(&factors, 500_000.0).expect("Meta's constants")["factor"], json!(32.0));
        assert_eq!(llama3_rule(&factors, 10_000.0), None);
        factors[16] = 3.3;
        assert_eq!(llama3_rule(&factors, 500_000.0), None);
    }
}
