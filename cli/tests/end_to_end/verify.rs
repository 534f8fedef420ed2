//! `qfw verify`: what was written is what was meant, and one flipped bit is found and named.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Ran, apply, args, asset, qfw, tree};

pub(super) fn verify(path: &Path, more: &[&str]) -> Ran {
    qfw(&args("verify", &[&[path.display().to_string().as_str()], more].concat()))
}

/// The object that is printed whether all is well or not.
#[track_caller]
pub(super) fn report(path: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let ran = verify(path, &[&["--json"], more].concat());
    let value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", ran.stdout, ran.stderr));
    (ran.code, value)
}

/// Names in `field` of findings and of tensors that differ.
pub(super) fn named(report: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for part in report["checked"].as_array().unwrap() {
        names.extend(part["findings"].as_array().unwrap().iter().filter_map(|f| f["tensor"].as_str().map(ToOwned::to_owned)));
        let differs = |t: &&Value| t["as_recorded"] == false || t["codes_as_recorded"] == false;
        names.extend(part["tensors"].as_array().unwrap().iter().filter(differs).map(|t| t["name"].as_str().unwrap().to_owned()));
    }
    names.sort();
    names.dedup();
    names
}

/// Every container, scheme and model that can be written is verified, codes and values, with nothing left unchecked.
#[test]
fn what_is_written_is_verified() {
    let int = |format: &str, symmetric: bool, granularity: &str| {
        format!(
            "--set scheme.weights.format={format} --set scheme.weights.symmetric={symmetric} --set scheme.weights.granularity={granularity}"
        )
    };
    let float = |format: &str| format!("--set scheme.weights.format={format}");
    let kv = "--set scheme.keys.format=fp8 --set scheme.keys.granularity=head --set scheme.keys.timing=static \
              --set scheme.values.format=fp8 --set scheme.values.granularity=head --set scheme.values.timing=static";
    let head = "--set scheme.weights.granularity.group=32 --set model.tie-policy=untie --set scheme.head.format=int8 \
                --set scheme.head.granularity.group=32";
    let cases = [
        (
            "tiny-llama",
            int("int4", true, "{group=32}"),
            "qfw,compressed-tensors,gptq,gptq-v2,awq,gguf,onnx,onnx-qdq,onnx-qcdq,onnx-matmulnbits,shark",
        ),
        ("tiny-llama", int("uint4", false, "{group=32}"), "qfw,compressed-tensors,gptq-v2,awq,gguf,onnx,onnx-qdq,onnx-qcdq,shark"),
        ("tiny-llama", int("uint2", false, "{group=16}"), "qfw,onnx,onnx-qdq,onnx-qcdq,shark"),
        ("tiny-llama", int("int6", true, "\"channel\""), "qfw,onnx-matmulnbits,onnx-qcdq,shark"),
        ("tiny-llama", int("int4", false, "\"channel\""), "qfw,compressed-tensors,gptq-v2,awq,gguf"),
        ("tiny-llama", int("int8", true, "{group=64}"), "qfw,compressed-tensors,gptq,gptq-v2,gguf,shark"),
        ("tiny-llama", int("int8", false, "\"channel\""), "qfw,compressed-tensors,compressed-tensors-int8,gptq-v2,onnx,onnx-qdq,shark"),
        ("tiny-llama", int("int2", false, "{group=64}"), "qfw,compressed-tensors,gptq-v2"),
        ("tiny-llama", int("int3", true, "\"tensor\""), "qfw,gptq,gptq-v2"),
        ("tiny-llama", int("int5", true, "{group=32}"), "qfw,gguf"),
        ("tiny-llama", int("uint5", false, "{group=32}"), "qfw,gguf"),
        ("tiny-llama", int("int8", true, "{block=[64,32]}"), "qfw,gptq,gguf"),
        ("tiny-llama", float("fp8"), "qfw,compressed-tensors,onnx,onnx-qcdq,shark"),
        ("tiny-llama", float("float-ocp-e5m2"), "qfw,onnx,shark"),
        ("tiny-llama", float("fp8 --set scheme.weights.granularity.block=[128,128]"), "qfw,compressed-tensors"),
        ("tiny-llama", float("nvfp4"), "qfw,compressed-tensors,gguf"),
        ("tiny-llama", float("mxfp4"), "qfw,compressed-tensors,gguf,shark"),
        ("tiny-llama", float("nf4 --set scheme.weights.granularity.group=64"), "qfw"),
        ("tiny-llama", float("int4 --set gptq.act-order=group --set scheme.weights.granularity.group=32 --algo gptq"), "qfw,gptq,gptq-v2"),
        (
            "tiny-llama",
            float("int8 --set scheme.inputs.format=uint8 --set scheme.inputs.symmetric=false --set scheme.inputs.timing=static"),
            "qfw,compressed-tensors,onnx,onnx-qdq,onnx-qcdq",
        ),
        (
            "tiny-llama",
            float("int8 --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --set scheme.inputs.granularity=tensor"),
            "qfw,shark",
        ),
        ("tiny-llama", float(&format!("int4 {kv}")), "qfw,compressed-tensors"),
        (
            "tiny-llama",
            float("int8 --set model.dtype=float32 --set scheme.weights.granularity.group=32"),
            "qfw,compressed-tensors,gptq,gguf",
        ),
        (
            "tiny-llama",
            float(&format!("int4 {head} --set scheme.embed.format=int8 --set scheme.embed.granularity.group=32")),
            "qfw,gguf,shark",
        ),
        ("tiny-llama", float(&format!("int4 {head}")), "qfw,compressed-tensors,gptq"),
        ("tiny-llama", float("int4 --algo svdquant,rtn"), "qfw,onnx"),
        ("tiny-llama", float(&format!("int4 {head} --set scheme.embed.format=uint4 --set scheme.embed.symmetric=false")), "qfw,onnx"),
        ("tiny-llama", float(&format!("int4 {head} --set scheme.embed.format=fp8 --set scheme.embed.granularity=channel")), "qfw,onnx"),
        ("tiny-gpt2", float("int8 --set scheme.inputs.format=int8 --set scheme.inputs.timing=static"), "qfw,onnx-qdq"),
        ("tiny-gpt2", int("int4", true, "{group=32}"), "qfw,gptq,gptq-v2,gguf,onnx,onnx-qdq"),
        ("tiny-gpt2", int("uint4", false, "{group=32}"), "qfw,gptq-v2,gguf"),
        ("tiny-gpt2", int("int3", false, "{group=64}"), "qfw,gptq-v2"),
        ("tiny-gpt2", float("mxfp4"), "qfw,gguf"),
    ];
    for (model, words, formats) in cases {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let algo = if words.contains("--algo") { "" } else { "--algo rtn" };
        apply(model, &out, &format!("{algo} {words} --format {formats}"));
        let (code, found) = report(&out, &[]);
        let parts = found["checked"].as_array().unwrap();
        for part in parts {
            let what = format!("{model} {words}: {}", part["path"]);
            assert_eq!(part["findings"], serde_json::json!([]), "{what}");
            assert_eq!(part["unchecked"], serde_json::json!([]), "{what}");
            for tensor in part["tensors"].as_array().unwrap() {
                assert_eq!(tensor["as_recorded"], true, "{what}: {tensor}");
                assert!(tensor["codes_as_recorded"] == true || tensor["quantized"] == false, "{what}: {tensor}");
            }
            assert_eq!(part["codes_equal"], true, "{what}");
            assert_eq!(part["known_architecture"], true, "{what}");
        }
        assert_eq!((code, &found["equal"]), (Some(0), &Value::Bool(true)), "{model} {words}: {found}");
        assert_eq!(parts.len(), formats.split(',').count(), "{model} {words}");
        // The same codes in all of them.
        for format in formats.split(',').filter(|_| formats.contains(',')) {
            let (_, found) = report(&out.join(format), &["--against", &out.join("qfw").display().to_string()]);
            assert_eq!(found["codes_equal"], true, "{model} {words}: {format}");
        }
    }
}

