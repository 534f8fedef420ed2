//! What is written, bit by bit, and that it is read back as it was.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite, encode_site, write_shard};
use qfw_core::checkpoint::{ContainerRecord, SafetensorsWriter, StoredDtype, TensorDecl, TensorSource, open_tensors, write_small};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{Convention, FloatKind, Granularity, Grid, ObserverChoice, QParams, QuantSpec, Reducer, ScaleForm, Timing, Zero};
use qfw_export_gptq::{GPTQ, GPTQ_V2};
use serde_json::json;

fn site(bits: u8, rows: usize, cols: usize, granularity: Granularity, zero: Zero) -> NativeSite {
    let half = 1 << (bits - 1);
    let spec = QuantSpec {
        format: format!("int{bits}"),
        bits,
        grid: Grid::Int { lo: -half, hi: half - 1, zero },
        granularity,
        symmetric: zero == Zero::None,
        convention: Convention::HalfRange,
        observer: ObserverChoice { id: "minmax".to_owned(), options: json!({}) },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale: ScaleForm::Float(FloatKind::F16),
    };
    NativeSite { site: "blocks.0.mlp.up".to_owned(), module: "m".to_owned(), shape: (rows, cols), transposed: false, spec }
}

/// A rounded module: codes, and scales and zero points by tile.
fn rounded(site: &NativeSite, codes: Vec<u8>, scale: Vec<f32>, zero: Vec<f32>, group_index: Option<Vec<u32>>) -> Rounded {
    let layout = site.spec.granularity.layout(site.shape.0, site.shape.1);
    let codes = Codes { lo: site.spec.grid.limits().0, data: Units::Narrow(codes) };
    Rounded { codes, params: QParams { layout, scale, zero, global: None }, group_index, events: Vec::new() }
}

/// The tensors that the container makes of it, beside a bias that stays.
fn written(record: &ContainerRecord, site: &NativeSite, rounded: &Rounded) -> qfw_core::Result<(tempfile::TempDir, Arc<dyn TensorSource>)> {
    let dir = tempfile::tempdir().unwrap();
    let (shard, source) = (dir.path().join("shard.safetensors"), dir.path().join("source.safetensors"));
    write_shard(&shard, encode_site(site, rounded).tensors)?;
    let decl = |name: &str, shape: Vec<usize>| TensorDecl { name: name.to_owned(), dtype: StoredDtype::F32, shape };
    write_small(&source, vec![(decl("m.weight", vec![1]), vec![0; 4]), (decl("m.bias", vec![2]), vec![7; 8])])?;
    let shards = BTreeMap::from([("m".to_owned(), shard)]);
    let native = NativeReader::new(open_tensors(&source)?, vec![site.clone()], Vec::new(), shards, BTreeMap::new());
    let decls = record.container.declare(&native)?;
    let mut writer = SafetensorsWriter::create(dir.path(), "model", &decls, u64::MAX, &BTreeMap::new())?;
    record.container.write(&native, &mut writer)?;
    writer.finish()?;
    let tensors = open_tensors(&dir.path().join("model.safetensors"))?;
    assert_eq!(tensors.read_bytes("m.bias")?, [7; 8]);
    assert!(tensors.info("m.weight").is_none());
    Ok((dir, tensors))
}

