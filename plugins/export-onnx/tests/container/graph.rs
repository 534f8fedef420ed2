//! The graph as a whole: what every reader relies on, and what the parts of a plan become in it.

use std::collections::BTreeSet;

use qfw_core::plan::{PlannedActivation, PlannedBranch};
use qfw_core::scheme::{FloatKind, Granularity, Grid, QParams, TileLayout, Zero};
use qfw_core::topology::{OnlineRotation, OnlineStep, Place, PortName, Rotation, RotationKind};
use serde_json::{Value, json};

use super::file::{FLOAT, FLOAT16, File, INT8, INT64};
use super::models::{Extras, coded, gpt2, llama, spec, tensors, write};

fn with(mut config: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn int4() -> Grid {
    Grid::Int { lo: -8, hi: 7, zero: Zero::None }
}

/// What holds for every graph: no field that the specification lacks; names that are there once; nodes in an order in which everything
/// is there before it is read; tensors within the file beside, each where it begins at a boundary, none over another, with as many bytes
/// as its type and shape need.
fn is_sound(file: &File) {
    assert_eq!((file.ir_version, file.opsets[""]), (10, 21));
    let contrib = file.nodes.iter().any(|n| n.domain == "com.microsoft");
    assert_eq!(file.opsets.get("com.microsoft").copied(), contrib.then_some(1));
    let mut there: BTreeSet<&str> = BTreeSet::new();
    for name in file.inputs.iter().map(|i| &i.0).chain(file.tensors.iter().map(|t| &t.name)) {
        assert!(there.insert(name), "{name} is there twice");
    }
    let (mut read, mut names) = (BTreeSet::new(), BTreeSet::new());
    for node in &file.nodes {
        assert!(names.insert(&node.name), "{} is there twice", node.name);
        assert_eq!(node.domain == "com.microsoft", node.op_type == "MatMulNBits");
        for input in &node.input {
            assert!(there.contains(input.as_str()), "{} reads {input}, which is not there yet", node.name);
            read.insert(input.as_str());
        }
        for output in &node.output {
            assert!(there.insert(output), "{output} is made twice");
        }
    }
    for (output, ..) in &file.outputs {
        assert!(there.contains(output.as_str()), "{output} is made by nobody");
        read.insert(output);
    }
    let unread: Vec<&&str> = there.iter().filter(|name| !read.contains(**name)).collect();
    assert!(unread.is_empty(), "{unread:?} are read by nobody");
    let mut places = Vec::new();
    for t in &file.tensors {
        let bits = match t.kind {
            21 | 22 => 4,
            2 | 3 | 9 | 17..=20 => 8,
            10 | 16 => 16,
            1 => 32,
            7 | 11 => 64,
            kind => panic!("{}: type {kind}", t.name),
        };
        let bytes = (t.dims.iter().product::<usize>() * bits).div_ceil(8);
        match &t.place {
            None => assert_eq!(t.raw.len(), bytes, "{}", t.name),
            Some((location, offset, length)) => {
                assert_eq!((location.as_str(), *length), ("model.onnx.data", bytes), "{}", t.name);
                assert_eq!(offset % if *length < 4096 { 64 } else { 4096 }, 0, "{}", t.name);
                places.push((*offset, *length));
            }
        }
    }
    places.sort_unstable();
    assert!(places.windows(2).all(|p| p[0].0 + p[0].1 <= p[1].0), "tensors overlap");
    assert_eq!(places.last().map(|(offset, length)| offset + length), Some(file.data_len()));
}

#[test]
fn every_family_is_a_sound_graph() {
    let gqa = json!({ "model_type": "qwen3", "head_dim": 16 });
    let untied = json!({ "tie_word_embeddings": false });
    let window = json!({ "model_type": "mistral", "sliding_window": 5 });
    for config in [llama(), gpt2(), with(llama(), &gqa), with(llama(), &untied), with(llama(), &window)] {
        for id in ["onnx", "onnx-qdq", "onnx-qcdq", "onnx-matmulnbits"] {
            let (site, module, shape, turned) = match config["model_type"] == "gpt2" {
                true => ("blocks.0.mlp.up", "h.0.mlp.c_fc", (128, 32), true),
                false => ("blocks.1.mlp.up", "model.layers.1.mlp.up_proj", (96, 64), false),
            };
            let coded = vec![coded(site, module, shape, turned, spec(4, int4(), Granularity::group(32)))];
            let file = write(id, &config, Extras { coded, ..Extras::default() });
            is_sound(&file);
            // Every tensor of the model that is not codes is there under its own name, as it is stored.
            for (name, shape) in tensors(&config).iter().filter(|(name, _)| *name != format!("{module}.weight")) {
                let stored = file.stored(name);
                assert_eq!((stored.kind, &stored.dims), (FLOAT16, shape), "{name}");
            }
        }
    }
}

#[test]
fn inputs_and_outputs_are_those_of_other_exporters() {
    let file = write("onnx", &llama(), Extras::default());
    let text = |axes: &[&str]| axes.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    let mut inputs = vec![
        ("input_ids".to_owned(), INT64, text(&["batch_size", "sequence_length"])),
        ("attention_mask".to_owned(), INT64, text(&["batch_size", "total_sequence_length"])),
        ("position_ids".to_owned(), INT64, text(&["batch_size", "sequence_length"])),
    ];
    let mut outputs = Vec::new();
    for b in 0..2 {
        for what in ["key", "value"] {
            inputs.push((format!("past_key_values.{b}.{what}"), FLOAT, text(&["batch_size", "2", "past_sequence_length", "16"])));
            outputs.push((format!("present.{b}.{what}"), FLOAT, text(&["batch_size", "2", "total_sequence_length", "16"])));
        }
    }
    outputs.push(("logits".to_owned(), FLOAT, text(&["batch_size", "sequence_length", "8"])));
    assert_eq!((&file.inputs, &file.outputs), (&inputs, &outputs));
    assert_eq!((file.producer.as_str(), file.metadata["qfw_version"].as_str()), ("qfw", "1"));
}

/// Cosines and sines of every position are core's; where sequences longer than the trained length have others, those follow.
#[test]
fn rotary_tables_are_those_of_the_model() {
    let half_turned = |table: &[f32], position: usize| table[position * 8..][..8].to_vec();
    let file = write("onnx", &llama(), Extras::default());
    let (cos, sin) = (file.stored("rotary.cos"), file.stored("rotary.sin"));
    assert_eq!((&cos.dims[..], &sin.dims[..]), (&[32, 8][..], &[32, 8][..]));
    for position in [0, 1, 31] {
        for (i, (c, s)) in half_turned(&cos.floats(), position).iter().zip(half_turned(&sin.floats(), position)).enumerate() {
            let angle = position as f64 * 50000_f64.powf(-2.0 * i as f64 / 16.0);
            assert!((f64::from(*c) - angle.cos()).abs() < 1e-5 && (f64::from(s) - angle.sin()).abs() < 1e-5, "{position} {i}");
        }
    }
    let long = json!({ "rope_scaling": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 8,
        "short_factor": [1, 1, 1, 1, 1, 1, 1, 1], "long_factor": [2, 2, 2, 2, 2, 2, 2, 2], "attention_factor": 1.0,
    } });
    let file = write("onnx", &with(llama(), &long), Extras::default());
    is_sound(&file);
    let both = file.stored("rotary.cos");
    assert_eq!(both.dims, [8 + 32, 8]);
    // Half as fast behind the first eight.
    assert_eq!(half_turned(&both.floats(), 3), half_turned(&both.floats(), 8 + 6));
    assert_eq!(file.nodes("ReduceMax", "rotary").len(), 1);
}

