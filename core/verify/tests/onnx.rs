//! ONNX graphs of one layer that ONNX's own library made, and the weights that onnxruntime computes with; and graphs that are damaged.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

const WEIGHT: &str = "blocks.0.attn.q.weight";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/containers")
}

/// Names of the cases.
fn cases() -> Vec<String> {
    let names = std::fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut cases: Vec<String> = names.filter_map(|n| Some(n.strip_prefix("onnx-")?.strip_suffix(".onnx")?.to_owned())).collect();
    cases.sort();
    cases
}

/// A checkpoint with one tensor of floats.
fn floats(dir: &Path, shape: &[usize], data: &[u8]) {
    let weight = TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(&HashMap::from([(WEIGHT, weight)]), None).unwrap()).unwrap();
}

/// To the last bit, and another weight is told from it.
#[test]
fn weights_are_those_that_onnxruntime_computes_with() {
    let all = std::fs::read(fixtures().join("onnx-expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&all).unwrap();
    let cases = cases();
    assert_eq!((cases.len(), expected.len()), (13, 13));
    for case in cases {
        let (weight, dir) = (expected.tensor(&case).unwrap(), tempfile::tempdir().unwrap());
        let file = fixtures().join(format!("onnx-{case}.onnx"));
        floats(dir.path(), weight.shape(), weight.data());
        let report = qfw_verify::verify(&file, Some(dir.path())).unwrap();
        assert!(report.equal && report.tensors.len() == 1, "{case}: {:?} {:?}", report.findings, report.tensors);
        let tensor = &report.tensors[0];
        assert!(tensor.quantized && tensor.name == WEIGHT && tensor.shape == [24, 64], "{case}: {tensor:?}");

        let mut other = weight.data().to_vec();
        let at = (3 * 64 + 5..).find(|i| other[4 * i..4 * i + 4] != [0; 4]).unwrap();
        other[4 * at + 3] ^= 0x80;
        floats(dir.path(), weight.shape(), &other);
        let against = qfw_verify::verify(&file, Some(dir.path())).unwrap().tensors[0].against.clone().unwrap();
        let first = against.first.unwrap();
        assert_eq!((against.differing, 64 * first.row + first.column), (1, at), "{case}");
    }
}

/// What a graph says of where its numbers are is believed as far as they are there.
#[test]
fn graphs_that_lie_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.onnx");
    let sound = std::fs::read(fixtures().join("onnx-blocks-4.onnx")).unwrap();
    let text = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        match qfw_verify::verify(&file, Some(&file)) {
            Ok(report) => format!("{} {:?}", report.equal, report.findings),
            Err(e) => format!("{} {:?}", e.message, e.hint),
        }
    };
    assert_eq!(text(&sound), "true []");
    assert!(text(&sound[..sound.len() - 9]).contains("it is no ONNX model"), "{}", text(&sound[..sound.len() - 9]));
    assert!(text(b"").contains("it has no graph"));
    let changed = |from: &[u8], to: &[u8]| {
        let at = sound.windows(from.len()).position(|w| w == from).unwrap();
        text(&[&sound[..at], to, &sound[at + from.len()..]].concat())
    };
    assert!(changed(b"MatMulNBits", b"MatMulNBitz").contains("is read by `MatMulNBitz`"));
    assert!(changed(b"block_size", b"block_sizf").contains("states no sound `block_size`"));
    // The only scales have another name than the operation reads.
    let scales = changed(b"blocks.0.attn.q.scales", b"blocks.0.attn.q.scalez");
    assert!(scales.contains("`blocks.0.attn.q.scalez`") || scales.contains("`blocks.0.attn.q.scales` is missing"), "{scales}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes changed anywhere, and the end cut off.
    #[test]
    fn changed_graphs_do_not_panic(which in 0usize..13, changes in prop::collection::vec((0usize..3000, any::<u8>()), 1..8), cut in 0usize..400) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.onnx");
        let mut bytes = std::fs::read(fixtures().join(format!("onnx-{}.onnx", cases()[which]))).unwrap();
        let length = bytes.len();
        changes.iter().for_each(|(at, to)| bytes[at % length] = *to);
        bytes.truncate(length - cut % 8 * (cut / 8));
        std::fs::write(&file, bytes).unwrap();
        let _ = qfw_verify::verify(&file, Some(&file));
    }
}