/// The stored bytes of a tensor: file, and where in it.
pub(super) fn bytes_of(dir: &Path, tensor: &str) -> (PathBuf, usize, usize) {
    let file = dir.join("model.safetensors");
    let all = std::fs::read(&file).unwrap();
    let n = u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&all[8..8 + n]).unwrap();
    let at = |i: usize| header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    (file, 8 + n + at(0), at(1) - at(0))
}

/// Flips bits of one byte.
pub(super) fn flip(file: &Path, at: usize, bits: u8) {
    let mut all = std::fs::read(file).unwrap();
    all[at] ^= bits;
    std::fs::write(file, all).unwrap();
}

/// In each container a nibble and a scale are changed, and found; put back, nothing is found.
#[test]
fn one_flipped_nibble_and_one_flipped_bit_of_a_scale_are_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format qfw,compressed-tensors,gptq,gptq-v2,awq");
    let module = "model.layers.3.mlp.down_proj";
    for (format, codes, scale) in [
        ("qfw", "codes", "scale"),
        ("compressed-tensors", "weight_packed", "weight_scale"),
        ("gptq", "qweight", "scales"),
        ("gptq-v2", "qweight", "scales"),
        ("awq", "qweight", "scales"),
    ] {
        for (suffix, bits, codes_equal) in [(codes, 0x10, false), (scale, 0x01, true)] {
            let part = out.join(format);
            let (file, start, length) = bytes_of(&part, &format!("{module}.{suffix}"));
            flip(&file, start + length / 2 / 4 * 4, bits);
            let (code, found) = report(&part, &[]);
            let what = format!("{format} {suffix}");
            assert_eq!(code, Some(1), "{what}");
            assert_eq!(named(&found), [format!("{module}.weight")], "{what}");
            assert_eq!(found["codes_equal"], codes_equal, "{what}");
            let text = verify(&part, &[]);
            let says = if codes_equal { "and other scales" } else { "has other codes" };
            assert!(text.stdout.contains(&format!("`{module}.weight`")) && text.stdout.contains(says), "{what}: {}", text.stdout);
            assert!(text.stderr.contains("error[qfw::verify::differs]"), "{what}: {}", text.stderr);
            // With the original at hand, where and by how much.
            let (_, found) = report(&part, &["--against", &out.join("qfw").display().to_string()]);
            if format != "qfw" {
                let tensors = found["checked"][0]["tensors"].as_array().unwrap();
                let differ: Vec<&Value> = tensors.iter().filter(|t| t["against"]["differing"].as_u64() > Some(0)).collect();
                assert_eq!(differ.len(), 1, "{what}: {differ:?}");
                let against = &differ[0]["against"];
                assert!(against["codes_equal"] == codes_equal && against["largest"].as_f64() > Some(0.0), "{what}: {against}");
                assert!(codes_equal || against["differing"] == 1, "{what}: {against}");
                assert_ne!(against["first"]["here"], against["first"]["there"], "{what}: {against}");
            }
            flip(&file, start + length / 2 / 4 * 4, bits);
            assert_eq!(report(&part, &[]).0, Some(0), "{what}");
        }
    }
}

