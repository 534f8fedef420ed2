//! Our logits against stored ones.

use std::path::Path;

use candle_core::{DType, Device};
use qfw_core::checkpoint::{Checkpoint, TensorSource};
use qfw_core::model::{self, Model};
use qfw_core::registry::Registry;
use qfw_core::{Error, Result};

/// Largest difference allowed between two float32 implementations, relative to the largest logit.
pub const TOLERANCE: f32 = 1e-4;

/// The model in a directory, computing in f32 on the CPU.
///
/// # Errors
/// If it cannot be read or is not understood.
pub fn open(dir: &Path) -> Result<Model> {
    let registry = Registry::builtin()?;
    let checkpoint = Checkpoint::open(dir)?;
    let architecture = registry.architecture(model::model_type(&checkpoint.config)?)?;
    Model::new(architecture, &checkpoint.config, checkpoint.float_tensors(&registry)?, DType::F32, &Device::Cpu)
}

/// The rows of `input_ids` (`[rows, length]` or `[length]`, i64).
///
/// # Errors
/// If there is no such tensor, it is not i64, or an id is no id.
pub fn ids(file: &dyn TensorSource) -> Result<Vec<Vec<u32>>> {
    let bad = |why: &str| Error::input("parity::ids", format!("`input_ids` {why}")).hint("it should be i64 [rows, length] or [length]");
    let info = file.info("input_ids").ok_or_else(|| bad("is missing"))?;
    let length = info.shape.last().copied().filter(|n| *n > 0).ok_or_else(|| bad("is empty"))?;
    let (words, rest) = {
        let bytes = file.read_bytes("input_ids")?;
        let (words, rest) = bytes.as_chunks::<8>();
        (words.iter().map(|w| i64::from_le_bytes(*w)).collect::<Vec<_>>(), rest.len())
    };
    if rest != 0 || words.len() != info.shape.iter().product::<usize>() {
        return Err(bad("is not i64"));
    }
    let ids = words.into_iter().map(|id| u32::try_from(id).map_err(|_| bad("holds a number that is no token id")));
    Ok(ids.collect::<Result<Vec<u32>>>()?.chunks_exact(length).map(<[u32]>::to_vec).collect())
}

/// A whole float tensor.
///
/// # Errors
/// If it is missing or cannot be read.
pub fn values(file: &dyn TensorSource, name: &str) -> Result<Vec<f32>> {
    let info = file.info(name).ok_or_else(|| Error::input("parity::missing", format!("there is no tensor `{name}`")))?;
    let rows = info.shape.first().copied().unwrap_or(1);
    let mut values = Vec::new();
    file.read_f32(name, 0..rows, &mut values)?;
    Ok(values)
}

/// max|got − expected| / max|expected|. What is no number, or not as many, is infinitely far.
pub fn distance(got: &[f32], expected: &[f32]) -> f32 {
    if got.len() != expected.len() {
        return f32::INFINITY;
    }
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let farthest =
        got.iter().zip(expected).map(|(g, e)| (g - e).abs()).fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
    if farthest == 0.0 { 0.0 } else { farthest / largest }
}
