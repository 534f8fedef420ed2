//! Tiny models, and the files that a container makes of them.

use std::collections::BTreeMap;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite, encode_activation, encode_branch, encode_site, write_shard};
use qfw_core::checkpoint::{Container, DataWriter, StoredDtype, TensorDecl, open_tensors, write_small};
use qfw_core::numeric::{Codes, Units, decode};
use qfw_core::plan::{PlannedActivation, PlannedBranch};
use qfw_core::scheme::{Convention, Granularity, Grid, ObserverChoice, QParams, QuantSpec, Reducer, ScaleForm, TileLayout, Timing, Zero};
use qfw_core::topology::OnlineStep;
use qfw_export_onnx::{MATMULNBITS, ONNX, QCDQ, QDQ};
use serde_json::{Value, json};

use super::file::File;

/// The container of that id.
pub(crate) fn container(id: &str) -> &'static dyn Container {
    [ONNX, QDQ, QCDQ, MATMULNBITS].into_iter().find(|r| r.id == id).unwrap().container
}

/// Two blocks, 64 wide, four heads of 16 of which two are of keys.
pub(crate) fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "tie_word_embeddings": true,
    })
}

pub(crate) fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 8, "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 16, "layer_norm_epsilon": 1e-5,
    })
}

/// Names and shapes of the tensors of a model.
pub(crate) fn tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let mut out: Vec<(String, Vec<usize>)> = Vec::new();
    let mut push = |name: &str, shape: &[usize]| out.push((name.to_owned(), shape.to_vec()));
    if config["model_type"] == "gpt2" {
        push("wte.weight", &[8, 32]);
        push("wpe.weight", &[16, 32]);
        for (name, shape) in [("attn.c_attn", [32, 96]), ("attn.c_proj", [32, 32]), ("mlp.c_fc", [32, 128]), ("mlp.c_proj", [128, 32])] {
            push(&format!("h.0.{name}.weight"), &shape);
            push(&format!("h.0.{name}.bias"), &shape[1..]);
        }
        for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
            push(&format!("{norm}.weight"), &[32]);
            push(&format!("{norm}.bias"), &[32]);
        }
        return out;
    }
    push("model.embed_tokens.weight", &[8, 64]);
    push("model.norm.weight", &[64]);
    if config["tie_word_embeddings"] == false {
        push("lm_head.weight", &[8, 64]);
    }
    for b in 0..2 {
        let mut block = |name: &str, shape: &[usize]| push(&format!("model.layers.{b}.{name}.weight"), shape);
        for (name, shape) in [("self_attn.q_proj", [64, 64]), ("self_attn.k_proj", [32, 64]), ("self_attn.v_proj", [32, 64])] {
            block(name, &shape);
        }
        for (name, shape) in [("self_attn.o_proj", [64, 64]), ("mlp.gate_proj", [96, 64]), ("mlp.up_proj", [96, 64])] {
            block(name, &shape);
        }
        block("mlp.down_proj", &[64, 96]);
        block("input_layernorm", &[64]);
        block("post_attention_layernorm", &[64]);
        if config["model_type"] == "qwen3" {
            block("self_attn.q_norm", &[16]);
            block("self_attn.k_norm", &[16]);
        }
    }
    out
}

/// A number that tells each element of each tensor from the others.
fn number(tensor: usize, i: usize) -> f32 {
    ((tensor * 31 + i * 7) % 61) as f32 / 8.0 - 3.0
}

/// What a model has beside its floats.
#[derive(Default)]
pub(crate) struct Extras {
    pub coded: Vec<(NativeSite, Rounded)>,
    pub activations: Vec<(PlannedActivation, QParams)>,
    pub branches: Vec<PlannedBranch>,
    pub online: Vec<OnlineStep>,
    /// Vectors of f32 among the floats.
    pub vectors: Vec<(String, Vec<f32>)>,
}

