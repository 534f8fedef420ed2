//! Small sound checkpoints, made by the project's own writers: a llama of one block, and what `apply` makes of it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use qfw_core::checkpoint::{StoredDtype, TensorDecl, write_small};
use qfw_core::harness::{Control, Mode};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::Session;
use serde_json::json;
use tempfile::TempDir;

use crate::stage::{Stage, directory};

// The linker drops crates that nobody names.
use {
    qfw_awq as _, qfw_canonicalize as _, qfw_clip as _, qfw_export_awq as _, qfw_export_compressed_tensors as _, qfw_export_gguf as _,
    qfw_export_gptq as _, qfw_export_onnx as _, qfw_export_safetensors_float as _, qfw_export_shark as _, qfw_gptq as _,
    qfw_import_fp8 as _, qfw_rtn as _, qfw_smoothquant as _, qfw_spinquant as _, qfw_svdquant as _,
};

/// Everything that is linked in.
#[allow(clippy::expect_used, reason = "the records are those of this build")]
pub(crate) fn registry() -> Registry {
    Registry::linked().expect("the linked records agree")
}

const VOCAB: usize = 32;
const HIDDEN: usize = 32;

/// `config.json` of the float model.
pub(crate) fn config() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 64, "rms_norm_eps": 0.00001, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float16",
    })
}

/// `tokenizer.json`: byte-level BPE with two merges.
pub(crate) fn tokenizer() -> serde_json::Value {
    let special = |id: u32, content: &str| json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let letters = "Ġabcdefghijklmnopqrstuvwxyz".chars().map(String::from);
    let words = ["<s>", "</s>"].map(String::from).into_iter().chain(letters).chain(["an", "Ġm", "man"].map(String::from));
    let vocab: serde_json::Map<String, serde_json::Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0, "<s>"), special(1, "</s>")], "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
        },
        "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [["a", "n"], ["Ġ", "m"]] },
    })
}

/// A float checkpoint with its tokenizer.
#[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
pub(crate) fn float() -> TempDir {
    let stage = directory();
    let put = |name: &str, text: String| std::fs::write(stage.path().join(name), text).expect("a file can be written");
    put("config.json", config().to_string());
    put("tokenizer.json", tokenizer().to_string());
    put("tokenizer_config.json", json!({ "bos_token": "<s>", "eos_token": "</s>" }).to_string());
    write_small(&stage.path().join("model.safetensors"), tensors("")).expect("the weights can be written");
    stage
}

/// The weights of the float model whose names contain `part`, in f16: a fixed wave, norms around one.
pub(crate) fn tensors(part: &str) -> Vec<(TensorDecl, Vec<u8>)> {
    let block = "model.layers.0.";
    let shapes = [
        ("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN]),
        ("lm_head".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
        (format!("{block}input_layernorm"), vec![HIDDEN]),
        (format!("{block}post_attention_layernorm"), vec![HIDDEN]),
        (format!("{block}self_attn.q_proj"), vec![64, HIDDEN]),
        (format!("{block}self_attn.k_proj"), vec![32, HIDDEN]),
        (format!("{block}self_attn.v_proj"), vec![32, HIDDEN]),
        (format!("{block}self_attn.o_proj"), vec![HIDDEN, 64]),
        (format!("{block}mlp.gate_proj"), vec![32, HIDDEN]),
        (format!("{block}mlp.up_proj"), vec![32, HIDDEN]),
        (format!("{block}mlp.down_proj"), vec![HIDDEN, 32]),
    ];
    let chosen = shapes.into_iter().enumerate().filter(|(_, (name, _))| name.contains(part));
    chosen
        .map(|(seed, (name, shape))| {
            let n: usize = shape.iter().product();
            let (middle, swing) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.3) };
            let value = |i: usize| middle + swing * ((i * 7 + seed * 13) as f32 * 0.37).sin();
            let values: Vec<f32> = (0..n).map(value).collect();
            let bytes = qfw_core::scheme::FloatKind::F16.bytes(&values);
            (TensorDecl { name: format!("{name}.weight"), dtype: StoredDtype::F16, shape }, bytes)
        })
        .collect()
}

/// Two streams of ids to calibrate on.
#[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
pub(crate) fn ids(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("ids.safetensors");
    let bytes = (0..64i32).flat_map(|i| ((i * 11) % VOCAB as i32).to_le_bytes()).collect();
    let decl = TensorDecl { name: "input_ids".to_owned(), dtype: StoredDtype::I32, shape: vec![4, 16] };
    write_small(&path, vec![(decl, bytes)]).expect("the ids can be written");
    path
}

/// What a run makes of the float model: `words` are the presets' `--set` and, before the first of them, the algorithms.
///
/// # Panics
/// If the run fails: bases are sound.
#[allow(clippy::expect_used, reason = "bases are sound")]
pub(crate) fn quantized(format: &str, algos: &[&str], sets: &[&str]) -> Stage {
    let (source, out) = (float(), directory());
    let data = ids(&out);
    let mut layers = Layers::new()
        .algo(algos)
        .set("model.path", source.path().display().to_string(), "fuzz")
        .set("calibration.source", data.display().to_string(), "fuzz")
        .set("calibration.samples", 4, "fuzz")
        .set("calibration.seq-len", 16, "fuzz")
        .set("output.format", toml::Value::Array(vec![format.into()]), "fuzz");
    for set in sets {
        layers = layers.override_set(set);
    }
    let (raw, _) = layers.finish().expect("the run of a base is sound");
    let registry = registry();
    let session = Session::open(raw, &registry, true).expect("the plan of a base is sound");
    let (never, made) = (AtomicBool::new(false), out.path().join("out"));
    session.execute(&registry, &made, Mode::Fresh, &Control::new(&|_| (), &never)).expect("a base can be made");
    Stage::copy(&made)
}
