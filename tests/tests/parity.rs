//! Every fixture model gives the logits that transformers stored for it, and what no forward pass here computes is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::fs;
use std::path::{Path, PathBuf};

use qfw_core::checkpoint::open_tensors;
use qfw_core::error::Result;
use qfw_core::evaluate;
use qfw_core::model::{Flow, Nothing, Span};
use qfw_core::registry::Registry;
use qfw_tests::parity::{TOLERANCE, distance, ids, open, values};
use serde_json::{Value, json};

const EXPECTED: &str = "expected.safetensors";

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    cases
}

/// The case as a hub would serve it: without the expected values, which a reader of directories would take for a shard.
fn served(case: &Path, to: &Path) {
    for entry in fs::read_dir(case).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name != EXPECTED {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// Distances of the logits and of the output of block 0.
fn compare(case: &Path) -> Result<(f32, f32)> {
    let dir = tempfile::tempdir().unwrap();
    served(case, dir.path());
    let model = open(dir.path())?;
    let expected = open_tensors(&case.join(EXPECTED))?;
    let (mut logits, mut hidden) = (Vec::new(), Vec::new());
    for ids in ids(&*expected)? {
        logits.extend(evaluate::logits(&model, &ids)?.flatten_all()?.to_vec1::<f32>()?);
        let x = model.edges()?.embed(&ids, 0, &mut Nothing)?.x;
        let block = model.block(0, &model.load_block(0)?)?;
        hidden.extend(block.run(Span::BLOCK, Flow::new(x), &mut Nothing)?.x.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok((distance(&logits, &values(&*expected, "logits")?), distance(&hidden, &values(&*expected, "hidden_block0")?)))
}

#[test]
fn logits_equal_those_of_transformers() {
    let cases = cases();
    assert_eq!(cases.len(), 66, "cases came or went: adapt this number and the README beside them");
    let mut failed = Vec::new();
    let mut worst = (0.0f32, String::new());
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy();
        match compare(case) {
            Ok((logits, _)) if logits <= TOLERANCE => {
                if logits > worst.0 {
                    worst = (logits, name.into_owned());
                }
            }
            Ok((logits, block0)) => failed.push(format!("{name:<36} {logits:>10.2e} {block0:>10.2e}")),
            Err(e) => failed.push(format!("{name:<36} {e}")),
        }
    }
    let table = failed.join("\n");
    assert!(
        failed.is_empty(),
        "{} of {} cases fail\n{:<36} {:>10} {:>10}\n{table}",
        failed.len(),
        cases.len(),
        "case",
        "logits",
        "block 0"
    );
    println!("largest distance: {:.2e} ({})", worst.0, worst.1);
}

fn parse(model_type: &str, changes: Value) -> Result<qfw_core::model::Dims> {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    Registry::builtin()?.architecture(model_type)?.parse(&config, &|_| true)
}

#[test]
fn what_this_forward_pass_does_not_do_is_refused_by_name() {
    let longrope = |short: Value| json!({"rope_scaling": {"rope_type": "longrope", "short_factor": short, "long_factor": [1, 1, 1, 1]}});
    for (model_type, changes, expected) in [
        (
            "llama",
            json!({"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            "`partial_rotary_factor` (0.5) beside rope scaling `linear`: this architecture rotates whole heads",
        ),
        ("llama", json!({"rope_scaling": {"type": "su", "factor": 2.0}}), "unknown rope scaling `su`"),
        ("llama", json!({"rope_scaling": {"type": "linear", "factor": 0}}), "`rope_scaling.factor` in config.json should be above zero"),
        ("llama", longrope(json!([1, 2])), "`short_factor` of the rope scaling in config.json has 2 numbers, but a head has 4 frequencies"),
        ("llama", longrope(json!([1, 2, 0, 1])), "`rope_scaling.short_factor` in config.json should be above zero"),
        (
            "llama",
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "`rope_parameters.full_attention` in config.json is `{\"rope_type\":\"default\"}`: rotary parameters for each kind of layer are \
             not supported",
        ),
        (
            "mistral",
            json!({"layer_types": ["full_attention", "full_attention"]}),
            "`layer_types` in config.json is `[\"full_attention\",\"full_attention\"]`: in a Mistral model every block slides, or none; \
             models that mix them have another model_type",
        ),
        (
            "qwen3",
            json!({"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": false, "sliding_window": 8}),
            "`layer_types` in config.json has sliding layers, but there is no sliding window",
        ),
        (
            "opt",
            json!({"do_layer_norm_before": false, "word_embed_proj_dim": 16}),
            "`do_layer_norm_before` in config.json is `false`: norms behind attention and the feed-forward layer, as in OPT-350m, are not \
             supported",
        ),
        (
            "opt",
            json!({"word_embed_proj_dim": 16}),
            "`word_embed_proj_dim` (16) in config.json is not `hidden_size` (32): embeddings with projections around the blocks, as in \
             OPT-350m, are not supported",
        ),
        (
            "opt",
            json!({"layer_norm_elementwise_affine": false}),
            "`layer_norm_elementwise_affine` in config.json is `false`: norms without weights and biases are not supported",
        ),
        (
            "opt",
            json!({"_remove_final_layer_norm": true}),
            "`_remove_final_layer_norm` in config.json is `true`: a head without a norm before it is not supported",
        ),
    ] {
        let error = parse(model_type, changes).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

/// The defaults are those of transformers' configuration classes, which differ between families.
#[test]
fn absent_keys_mean_what_they_mean_in_transformers() {
    let windows = |model_type, changes| parse(model_type, changes).unwrap().windows;
    assert_eq!(windows("mistral", json!({})), [Some(4096); 2]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 2]);
    assert_eq!(windows("qwen2", json!({"sliding_window": 8})), [None; 2]);
    assert_eq!(windows("qwen2", json!({"use_sliding_window": true, "max_window_layers": 1})), [None, Some(4096)]);
    assert_eq!(parse("qwen3", json!({"head_dim": null})).unwrap().head_dim, 128);

    let kv_heads = |model_type: &str, mention: bool| {
        let mut config = json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64,
            "num_attention_heads": 64
        });
        if mention {
            config["num_key_value_heads"] = Value::Null;
        }
        Registry::builtin().unwrap().architecture(model_type).unwrap().parse(&config, &|_| true).unwrap().kv_heads
    };
    for (model_type, absent) in [("llama", 64), ("mistral", 8), ("qwen2", 32), ("qwen3", 32)] {
        assert_eq!((kv_heads(model_type, false), kv_heads(model_type, true)), (absent, 64), "{model_type}");
    }
}