/// The same in GGUF, whose blocks hold both, with queries, whose rows are in another order.
#[test]
fn one_flipped_bit_of_a_gguf_file_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format gguf --keep-native");
    let file = out.join("model.gguf");
    let sound = std::fs::read(&file).unwrap();
    let mut found = Vec::new();
    // From the back: the last tensors are the last block's.
    for at in [sound.len() - 7000, sound.len() - 90_000, sound.len() / 2] {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&file, bytes).unwrap();
        let (code, report) = report(&out, &[]);
        let names = named(&report);
        assert_eq!((code, names.len()), (Some(1), 1), "{at}: {report}");
        found.extend(names);
    }
    found.dedup();
    assert_eq!(found.len(), 3, "{found:?}");
    std::fs::write(&file, &sound[..sound.len() - 4000]).unwrap();
    let (code, cut) = report(&out, &[]);
    assert_eq!((code, cut["checked"][0]["findings"][0]["code"].as_str()), (Some(1), Some("truncated")), "{cut}");
    assert!(named(&cut).iter().all(|n| n.starts_with("model.")), "{cut}");
}

/// A shard that is cut, two tensors that have changed places, a shard too few, one too many, a wrong index.
#[test]
fn shards_that_are_not_whole_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words = "--algo rtn --set scheme.weights.granularity.group=32 --format gptq --set output.max-shard=200kB";
    apply("tiny-llama", &out, words);
    assert_eq!(report(&out, &[]).0, Some(0));
    let sound = tree(&out);
    let shards: Vec<PathBuf> = sound.keys().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).map(|p| out.join(p)).collect();
    assert!(shards.len() > 3, "{shards:?}");
    let restore = || sound.iter().for_each(|(name, bytes)| std::fs::write(out.join(name), bytes).unwrap());
    let findings = |code: &str| {
        let (exit, found) = report(&out, &[]);
        assert_eq!(exit, Some(1), "{code}: {found}");
        let findings = found["checked"][0]["findings"].as_array().unwrap().clone();
        assert!(findings.iter().any(|f| f["code"] == code), "{code}: {findings:?}");
        findings
    };

    let cut = std::fs::read(&shards[1]).unwrap();
    std::fs::write(&shards[1], &cut[..cut.len() - 1000]).unwrap();
    let shown = shards[1].file_name().unwrap().to_str().unwrap();
    let found = findings("truncated");
    assert!(found.iter().all(|f| f["code"] != "missing"), "what is cut is not missing too: {found:?}");
    assert!(found.iter().any(|f| f["message"].as_str().unwrap().contains(shown) && f["tensor"].is_string()), "{found:?}");
    restore();

    std::fs::remove_file(&shards[2]).unwrap();
    findings("index");
    restore();
    std::fs::copy(&shards[0], out.join("model-extra.safetensors")).unwrap();
    findings("index");
    std::fs::remove_file(out.join("model-extra.safetensors")).unwrap();

    std::fs::write(out.join("tokenizer.json"), "{}").unwrap();
    assert!(findings("side-file")[0]["message"].as_str().unwrap().contains("`tokenizer.json`"));
    restore();

    let index = out.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replacen("model.norm.weight", "model.nrom.weight", 1)).unwrap();
    findings("index");
    restore();
    assert_eq!(report(&out, &[]).0, Some(0));
}