fn place(block: u32, port: PortName) -> Place {
    Place { block: Some(block), port: port.into() }
}

/// Rounded activations stand behind what makes them, in their types; keys are cached as rounded.
#[test]
fn activations_are_rounded_where_the_plan_says() {
    let grid = Grid::Int { lo: -32, hi: 31, zero: Zero::None };
    let tensor = |place: Place, part: &str, bits: u8, grid: Grid| {
        let a = PlannedActivation { place, part: part.to_owned(), modules: Vec::new(), spec: spec(bits, grid, Granularity::tensor()) };
        let layout = TileLayout { rows: 1, cols: 1, tile_rows: 1, tile_cols: 1 };
        (a, QParams { layout, scale: vec![0.5], zero: vec![0.0], global: None })
    };
    let full = Grid::Int { lo: -128, hi: 127, zero: Zero::None };
    let activations = vec![tensor(place(0, PortName::AttnIn), "inputs", 6, grid), tensor(place(1, PortName::KRope), "keys", 8, full)];
    let file = write("onnx-qcdq", &llama(), Extras { activations, ..Extras::default() });
    is_sound(&file);
    let quantize = file.nodes("QuantizeLinear", "blocks.0.attn.in/")[0];
    assert_eq!((file.stored(&quantize.input[1]).floats(), quantize.input.len()), (vec![0.5], 2));
    assert_eq!(quantize.int("output_dtype"), i64::from(INT8));
    let clip = file.nodes("Clip", "blocks.0.attn.in/")[0];
    assert_eq!(clip.input[0], quantize.output[0]);
    assert_eq!([1, 2].map(|i| file.stored(&clip.input[i]).bytes[0] as i8), [-32, 31]);
    let dequantize = file.nodes("DequantizeLinear", "blocks.0.attn.in/")[0];
    assert_eq!(dequantize.input, [&clip.output[0], &quantize.input[1]].map(String::clone));
    let readers: Vec<&str> = file.nodes.iter().filter(|n| n.input.contains(&dequantize.output[0])).map(|n| n.name.as_str()).collect();
    assert_eq!(readers, ["blocks.0.attn.q/MatMul", "blocks.0.attn.k/MatMul", "blocks.0.attn.v/MatMul"]);
    // No clip where the grid fills the type, and the cache is behind the rounding.
    assert!(file.nodes("Clip", "blocks.1").is_empty());
    let keys = file.nodes("DequantizeLinear", "blocks.1.k.rope/")[0];
    let cached = file.nodes.iter().find(|n| n.output[0] == "present.1.key").unwrap();
    let heads = file.nodes.iter().find(|n| n.output[0] == cached.input[1]).unwrap();
    let reshaped = file.nodes.iter().find(|n| n.output[0] == heads.input[0]).unwrap();
    assert_eq!(reshaped.input[0], keys.output[0]);
}

