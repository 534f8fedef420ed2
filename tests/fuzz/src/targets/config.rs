//! `config.json` of a float checkpoint.

use crate::stage::Stage;
use crate::verdict::Readers;
use crate::{Target, bases};

pub(crate) const TARGET: Target = Target { name: "config", about: "config.json of a float checkpoint", run, seeds };

thread_local!(static STATE: (Readers, Stage) = (Readers::new(), Stage::copy(bases::float().path())));

fn run(data: &[u8]) {
    STATE.with(|(readers, stage)| {
        stage.put("config.json", data);
        readers.read(stage.path());
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let with = |name: &str, more: serde_json::Value| {
        let mut config = bases::config();
        if let (Some(config), Some(more)) = (config.as_object_mut(), more.as_object()) {
            config.extend(more.clone());
        }
        (name.to_owned(), config.to_string().into_bytes())
    };
    let rope = |kind: &str| {
        serde_json::json!({ "rope_scaling": {
            "rope_type": kind, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "attention_factor": 1.0, "short_factor": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            "long_factor": [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
        } })
    };
    let mut seeds: Vec<_> = ["linear", "dynamic", "yarn", "llama3", "longrope"].map(|kind| with(kind, rope(kind))).into();
    seeds.push(with("llama", serde_json::json!({})));
    seeds.push(with("mistral", serde_json::json!({ "model_type": "mistral", "sliding_window": 16, "head_dim": 16 })));
    seeds.push(with("qwen2", serde_json::json!({ "model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 0 })));
    seeds.push(with("qwen3", serde_json::json!({ "model_type": "qwen3", "layer_types": ["full_attention"], "attention_bias": false })));
    seeds.push(with("gpt2", serde_json::json!({ "model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 64 })));
    seeds.push(with("opt", serde_json::json!({ "model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 32 })));
    seeds
}