/// Two tensors of one shape in each other's place: both are named.
#[test]
fn tensors_that_changed_places_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --format compressed-tensors");
    let file = out.join("model.safetensors");
    let all = std::fs::read(&file).unwrap();
    let n = u64::from_le_bytes(all[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&all[8..8 + n]).unwrap();
    let (k, v) = ("model.layers.2.self_attn.k_proj.weight_packed", "model.layers.2.self_attn.v_proj.weight_packed");
    let swapped = header.replace(k, "KKK").replace(v, k).replace("KKK", v);
    assert_ne!(header, swapped);
    std::fs::write(&file, [&all[..8], swapped.as_bytes(), &all[8 + n..]].concat()).unwrap();
    let (code, found) = report(&out, &[]);
    assert_eq!(code, Some(1));
    assert_eq!(named(&found), [k, v].map(|m| m.replace("weight_packed", "weight")));
}

/// What the configuration says has to be what is there.
#[test]
fn a_configuration_that_says_something_else_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply(
        "tiny-llama",
        &out,
        "--algo rtn --set scheme.weights.granularity.group=32 --set scheme.skip=['head','embed','mlp.down'] --format compressed-tensors,gptq,awq",
    );
    for (format, key, value, says) in [
        ("compressed-tensors", "ignore", serde_json::json!([]), "`ignore` does not say so"),
        ("compressed-tensors", "ignore", serde_json::json!(["lm_head", "re:.*down_proj", "re:.*k_proj"]), "`ignore` says that it is not"),
        ("compressed-tensors", "config_groups", serde_json::json!({}), "no entry of `config_groups` targets it"),
        ("gptq", "dynamic", serde_json::json!({}), "no pattern of `dynamic` says that it is kept"),
        ("gptq", "group_size", serde_json::json!(64), "groups of 64"),
        ("gptq", "bits", serde_json::json!(8), "belongs"),
        ("awq", "modules_to_not_convert", serde_json::json!([]), "`modules_to_not_convert` does not say so"),
        ("awq", "group_size", serde_json::json!(128), "groups of 128"),
    ] {
        let file = out.join(format).join("config.json");
        let sound = std::fs::read(&file).unwrap();
        let mut config: Value = serde_json::from_slice(&sound).unwrap();
        config["quantization_config"][key] = value;
        std::fs::write(&file, config.to_string()).unwrap();
        let (code, found) = report(&out.join(format), &[]);
        let findings = found["checked"][0]["findings"].as_array().unwrap();
        let has = |text: &str| findings.iter().any(|f| f["message"].as_str().unwrap().contains(text));
        assert!(code == Some(1) && has(says) && has("`config.json` is not what the run wrote"), "{format} {key}: {findings:?}");
        std::fs::write(&file, sound).unwrap();
        assert_eq!(report(&out.join(format), &[]).0, Some(0), "{format}");
    }
}

/// Numbers that are none are found even where nobody recorded anything, and without anything to compare with there is nothing to do.
#[test]
fn directories_without_a_record_are_compared_with_another() {
    let dir = tempfile::tempdir().unwrap();
    let (out, other) = (dir.path().join("out"), dir.path().join("other"));
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format gptq");
    std::fs::create_dir(&other).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(out.join(name), other.join(name)).unwrap();
    }
    let alone = verify(&other, &[]);
    assert_eq!(alone.code, Some(2), "{}", alone.stderr);
    assert!(alone.stderr.contains("--against MODEL"), "{}", alone.stderr);
    let against = out.display().to_string();
    let (code, found) = report(&other, &["--against", &against]);
    assert_eq!((code, &found["codes_equal"], &found["checked"][0]["record"]), (Some(0), &Value::Bool(true), &Value::Null), "{found}");

    let (file, start, length) = bytes_of(&other, "model.layers.0.self_attn.q_proj.scales");
    // Every bit of the exponent: infinity, or no number.
    let at = start + length / 2 / 2 * 2 + 1;
    flip(&file, at, 0x7c & !std::fs::read(&file).unwrap()[at]);
    let (code, found) = report(&other, &["--against", &against]);
    assert_eq!(code, Some(1));
    assert!(found["checked"][0]["findings"].to_string().contains("not-finite"), "{found}");

    // The float model: every quantized tensor differs, and the others do not.
    let (code, found) = report(&out, &["--against", &asset("tiny-llama")]);
    assert_eq!((code, &found["codes_equal"]), (Some(1), &Value::Bool(true)), "{found}");
    for tensor in found["checked"][0]["tensors"].as_array().unwrap() {
        assert_eq!(tensor["against"]["differing"].as_u64() > Some(0), tensor["quantized"] == true, "{tensor}");
        assert_eq!(tensor["against"]["codes_equal"], Value::Null, "{tensor}");
    }
}