/// A branch is two products beside the layer's own; those who share `A` share its product.
#[test]
fn branches_are_two_products() {
    let branch = |role: &str, module: &str, rows: usize, a: &str| PlannedBranch {
        site: format!("blocks.0.attn.{role}"),
        module: format!("model.layers.0.self_attn.{module}"),
        shape: (rows, 64),
        rank: 4,
        stored: FloatKind::F16,
        a: format!("model.layers.0.self_attn.{a}"),
    };
    let branches = vec![branch("q", "q_proj", 64, "q_proj"), branch("k", "k_proj", 32, "q_proj")];
    let file = write("onnx", &llama(), Extras { branches, ..Extras::default() });
    is_sound(&file);
    let (a, b) = (file.stored("blocks.0.attn.q.branch.a"), file.stored("blocks.0.attn.k.branch.b"));
    assert_eq!((&a.dims[..], &b.dims[..]), (&[64, 4][..], &[4, 32][..]));
    assert!(a.floats().iter().all(|x| *x == 0.5) && b.floats().iter().all(|x| *x == -0.25));
    assert!(!file.tensors.iter().any(|t| t.name == "blocks.0.attn.k.branch.a"));
    let inner = file.nodes.iter().find(|n| n.input.get(1).is_some_and(|i| i == "blocks.0.attn.q.branch.a")).unwrap();
    let readers = file.nodes.iter().filter(|n| n.input[0] == inner.output[0]).count();
    assert_eq!(readers, 2);
}

