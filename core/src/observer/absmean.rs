//! The mean magnitude: `−m ..= m` with `m = max(mean |x|, 10⁻⁵)`. What ternary weights are scaled by (BitNet b1.58, arXiv:2402.17764).

use serde_json::json;

use super::minmax::no_options;
use super::{Observer, ObserverRecord, ScaleRule};

struct AbsMean;

impl Observer for AbsMean {
    fn range(&self, values: &[f32], _: &ScaleRule) -> (f32, f32) {
        let sum: f64 = values.iter().map(|x| f64::from(x.abs())).sum();
        let mean = ((sum / values.len() as f64) as f32).max(1e-5);
        (-mean, mean)
    }
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "absmean",
    summary: "the mean magnitude, for ternary weights",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || json!({ "type": "object", "properties": {}, "additionalProperties": false }),
    build: |options| {
        no_options("absmean", options)?;
        Ok((Box::new(AbsMean), json!({})))
    },
};
