//! Layers that GPTQModel, AutoRound and llm-compressor packed, with the weights that those tools themselves read from them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/containers")
}

fn checkpoint(dir: &Path, config: &Value, weights: &[u8]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("model.safetensors"), weights).unwrap();
}

/// The weight that the tool reads is the weight that is read here, to the last bit, and another one is not.
#[test]
fn layers_of_other_tools_are_decoded_as_they_decode_them() {
    let table: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    let mut seen = Vec::new();
    for (name, config) in table.as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(fixtures().join(format!("{name}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (packed, float) = (dir.path().join("packed"), dir.path().join("float"));
        checkpoint(&packed, &json!({ "quantization_config": config }), &bytes);
        let expected = tensors.tensor("expected").unwrap();
        let write = |data: &[u8]| {
            let weight = TensorView::new(expected.dtype(), expected.shape().to_vec(), data).unwrap();
            let all = HashMap::from([("m.weight", weight), ("expected", expected.clone()), ("m.bias", tensors.tensor("m.bias").unwrap())]);
            checkpoint(&float, &json!({}), &safetensors::serialize(&all, None).unwrap());
        };
        write(expected.data());
        let report = qfw_verify::verify(&packed, Some(&float)).unwrap();
        assert!(report.equal, "{name}: {:?} {:?}", report.findings, report.tensors);
        let weight = report.tensors.iter().find(|t| t.name == "m.weight").unwrap();
        assert!(weight.quantized && weight.shape == [32, 64], "{name}");

        // The sign of the first value from [3, 5] on that has one.
        let mut other = expected.data().to_vec();
        let at = (3 * 64 + 5..).find(|i| other[4 * i..4 * i + 4] != [0; 4]).unwrap();
        other[4 * at + 3] ^= 0x80;
        write(&other);
        let report = qfw_verify::verify(&packed, Some(&float)).unwrap();
        let weight = report.tensors.iter().find(|t| t.differs()).unwrap();
        let against = weight.against.as_ref().unwrap();
        let first = against.first.as_ref().unwrap();
        assert_eq!((weight.name.as_str(), 64 * first.row + first.column, against.differing), ("m.weight", at, 1), "{name}");
        assert_eq!(first.here, -first.there, "{name}");
        seen.push(name.clone());
    }
    assert_eq!(seen.len(), 26, "{seen:?}");
}

/// The blocks of llama.cpp that are written here give the values that its library reads from them, and another sign is found.
#[test]
fn blocks_of_llama_cpp_are_decoded_as_it_decodes_them() {
    let bytes = std::fs::read(fixtures().join("ggml-expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (packed, float) = (dir.path().join("packed"), dir.path().join("float"));
    std::fs::create_dir_all(&packed).unwrap();
    std::fs::copy(fixtures().join("ggml-blocks.gguf"), packed.join("model.gguf")).unwrap();
    let ones: Vec<u8> = std::iter::repeat_n(1f32.to_le_bytes(), 2 * 512).flatten().collect();
    let types = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4"];
    let write = |other: Option<usize>| {
        let each = types.iter().enumerate().map(|(i, kind)| {
            let mut data = expected.tensor(kind).unwrap().data().to_vec();
            if other == Some(i) {
                let at = (100..).find(|i| data[4 * i..4 * i + 4] != [0; 4]).unwrap();
                data[4 * at + 3] ^= 0x80;
            }
            (format!("blk.{i}.ffn_up.weight"), data)
        });
        let each: Vec<(String, Vec<u8>)> = each.collect();
        let mut all: HashMap<&str, TensorView<'_>> = each
            .iter()
            .map(|(name, data)| (name.as_str(), TensorView::new(safetensors::Dtype::F32, vec![4, 512], data).unwrap()))
            .collect();
        all.insert("token_embd.weight", TensorView::new(safetensors::Dtype::F32, vec![2, 512], &ones).unwrap());
        checkpoint(&float, &json!({}), &safetensors::serialize(&all, None).unwrap());
    };
    write(None);
    let report = qfw_verify::verify(&packed, Some(&float)).unwrap();
    assert!(report.equal, "{:?} {:?}", report.findings, report.tensors);
    assert_eq!(report.tensors.iter().filter(|t| t.quantized).count(), types.len());
    for (i, kind) in types.iter().enumerate() {
        write(Some(i));
        let report = qfw_verify::verify(&packed, Some(&float)).unwrap();
        let differing: Vec<&str> = report.tensors.iter().filter(|t| t.differs()).map(|t| t.name.as_str()).collect();
        assert_eq!(differing, [format!("blk.{i}.ffn_up.weight")], "{kind}");
    }
}

/// Older tools state the quantization in a file beside `config.json`, under keys of their own and without a method.
#[test]
fn configurations_in_a_file_of_their_own_are_read() {
    for (name, file, keys) in [
        ("gptq-4-bit", "quantize_config.json", json!({ "bits": 4, "group_size": 16, "desc_act": false, "sym": true })),
        ("awq", "quant_config.json", json!({ "zero_point": true, "q_group_size": 16, "w_bit": 4, "version": "GEMM" })),
    ] {
        let table: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
        let bytes = std::fs::read(fixtures().join(format!("{name}.safetensors"))).unwrap();
        let (new, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        checkpoint(new.path(), &json!({ "quantization_config": table[name] }), &bytes);
        checkpoint(old.path(), &json!({}), &bytes);
        std::fs::write(old.path().join(file), keys.to_string()).unwrap();
        let report = qfw_verify::verify(old.path(), Some(new.path())).unwrap();
        assert!(report.equal && report.codes_equal == Some(true), "{name}: {:?}", report.findings);
        assert!(report.tensors.iter().any(|t| t.quantized && t.name == "m.weight"), "{name}");
    }
}

/// What a group index and a zero point say that is not so, is found.
#[test]
fn what_does_not_fit_its_configuration_is_named() {
    let table: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    for (name, key, value, says) in [
        ("gptq-4-bit", "bits", json!(8), "fill no whole words|belongs"),
        ("gptq-4-bit", "group_size", json!(64), "groups of 64"),
        ("gptq-4-bit", "bits", json!(5), "5 bits"),
        ("gptq-4-bit", "checkpoint_format", json!("marlin"), "`marlin`"),
        ("gptq-4-bit", "dynamic", json!({ "-:m$": {} }), "says that it is kept"),
        ("gptq-4-bit", "dynamic", json!({ "+:(": {} }), "no regular expression"),
        ("awq", "bits", json!(8), "awq has 4"),
        ("awq", "version", json!("gemv"), "`gemv`"),
        ("awq", "group_size", json!(8), "groups of 8"),
        ("awq", "modules_to_not_convert", json!(["m"]), "says that it is kept"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = table[name].clone();
        config[key] = value.clone();
        let bytes = std::fs::read(fixtures().join(format!("{name}.safetensors"))).unwrap();
        checkpoint(dir.path(), &json!({ "quantization_config": config }), &bytes);
        let text = match qfw_verify::verify(dir.path(), Some(dir.path())) {
            Ok(report) => format!("{:?}", report.findings),
            Err(e) => e.message,
        };
        assert!(says.split('|').any(|s| text.contains(s)), "{name} {key} {value}: {text}");
    }
}