/// The file that a container makes of a model whose floats are stored in f16.
pub(crate) fn write(id: &str, config: &Value, extras: Extras) -> File {
    let dir = tempfile::tempdir().unwrap();
    let codes = |name: &str| extras.coded.iter().any(|(site, _)| name == format!("{}.weight", site.module));
    let all: Vec<(String, Vec<usize>)> = tensors(config).into_iter().filter(|(name, _)| !codes(name)).collect();
    let stored = |(at, (name, shape)): (usize, &(String, Vec<usize>))| {
        let decl = TensorDecl { name: name.clone(), dtype: StoredDtype::F16, shape: shape.clone() };
        (decl, (0..shape.iter().product()).flat_map(|i| half::f16::from_f32(number(at, i)).to_le_bytes()).collect())
    };
    let path = dir.path().join("source.safetensors");
    let vector = |(name, values): &(String, Vec<f32>)| {
        let decl = TensorDecl { name: name.clone(), dtype: StoredDtype::F32, shape: vec![values.len()] };
        (decl, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    };
    write_small(&path, all.iter().enumerate().map(stored).chain(extras.vectors.iter().map(vector)).collect()).unwrap();
    let mut parts: BTreeMap<String, Vec<(TensorDecl, Vec<u8>)>> = BTreeMap::new();
    for (site, rounded) in &extras.coded {
        parts.entry(site.module.clone()).or_default().extend(encode_site(site, rounded).tensors);
    }
    for b in &extras.branches {
        let (a, up) = (vec![0.5; b.rank * b.shape.1], vec![-0.25; b.rank * b.shape.0]);
        parts.entry(b.module.clone()).or_default().extend(encode_branch(b, &a, &up));
    }
    for (a, params) in &extras.activations {
        parts.entry(a.place.to_string()).or_default().extend(encode_activation(a, params));
    }
    let mut shards = BTreeMap::new();
    for (i, (key, tensors)) in parts.into_iter().enumerate() {
        let shard = dir.path().join(format!("{i}.safetensors"));
        write_shard(&shard, tensors).unwrap();
        shards.insert(key, shard);
    }
    let sites = extras.coded.into_iter().map(|(site, _)| site).collect();
    let activations = extras.activations.into_iter().map(|(a, _)| a).collect();
    let native = NativeReader::new(open_tensors(&path).unwrap(), sites, activations, shards, BTreeMap::new())
        .with_config(config.clone())
        .with_extras(extras.branches, extras.online);
    let container = container(id);
    let mut writer = DataWriter::create(&dir.path().join("model.onnx.data"), &container.declare(&native).unwrap()).unwrap();
    container.write(&native, &mut writer).unwrap();
    let provenance = BTreeMap::from([("qfw_version".to_owned(), "1".to_owned())]);
    let bytes = container.describe(&native, &writer.finish().unwrap(), &provenance).unwrap();
    File::read(&bytes, &dir.path().join("model.onnx.data"))
}

pub(crate) fn spec(bits: u8, grid: Grid, granularity: Granularity) -> QuantSpec {
    QuantSpec {
        format: format!("{bits} bits"),
        bits,
        symmetric: !matches!(grid.zero(), Zero::Integer | Zero::Float),
        grid,
        granularity,
        convention: Convention::HalfRange,
        observer: ObserverChoice { id: "minmax".to_owned(), options: json!({}) },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale: ScaleForm::Float(qfw_core::scheme::FloatKind::F32),
    }
}

/// A module with every code in turn, and scales and zero points that tell tiles apart.
pub(crate) fn coded(site: &str, module: &str, shape: (usize, usize), transposed: bool, spec: QuantSpec) -> (NativeSite, Rounded) {
    let layout: TileLayout = spec.granularity.layout(shape.0, shape.1);
    let (lo, hi) = spec.grid.limits();
    let all: Vec<u8> = (lo..=hi).filter(|code| spec.grid.holds(*code)).map(|code| (code - lo) as u8).collect();
    let data = (0..shape.0 * shape.1).map(|i| all[(i * 5 + i / shape.1) % all.len()]).collect();
    let scale = (0..layout.tiles()).map(|t| (t % 13 + 8) as f32 / 128.0).collect();
    let zero = (0..layout.tiles())
        .map(|t| match spec.grid.zero() {
            Zero::None => 0.0,
            Zero::Fixed(z) => z as f32,
            Zero::Integer => (lo + t as i32 % (hi - lo + 1)) as f32,
            Zero::Float => lo as f32 + t as f32 / 8.0,
        })
        .collect();
    let site = NativeSite { site: site.to_owned(), module: module.to_owned(), shape, transposed, spec };
    let codes = Codes { lo, data: Units::Narrow(data) };
    (site, Rounded { codes, params: QParams { layout, scale, zero, global: None }, group_index: None, events: Vec::new() })
}

/// What its codes stand for, `[out, in]`.
pub(crate) fn values(site: &NativeSite, rounded: &Rounded) -> Vec<f32> {
    let mut out = Vec::new();
    decode(&site.spec.grid, &rounded.params, &rounded.codes, 0..site.shape.0, None, &mut out);
    out
}
