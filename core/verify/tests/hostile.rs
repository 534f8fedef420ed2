//! Damaged and hostile files are errors or findings, never panics, and never large allocations for what is not there.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

/// A safetensors file of these tensors: dtype, shape, bytes.
fn safetensors(tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (BTreeMap::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert(*name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }));
    }
    with_header(&json!(header).to_string(), &data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn gptq() -> (Value, Vec<u8>) {
    let config = json!({ "quantization_config": { "quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "gptq_v2" } });
    let index: Vec<u8> = (0..32i32).flat_map(|i| (i / 16).to_le_bytes()).collect();
    let bytes = safetensors(&[
        ("m.g_idx", "I32", vec![32], index),
        ("m.qweight", "I32", vec![4, 8], vec![0x5a; 128]),
        ("m.qzeros", "I32", vec![2, 1], vec![0x88; 8]),
        ("m.scales", "F16", vec![2, 8], [0x00, 0x3c].repeat(16)),
        ("n.weight", "F32", vec![4], vec![0; 16]),
    ]);
    (config, bytes)
}

fn gguf() -> Vec<u8> {
    gguf_with(&[])
}

/// The same with more sizes of the model.
fn gguf_with(sizes: &[(&str, u32)]) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend((3 + sizes.len() as u64).to_le_bytes());
    for (key, value) in sizes {
        text(&mut out, key);
        out.extend(4u32.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "llama.block_count");
    out.extend(4u32.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    text(&mut out, "a.list");
    out.extend(9u32.to_le_bytes());
    out.extend(6u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend([0; 8]);
    for (name, kind, offset) in [("blk.0.attn_q.weight", 2u32, 0u64), ("output_norm.weight", 0, 64)] {
        text(&mut out, name);
        out.extend(2u32.to_le_bytes());
        out.extend(32u64.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + 64 + 256, 0x3c);
    out
}

/// Checks a directory against itself, which reads everything twice.
fn check(dir: &Path, config: &Value, weights: &[u8]) -> Result<qfw_verify::Report, qfw_verify::Error> {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
    qfw_verify::verify(dir, Some(dir))
}

#[test]
fn the_sound_ones_are_sound() {
    let dir = tempfile::tempdir().unwrap();
    let (config, bytes) = gptq();
    let report = check(dir.path(), &config, &bytes).unwrap();
    assert!(report.equal && report.tensors.len() == 2 && report.codes_equal == Some(true), "{report:?}");
    let file = dir.path().join("a.gguf");
    std::fs::write(&file, gguf()).unwrap();
    let report = qfw_verify::verify(&file, Some(&file)).unwrap();
    // It is no whole model, but what is there can be read.
    assert_eq!(report.tensors.len(), 2, "{report:?}");
}

/// More heads than channels: there is no width of a head then.
#[test]
fn sizes_that_make_no_model_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.gguf");
    let sizes =
        [("llama.embedding_length", 1), ("llama.feed_forward_length", 1), ("llama.vocab_size", 1), ("llama.attention.head_count", 2)];
    std::fs::write(&file, gguf_with(&sizes)).unwrap();
    let report = qfw_verify::verify(&file, Some(&file)).unwrap();
    assert!(!report.equal && report.findings.iter().any(|f| f.code == "shape"), "{report:?}");
}

/// Numbers on one side and bytes on the other are not the same tensor, whichever side is looked at; what is wrong with the other is told.
#[test]
fn the_other_checkpoint_is_looked_at_too() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, weights) in [(&a, safetensors(&[("m", "F32", vec![4], vec![0; 16])])), (&b, safetensors(&[("m", "U8", vec![4], vec![0; 4])]))]
    {
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
    }
    for (here, there) in [(&a, &b), (&b, &a)] {
        let report = qfw_verify::verify(here.path(), Some(there.path())).unwrap();
        assert!(!report.equal, "{report:?}");
    }
    std::fs::write(b.path().join("model.safetensors"), with_header("{\"m\": 3}", &[])).unwrap();
    let report = qfw_verify::verify(a.path(), Some(b.path())).unwrap();
    assert!(report.findings.iter().any(|f| f.message.starts_with("in the other checkpoint: ")), "{report:?}");
}

/// Each by hand: what is wrong, and the word that says so.
#[test]
fn headers_that_lie_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |shape: &str, range: &str| format!("{{\"a\": {{\"dtype\": \"F32\", \"shape\": {shape}, \"data_offsets\": {range}}}}}");
    for (bytes, says) in [
        (vec![1, 2, 3], "3 bytes"),
        (with_header("{", &[]), "no JSON object"),
        (u64::MAX.to_le_bytes().to_vec(), "announces a header"),
        (with_header("[]", &[]), "no JSON object"),
        (with_header(&entry("[4]", "[0, 16]"), &[0; 12]), "truncated"),
        (with_header(&entry("[5]", "[0, 16]"), &[0; 16]), "takes 20 bytes"),
        (with_header(&entry("[4]", "[16, 0]"), &[0; 16]), "malformed"),
        (with_header(&entry("[-4]", "[0, 16]"), &[0; 16]), "malformed"),
        (with_header(&entry("[4611686018427387904, 8]", "[0, 16]"), &[0; 16]), "larger than any file"),
        (with_header(&entry("[1, 1125899906842624]", "[0, 0]").replace("F32", "FOO"), &[]), "larger than any file"),
        (with_header(&entry("[4]", "[0, 16]"), &[0; 20]), "4 bytes after its last tensor"),
        (with_header(&entry("[4]", "[4, 20]"), &[0; 20]), "belong to no tensor"),
        (
            with_header(
                &format!("{},{}", entry("[4]", "[0, 16]").trim_end_matches('}').to_owned() + "}", &entry("[4]", "[0, 16]")[1..]),
                &[0; 16],
            ),
            "announces it twice",
        ),
        (
            with_header(
                "{\"a\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": [0, 4]}, \"b\": {\"dtype\": \"U8\", \"shape\": [4], \"data_offsets\": [2, 6]}}",
                &[0; 6],
            ),
            "before the tensor before it ends",
        ),
    ] {
        let text = match check(dir.path(), &json!({}), &bytes) {
            Ok(report) => {
                assert!(!report.equal, "{says}");
                format!("{:?}", report.findings)
            }
            Err(e) => e.message,
        };
        assert!(text.contains(says), "{says}: {text}");
    }
}

/// Counts of a GGUF file that no file of its size can hold, in every place that has one.
#[test]
fn counts_of_a_gguf_header_are_bounded_by_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.gguf");
    let text = |s: &str| [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat();
    let head = |tensors: u64, keys: u64, rest: &[u8]| [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), rest].concat();
    let list = |kind: u32, n: u64| [&text("k")[..], &9u32.to_le_bytes(), &kind.to_le_bytes(), &n.to_le_bytes()].concat();
    for (bytes, says) in [
        (head(u64::MAX, 0, &[0; 64]), "announces 18446744073709551615 tensors"),
        (head(0, 1 << 40, &[0; 64]), "announces 1099511627776 keys"),
        (head(4, 0, &[0; 64]), "announces 4 tensors, and 72 bytes follow"),
        (head(0, 1, &[&(1u64 << 20).to_le_bytes()[..], &vec![b'a'; 1 << 20]].concat()), "the name at byte 24 has 1048576 bytes"),
        (head(0, 1, &list(0, 1 << 50)), "ends within the 1125899906842624 bytes"),
        (head(0, 1, &list(12, u64::MAX)), "ends within the 2^64 and more bytes"),
        (head(0, 1, &list(8, u64::MAX)), "ends within the 8 bytes"),
        (head(0, 1, &list(9, u64::MAX)), "ends within the 4 bytes"),
        (
            head(0, 1, &[list(9, 1), list(9, 1)[13..].to_vec(), [9u32.to_le_bytes(), [1, 0, 0, 0], [0; 4]].concat().repeat(4)].concat()),
            "nested too deeply",
        ),
        (head(0, 1, &list(77, 1)), "type 77, which there is not"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let error = qfw_verify::verify(&file, Some(&file)).unwrap_err();
        assert!(error.code == "verify::header" && error.message.contains(says) && error.hint.is_some(), "{says}: {error:?}");
    }
}

/// A tensor that is a part of nothing beside one that is quantized, by hand: what a reader of the format does not ask for.
#[test]
fn what_nothing_reads_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = gptq();
    let index: Vec<u8> = (0..32i32).flat_map(|i| (i / 16).to_le_bytes()).collect();
    for (stray, says) in [
        ("m.weight", "beside the codes of `m`"),
        ("m.zeros", "beside the codes of `m`"),
        ("model.n.weight", "`n.weight` and `model.n.weight` are the same"),
    ] {
        let bytes = safetensors(&[
            ("m.g_idx", "I32", vec![32], index.clone()),
            ("m.qweight", "I32", vec![4, 8], vec![0x5a; 128]),
            ("m.qzeros", "I32", vec![2, 1], vec![0x88; 8]),
            ("m.scales", "F16", vec![2, 8], [0x00, 0x3c].repeat(16)),
            (if stray.starts_with("model") { "n.weight" } else { "o.weight" }, "F32", vec![4], vec![0; 16]),
            (stray, "F32", vec![4], vec![0; 16]),
        ]);
        let report = check(dir.path(), &config, &bytes).unwrap();
        let finding = report.findings.iter().find(|f| f.code == "extra").unwrap_or_else(|| panic!("{stray}: {report:?}"));
        assert!(!report.equal && finding.message.contains(says), "{stray}: {finding:?}");
    }
}

/// A directory with a checkpoint in safetensors and another in a `.gguf` file: both are parts of it, and one has to be named.
#[test]
fn two_checkpoints_in_one_directory_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (config, bytes) = gptq();
    check(dir.path(), &config, &bytes).unwrap();
    let (file, config) = (dir.path().join("a.gguf"), dir.path().join("config.json"));
    std::fs::write(&file, gguf()).unwrap();
    assert_eq!(qfw_verify::parts(dir.path()).unwrap(), [config.clone(), file.clone()]);
    let error = qfw_verify::verify(dir.path(), Some(&file)).unwrap_err();
    assert!(error.code == "verify::several" && error.hint.unwrap().contains("a.gguf"));
    assert_eq!(qfw_verify::verify(&config, Some(&config)).unwrap().container, "gptq");
    assert_eq!(qfw_verify::verify(&file, Some(&file)).unwrap().container, "gguf");
    // A configuration alone, as some engines want one beside their file, makes no second checkpoint.
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(qfw_verify::parts(dir.path()).unwrap(), [dir.path()]);
    assert_eq!(qfw_verify::verify(dir.path(), Some(&file)).unwrap().container, "gguf");
}