fn words(tensors: &dyn TensorSource, name: &str) -> Vec<u32> {
    tensors.read_bytes(name).unwrap().chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// Codes of 0 to 31 modulo 16 down the inputs of each output, symmetric: the words can be written down.
#[test]
fn words_are_those_of_the_definition() {
    let site = site(4, 32, 32, Granularity::group(16), Zero::None);
    let codes = (0..32 * 32).map(|i| (i % 32 % 16) as u8).collect();
    let rounded = rounded(&site, codes, (0..64).map(|t| t as f32).collect(), vec![0.0; 64], None);
    for (record, zero) in [(&GPTQ, 0x7777_7777), (&GPTQ_V2, 0x8888_8888)] {
        let (_dir, tensors) = written(record, &site, &rounded).unwrap();
        assert_eq!(tensors.info("m.qweight").unwrap().shape, [4, 32]);
        let expected: Vec<u32> = [0x7654_3210, 0xfedc_ba98].repeat(2).into_iter().flat_map(|w| [w; 32]).collect();
        assert_eq!(words(&*tensors, "m.qweight"), expected);
        assert_eq!(tensors.info("m.qzeros").unwrap().shape, [2, 4]);
        assert_eq!(words(&*tensors, "m.qzeros"), [zero; 8]);
        // Tiles run along the outputs; scales by group first.
        let scales = tensors.info("m.scales").unwrap();
        assert_eq!((&scales.dtype, &scales.shape[..]), (&StoredDtype::F16, &[2, 32][..]));
        let mut values = Vec::new();
        tensors.read_f32("m.scales", 0..2, &mut values).unwrap();
        assert_eq!(values, (0..64).map(|i| (i % 32 * 2 + i / 32) as f32).collect::<Vec<_>>());
        assert_eq!(words(&*tensors, "m.g_idx"), (0..32).map(|i| i / 16).collect::<Vec<_>>());
    }
}

#[test]
fn scales_beyond_f16_are_an_error() {
    let site = site(4, 32, 32, Granularity::channel(), Zero::None);
    let mut scale = vec![1.0; 32];
    scale[3] = 1e5;
    let error = written(&GPTQ, &site, &rounded(&site, vec![0; 1024], scale, vec![0.0; 32], None)).err().unwrap();
    assert_eq!(error.to_string(), "`blocks.0.mlp.up`: a scale is 1e5, and the container holds scales as float16, whose largest is 65504");
    assert_eq!(error.hint_text(), Some("use `--format qfw`, which holds them as f32"));
}

proptest! {
    // Each case writes and syncs files.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The value that the definition in the crate's documentation gives, from single bits, is the value of the code; and reading gives back
    /// codes, scales, zero points and groups.
    #[test]
    fn written_values_are_the_values_and_are_read_back(
        bits in proptest::sample::select(vec![2u8, 3, 4, 8]),
        blocks in 1usize..3,
        tile in proptest::sample::select(vec![Granularity::group(16), Granularity::channel(), Granularity::tensor(), Granularity::block(8, 32)]),
        affine in any::<bool>(),
        scrambled in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (rows, cols) = (32, 32 * blocks);
        let half = 1i32 << (bits - 1);
        let mut state = seed | 1;
        let mut random = |n: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % n
        };
        let site = site(bits, rows, cols, tile, if affine { Zero::Integer } else { Zero::None });
        let layout = site.spec.granularity.layout(rows, cols);
        let codes: Vec<u8> = (0..rows * cols).map(|_| random(1 << bits) as u8).collect();
        let scale: Vec<f32> = (0..layout.tiles()).map(|_| half::f16::from_f32(random(2000) as f32 / 1024.0 - 0.97).to_f32()).collect();
        let zero: Vec<f32> = (0..layout.tiles()).map(|_| if affine { random(1 << bits) as f32 - half as f32 } else { 0.0 }).collect();
        let mut index: Vec<u32> = (0..cols).map(|i| (i / layout.tile_cols) as u32).collect();
        let ordered = index.clone();
        if scrambled {
            index.reverse();
        }
        let given = Some(index.clone()).filter(|_| scrambled);
        let rounded = rounded(&site, codes.clone(), scale.clone(), zero.clone(), given);
        let record = if affine { &GPTQ_V2 } else { &GPTQ };
        let (_dir, tensors) = written(record, &site, &rounded).unwrap();

        let (qweight, qzeros) = (words(&*tensors, "m.qweight"), words(&*tensors, "m.qzeros"));
        let groups = cols.div_ceil(layout.tile_cols);
        let mut scales = Vec::new();
        tensors.read_f32("m.scales", 0..groups, &mut scales).unwrap();
        let index_there = words(&*tensors, "m.g_idx");
        prop_assert_eq!(&index_there, &index);
        let b = bits as usize;
        let field = |bit_at: &dyn Fn(usize) -> u32| (0..b).fold(0, |v, k| v | (bit_at(k) & 1) << k) as i32;
        let mut values = vec![0.0; rows * cols];
        for o in 0..rows {
            for i in 0..cols {
                let g = index_there[i] as usize;
                let code = field(&|k| qweight[(i * b + k) / 32 * rows + o] >> ((i * b + k) % 32));
                let z = field(&|k| qzeros[g * (rows * b / 32) + (o * b + k) / 32] >> ((o * b + k) % 32));
                let z = if affine { z } else { z + 1 };
                values[o * cols + i] = scales[g * rows + o] * (code - z) as f32;
                let t = layout.tile(o, g * layout.tile_cols);
                prop_assert_eq!(values[o * cols + i], scale[t] * (i32::from(codes[o * cols + i]) as f32 - half as f32 - zero[t]));
            }
        }

        let group = if layout.tile_cols == cols { -1 } else { layout.tile_cols as i64 };
        let config = json!({
            "bits": bits, "group_size": group, "sym": !affine, "checkpoint_format": if affine { "gptq_v2" } else { "gptq" },
        });
        let read = GPTQ.container.read(&config, &BTreeSet::new(), tensors).unwrap();
        let mut weight = Vec::new();
        read.read_f32("m.weight", 0..rows, &mut weight).unwrap();
        prop_assert_eq!(weight, values);
        prop_assert!(scrambled || index == ordered);
    }
}
