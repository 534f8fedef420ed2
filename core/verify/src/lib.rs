//! A second reader of quantized checkpoints.
//!
//! Who writes a file and reads it back with the same code proves that he agrees with himself. This crate decodes what is on disk with code of
//! its own, written from the formats' descriptions; it depends on nothing else of this project, and a test holds it to that. It compares the
//! values with the hashes that a run recorded of what it meant to write ([`record`](self) in `qfw.json`), or with another checkpoint
//! tensor by tensor, and checks what lies around them: shards, index and configuration agree, no tensor is missing, left over, of the
//! wrong shape or not finite, the quantization configuration says what is there, side files are there byte for byte.
//!
//! Containers: `compressed-tensors`, `gptq`, `awq`, `gguf`, `onnx` in its forms, `shark`, the native `qfw`, and plain floats. One tensor is in memory at a time.
//!
//! Nothing that a file says is believed before it is checked: damaged and hostile files are errors or findings, not panics.

mod adapter;
mod bits;
mod check;
mod checkpoint;
mod comparison;
mod container;
mod dtype;
mod error;
mod family;
mod gguf_file;
mod irpa_file;
mod matrix;
mod onnx;
mod onnx_file;
mod record;
mod report;
mod rows;
mod safetensors_file;
mod shark;
mod store;

use std::path::{Path, PathBuf};

use checkpoint::{CONFIG, Checkpoint};
use comparison::Comparison;
pub use error::{Error, Finding, Result};
pub use report::{Difference, Position, Report, TensorReport};

/// What is to be checked of `path`: one directory for each format if a run wrote several there, each checkpoint of a directory that holds
/// one in safetensors and others in `.gguf` or `.onnx` files, or else `path` itself.
///
/// # Errors
/// If there is a record of a run, but it cannot be read.
pub fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let several = record::several(path)?;
    if !several.is_empty() {
        return Ok(several);
    }
    Ok(match checkpoint::within(path)? {
        mixed if mixed.len() > 1 && path.join(CONFIG).exists() => mixed,
        _ => vec![path.to_owned()],
    })
}

/// Checks a checkpoint: against the record of the run that wrote it, where there is one, and against another checkpoint, where one is given.
///
/// # Errors
/// If nothing of it can be read, or there is nothing to compare it with. What can be read and is wrong is in the report.
pub fn verify(path: &Path, against: Option<&Path>) -> Result<Report> {
    let here = Checkpoint::open(path)?;
    let there = against.map(Checkpoint::open).transpose().map_err(|e| Error { message: format!("`--against`: {}", e.message), ..e })?;
    let (record, file) = record::find(&here.dir, &here.container)?.unzip();
    if record.is_none() && there.is_none() {
        let what = if here.dir.join(record::FILE).exists() {
            "`qfw.json` beside it does not say what was written to it"
        } else {
            "it has no `qfw.json` that says what was written"
        };
        return Err(Error::new("verify::nothing-to-compare", format!("nothing to compare `{}` with: {what}", path.display()))
            .hint("give the checkpoint that it should equal: `--against MODEL`"));
    }
    Ok(Comparison::new(here, there, record).report(path, file))
}