/// An index that names files outside, missing files, and tensors that are elsewhere.
#[test]
fn an_index_that_lies_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let one = safetensors(&[("a", "F32", vec![1], vec![0; 4])]);
    std::fs::write(dir.path().join("other.safetensors"), &one).unwrap();
    for (map, says) in [
        (json!({ "a": "model.safetensors", "b": "gone.safetensors" }), "`gone.safetensors`, which is not there"),
        (json!({ "a": "../a.safetensors" }), "no file beside it"),
        (json!({ "a": "model.safetensors", "b": "model.safetensors" }), "does not hold it"),
        (json!({ "a": "other.safetensors", "c": "model.safetensors" }), "the index says `other.safetensors`"),
        (json!({ "a": "model.safetensors" }), "`other.safetensors` lies beside the shards"),
    ] {
        std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
        let report = check(dir.path(), &json!({}), &one).unwrap();
        let text = format!("{:?}", report.findings);
        assert!(!report.equal && text.contains(says), "{map}: {text}");
    }
    for text in ["[]", "{", "{\"weight_map\": 3}"] {
        std::fs::write(&index, text).unwrap();
        assert!(check(dir.path(), &json!({}), &one).is_err_and(|e| e.code == "verify::index"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes changed anywhere, and the end cut off.
    #[test]
    fn changed_safetensors_do_not_panic(changes in prop::collection::vec((0usize..2000, any::<u8>()), 1..8), cut in 0usize..600) {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut bytes) = gptq();
        let length = bytes.len();
        changes.iter().for_each(|(at, to)| bytes[at % length] = *to);
        bytes.truncate(length - cut.min(length));
        let _ = check(dir.path(), &config, &bytes);
    }

    /// Numbers of the header replaced by any others.
    #[test]
    fn other_numbers_in_headers_do_not_panic(which in 0usize..30, to in prop_oneof![any::<u64>(), 0u64..200]) {
        let dir = tempfile::tempdir().unwrap();
        let (config, bytes) = gptq();
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + n]).unwrap();
        let mut parts: Vec<String> = header.split_inclusive(|c: char| !c.is_ascii_digit()).map(ToOwned::to_owned).collect();
        let numbers: Vec<usize> = (0..parts.len()).filter(|i| parts[*i].starts_with(|c: char| c.is_ascii_digit())).collect();
        let at = numbers[which % numbers.len()];
        let tail: String = parts[at].chars().filter(|c| !c.is_ascii_digit()).collect();
        parts[at] = format!("{to}{tail}");
        let _ = check(dir.path(), &config, &with_header(&parts.concat(), &bytes[8 + n..]));
    }

    #[test]
    fn changed_gguf_does_not_panic(changes in prop::collection::vec((0usize..400, any::<u8>()), 1..8), cut in 0usize..400) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.gguf");
        let mut bytes = gguf();
        let length = bytes.len();
        changes.iter().for_each(|(at, to)| bytes[at % length] = *to);
        bytes.truncate(length - cut.min(length));
        std::fs::write(&file, bytes).unwrap();
        let _ = qfw_verify::verify(&file, Some(&file));
    }

    /// Configurations with any value in any place.
    #[test]
    fn other_configurations_do_not_panic(key in 0usize..14, value in prop_oneof![
        Just(Value::Null), Just(json!(-1)), Just(json!(0)), Just(json!(1e300)), Just(json!("")), Just(json!([])), Just(json!({ "a": 1 })),
        Just(json!(u64::MAX)), Just(json!([0, -1])), Just(json!({ "re:(": 1 }))
    ], method in 0usize..5) {
        let dir = tempfile::tempdir().unwrap();
        let (_, bytes) = gptq();
        let keys = ["bits", "group_size", "checkpoint_format", "dynamic", "config_groups", "ignore", "format", "modules", "activations",
            "version", "zero_point", "modules_to_not_convert", "kv_cache_scheme", "lm_head"];
        let method = ["gptq", "awq", "compressed-tensors", "qfw", "none"][method];
        let mut config = json!({ "quant_method": method, "bits": 4, "group_size": 16, "config_groups": { "g": { "targets": ["Linear"],
            "format": "pack-quantized", "weights": { "num_bits": 4 } } }, "modules": [] });
        config[keys[key]] = value.clone();
        let _ = check(dir.path(), &json!({ "quantization_config": config }), &bytes);
        config["config_groups"] = json!({ "g": { "targets": ["Linear"], "format": "pack-quantized", "weights": { "num_bits": 4 } } });
        config["config_groups"]["g"]["weights"][keys[key]] = value;
        let _ = check(dir.path(), &json!({ "quantization_config": config }), &bytes);
    }
}
