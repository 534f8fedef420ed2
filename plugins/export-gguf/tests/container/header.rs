//! The keys of a file, and what has none.

use qfw_core::checkpoint::StoredDtype;
use qfw_core::checkpoint::gguf::{self, GgufFile, List, Value as Key};
use serde_json::{Value, json};

use super::models::{GPT2, LLAMA, Model, floats, gpt2, llama};

pub(super) fn model(config: Value) -> Model {
    let floats = if config["model_type"] == "gpt2" { floats(&StoredDtype::F16, &GPT2) } else { floats(&StoredDtype::F16, &LLAMA) };
    Model::new(config, floats, Vec::new())
}

fn with(mut config: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn texts(values: &[&str]) -> Key {
    Key::List(List::Text(values.iter().map(|v| (*v).to_owned()).collect()))
}

/// The keys that llama.cpp asks for, with the types it asks for.
#[test]
fn keys_are_those_of_llama_cpp() {
    let config = with(
        llama(),
        json!({ "head_dim": 16, "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16 } }),
    );
    let file = GgufFile::open(&model(config).write()).unwrap();
    let found: Vec<(&str, &Key)> = file.metadata.iter().collect();
    let (uint, text) = (Key::Uint, |t: &str| Key::Text(t.to_owned()));
    let expected = [
        ("general.architecture", text("llama")),
        ("general.file_type", uint(1)),
        ("general.quantization_version", uint(2)),
        ("general.type", text("model")),
        ("llama.attention.head_count", uint(4)),
        ("llama.attention.head_count_kv", uint(2)),
        ("llama.attention.key_length", uint(16)),
        ("llama.attention.layer_norm_rms_epsilon", Key::F32(1e-5)),
        ("llama.attention.value_length", uint(16)),
        ("llama.block_count", uint(1)),
        ("llama.context_length", uint(256)),
        ("llama.embedding_length", uint(64)),
        ("llama.feed_forward_length", uint(128)),
        ("llama.rope.dimension_count", uint(16)),
        ("llama.rope.freq_base", Key::F32(50000.0)),
        ("llama.rope.scaling.factor", Key::F32(4.0)),
        ("llama.rope.scaling.original_context_length", uint(64)),
        ("llama.rope.scaling.type", text("yarn")),
        ("llama.rope.scaling.yarn_beta_fast", Key::F32(16.0)),
        ("llama.vocab_size", uint(8)),
        ("tokenizer.ggml.add_bos_token", Key::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Key::Bool(false)),
        ("tokenizer.ggml.bos_token_id", uint(0)),
        ("tokenizer.ggml.eos_token_id", uint(1)),
        ("tokenizer.ggml.merges", texts(&["a b", "ab b"])),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.token_type", Key::List(List::Int(vec![3, 1, 1, 1, 1, 4, 5, 5]))),
        ("tokenizer.ggml.tokens", texts(&["<s>", "a", "b", "ab", "abb", "<user>", "[PAD6]", "[PAD7]"])),
    ];
    assert_eq!(found, expected.iter().map(|(k, v)| (*k, v)).collect::<Vec<_>>());
}

/// What a configuration says comes back out of the file.
#[test]
fn configurations_are_read_back() {
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.25 });
    let llama3 = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    for (more, key, expected) in [
        (json!({}), "rope_scaling", Value::Null),
        (json!({ "rope_scaling": { "type": "linear", "factor": 2.5 } }), "rope_scaling", json!({ "rope_type": "linear", "factor": 2.5 })),
        (json!({ "rope_scaling": llama3.clone() }), "rope_scaling", llama3.clone()),
        (json!({ "rope_theta": null, "rope_parameters": { "rope_theta": 7000.0, "rope_type": "default" } }), "rope_theta", json!(7000.0)),
        (json!({ "model_type": "mistral", "sliding_window": null }), "model_type", json!("llama")),
    ] {
        let config = gguf::open(&model(with(llama(), more.clone())).write()).unwrap().config;
        assert_eq!(config[key], expected, "{more}");
        for key in
            ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"]
        {
            assert_eq!(config[key], llama()[key], "{more}: {key}");
        }
    }
    let config = gguf::open(&model(with(llama(), json!({ "rope_scaling": yarn }))).write()).unwrap().config;
    assert!((config["rope_scaling"]["attention_factor"].as_f64().unwrap() - 1.25).abs() < 1e-6);
    // Of other constants than Meta's the factors are kept.
    let other = with(llama3, json!({ "original_max_position_embeddings": 64 }));
    let path = model(with(llama(), json!({ "rope_scaling": other }))).write();
    let first = gguf::open(&path).unwrap();
    let factors = first.config[gguf::ROPE_FACTORS].as_array().unwrap().clone();
    assert_eq!((factors.len(), factors[0].as_f64(), factors[7].as_f64()), (8, Some(1.0), Some(32.0)));
    let again = model(with(llama(), json!({ gguf::ROPE_FACTORS: factors }))).write();
    assert_eq!(gguf::open(&again).unwrap().config[gguf::ROPE_FACTORS], first.config[gguf::ROPE_FACTORS]);
    let config = gguf::open(&model(gpt2()).write()).unwrap().config;
    assert_eq!((&config["n_embd"], &config["n_inner"], &config["n_positions"]), (&json!(32), &json!(128), &json!(16)));
}

/// Wavelengths of d = 64, θ = 500000 and factor 32, computed with transformers' `_compute_llama3_parameters`.
#[test]
fn factors_are_those_of_llama_3() {
    let scaling = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
    let config = with(
        llama(),
        json!({ "hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1, "rope_theta": 500000.0, "rope_scaling": scaling }),
    );
    let shapes = LLAMA.map(|(name, shape)| (name, if shape == [32, 64] { &[64, 64][..] } else { shape }));
    let path = Model::new(config, floats(&StoredDtype::F16, &shapes), Vec::new()).write();
    let mut file = std::fs::File::open(&*path).unwrap();
    let content = qfw_core::candle::quantized::gguf_file::Content::read(&mut file).unwrap();
    let cpu = &qfw_core::candle::Device::Cpu;
    let factors = content.tensor(&mut file, "rope_freqs.weight", cpu).unwrap().dequantize(cpu).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!((factors[14], factors[18]), (1.0, 32.0));
    for (found, expected) in factors[15..18].iter().zip([1.65133, 3.29226, 9.66673]) {
        assert!((found / expected - 1.0_f32).abs() < 1e-5, "{found} is not {expected}");
    }
}

#[test]
fn what_llama_cpp_computes_otherwise_is_refused() {
    let float = "use `--format compressed-tensors` or `qfw`";
    let known = "known are llama, mistral, qwen2, qwen3, gpt2";
    for (config, message) in [
        (
            with(llama(), json!({ "hidden_act": "gelu" })),
            format!("`llama` of llama.cpp has another activation than the `Gelu` of this model | {float}"),
        ),
        (
            with(llama(), json!({ "model_type": "mistral", "sliding_window": 100 })),
            "`llama` of llama.cpp has no sliding windows, and this model sees 100 of 256 positions | \
             set `sliding_window` in config.json to null, if texts are to be shorter than that; or use `--format qfw`"
                .to_owned(),
        ),
        (
            with(llama(), json!({ "rope_scaling": { "rope_type": "dynamic", "factor": 2.0 } })),
            format!("llama.cpp has no rope scaling `dynamic` in these architectures | {float}"),
        ),
        (
            with(llama(), json!({ "rope_scaling": { "rope_type": "yarn", "factor": 2.0, "mscale": 1.0 } })),
            format!("llama.cpp's YaRN has no `truncate = false`, `mscale` or `mscale_all_dim` | {float}"),
        ),
        (
            with(
                llama(),
                json!({ "model_type": "qwen2", "rope_scaling": { "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 } }),
            ),
            format!("llama.cpp has no place for factors of rotary frequencies in `qwen2` | {float}"),
        ),
        (
            with(llama(), json!({ "model_type": "qwen3", "head_dim": 16, "attention_bias": true })),
            format!("`qwen3` of llama.cpp has no bias in its output and feed-forward layers | {float}"),
        ),
        (
            with(llama(), json!({ "model_type": "qwen2", "head_dim": 8 })),
            format!("`qwen2` of llama.cpp has heads of 16 channels, and this model has 8 | {float}"),
        ),
        (
            with(gpt2(), json!({ "activation_function": "relu" })),
            format!("`gpt2` of llama.cpp has another activation than the `Relu` of this model | {float}"),
        ),
        (
            with(gpt2(), json!({ "scale_attn_weights": false })),
            format!("`gpt2` of llama.cpp divides attention scores by √16 in every block | {float}"),
        ),
        (with(llama(), json!({ "model_type": "opt" })), format!("llama.cpp has no architecture for `opt` | {known}; {float}")),
        (
            with(llama(), json!({ "model_type": "mamba" })),
            format!("which architecture of llama.cpp a `mamba` model is, is not known here | {known}; {float}"),
        ),
    ] {
        assert_eq!(model(config).refusal(), message);
    }
    let mut more = LLAMA.to_vec();
    more.push(("model.layers.0.mlp.shared.weight", &[2, 32]));
    assert_eq!(
        Model::new(llama(), floats(&StoredDtype::F16, &more), Vec::new()).refusal(),
        "`model.layers.0.mlp.shared.weight` has no place in a `llama` file of llama.cpp | remove the tensor if the model does not read it, or use `--format qfw`"
    );
}

/// Spellings of what is not there: a null is no value, wherever it stands.
#[test]
fn nulls_in_a_rotary_embedding_are_not_there() {
    let linear = json!({ "rope_type": "linear", "factor": 2.0 });
    for (more, key, expected) in [
        (json!({ "rope_scaling": { "rope_theta": null, "rope_type": "linear", "factor": 2.0 } }), "rope_theta", json!(50000.0)),
        (json!({ "rope_scaling": { "rope_type": null, "type": "linear", "factor": 2.0 } }), "rope_scaling", linear),
        (json!({ "rope_scaling": { "rope_type": null } }), "rope_scaling", Value::Null),
        (json!({ "rope_theta": null, "rope_scaling": {}, "rope_parameters": { "rope_theta": 9000.0 } }), "rope_theta", json!(9000.0)),
    ] {
        let config = gguf::open(&model(with(llama(), more.clone())).write()).unwrap().config;
        assert_eq!(config[key], expected, "{more}");
    }
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": null, "attention_factor": null, "truncate": null });
    let config = gguf::open(&model(with(llama(), json!({ "original_max_position_embeddings": null, "rope_scaling": yarn }))).write())
        .unwrap()
        .config;
    assert_eq!((&config["rope_scaling"]["factor"], &config["rope_scaling"]["original_max_position_embeddings"]), (&json!(4.0), &json!(64)));
}
