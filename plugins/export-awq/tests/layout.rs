//! What is written, and that it is read back as it was.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite, encode_site, write_shard};
use qfw_core::checkpoint::{SafetensorsWriter, StoredDtype, TensorDecl, TensorSource, open_tensors, write_small};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{Convention, FloatKind, Granularity, Grid, ObserverChoice, QParams, QuantSpec, Reducer, ScaleForm, Timing, Zero};
use qfw_export_awq::AWQ;
use serde_json::json;

/// Output of each nibble of a word, from the lowest.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn site(rows: usize, cols: usize, granularity: Granularity, affine: bool) -> NativeSite {
    let spec = QuantSpec {
        format: "uint4".to_owned(),
        bits: 4,
        grid: Grid::Int { lo: 0, hi: 15, zero: if affine { Zero::Integer } else { Zero::Fixed(8) } },
        granularity,
        symmetric: !affine,
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

/// The tensors that the container makes of a rounded module, beside a bias that stays.
fn written(
    site: &NativeSite,
    codes: Vec<u8>,
    scale: Vec<f32>,
    zero: Vec<f32>,
) -> qfw_core::Result<(tempfile::TempDir, Arc<dyn TensorSource>)> {
    let dir = tempfile::tempdir().unwrap();
    let layout = site.spec.granularity.layout(site.shape.0, site.shape.1);
    let codes = Codes { lo: 0, data: Units::Narrow(codes) };
    let rounded = Rounded { codes, params: QParams { layout, scale, zero, global: None }, group_index: None, events: Vec::new() };
    let (shard, source) = (dir.path().join("shard.safetensors"), dir.path().join("source.safetensors"));
    write_shard(&shard, encode_site(site, &rounded).tensors)?;
    let decl = |name: &str, shape: Vec<usize>| TensorDecl { name: name.to_owned(), dtype: StoredDtype::F32, shape };
    write_small(&source, vec![(decl("m.weight", vec![1]), vec![0; 4]), (decl("m.bias", vec![2]), vec![7; 8])])?;
    let shards = BTreeMap::from([("m".to_owned(), shard)]);
    let native = NativeReader::new(open_tensors(&source)?, vec![site.clone()], Vec::new(), shards, BTreeMap::new());
    let decls = AWQ.container.declare(&native)?;
    let mut writer = SafetensorsWriter::create(dir.path(), "model", &decls, u64::MAX, &BTreeMap::new())?;
    AWQ.container.write(&native, &mut writer)?;
    writer.finish()?;
    let tensors = open_tensors(&dir.path().join("model.safetensors"))?;
    assert_eq!(tensors.read_bytes("m.bias")?, [7; 8]);
    assert!(tensors.info("m.weight").is_none());
    Ok((dir, tensors))
}

fn words(tensors: &dyn TensorSource, name: &str) -> Vec<u32> {
    tensors.read_bytes(name).unwrap().chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}

#[test]
fn scales_beyond_f16_are_an_error() {
    let error = written(&site(8, 2, Granularity::tensor(), false), vec![8; 16], vec![-1e5], vec![8.0]).err().unwrap();
    assert_eq!(error.to_string(), "`blocks.0.mlp.up`: a scale is -1e5, and the container holds scales as float16, whose largest is 65504");
    assert_eq!(error.hint_text(), Some("use `--format qfw`, which holds them as f32"));
}

proptest! {
    // Each case writes and syncs files.
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// The value that the definition in the crate's documentation gives is the value of the code; and reading gives the same.
    #[test]
    fn written_values_are_the_values_and_are_read_back(
        eights in 1usize..4,
        blocks in 1usize..4,
        tile in proptest::sample::select(vec![Granularity::group(16), Granularity::channel(), Granularity::tensor(), Granularity::block(8, 16)]),
        affine in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let (rows, cols) = (8 * eights, 16 * blocks);
        let mut state = seed | 1;
        let mut random = |n: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % n
        };
        let site = site(rows, cols, tile, affine);
        let layout = site.spec.granularity.layout(rows, cols);
        let codes: Vec<u8> = (0..rows * cols).map(|_| random(16) as u8).collect();
        let scale: Vec<f32> = (0..layout.tiles()).map(|_| random(2000) as f32 / 1024.0 - 0.97).collect();
        let zero: Vec<f32> = (0..layout.tiles()).map(|_| if affine { random(16) as f32 } else { 8.0 }).collect();
        let (_dir, tensors) = written(&site, codes.clone(), scale.clone(), zero.clone()).unwrap();

        let (qweight, qzeros) = (words(&*tensors, "m.qweight"), words(&*tensors, "m.qzeros"));
        let groups = cols.div_ceil(layout.tile_cols);
        prop_assert_eq!(&tensors.info("m.qweight").unwrap().shape, &[cols, rows / 8]);
        prop_assert_eq!(&tensors.info("m.qzeros").unwrap().shape, &[groups, rows / 8]);
        prop_assert_eq!(&tensors.info("m.scales").unwrap().shape, &[groups, rows]);
        let mut scales = Vec::new();
        tensors.read_f32("m.scales", 0..groups, &mut scales).unwrap();
        let nibble = |words: &[u32], line: usize, o: usize| {
            let k = ORDER.iter().position(|x| *x == o % 8).unwrap();
            (words[line * rows / 8 + o / 8] >> (4 * k) & 15) as f32
        };
        let mut values = vec![0.0; rows * cols];
        for o in 0..rows {
            for i in 0..cols {
                let (g, t) = (i / layout.tile_cols, layout.tile(o, i));
                values[o * cols + i] = scales[g * rows + o] * (nibble(&qweight, i, o) - nibble(&qzeros, g, o));
                // Scales are stored as the nearest numbers of f16.
                let nearest = half::f16::from_f32(scale[t]).to_f32();
                prop_assert_eq!(values[o * cols + i], nearest * (f32::from(codes[o * cols + i]) - zero[t]));
            }
        }

        let group = if layout.tile_cols == cols { -1 } else { layout.tile_cols as i64 };
        let config = json!({ "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true, "version": "gemm" });
        let read = AWQ.container.read(&config, &BTreeSet::new(), tensors).unwrap();
        let mut weight = Vec::new();
        read.read_f32("m.weight", 0..rows, &mut weight).unwrap();
        prop_assert_eq!(weight, values);
    }
}
