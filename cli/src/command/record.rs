//! What the run that wrote a directory recorded: `qfw.json`.

use std::path::Path;

use qfw_core::plan::Plan;
use qfw_core::{Error, Result};
use serde_json::Value;

/// The record in `dir`, if there is one.
///
/// # Errors
/// If there is one, and it cannot be read.
pub(crate) fn of(dir: &Path) -> Result<Option<Value>> {
    let path = dir.join("qfw.json");
    let text = match std::fs::read(&path) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
        text => text.map_err(|e| Error::io(&path, "read", e))?,
    };
    let value = serde_json::from_slice(&text).map_err(|e| damaged(&path, &e.to_string()))?;
    Ok(Some(value))
}

/// The plan of a record that is in `dir`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn plan(dir: &Path, record: &Value) -> Result<Plan> {
    read(dir, "plan", &record["plan"])
}

/// The same of one of several formats: an export has a plan for each that holds something else than the others.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn plan_of_format(dir: &Path, record: &Value, format: &str) -> Result<Plan> {
    record["plans"].get(format).map_or_else(|| plan(dir, record), |own| read(dir, "plans", own))
}

fn read(dir: &Path, key: &str, plan: &Value) -> Result<Plan> {
    serde_json::from_value(plan.clone()).map_err(|e| damaged(&dir.join("qfw.json"), &format!("`{key}`: {e}")))
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::input("record::unreadable", format!("`{}` is damaged, or of another version of this program: {what}", path.display()))
        .hint("copy it again from where it was right, or remove it, and with it what it says of the checkpoint")
}
