//! `qfw verify` on what does not belong there, on what is told beside values, and on records that cannot be read.

use std::path::Path;

use serde_json::Value;

use super::verify::{bytes_of, flip, named, report};
use super::{apply, args, qfw};

/// The file with one more tensor in it, of one number.
fn add_tensor(dir: &Path, name: &str, dtype: &str) {
    let file = dir.join("model.safetensors");
    let all = std::fs::read(&file).unwrap();
    let n = u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&all[8..8 + n]).unwrap();
    let end = all.len() - 8 - n;
    header[name] = serde_json::json!({ "dtype": dtype, "shape": [1], "data_offsets": [end, end + 4] });
    let text = header.to_string();
    std::fs::write(&file, [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &all[8 + n..], &[0, 0, 0x80, 0x3f]].concat()).unwrap();
}

/// Every tensor is read for something: parts that a module does not need are named, and so is what only part of a format reads.
#[test]
fn what_nothing_reads_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format qfw,compressed-tensors");
    let module = "model.layers.1.mlp.up_proj";
    for (format, suffix, dtype) in [
        ("qfw", "zero", "F32"),
        ("qfw", "global", "F32"),
        ("compressed-tensors", "weight", "F32"),
        ("compressed-tensors", "weight_global_scale", "F32"),
        ("compressed-tensors", "input_scale", "F32"),
        ("compressed-tensors", "weight_zero_point", "I32"),
    ] {
        let part = out.join(format);
        let sound = std::fs::read(part.join("model.safetensors")).unwrap();
        let stray = format!("{module}.{suffix}");
        add_tensor(&part, &stray, dtype);
        let (code, found) = report(&part, &[]);
        let findings = found["checked"][0]["findings"].to_string();
        assert!(code == Some(1) && findings.contains(&format!("`{stray}`")), "{format} {suffix}: {findings}");
        std::fs::write(part.join("model.safetensors"), sound).unwrap();
        assert_eq!(report(&part, &[]).0, Some(0), "{format}");
    }
}

/// The native form keeps the factor of two-level scales beside scales that have it in them already: values do not tell of it.
#[test]
fn a_changed_factor_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.format=nvfp4 --format qfw");
    let module = "model.layers.1.mlp.up_proj";
    let (file, start, _) = bytes_of(&out, &format!("{module}.global"));
    // A bit of the exponent: every scale is still a multiple of it.
    flip(&file, start + 2, 0x80);
    let (code, found) = report(&out, &[]);
    assert_eq!((code, named(&found)), (Some(1), vec![format!("{module}.weight")]), "{found}");
    assert!(found["checked"][0]["findings"].to_string().contains("multiples of"), "{found}");
}

/// A record that is there and cannot be read is an error of its own, wherever it is asked for.
#[test]
fn a_damaged_record_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format gptq,awq");
    let path = out.join("qfw.json");
    let sound = std::fs::read(&path).unwrap();
    let half = String::from_utf8(sound[..sound.len() / 2].to_vec()).unwrap();
    for (text, words) in [(half.as_str(), "all"), ("[]", "all"), ("{\"plan\": 3}", "plan"), ("{\"fingerprints\": 3}", "fingerprints")] {
        std::fs::write(&path, text).unwrap();
        let part = out.join("gptq").display().to_string();
        for (command, asks) in [("verify", "fingerprints"), ("verify --target vllm", "fingerprints"), ("inspect --target vllm", "plan")] {
            let ran = qfw(&args(command, &[&part]));
            if words == "all" || words == asks {
                let all = out.display().to_string();
                for ran in [ran, qfw(&args(command, &[if asks == "plan" { &part } else { &all }]))] {
                    assert!(ran.code != Some(0) && ran.stderr.contains("qfw.json"), "{text} {command}: {:?} {}", ran.code, ran.stderr);
                    assert!(!ran.stderr.contains("has no `qfw.json`"), "{text} {command}: {}", ran.stderr);
                }
            }
        }
    }
    std::fs::write(&path, &sound[..100]).unwrap();
    let again =
        qfw(&super::apply_args("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format gptq,awq --resume"));
    assert!(again.code == Some(2) && again.stderr.contains("is damaged"), "{:?} {}", again.code, again.stderr);
}

/// Weights of one run in safetensors, and a file of another beside them: each is judged by what was recorded of it.
#[test]
fn a_gguf_file_beside_a_configuration_is_judged_too() {
    let dir = tempfile::tempdir().unwrap();
    let (out, other) = (dir.path().join("out"), dir.path().join("other"));
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format gptq");
    apply("tiny-llama", &other, "--algo rtn --set scheme.weights.granularity.group=32 --format gguf");
    std::fs::copy(other.join("model.gguf"), out.join("model.gguf")).unwrap();
    let (code, found) = report(&out, &[]);
    // Nothing is recorded of the second.
    assert_eq!((code, found["checked"].as_array().unwrap().len()), (Some(2), 1), "{found}");
    assert!(found["unreadable"].to_string().contains("model.gguf"), "{found}");
    let (code, found) = report(&out, &["--against", &other.display().to_string()]);
    let parts = found["checked"].as_array().unwrap();
    // The model is in f16, so that its scales are the same in both.
    assert_eq!((code, parts.len()), (Some(0), 2), "{found}");
    assert_eq!((&parts[1]["container"], &parts[1]["equal"]), (&"gguf".into(), &Value::Bool(true)), "{found}");
    // A configuration beside the file alone is no second checkpoint.
    std::fs::copy(out.join("config.json"), other.join("config.json")).unwrap();
    assert_eq!(report(&other, &[]).0, Some(0));
}
