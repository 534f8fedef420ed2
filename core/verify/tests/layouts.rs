//! Layouts that this project reads and does not write, by hand from compressed-tensors' own descriptions
//! (`compressors/pack_quantized/helpers.py` of releases before and since 0.18, `compressors/mxfp8`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::{Value, json};

type Tensor<'a> = (&'a str, &'a str, Vec<usize>, Vec<u8>);

fn checkpoint(dir: &Path, quantization: &Value, tensors: &[Tensor<'_>]) {
    std::fs::create_dir_all(dir).unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        header.insert((*name).to_owned(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] }));
    }
    let header = Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    std::fs::write(dir.join("config.json"), json!({ "quantization_config": quantization }).to_string()).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn config(format: &str, weights: &Value) -> Value {
    json!({ "quant_method": "compressed-tensors", "format": format, "ignore": [],
        "config_groups": { "group_0": { "targets": ["Linear"], "format": format, "weights": weights } } })
}

/// Checks tensors of a module `m` against the weight that they stand for.
#[track_caller]
fn stands_for(quantization: &Value, tensors: &[Tensor<'_>], shape: [usize; 2], weight: &[f32]) {
    let dir = tempfile::tempdir().unwrap();
    let (coded, float) = (dir.path().join("coded"), dir.path().join("float"));
    checkpoint(&coded, quantization, tensors);
    checkpoint(&float, &Value::Null, &[("m.weight", "F32", shape.to_vec(), floats(weight))]);
    let report = qfw_verify::verify(&coded, Some(&float)).unwrap();
    assert!(report.equal, "{:?} {:?}", report.findings, report.tensors);
    assert!(report.tensors.len() == 1 && report.tensors[0].quantized, "{:?}", report.tensors);
}

/// The codes of two rows of 64, in three bits: every one occurs.
fn codes() -> Vec<u32> {
    (0..128u32).map(|i| (i * 5 + i / 8) % 8).collect()
}

/// Words of ten codes and two unused bits, and a stream without gaps.
#[test]
fn three_bits_are_read_in_both_layouts() {
    let codes = codes();
    let weight: Vec<f32> = codes.iter().enumerate().map(|(i, u)| (*u as f32 - 4.0) * [0.5, 2.0][i / 64]).collect();
    let arguments = json!({ "num_bits": 3, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false });
    let padded: Vec<u8> = codes
        .chunks(64)
        .flat_map(|row| row.chunks(10).map(|ten| ten.iter().enumerate().fold(0u32, |word, (k, u)| word | u << (3 * k))))
        .flat_map(u32::to_le_bytes)
        .collect();
    let dense: Vec<u8> = codes
        .chunks(32)
        .flat_map(|run| {
            // 96 bits: three words.
            let bits = run.iter().enumerate().fold(0u128, |all, (k, u)| all | u128::from(*u) << (3 * k));
            bits.to_le_bytes()[..12].to_vec()
        })
        .collect();
    for (words, bytes) in [(7, padded), (6, dense)] {
        stands_for(
            &config("pack-quantized", &arguments),
            &[
                ("m.weight_packed", "I32", vec![2, words], bytes),
                ("m.weight_scale", "F32", vec![2, 1], floats(&[0.5, 2.0])),
                ("m.weight_shape", "I64", vec![2], [2i64, 64].iter().flat_map(|n| n.to_le_bytes()).collect()),
            ],
            [2, 64],
            &weight,
        );
    }
}

/// Zero points lie down the outputs, and groups may be named column by column.
#[test]
fn zero_points_and_groups_of_older_writers_are_read() {
    // Two outputs, eight inputs, two groups: the even inputs, and the odd ones.
    let (zero, scale) = ([[3u32, 9], [15, 0]], [[1.0f32, 0.25], [0.5, 4.0]]);
    let code = |o: usize, i: usize| (7 * o + 3 * i) as u32 % 16;
    let word = |o: usize| (0..8).fold(0u32, |word, i| word | code(o, i) << (4 * i));
    let weight: Vec<f32> =
        (0..16).map(|e| (e / 8, e % 8)).map(|(o, i)| (code(o, i) as f32 - zero[o][i % 2] as f32) * scale[o][i % 2]).collect();
    let zeros = (0..2).map(|g| zero[0][g] | zero[1][g] << 4);
    stands_for(
        &config("pack-quantized", &json!({ "num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 4 })),
        &[
            ("m.weight_packed", "I32", vec![2, 1], (0..2).flat_map(|o| word(o).to_le_bytes()).collect()),
            ("m.weight_scale", "F32", vec![2, 2], floats(&scale.concat())),
            ("m.weight_zero_point", "I32", vec![1, 2], zeros.flat_map(u32::to_le_bytes).collect()),
            ("m.weight_shape", "I64", vec![2], [2i64, 8].iter().flat_map(|n| n.to_le_bytes()).collect()),
            ("m.weight_g_idx", "I32", vec![8], (0..8i32).flat_map(|i| (i % 2).to_le_bytes()).collect()),
        ],
        [2, 8],
        &weight,
    );
}

/// e4m3 with a power of two for every 32: 0x38 is 1, 0x40 is 2, 0xc0 is −2; byte 128 is 2, byte 126 is ½.
#[test]
fn mxfp8_is_read() {
    let codes: Vec<u8> = (0..64).map(|i| [0x38, 0x40, 0xc0, 0x00][i % 4]).collect();
    let weight: Vec<f32> = (0..64).map(|i| [1.0, 2.0, -2.0, 0.0][i % 4] * if i < 32 { 2.0 } else { 0.5 }).collect();
    stands_for(
        &config("mxfp8-quantized", &json!({ "num_bits": 8, "type": "float", "symmetric": true, "strategy": "group", "group_size": 32 })),
        &[("m.weight", "F8_E4M3", vec![1, 64], codes), ("m.weight_scale", "U8", vec![1, 2], vec![128, 126])],
        [1, 64],
        &weight,
    );
}
