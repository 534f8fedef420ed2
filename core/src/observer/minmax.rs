//! The range of the values themselves.

use serde_json::{Value, json};

use super::{Observer, ObserverRecord, ScaleRule};
use crate::error::{Error, Result};

struct MinMax;

impl Observer for MinMax {
    fn range(&self, values: &[f32], _: &ScaleRule) -> (f32, f32) {
        extremes(values)
    }
}

/// Smallest and largest value.
pub(super) fn extremes(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), x| (lo.min(*x), hi.max(*x)))
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "minmax",
    summary: "the smallest and the largest value",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || json!({ "type": "object", "properties": {}, "additionalProperties": false }),
    build: |options| {
        no_options("minmax", options)?;
        Ok((Box::new(MinMax), json!({})))
    },
};

pub(super) fn no_options(id: &str, options: &Value) -> Result<()> {
    match options.as_object().and_then(|o| o.keys().next()) {
        Some(key) => Err(Error::config("config::unknown-key", format!("unknown option `{key}` of observer `{id}`"))
            .hint(format!("`{id}` has no options"))),
        None => Ok(()),
    }
}
