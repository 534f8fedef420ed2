//! What a run recorded of what it wrote: `fingerprints` in `qfw.json`.
//!
//! ```json
//! "fingerprints": {
//!   "formats": { "gptq": {
//!     "tensors": { "model.norm.weight": { "shape": [128], "values": "…" },
//!                  "model.layers.0.mlp.up_proj.weight": { "shape": [384, 128], "values": "…", "codes": "…" } },
//!     "activations": { "model.layers.0.mlp.up_proj inputs": "…" },
//!     "files": { "config.json": "…", "tokenizer.json": "…" } } } }
//! ```
//!
//! Each is the BLAKE3 of f32 numbers, little-endian, −0 as 0, row by row: of the values that the tensor stands for in that format, and of
//! its steps, which are the codes less their zero points; `global` is that of the number that scales of two levels are multiples of. Weights of linears are `[outputs, inputs]`, everything else is as the model has it. Tensors that
//! hold no floats are hashed as they are stored. Of activations: scales, then zero points counted from the smallest code. Files: their bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::checkpoint::object;
use crate::error::{Error, Result};

/// The file, and where in it.
pub(crate) const FILE: &str = "qfw.json";
const KEY: &str = "fingerprints";

/// One tensor.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fingerprint {
    pub shape: Vec<usize>,
    pub values: String,
    #[serde(default)]
    pub codes: Option<String>,
    #[serde(default)]
    pub global: Option<String>,
}

/// One format of a run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub tensors: BTreeMap<String, Fingerprint>,
    pub activations: BTreeMap<String, String>,
    pub files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprints {
    formats: BTreeMap<String, Record>,
}

/// The record of what lies in `dir` in `container`, and the file that it is in: the directory's own, or its parent's where a run wrote
/// several formats. What another container holds in the same directory is not what the run wrote.
///
/// # Errors
/// If there is one, but it cannot be read.
pub(crate) fn find(dir: &Path, container: &str) -> Result<Option<(Record, PathBuf)>> {
    let full = std::fs::canonicalize(dir).map_err(|e| Error::file(dir, &e))?;
    let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(formats) = read(dir)? {
        if formats.len() == 1 {
            let only = formats.into_iter().next().filter(|(format, _)| suits(format, container));
            return Ok(only.map(|(_, r)| (r, dir.join(FILE))));
        }
        return Ok(None);
    }
    let Some(parent) = full.parent() else { return Ok(None) };
    let record = read(parent)?.and_then(|mut formats| formats.remove(&name)).filter(|_| suits(&name, container));
    Ok(record.map(|r| (r, parent.join(FILE))))
}

/// Whether a format of a run is held in files as those of `container` are.
fn suits(format: &str, container: &str) -> bool {
    let kind = |name: &str| ["gguf", "onnx", "shark"].into_iter().find(|k| name == *k || name.starts_with(&format!("{k}-")));
    kind(format) == kind(container)
}

/// The directories of all formats of a run that wrote several into `dir`.
///
/// # Errors
/// If there is a record, but it cannot be read.
pub(crate) fn several(dir: &Path) -> Result<Vec<PathBuf>> {
    let formats = if dir.is_dir() { read(dir)?.unwrap_or_default() } else { BTreeMap::new() };
    Ok(if formats.len() > 1 { formats.into_keys().map(|f| dir.join(f)).collect() } else { Vec::new() })
}

fn read(dir: &Path) -> Result<Option<BTreeMap<String, Record>>> {
    let path = dir.join(FILE);
    let Some(mut value) = object(&path)? else { return Ok(None) };
    let Some(fingerprints) = value.get_mut(KEY).map(serde_json::Value::take) else { return Ok(None) };
    let fingerprints: Fingerprints = serde_json::from_value(fingerprints).map_err(|e| {
        Error::new("verify::record", format!("`{KEY}` of `{}` is malformed: {e}", path.display()))
            .hint("copy it again from where it was right")
    })?;
    Ok(Some(fingerprints.formats))
}
