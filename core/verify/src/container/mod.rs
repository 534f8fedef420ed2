//! How each container stores quantized matrices, one file each, from the formats' own descriptions.

pub(crate) mod awq;
pub(crate) mod compressed_tensors;
pub(crate) mod gguf;
pub(crate) mod gptq;
pub(crate) mod native;
pub(crate) mod onnx;
mod pattern;
pub(crate) mod shark;

use std::collections::BTreeMap;

use crate::error::{Error, Finding, Result};
use crate::matrix::Load;
use crate::store::Tensor;

/// What a container says is in a checkpoint.
#[derive(Default)]
pub(crate) struct Contents {
    /// Quantized matrices by the name of the weight they stand for.
    pub coded: BTreeMap<String, Box<dyn Load>>,
    /// Stored tensors that are parts of what is below, or of what is in `findings`. Those of quantized matrices know their parts themselves.
    pub parts: Vec<String>,
    /// Parameters of rounded activations: what the record calls them, and their numbers.
    pub activations: BTreeMap<String, Vec<f32>>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

impl Contents {
    /// Says that a module cannot be read, for which there is a finding: its parts need none of their own.
    pub(crate) fn not_read(&mut self, module: &str, suffixes: &[&str]) {
        self.parts.extend(suffixes.iter().map(|s| format!("{module}.{s}")));
    }
}

/// Rows and columns of a tensor that is a matrix and not empty.
///
/// # Errors
/// If it is something else.
pub(crate) fn sides(tensor: &Tensor) -> Result<(usize, usize)> {
    match tensor.shape[..] {
        [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(Error::tensor(format!("`{}` has the shape {:?}, and is a matrix", tensor.name, tensor.shape))),
    }
}

/// Elements of one axis that share a scale, as a configuration states them; more than there are, or none, is all.
pub(crate) fn group(stated: i64, axis: usize) -> usize {
    usize::try_from(stated).ok().filter(|g| *g > 0).unwrap_or(axis)
}
