//! Every fixture model gives the logits that transformers stored for it.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use qfw_core::checkpoint::{Checkpoint, TensorSource, open_tensors};
use qfw_core::error::Result;
use qfw_core::evaluate;
use qfw_core::model::{self, Flow, Model, Nothing, Span};
use qfw_core::registry::Registry;

/// Largest difference allowed, relative to the largest logit of the case.
const TOLERANCE: f32 = 1e-4;

const EXPECTED: &str = "expected.safetensors";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models")
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    cases
}

/// The case as a hub would serve it: without the expected values, which a reader of directories would take for a shard.
fn served(case: &Path, to: &Path) {
    for entry in fs::read_dir(case).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name != EXPECTED {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

fn open(dir: &Path) -> Result<Model> {
    let registry = Registry::builtin()?;
    let checkpoint = Checkpoint::open(dir)?;
    let architecture = registry.architecture(model::model_type(&checkpoint.config)?)?;
    Model::new(architecture, &checkpoint.config, Arc::clone(&checkpoint.tensors), DType::F32, &Device::Cpu)
}

fn ids(expected: &dyn TensorSource) -> Vec<Vec<u32>> {
    let bytes = expected.read_bytes("input_ids").unwrap();
    let length = expected.info("input_ids").unwrap().shape[1];
    let ids: Vec<u32> = bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    ids.chunks_exact(length).map(<[u32]>::to_vec).collect()
}

/// max|Δ| / max|expected| ; NaN counts as infinitely far.
fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let farthest =
        got.iter().zip(expected).map(|(g, e)| (g - e).abs()).fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
    farthest / largest
}

/// Distances of the logits and of the output of block 0.
fn compare(case: &Path) -> Result<(f32, f32)> {
    let dir = tempfile::tempdir().unwrap();
    served(case, dir.path());
    let model = open(dir.path())?;
    let expected = open_tensors(&case.join(EXPECTED))?;
    let (mut logits, mut hidden) = (Vec::new(), Vec::new());
    for ids in ids(&*expected) {
        logits.extend(evaluate::logits(&model, &ids)?.flatten_all()?.to_vec1::<f32>()?);
        let x = model.edges()?.embed(&ids, 0, &mut Nothing)?.x;
        let block = model.block(0, &model.load_block(0)?)?;
        hidden.extend(block.run(Span::BLOCK, Flow::new(x), &mut Nothing)?.x.flatten_all()?.to_vec1::<f32>()?);
    }
    let stored = |name| -> Result<Vec<f32>> {
        let mut values = Vec::new();
        let rows = expected.info(name).unwrap().shape[0];
        expected.read_f32(name, 0..rows, &mut values)?;
        Ok(values)
    };
    Ok((distance(&logits, &stored("logits")?), distance(&hidden, &stored("hidden_block0")?)))
}

#[test]
fn logits_equal_those_of_transformers() {
    let cases = cases();
    assert_eq!(cases.len(), 58, "cases came or went: adapt this number and the README beside them");
    let mut failed = Vec::new();
    let mut worst = 0.0f32;
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy();
        match compare(case) {
            Ok((logits, _)) if logits <= TOLERANCE => worst = worst.max(logits),
            Ok((logits, block0)) => failed.push(format!("{name:<36} {logits:>10.2e} {block0:>10.2e}")),
            Err(e) => failed.push(format!("{name:<36} {e}")),
        }
    }
    let table = failed.join("\n");
    assert!(
        failed.is_empty(),
        "{} of {} cases fail\n{:<36} {:>10} {:>10}\n{table}",
        failed.len(),
        cases.len(),
        "case",
        "logits",
        "block 0"
    );
    println!("largest distance: {worst:.2e}");
}
