//! Tensors of a file, against candle's reader, which is written independently of ours, and read back as the checkpoint they came from.

use std::path::Path;

use proptest::prelude::*;
use qfw_core::candle::quantized::{GgmlDType, gguf_file};
use qfw_core::candle::{DType, Device};
use qfw_core::checkpoint::{StoredDtype, gguf};
use qfw_core::scheme::{FloatGrid, FloatKind, FloatVariant, Granularity, Grid, PowerRounding, QuantSpec, ScaleForm, Zero};

use super::models::{GPT2, LLAMA, Model, coded, floats, gpt2, llama, spec, values};

/// What candle makes of a tensor: its type, shape and values.
fn by_candle(path: &Path, name: &str) -> (GgmlDType, Vec<usize>, Vec<f32>) {
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
    let values = tensor.dequantize(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    (tensor.dtype(), tensor.shape().dims().to_vec(), values.flatten_all().unwrap().to_vec1().unwrap())
}

fn by_us(path: &Path, name: &str) -> Vec<f32> {
    let tensors = gguf::open(path).unwrap().tensors;
    let mut out = Vec::new();
    tensors.read_f32(name, 0..tensors.info(name).unwrap().shape[0], &mut out).unwrap();
    out
}

/// Rows as llama.cpp's converter permutes them: `[heads, 2, d/2, in]` with the middle axes swapped.
fn permuted(weight: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let half = weight.len() / columns / heads / 2;
    let row = |i: usize| &weight[i * columns..][..columns];
    let rows = (0..heads).flat_map(|h| (0..half).flat_map(move |j| (0..2).map(move |s| (h * 2 + s) * half + j)));
    rows.flat_map(row).copied().collect()
}

fn int(bits: u8, zero: Zero, signed: bool, granularity: Granularity) -> QuantSpec {
    let half = 1 << (bits - 1);
    let grid = if signed { Grid::Int { lo: -half, hi: half - 1, zero } } else { Grid::Int { lo: 0, hi: 2 * half - 1, zero } };
    spec(&format!("int{bits}"), bits, grid, granularity, ScaleForm::Float(FloatKind::F16))
}

fn e2m1() -> Grid {
    Grid::Float(FloatGrid::new(2, 1, FloatVariant::Ocp).unwrap())
}

/// What is left of a model when its linears named here are codes.
fn without(all: &[(&'static str, &'static [usize])], modules: &[&str]) -> Vec<(&'static str, &'static [usize])> {
    all.iter().filter(|(name, _)| !modules.iter().any(|m| *name == format!("{m}.weight"))).copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Codes, scales and zero points of every integer scheme, in rows that are permuted and rows that are not.
    #[test]
    fn candle_decodes_what_we_decode(
        (bits, zero, signed) in proptest::sample::select(vec![
            (4, Zero::None, true), (4, Zero::Fixed(8), false), (4, Zero::Integer, true), (4, Zero::Integer, false),
            (5, Zero::None, true), (5, Zero::Integer, false), (8, Zero::None, true), (8, Zero::Fixed(128), false),
        ]),
        granularity in proptest::sample::select(vec![
            Granularity::group(32), Granularity::group(64), Granularity::group(96), Granularity::channel(), Granularity::tensor(),
            Granularity::block(16, 32),
        ]),
        seed in any::<u64>(),
    ) {
        let granularity = |cols: usize| if cols == 64 && granularity.id == "group" { Granularity::group(32) } else { granularity.clone() };
        let modules = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"];
        let parts: Vec<_> = modules.iter().zip([(64, 64), (32, 64), (64, 128)])
            .map(|(m, shape)| coded(m, shape, false, int(bits, zero, signed, granularity(shape.1)), seed))
            .collect();
        let expected: Vec<Vec<f32>> = parts.iter().map(|(site, rounded)| values(site, rounded)).collect();
        let model = Model::new(llama(), floats(&StoredDtype::F16, &without(&LLAMA, &modules)), parts);
        let path = model.write();
        let dtype = match (bits, zero) {
            (4, Zero::Integer) => GgmlDType::Q4_1,
            (4, _) => GgmlDType::Q4_0,
            (5, Zero::Integer) => GgmlDType::Q5_1,
            (5, _) => GgmlDType::Q5_0,
            _ => GgmlDType::Q8_0,
        };
        for (((name, heads), expected), module) in
            [("attn_q", Some(4)), ("attn_k", Some(2)), ("ffn_down", None)].iter().zip(&expected).zip(modules)
        {
            let (found, shape, values) = by_candle(&path, &format!("blk.0.{name}.weight"));
            let columns = shape[1];
            prop_assert_eq!(found, dtype);
            prop_assert_eq!(values, heads.map_or_else(|| expected.clone(), |heads| permuted(expected, heads, columns)));
            prop_assert_eq!(&by_us(&path, &format!("{module}.weight")), expected);
        }
    }
}

/// candle reads neither of the two, so that here it is our reader, which has hand-computed blocks of its own.
#[test]
fn four_bit_floats_are_read_back() {
    let mx = ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 2 };
    for (spec, dtype) in [
        (spec("mxfp4", 4, e2m1(), Granularity::group(32), mx), "MXFP4"),
        (spec("nvfp4", 4, e2m1(), Granularity::group(16), ScaleForm::TwoLevel), "NVFP4"),
    ] {
        let module = "model.layers.0.self_attn.q_proj";
        let (site, mut rounded) = coded(module, (64, 64), false, spec, 5);
        if dtype == "NVFP4" {
            // Local scales that are numbers of e4m3, and a factor with a reciprocal.
            rounded.params.scale.iter_mut().enumerate().for_each(|(i, s)| *s = (1 + i % 15) as f32 / 16.0);
        }
        let expected = values(&site, &rounded);
        let model = Model::new(llama(), floats(&StoredDtype::BF16, &without(&LLAMA, &[module])), vec![(site, rounded)]);
        let path = model.write();
        let checkpoint = gguf::open(&path).unwrap();
        assert_eq!(checkpoint.tensors.info("model.layers.0.self_attn.q_proj.weight").unwrap().dtype.name(), dtype);
        assert_eq!(by_us(&path, "model.layers.0.self_attn.q_proj.weight"), expected);
        // Bytes alone do not say the factor of the tensor.
        let bytes = checkpoint.tensors.read_bytes("model.layers.0.self_attn.q_proj.weight");
        assert_eq!(bytes.is_err_and(|e| e.to_string().contains("without the factor")), dtype == "NVFP4");
    }
}