/// A rotation is a product with its matrix; blocks that share it share the matrix.
#[test]
fn rotations_are_products() {
    let rotation = Rotation { kind: RotationKind::Hadamard, size: 32, seed: 0, keeps_mean: false };
    let at = |block| place(block, PortName::DownIn);
    let turned = |block| OnlineStep::Rotation(OnlineRotation { place: at(block), rotation: rotation.clone(), padded_from: None });
    let file = write("onnx", &llama(), Extras { online: vec![turned(0), turned(1)], ..Extras::default() });
    is_sound(&file);
    let matrix = file.stored("rotation.0");
    assert_eq!(matrix.dims, [32, 32]);
    assert!(matrix.floats().iter().all(|x| (x.abs() - 32_f32.powf(-0.5)).abs() < 1e-6));
    let products: Vec<_> = file.nodes("MatMul", "blocks.").into_iter().filter(|n| n.input[1] == "rotation.0").collect();
    assert_eq!(products.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["blocks.0.down.in/MatMul", "blocks.1.down.in/MatMul"]);
}

/// A multiplier is a product with its vector, behind the rotation of its place and before the rounding; all readers of the place read it.
#[test]
fn multipliers_stand_between_rotations_and_rounding() {
    let rotation = Rotation { kind: RotationKind::Hadamard, size: 64, seed: 0, keeps_mean: false };
    let at = place(0, PortName::MlpIn);
    let turned = OnlineStep::Rotation(OnlineRotation { place: at, rotation, padded_from: None });
    let layout = TileLayout { rows: 1, cols: 1, tile_rows: 1, tile_cols: 1 };
    let full = Grid::Int { lo: -128, hi: 127, zero: Zero::None };
    let input = PlannedActivation { place: at, part: "inputs".to_owned(), modules: Vec::new(), spec: spec(8, full, Granularity::tensor()) };
    let activations = vec![(input, QParams { layout, scale: vec![0.5], zero: vec![0.0], global: None })];
    let name = "model.layers.0.mlp.gate_proj.multiplier";
    let factors: Vec<f32> = (0..64_u8).map(|i| 0.5 + f32::from(i)).collect();
    let (online, vectors) = (vec![turned, OnlineStep::Multiplier(at)], vec![(name.to_owned(), factors.clone())]);
    let file = write("onnx", &llama(), Extras { online, vectors, activations, ..Extras::default() });
    is_sound(&file);
    assert_eq!(file.stored(name).floats(), factors);
    let product = file.nodes("Mul", "blocks.0.mlp.in/")[0];
    assert_eq!(product.input[1], name);
    let rotated = file.nodes("Reshape", "blocks.0.mlp.in/").into_iter().find(|n| n.output[0] == product.input[0]);
    assert!(rotated.is_some(), "{} reads {}", product.name, product.input[0]);
    assert_eq!(file.nodes("QuantizeLinear", "blocks.0.mlp.in/")[0].input[0], product.output[0]);
    let rounded = &file.nodes("DequantizeLinear", "blocks.0.mlp.in/")[0].output[0];
    let readers: Vec<&str> = file.nodes.iter().filter(|n| n.input.contains(rounded)).map(|n| n.name.as_str()).collect();
    assert_eq!(readers, ["blocks.0.mlp.up/MatMul", "blocks.0.mlp.gate/MatMul"]);
}

/// Rows of codes are looked up as bytes, unpacked where several lie in one, with the scales and zero points of the token's row.
#[test]
fn embeddings_are_looked_up_in_every_width() {
    for (bits, table) in [(2, [8, 16]), (4, [8, 32]), (8, [8, 64])] {
        let grid = Grid::Int { lo: 0, hi: (1 << bits) - 1, zero: Zero::Integer };
        let coded = vec![coded("embed", "model.embed_tokens", (8, 64), false, spec(bits, grid, Granularity::group(16)))];
        let config = with(llama(), &json!({ "tie_word_embeddings": false }));
        let file = write("onnx", &config, Extras { coded, ..Extras::default() });
        is_sound(&file);
        assert_eq!(file.stored("embed.codes").dims, table);
        assert_eq!(file.nodes("BitShift", "embed/").len(), usize::from(bits < 8));
        let lookups = file.nodes("Gather", "embed/");
        assert!(lookups.iter().all(|n| n.input[1] == "input_ids") && lookups.len() == 3);
    }
}
