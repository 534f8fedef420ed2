//! What is written in each layout, by sharktank's own arithmetic, and that it is read back as it was.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite, encode_site, write_shard};
use qfw_core::checkpoint::{SafetensorsWriter, StoredDtype, TensorDecl, TensorSource, open_tensors, write_small};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{FloatGrid, FloatKind, FloatVariant, Granularity, Grid, PowerRounding, QParams, QuantSpec, ScaleForm, Zero};
use qfw_export_shark::SHARK;
use serde_json::{Value, json};

const MODULE: &str = "model.layers.0.mlp.up_proj";
const WEIGHT: &str = "blk.0.ffn_up.weight";

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": true,
    })
}

/// The entries that the container makes of a matrix and a tied embedding.
fn written(site: &NativeSite, rounded: &Rounded) -> qfw_core::Result<(tempfile::TempDir, NativeReader, Arc<dyn TensorSource>)> {
    let dir = tempfile::tempdir().unwrap();
    let (shard, source) = (dir.path().join("shard.safetensors"), dir.path().join("source.safetensors"));
    write_shard(&shard, encode_site(site, rounded).tensors)?;
    let decl = |name: &str, shape: Vec<usize>| TensorDecl { name: name.to_owned(), dtype: StoredDtype::F32, shape };
    let weight = (decl(&format!("{MODULE}.weight"), vec![1]), vec![0; 4]);
    write_small(&source, vec![weight, (decl("model.embed_tokens.weight", vec![2]), vec![7; 8])])?;
    let shards = BTreeMap::from([(MODULE.to_owned(), shard)]);
    let native = NativeReader::new(open_tensors(&source)?, vec![site.clone()], Vec::new(), shards, BTreeMap::new()).with_config(config());
    let decls = SHARK.container.declare(&native)?;
    let mut writer = SafetensorsWriter::create(dir.path(), "model", &decls, u64::MAX, &BTreeMap::new())?;
    SHARK.container.write(&native, &mut writer)?;
    writer.finish()?;
    let tensors = open_tensors(&dir.path().join("model.safetensors"))?;
    Ok((dir, native, tensors))
}

fn json_of(tensors: &dyn TensorSource, name: &str) -> Value {
    serde_json::from_slice(&tensors.read_bytes(name).unwrap()).unwrap()
}

