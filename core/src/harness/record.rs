//! The record that a run leaves beside a checkpoint: `qfw.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Its name.
pub(crate) const FILE: &str = "qfw.json";

/// The record in `dir`, if there is one.
///
/// # Errors
/// If there is one, and it cannot be read.
pub fn read(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join(FILE);
    let text = match std::fs::read(&path) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
        text => text.map_err(|e| Error::io(&path, "read", e))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| damaged(dir, &e.to_string()))
}

/// The error of a record in `dir` that does not say what it has to.
pub fn damaged(dir: &Path, what: &str) -> Error {
    let path = dir.join(FILE);
    Error::input("record::unreadable", format!("`{}` is damaged, or of another version of this program: {what}", path.display()))
        .hint("copy it again from where it was right, or remove it, and with it what it says of the checkpoint")
}
