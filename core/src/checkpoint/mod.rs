//! Reading and writing checkpoints.

use std::ops::Range;
use std::path::PathBuf;

use crate::error::Result;

/// How numbers are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    U32,
    Bool,
    Other(String),
    Ggml(&'static str),
}

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub name: String,
    pub dtype: StoredDtype,
    pub shape: Vec<usize>,
    pub file: PathBuf,
}

/// Tensors by name.
pub trait TensorSource: Send + Sync {
    fn names(&self) -> Vec<String>;
    fn info(&self, name: &str) -> Option<&TensorInfo>;
    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;
    fn read_bytes(&self, name: &str) -> Result<Vec<u8>>;
}