fn floats(tensors: &dyn TensorSource, name: &str) -> Vec<f32> {
    tensors.read_bytes(name).unwrap().chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// What sharktank's `dequant` gives, number by number, from the planes alone.
fn dequantized(tensors: &dyn TensorSource, (rows, cols): (usize, usize)) -> Vec<f32> {
    let said = &json_of(tensors, "__SHARK_INFERENCE_TENSORS__")[WEIGHT];
    let plane = |name: &str| said["raw_tensors"][name].as_str().map(ToOwned::to_owned);
    let qs = plane("qs").unwrap();
    let (bytes, info) = (tensors.read_bytes(&qs).unwrap(), tensors.info(&qs).unwrap());
    let m = plane("m").map(|m| floats(tensors, &m));
    let layout = said["layout_type"].as_str().unwrap();
    let value = |i: usize| -> f32 {
        let nibble = || bytes[i / 2] >> (4 * (i % 2)) & 15;
        match (layout, info.dtype.name()) {
            ("BlockScaledI4Layout", _) => f32::from(nibble()),
            // Sign, two bits of exponent, one of mantissa.
            ("BlockScaledFp4Layout", _) => {
                [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][nibble() as usize & 7] * if nibble() & 8 == 0 { 1.0 } else { -1.0 }
            }
            (_, "I8") => f32::from(bytes[i] as i8),
            (_, "U8") => f32::from(bytes[i]),
            (_, float) => {
                let variant = if float.ends_with("FNUZ") { FloatVariant::Fnuz } else { FloatVariant::Ocp };
                let (exp, man) = if float.contains("E4M3") { (4, 3) } else { (5, 2) };
                FloatGrid::new(exp, man, variant).unwrap().value(u32::from(bytes[i]))
            }
        }
    };
    let d = plane("d").unwrap();
    let d: Vec<f32> = match tensors.info(&d).unwrap().dtype {
        StoredDtype::U8 => tensors.read_bytes(&d).unwrap().into_iter().map(|e| 2f32.powi(i32::from(e) - 127)).collect(),
        _ => floats(tensors, &d),
    };
    let each = rows * cols / d.len();
    let number = |i: usize| match (layout, &m) {
        ("TensorScaledLayout", Some(m)) => (value(i) - m[i / each]) * d[i / each],
        (_, Some(m)) => d[i / each] * value(i) + m[i / each],
        (_, None) => d[i / each] * value(i),
    };
    (0..rows * cols).map(number).collect()
}

/// Every kind of scheme that there is a layout for: grid, bits, tiles, scales, and the layout.
fn schemes() -> Vec<(Grid, u8, Granularity, ScaleForm, &'static str)> {
    let int = |lo: i32, hi: i32, zero| Grid::Int { lo, hi, zero };
    let float = |exp, man, variant| Grid::Float(FloatGrid::new(exp, man, variant).unwrap());
    let (half, single) = (ScaleForm::Float(FloatKind::F16), ScaleForm::Float(FloatKind::F32));
    let power = ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 2 };
    let (tensor, channel, group) = (Granularity::tensor, Granularity::channel, Granularity::group);
    vec![
        (int(-128, 127, Zero::None), 8, tensor(), single, "TensorScaledLayout"),
        (int(-128, 127, Zero::None), 8, channel(), single, "TensorScaledLayout"),
        (int(-127, 127, Zero::None), 8, channel(), half, "TensorScaledLayout"),
        (int(0, 255, Zero::Integer), 8, channel(), single, "TensorScaledLayout"),
        (int(0, 255, Zero::Fixed(128)), 8, tensor(), single, "TensorScaledLayout"),
        (int(0, 255, Zero::Float), 8, channel(), single, "TensorScaledLayout"),
        (int(-32, 31, Zero::Integer), 6, channel(), half, "TensorScaledLayout"),
        (int(-128, 127, Zero::None), 8, group(16), single, "BlockScaledLayout"),
        (int(-16, 15, Zero::None), 5, group(8), half, "BlockScaledLayout"),
        (int(0, 255, Zero::Fixed(128)), 8, Granularity::block(8, 16), half, "BlockScaledLayout"),
        (int(-8, 7, Zero::None), 4, group(16), half, "BlockScaledI4Layout"),
        (int(-8, 7, Zero::None), 4, channel(), single, "BlockScaledI4Layout"),
        (int(0, 15, Zero::Integer), 4, group(32), half, "BlockScaledI4Layout"),
        (int(0, 15, Zero::Float), 4, group(8), single, "BlockScaledI4Layout"),
        (int(-2, 1, Zero::Integer), 2, tensor(), half, "BlockScaledI4Layout"),
        (float(4, 3, FloatVariant::Ocp), 8, channel(), single, "TensorScaledLayout"),
        (float(4, 3, FloatVariant::Fnuz), 8, tensor(), single, "TensorScaledLayout"),
        (float(5, 2, FloatVariant::Ocp), 8, channel(), half, "TensorScaledLayout"),
        (float(5, 2, FloatVariant::Fnuz), 8, channel(), half, "TensorScaledLayout"),
        (float(2, 1, FloatVariant::Ocp), 4, group(32), power, "BlockScaledFp4Layout"),
    ]
}

