//! Layers that are not sound: each defect is an error that names the tensor.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use qfw_core::checkpoint::{Checkpoint, StoredDtype, TensorDecl, open_tensors, write_small};
use qfw_export_gptq::GPTQ;
use serde_json::{Value, json};

type Tensor = (&'static str, StoredDtype, Vec<usize>, Vec<u8>);

fn words(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// 32 inputs in groups of 16, 8 outputs, 4 bits; zero points of 8, less one.
fn sound() -> Vec<Tensor> {
    vec![
        ("m.qweight", StoredDtype::I32, vec![4, 8], words(&[0x7654_3210; 32])),
        ("m.qzeros", StoredDtype::I32, vec![2, 1], words(&[0x7777_7777; 2])),
        ("m.scales", StoredDtype::F16, vec![2, 8], half::f16::ONE.to_le_bytes().repeat(16)),
        ("m.g_idx", StoredDtype::I32, vec![32], words(&(0..32).map(|i| i / 16).collect::<Vec<_>>())),
    ]
}

fn config() -> Value {
    json!({ "quant_method": "gptq", "bits": 4, "group_size": 16, "sym": true })
}

/// What reading the weight gives, or the message and the hint.
fn read(config: &Value, tensors: Vec<Tensor>) -> Result<Vec<f32>, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let decl = |(name, dtype, shape, bytes): Tensor| (TensorDecl { name: name.to_owned(), dtype, shape }, bytes);
    write_small(&file, tensors.into_iter().map(decl).collect()).unwrap();
    let mut out = Vec::new();
    let read = GPTQ.container.read(config, &BTreeSet::new(), open_tensors(&file).unwrap());
    let rows = |t: &dyn qfw_core::checkpoint::TensorSource| t.info("m.weight").map_or(0, |i| i.shape[0]);
    match read.and_then(|t| t.read_f32("m.weight", 0..rows(&*t), &mut out)) {
        Ok(()) => Ok(out),
        Err(e) => Err(format!("{e} | {}", e.hint_text().unwrap_or("no hint"))),
    }
}

#[test]
fn the_sound_layer_is_read() {
    let expected: Vec<f32> = (0..8 * 32).map(|i| (i % 8 - 8) as f32).collect();
    assert_eq!(read(&config(), sound()).unwrap(), expected);
    let mut without = sound();
    without.pop();
    assert_eq!(read(&config(), without).unwrap(), expected);
}

#[test]
fn what_is_not_sound_is_named() {
    let belong = "does `quantization_config` belong to these weights?";
    let f16 = |value: f32| half::f16::from_f32(value).to_le_bytes().repeat(16);
    let mut index: Vec<i32> = (0..32).map(|i| i / 16).collect();
    index[7] = 2;
    let above = words(&index);
    index[7] = -1;
    let below = words(&index);
    type Change = (usize, StoredDtype, Vec<usize>, Vec<u8>);
    let cases: Vec<(Change, String)> = vec![
        ((0, StoredDtype::I64, vec![2, 8], vec![0; 128]), "`m.qweight` is I64 [2, 8], not I32 of two axes | no hint".to_owned()),
        ((0, StoredDtype::I32, vec![32], vec![0; 128]), "`m.qweight` is I32 [32], not I32 of two axes | no hint".to_owned()),
        ((0, StoredDtype::I32, vec![0, 8], vec![]), "`m.qweight` is I32 [0, 8], not I32 of two axes | no hint".to_owned()),
        (
            (0, StoredDtype::I32, vec![8, 8], vec![0; 256]),
            format!("`m.qweight` has 8 rows of words, which are not 32 inputs of 4 bits | {belong}"),
        ),
        (
            (0, StoredDtype::I32, vec![3, 8], vec![0; 96]),
            format!("`m.qweight` has 3 rows of words, which are not 32 inputs of 4 bits | {belong}"),
        ),
        (
            (1, StoredDtype::I32, vec![1, 2], vec![0; 8]),
            "`m.qzeros` has shape [1, 2], but 32 inputs in groups of 16, 8 outputs, 4 bits asks for [2, 1] | no hint".to_owned(),
        ),
        ((1, StoredDtype::F32, vec![2, 1], vec![0; 8]), "`m.qzeros` is F32 [2, 1], not I32 of two axes | no hint".to_owned()),
        (
            (1, StoredDtype::I32, vec![2, 1], words(&[0x7777_7777, 0x7777_7877])),
            "`m.qzeros` holds the zero point 9, but `sym` is true, which is 8 at 4 bits | \
             is `checkpoint_format` right? `gptq` stores zero points less one, `gptq_v2` as they are"
                .to_owned(),
        ),
        (
            (2, StoredDtype::F16, vec![8, 2], f16(1.0)),
            "`m.scales` has shape [8, 2], but 32 inputs in groups of 16, 8 outputs asks for [2, 8] | no hint".to_owned(),
        ),
        ((2, StoredDtype::I32, vec![2, 8], vec![0; 64]), "`m.scales` is of type I32, not F16, BF16 or F32 | no hint".to_owned()),
        ((2, StoredDtype::F16, vec![2, 8], f16(f32::NAN)), "`m.scales` holds NaN | no hint".to_owned()),
        ((3, StoredDtype::I32, vec![32], above), "`m.g_idx` puts input 7 into group 2 of 2 | no hint".to_owned()),
        ((3, StoredDtype::I32, vec![32], below), "`m.g_idx` puts input 7 into group -1 of 2 | no hint".to_owned()),
        ((3, StoredDtype::I64, vec![32], vec![0; 256]), "`m.g_idx` is I64 [32], not I32 of one axis | no hint".to_owned()),
        (
            (3, StoredDtype::I32, vec![40], vec![0; 160]),
            format!("`m.qweight` has 4 rows of words, which are not 40 inputs of 4 bits | {belong}"),
        ),
    ];
    for ((at, dtype, shape, bytes), message) in cases {
        let mut tensors = sound();
        tensors[at] = (tensors[at].0, dtype, shape, bytes);
        assert_eq!(read(&config(), tensors), Err(message));
    }
}

#[test]
fn what_is_missing_or_contradicts_is_named() {
    for (at, name) in [(1, "m.qzeros"), (2, "m.scales")] {
        let mut tensors = sound();
        tensors.remove(at);
        let message = read(&config(), tensors).unwrap_err();
        assert!(message.starts_with(&format!("the checkpoint has no tensor `{name}`")), "{message}");
    }
    let mut tensors = sound();
    tensors.remove(0);
    let message = "config.json says gptq, but there is no tensor `*.qweight` | \
                   are the weights and the configuration of the same checkpoint?";
    assert_eq!(read(&config(), tensors), Err(message.to_owned()));
    let mut other = config();
    other["bits"] = json!(8);
    let message =
        "`m.qweight` has 4 rows of words, which are not 32 inputs of 8 bits | does `quantization_config` belong to these weights?";
    assert_eq!(read(&other, sound()), Err(message.to_owned()));
    other = config();
    other["group_size"] = json!(4_000_000_000u32);
    let message = "`m.scales` has shape [2, 8], but 32 inputs in groups of 4000000000, 8 outputs asks for [1, 8] | no hint";
    assert_eq!(read(&other, sound()), Err(message.to_owned()));
    // Nothing to allocate for: the shapes are those of the file, or an error.
    other = json!({ "bits": 3 });
    assert!(read(&other, sound()).is_err());
}

/// The file beside `config.json` that older tools wrote.
#[test]
fn a_configuration_of_its_own_is_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let opened = |text: &str| {
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        std::fs::write(dir.path().join("quantize_config.json"), text).unwrap();
        let decl = TensorDecl { name: "w".to_owned(), dtype: StoredDtype::F32, shape: vec![1] };
        write_small(&dir.path().join("model.safetensors"), vec![(decl, vec![0; 4])]).unwrap();
        Checkpoint::open(dir.path()).map_err(|e| e.to_string().replace(&dir.path().display().to_string(), "DIR"))
    };
    let checkpoint = opened(r#"{"bits": 4, "group_size": 128}"#).unwrap();
    assert_eq!(checkpoint.config["quantization_config"], json!({ "bits": 4, "group_size": 128 }));
    assert!(GPTQ.container.claims(&checkpoint.config["quantization_config"]) && checkpoint.side_files.is_empty());
    assert_eq!(opened("[4]").err().unwrap(), "`DIR/quantize_config.json` is not a JSON object");
    assert!(opened("{").err().unwrap().starts_with("`DIR/quantize_config.json` is not valid JSON: "));
}

proptest! {
    // Each case writes and syncs a file.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever one tensor and the configuration are, reading gives values or an error.
    #[test]
    fn nothing_else_happens(
        which in 0usize..4,
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
        let config = json!({ "quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym });
        match read(&config, tensors) {
            Ok(values) => prop_assert!(values.iter().all(|v| v.is_finite())),
            Err(message) => prop_assert!(message.contains('`'), "{}", message),
        }
    }
}