/// Matrices keep their float type, vectors are f32, nothing is lost; every architecture's tensors are read back as they were.
#[test]
fn what_is_kept_is_kept() {
    for dtype in [StoredDtype::F16, StoredDtype::BF16, StoredDtype::F32] {
        let model = Model::new(llama(), floats(&dtype, &LLAMA), Vec::new());
        let path = model.write();
        let found = gguf::open(&path).unwrap().tensors;
        assert_eq!(found.names(), model.checkpoint.tensors.names());
        for name in found.names() {
            let (stored, shape) = (&found.info(&name).unwrap().dtype, &found.info(&name).unwrap().shape);
            assert_eq!(*stored, if shape.len() == 1 { StoredDtype::F32 } else { dtype.clone() }, "{name}");
            let mut expected = Vec::new();
            model.checkpoint.tensors.read_f32(&name, 0..shape[0], &mut expected).unwrap();
            assert_eq!(by_us(&path, &name), expected, "{name}");
        }
        let (found, _, q) = by_candle(&path, "blk.0.attn_q.weight");
        assert_eq!(StoredDtype::parse(&format!("{found:?}")), dtype);
        assert_eq!(q, permuted(&by_us(&path, "model.layers.0.self_attn.q_proj.weight"), 4, 64));
    }
}

