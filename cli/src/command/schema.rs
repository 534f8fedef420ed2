//! `qfw schema`

use qfw_core::Result;
use qfw_core::plan::raw::run_schema;
use qfw_core::registry::Registry;
use serde_json::json;

use super::say_json;

pub(crate) fn run() -> Result<()> {
    say_json(&json!({ "run": run_schema(), "options": Registry::linked()?.schemas() }))
}
