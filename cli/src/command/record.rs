//! What the run that wrote a directory recorded: `qfw.json`.

use std::path::Path;

use qfw_core::Result;
use qfw_core::harness::record::damaged;
pub(crate) use qfw_core::harness::record::read as of;
use qfw_core::plan::Plan;
use serde_json::Value;

/// The plan of a record that is in `dir`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn plan(dir: &Path, record: &Value) -> Result<Plan> {
    parsed(dir, "plan", &record["plan"])
}

/// The same of one of several formats: an export has a plan for each that holds something else than the others.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn plan_of_format(dir: &Path, record: &Value, format: &str) -> Result<Plan> {
    record["plans"].get(format).map_or_else(|| plan(dir, record), |own| parsed(dir, "plans", own))
}

fn parsed(dir: &Path, key: &str, plan: &Value) -> Result<Plan> {
    serde_json::from_value(plan.clone()).map_err(|e| damaged(dir, &format!("`{key}`: {e}")))
}
