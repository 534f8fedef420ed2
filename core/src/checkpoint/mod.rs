//! Reading and writing checkpoints.

use std::ops::Range;
use std::path::PathBuf;

use crate::error::Result;

pub mod gguf;

/// How the numbers of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// IEEE 64-bit.
    F64,
    /// IEEE 32-bit.
    F32,
    /// IEEE 16-bit.
    F16,
    /// The upper half of an IEEE 32-bit number.
    BF16,
    /// Signed 64-bit.
    I64,
    /// Signed 32-bit.
    I32,
    /// Signed 16-bit.
    I16,
    /// Signed 8-bit.
    I8,
    /// A block format of ggml, by its name there (`Q4_1`).
    Ggml(&'static str),
}

/// What is known of a stored tensor without reading it.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name in the Hugging Face naming of its architecture.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: StoredDtype,
    /// Lengths of its dimensions, slowest first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
}

/// Tensors by name.
pub trait TensorSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;
    /// What is known of a tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo>;
    /// Decodes rows along the first dimension (of a vector: elements) into `out`, which is cleared first.
    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;
    /// The stored bytes of a whole tensor.
    fn read_bytes(&self, name: &str) -> Result<Vec<u8>>;
}

/// A checkpoint opened for reading.
pub struct Checkpoint {
    /// The file or directory.
    pub path: PathBuf,
    /// `config.json`.
    pub config: serde_json::Value,
    /// `config.json` as text.
    pub config_text: String,
    /// The tensors.
    pub tensors: Box<dyn TensorSource>,
    /// Files to be copied unchanged.
    pub side_files: Vec<PathBuf>,
}