/// A matrix of random codes, scales and zero points.
fn drawn(spec: &QuantSpec, (rows, cols): (usize, usize), seed: u64) -> Rounded {
    let number = |i: usize, salt: u64| (seed ^ salt).wrapping_mul(i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let (lo, hi) = spec.grid.limits();
    let codes: Vec<i32> = (lo..=hi).filter(|c| spec.grid.holds(*c)).collect();
    let data = (0..rows * cols).map(|i| (codes[number(i, 1) as usize % codes.len()] - lo) as u8).collect();
    let layout = spec.granularity.layout(rows, cols);
    let scale = |i: usize| {
        let s = (number(i, 2) % 100_000 + 1) as f32 * 1.1e-6;
        match spec.scale {
            ScaleForm::Float(kind) => kind.round(s),
            _ => 2f32.powi(number(i, 2) as i32 % 20 - 10),
        }
    };
    let zero = |i: usize| match spec.grid.zero() {
        Zero::None => 0.0,
        Zero::Fixed(z) => z as f32,
        Zero::Integer => (lo + number(i, 3) as i32 % (hi - lo + 1)) as f32,
        Zero::Float => lo as f32 + (number(i, 3) % 1000) as f32 * 0.001 * (hi - lo) as f32 + 0.1,
    };
    let params =
        QParams { layout, scale: (0..layout.tiles()).map(scale).collect(), zero: (0..layout.tiles()).map(zero).collect(), global: None };
    Rounded { codes: Codes { lo, data: Units::Narrow(data) }, params, group_index: None, events: Vec::new() }
}

proptest! {
    // Each case writes and syncs files.
    #![proptest_config(ProptestConfig::with_cases(80))]
    /// sharktank's arithmetic on the planes gives what the container says that it holds, to the last bit; and reading gives back the
    /// values of the codes, which are the same unless a minimum is rounded.
    #[test]
    fn planes_stand_for_what_is_held_and_are_read_back(which in 0..schemes().len(), rows in 1usize..4, seed in any::<u64>()) {
        let (grid, bits, granularity, scale, layout) = schemes().swap_remove(which);
        let shape = (8 * rows, 32);
        let spec = QuantSpec::stored("x", bits, grid, granularity, scale);
        let site = NativeSite { site: "blocks.0.mlp.up".to_owned(), module: MODULE.to_owned(), shape, transposed: false, spec };
        let rounded = drawn(&site.spec, shape, seed);
        let (_dir, native, tensors) = written(&site, &rounded).unwrap();
        let said = json_of(&*tensors, "__SHARK_INFERENCE_TENSORS__");
        prop_assert_eq!(&said[WEIGHT]["layout_type"], layout);
        prop_assert_eq!(&said, &json_of(&*tensors, "__AMD_SHARK_INFERENCE_TENSORS__"));

        let held = SHARK.container.held(&native, &site, native.rounded(&site).unwrap()).unwrap();
        let mut values = Vec::new();
        held.values(&site.spec.grid, 0..shape.0, &mut values);
        let theirs = dequantized(&*tensors, shape);
        let bits_of = |v: &[f32]| v.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits_of(&values), bits_of(&theirs));

        let read = SHARK.container.read(&json!({ "archive": "irpa" }), &BTreeSet::new(), Arc::clone(&tensors)).unwrap();
        prop_assert_eq!(read.names(), ["model.embed_tokens.weight".to_owned(), format!("{MODULE}.weight")]);
        let mut back = Vec::new();
        read.read_f32(&format!("{MODULE}.weight"), 0..shape.0, &mut back).unwrap();
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        let off = back.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        let rounds = layout == "BlockScaledI4Layout" && (scale == ScaleForm::Float(FloatKind::F32) || site.spec.grid.zero() == Zero::Float);
        prop_assert!(off <= if rounds { largest * 1e-6 } else { 0.0 }, "{} of {}", off, largest);
    }
}

/// The properties that sharktank reads, and the tied head, which is the embedding's entry.
#[test]
fn properties_and_the_tied_head_are_as_sharktank_reads_them() {
    let spec = QuantSpec::stored(
        "int8",
        8,
        Grid::Int { lo: -128, hi: 127, zero: Zero::None },
        Granularity::channel(),
        ScaleForm::Float(FloatKind::F32),
    );
    let site = NativeSite { site: "blocks.0.mlp.up".to_owned(), module: MODULE.to_owned(), shape: (8, 32), transposed: false, spec };
    let (_dir, _, tensors) = written(&site, &drawn(&site.spec, (8, 32), 1)).unwrap();
    let expected = json!({
        "general.architecture": "llama",
        "llama.context_length": 64,
        "llama.embedding_length": 32,
        "llama.block_count": 1,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": 8,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.interleave_emb": false,
        "SHARK_DATASET_VERSION": 1,
        "AMD_SHARK_DATASET_VERSION": 1,
    });
    for name in ["__SHARK_DATASET__", "__AMD_SHARK_DATASET__"] {
        assert_eq!(json_of(&*tensors, name), expected);
    }
    let said = json_of(&*tensors, "__SHARK_INFERENCE_TENSORS__");
    assert_eq!(said["output.weight"], json!({ "type_name": "PrimitiveTensor", "raw_tensors": { "": "token_embd.weight" } }));
    assert_eq!(said["output.weight"], said["token_embd.weight"]);
    let planar = json!({
        "type_name": "PlanarQuantizedTensor", "raw_tensors": { "d": format!("{WEIGHT}:d"), "qs": format!("{WEIGHT}:qs") }, "shape": [8, 32],
        "layout_type": "TensorScaledLayout", "layout_metadata": { "dtype": "float32" },
    });
    assert_eq!(said[WEIGHT], planar);
}