/// What the families add to LLaMA's tensors: biases, whose order is that of the rows, and norms of heads.
#[test]
fn every_family_is_read_back() {
    const Q: (&str, &[usize]) = ("model.layers.0.self_attn.q_proj.bias", &[64]);
    const BIASES: [(&str, &[usize]); 3] =
        [Q, ("model.layers.0.self_attn.k_proj.bias", &[32]), ("model.layers.0.self_attn.v_proj.bias", &[32])];
    const MORE: [(&str, &[usize]); 4] = [
        ("model.layers.0.self_attn.o_proj.bias", &[64]),
        ("model.layers.0.mlp.gate_proj.bias", &[128]),
        ("model.layers.0.mlp.up_proj.bias", &[128]),
        ("model.layers.0.mlp.down_proj.bias", &[64]),
    ];
    const NORMS: [(&str, &[usize]); 2] =
        [("model.layers.0.self_attn.q_norm.weight", &[16]), ("model.layers.0.self_attn.k_norm.weight", &[16])];
    for (family, more, interleaved) in [
        ("llama", [&BIASES[..], &MORE].concat(), true),
        ("mistral", vec![("lm_head.weight", &[8, 64][..])], true),
        ("qwen2", BIASES.to_vec(), false),
        ("qwen3", NORMS.to_vec(), false),
    ] {
        let mut config = llama();
        for (key, value) in [("model_type", family.into()), ("attention_bias", (family == "llama").into())] {
            config[key] = value;
        }
        (config["mlp_bias"], config["head_dim"], config["sliding_window"]) = ((family == "llama").into(), 16.into(), 256.into());
        config["tie_word_embeddings"] = (family != "mistral").into();
        let model = Model::new(config, floats(&StoredDtype::F16, &[&LLAMA[..], &more].concat()), Vec::new());
        let path = model.write();
        let found = gguf::open(&path).unwrap();
        assert_eq!(found.config["model_type"], if family == "mistral" { "llama" } else { family });
        assert_eq!(found.tensors.names(), model.checkpoint.tensors.names(), "{family}");
        for name in found.tensors.names() {
            let mut expected = Vec::new();
            model.checkpoint.tensors.read_f32(&name, 0..found.tensors.info(&name).unwrap().shape[0], &mut expected).unwrap();
            assert_eq!(by_us(&path, &name), expected, "{family}: {name}");
        }
        let stored = |expected: Vec<f32>, columns: usize| if interleaved { permuted(&expected, 4, columns) } else { expected };
        let q = by_us(&path, "model.layers.0.self_attn.q_proj.weight");
        assert_eq!(by_candle(&path, "blk.0.attn_q.weight").2, stored(q, 64), "{family}");
        if more.contains(&Q) {
            assert_eq!(by_candle(&path, "blk.0.attn_q.bias").2, stored(by_us(&path, Q.0), 1), "{family}");
        }
    }
}

/// GPT-2 stores its linears as `[in, out]`, a file as `[out, in]`; its masks are left out and its positions are f32.
#[test]
fn gpt_2_is_turned() {
    let module = "h.0.mlp.c_fc";
    let (site, rounded) = coded(module, (128, 32), true, int(8, Zero::None, true, Granularity::group(32)), 3);
    let expected = values(&site, &rounded);
    let model = Model::new(gpt2(), floats(&StoredDtype::F16, &without(&GPT2, &[module])), vec![(site, rounded)]);
    let path = model.write();
    assert_eq!(by_candle(&path, "blk.0.ffn_up.weight"), (GgmlDType::Q8_0, vec![128, 32], expected.clone()));
    let mut turned = vec![0.0; 128 * 32];
    expected.iter().enumerate().for_each(|(i, x)| turned[i % 32 * 128 + i / 32] = *x);
    assert_eq!(by_us(&path, "h.0.mlp.c_fc.weight"), turned);
    let (dtype, shape, kept) = by_candle(&path, "blk.0.attn_qkv.weight");
    assert_eq!((dtype, &shape[..]), (GgmlDType::F16, &[96, 32][..]));
    let source = by_us(&path, "h.0.attn.c_attn.weight");
    assert!((0..96 * 32).all(|i| kept[i] == source[i % 32 * 96 + i / 32]));
    assert_eq!(by_candle(&path, "position_embd.weight").0, GgmlDType::F32);
    let names = gguf::open(&path).unwrap().tensors.names();
    assert_eq!(names.len(), GPT2.len() - 1, "{names:?}");
}
