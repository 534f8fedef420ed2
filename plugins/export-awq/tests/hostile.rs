//! Layers that are not sound: each defect is an error that names the tensor.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use qfw_core::checkpoint::{StoredDtype, TensorDecl, open_tensors, write_small};
use qfw_export_awq::AWQ;
use serde_json::{Value, json};

type Tensor = (&'static str, StoredDtype, Vec<usize>, Vec<u8>);

/// 4 inputs in groups of 2, 8 outputs; zero points of 8.
fn sound() -> Vec<Tensor> {
    vec![
        ("m.qweight", StoredDtype::I32, vec![4, 1], 0x7531_6420u32.to_le_bytes().repeat(4)),
        ("m.qzeros", StoredDtype::I32, vec![2, 1], 0x8888_8888u32.to_le_bytes().repeat(2)),
        ("m.scales", StoredDtype::F16, vec![2, 8], half::f16::ONE.to_le_bytes().repeat(16)),
    ]
}

fn config() -> Value {
    json!({ "quant_method": "awq", "bits": 4, "group_size": 2, "zero_point": true, "version": "gemm" })
}

/// What reading the weight gives, or the message and the hint.
fn read(config: &Value, tensors: Vec<Tensor>) -> Result<Vec<f32>, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let decl = |(name, dtype, shape, bytes): Tensor| (TensorDecl { name: name.to_owned(), dtype, shape }, bytes);
    write_small(&file, tensors.into_iter().map(decl).collect()).unwrap();
    let mut out = Vec::new();
    let read = AWQ.container.read(config, &BTreeSet::new(), open_tensors(&file).unwrap());
    let rows = |t: &dyn qfw_core::checkpoint::TensorSource| t.info("m.weight").map_or(0, |i| i.shape[0]);
    match read.and_then(|t| t.read_f32("m.weight", 0..rows(&*t), &mut out)) {
        Ok(()) => Ok(out),
        Err(e) => Err(format!("{e} | {}", e.hint_text().unwrap_or("no hint"))),
    }
}

/// Each output has the code of its number: 0 to 7.
#[test]
fn the_sound_layer_is_read() {
    let expected: Vec<f32> = (0..8 * 4).map(|i| (i / 4 - 8) as f32).collect();
    assert_eq!(read(&config(), sound()).unwrap(), expected);
    // Without zero points they are 8.
    let mut symmetric = config();
    symmetric["zero_point"] = json!(false);
    let mut tensors = sound();
    tensors.remove(1);
    assert_eq!(read(&symmetric, tensors).unwrap(), expected);
    // With them, they count.
    let mut tensors = sound();
    tensors[1].3 = vec![0; 8];
    assert_eq!(read(&symmetric, tensors).unwrap(), expected.iter().map(|v| v + 8.0).collect::<Vec<_>>());
}

#[test]
fn what_is_not_sound_is_named() {
    let belong = "does `quantization_config` belong to these weights?";
    let f16 = |value: f32| half::f16::from_f32(value).to_le_bytes().repeat(16);
    let asks = "but 4 inputs in groups of 2 and 8 outputs ask for";
    type Change = (usize, StoredDtype, Vec<usize>, Vec<u8>);
    let cases: Vec<(Change, String)> = vec![
        ((0, StoredDtype::I64, vec![2, 1], vec![0; 16]), "`m.qweight` is I64 [2, 1], not I32 of two axes | no hint".to_owned()),
        ((0, StoredDtype::I32, vec![4, 0], vec![]), "`m.qweight` is I32 [4, 0], not I32 of two axes | no hint".to_owned()),
        (
            (0, StoredDtype::I32, vec![8, 1], vec![0; 32]),
            format!("`m.scales` has shape [2, 8], but 8 inputs in groups of 2 and 8 outputs ask for [4, 8] | {belong}"),
        ),
        ((1, StoredDtype::I32, vec![1, 2], vec![0; 8]), format!("`m.qzeros` has shape [1, 2], {asks} [2, 1] | {belong}")),
        ((2, StoredDtype::F16, vec![8, 2], f16(1.0)), format!("`m.scales` has shape [8, 2], {asks} [2, 8] | {belong}")),
        ((2, StoredDtype::I32, vec![2, 8], vec![0; 64]), "`m.scales` is of type I32, not F16, BF16 or F32 | no hint".to_owned()),
        ((2, StoredDtype::F16, vec![2, 8], f16(f32::INFINITY)), "`m.scales` holds inf | no hint".to_owned()),
    ];
    for ((at, dtype, shape, bytes), message) in cases {
        let mut tensors = sound();
        tensors[at] = (tensors[at].0, dtype, shape, bytes);
        assert_eq!(read(&config(), tensors), Err(message));
    }
    for (at, name) in [(1, "m.qzeros"), (2, "m.scales")] {
        let mut tensors = sound();
        tensors.remove(at);
        let message = read(&config(), tensors).unwrap_err();
        assert!(message.starts_with(&format!("the checkpoint has no tensor `{name}`")), "{message}");
    }
    let mut tensors = sound();
    tensors.remove(0);
    let message = "config.json says awq, but there is no tensor `*.qweight` | \
                   are the weights and the configuration of the same checkpoint?";
    assert_eq!(read(&config(), tensors), Err(message.to_owned()));
}

proptest! {
    // Each case writes and syncs a file.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever one tensor and the configuration are, reading gives values or an error.
    #[test]
    fn nothing_else_happens(
        which in 0usize..3,
        dtype in proptest::sample::select(vec![StoredDtype::I32, StoredDtype::F16, StoredDtype::F32, StoredDtype::I64, StoredDtype::U8]),
        shape in proptest::collection::vec(0usize..36, 0..4),
        byte in any::<u8>(),
        bits in proptest::sample::select(vec![2, 3, 4, 5, 8]),
        group in -2i64..40,
        sym in any::<bool>(),
    ) {
        let bytes = vec![byte; shape.iter().product::<usize>() * dtype.size().unwrap() as usize];
        let mut tensors = sound();
        tensors[which] = (tensors[which].0, dtype, shape, bytes);
        let config = json!({ "quant_method": "awq", "bits": bits, "group_size": group, "zero_point": sym });
        match read(&config, tensors) {
            Ok(values) => prop_assert!(values.iter().all(|v| v.is_finite())),
            Err(message) => prop_assert!(message.contains('`'), "{}", message),
        }
    }
}