/// Each thing that a dataset may say and that is not known here, with a part of what is said of it.
#[test]
fn what_is_not_known_is_named() {
    let read = |said: Value, planes: Vec<(&str, StoredDtype, Vec<usize>, Vec<u8>)>| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        let text = said.to_string().into_bytes();
        let mut all = vec![("__SHARK_INFERENCE_TENSORS__", StoredDtype::U8, vec![text.len()], text)];
        all.extend(planes);
        let decl = |(name, dtype, shape, bytes): (&str, StoredDtype, Vec<usize>, Vec<u8>)| {
            (TensorDecl { name: name.to_owned(), dtype, shape }, bytes)
        };
        write_small(&file, all.into_iter().map(decl).collect()).unwrap();
        let mut out = Vec::new();
        let opened = SHARK.container.read(&json!({ "archive": "irpa" }), &BTreeSet::new(), open_tensors(&file).unwrap());
        match opened.and_then(|t| t.read_f32(&format!("{MODULE}.weight"), 0..2, &mut out)) {
            Ok(()) => "sound".to_owned(),
            Err(e) => e.to_string(),
        }
    };
    let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let weight = |layout: &str, metadata: Value| json!({ WEIGHT: { "type_name": "PlanarQuantizedTensor", "raw_tensors": { "d": "d", "qs": "qs" }, "shape": [2, 2], "layout_type": layout, "layout_metadata": metadata } });
    let scaled = || weight("TensorScaledLayout", json!({ "dtype": "float32" }));
    let planes =
        |d: &[f32], shape: Vec<usize>| vec![("d", StoredDtype::F32, shape, f32s(d)), ("qs", StoredDtype::I8, vec![2, 2], vec![1, 2, 3, 4])];
    assert_eq!(read(scaled(), planes(&[1.0], vec![])), "sound");
    let e4m3 = vec![("d", StoredDtype::F32, vec![], f32s(&[1.0])), ("qs", StoredDtype::parse("F8_E4M3"), vec![2, 2], vec![0, 0, 0x7f, 0])];
    for (said, planes, part) in [
        (scaled(), planes(&[f32::NAN], vec![]), "`d` holds NaN"),
        (scaled(), planes(&[1.0, 1.0, 1.0], vec![3, 1]), "`d` has the shape [3, 1], and is a scale for the tensor or for each of 2 rows"),
        (scaled(), vec![], "the checkpoint has no tensor `qs`"),
        (scaled(), e4m3, "`qs` is not a number at row 1, column 0"),
        (weight("TensorScaledLayout", json!({ "dtype": "float16" })), planes(&[1.0], vec![]), "its `dtype` is \"float16\""),
        (
            weight("SuperBlockOffsetScaled_4_6_Layout", json!({})),
            planes(&[1.0], vec![]),
            "its `layout_type` is SuperBlockOffsetScaled_4_6_Layout",
        ),
        (weight("BlockScaledLayout", json!({})), planes(&[1.0], vec![]), "`qs` has the shape [2, 2], and is 2x2 in blocks"),
        (weight("BlockScaledI4Layout", json!({})), planes(&[1.0], vec![]), "`qs` has the shape [2, 2], and is 2x2 in blocks"),
        (json!({ WEIGHT: { "type_name": "SplitPrimitiveTensor", "raw_tensors": {} } }), vec![], "its `type_name` is SplitPrimitiveTensor"),
        (
            json!({ "blk.0.attn_k.q_output": { "type_name": "StaticScaledQuantizer", "raw_tensors": {}, "dtype": "int8" } }),
            vec![],
            "its `type_name` is StaticScaledQuantizer",
        ),
        (
            json!({ "blk.0.attn_q.premul_input": { "type_name": "PrimitiveTensor", "raw_tensors": { "": "d" } } }),
            planes(&[1.0], vec![]),
            "the dataset has a tensor `blk.0.attn_q.premul_input`, which no layer of `llama` reads",
        ),
        (json!([1]), vec![], "`__SHARK_INFERENCE_TENSORS__` in the archive: invalid type"),
    ] {
        let message = read(said, planes);
        assert!(message.contains(part), "{message}\n{part}");
    }
}
