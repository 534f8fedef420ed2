//! Percentiles of the values, by exact order statistics.
//!
//! Symmetric: `±p`, with `p` the percentile `high` of `|x|`. Affine: from the percentile `low`, at most 0, to the percentile `high`. Of `n`
//! values in rising order the percentile `high` is number `⌊high·n/100 + ½⌋`, and `low` number `⌈low·n/100⌉`, counted from 1 (brevitas,
//! `core/stats/stats_op.py`). With the defaults that is the largest value up to 50 000 values, and the smallest up to 100 000.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::minmax::extremes;
use super::{Observer, ObserverRecord, ScaleRule, parse};
use crate::error::{Error, Result};

/// Options of the observer `percentile`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Percentile {
    /// Percentile of the upper end, or of the magnitudes.
    high: f64,
    /// Percentile of the lower end, for affine formats.
    low: f64,
}

impl Default for Percentile {
    fn default() -> Self {
        Self { high: 99.999, low: 0.001 }
    }
}

impl Observer for Percentile {
    fn range(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let n = values.len();
        let high = ((0.01 * self.high * n as f64 + 0.5).floor() as usize).clamp(1, n);
        if rule.symmetric() {
            let mut magnitudes: Vec<f32> = values.iter().map(|x| x.abs()).collect();
            let p = order_statistic(&mut magnitudes, high);
            return rule.clipped(extremes(values), p);
        }
        let low = ((0.01 * self.low * n as f64).ceil() as usize).clamp(1, n);
        let mut values = values.to_vec();
        (order_statistic(&mut values, low).min(0.0), order_statistic(&mut values, high))
    }
}

/// Number `k` of the values in rising order, counted from 1.
fn order_statistic(values: &mut [f32], k: usize) -> f32 {
    *values.select_nth_unstable_by(k - 1, f32::total_cmp).1
}

fn check(percentile: &Percentile) -> Result<()> {
    let Percentile { high, low } = *percentile;
    if low >= 0.0 && low < high && high <= 100.0 {
        return Ok(());
    }
    Err(Error::config("config::invalid", format!("observer `percentile` has `low = {low}` and `high = {high}`"))
        .hint("both are percentages, `low` below `high`"))
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "percentile",
    summary: "percentiles of the values, by exact order statistics",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || schemars::schema_for!(Percentile).to_value(),
    build: |options| {
        let percentile: Percentile = parse("percentile", "high, low", options)?;
        check(&percentile)?;
        let resolved = serde_json::to_value(&percentile).map_err(|e| Error::internal(e.to_string()))?;
        Ok((Box::new(percentile), resolved))
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observer::tests::{int4, uint4};
    use crate::scheme::Convention;

    /// The numbers 1 … n, shuffled, with alternating signs for magnitudes.
    fn shuffled(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % n + 1) as f32).collect()
    }

    #[test]
    fn order_statistics_are_counted_as_documented() {
        // ⌊0.9·10 + ½⌋ = 9, ⌈0.05·10⌉ = 1; ⌊0.955·1000 + ½⌋ = 955; ⌈0.251·1000⌉ = 251.
        let percentile = |low, high| Percentile { high, low };
        let affine = ScaleRule::of(&uint4(), 0.0);
        assert_eq!(percentile(5.0, 90.0).range(&shuffled(10), &affine), (0.0, 9.0), "the low end is at most 0");
        let negative: Vec<f32> = shuffled(1000).iter().map(|x| x - 1001.0).collect();
        assert_eq!(percentile(25.1, 95.5).range(&negative, &affine), (251.0 - 1001.0, 955.0 - 1001.0));
        let signed: Vec<f32> = shuffled(10).iter().map(|x| if x % 2.0 == 0.0 { -x } else { *x }).collect();
        assert_eq!(percentile(5.0, 75.0).range(&signed, &ScaleRule::of(&int4(), 0.0)), (-8.0, 8.0));
        // A signed scale needs to know the larger side.
        let spec = crate::scheme::QuantSpec { convention: Convention::SignedFull, ..int4() };
        assert_eq!(percentile(5.0, 75.0).range(&signed, &ScaleRule::of(&spec, 0.0)), (-8.0, 8.0));
        assert_eq!(percentile(5.0, 75.0).range(&[1.0, 2.0, -0.5, 9.0], &ScaleRule::of(&spec, 0.0)), (-0.5, 2.0));
    }

    #[test]
    fn the_defaults_drop_one_value_of_fifty_thousand_and_one() {
        let rule = ScaleRule::of(&int4(), 0.0);
        let p = Percentile::default();
        assert_eq!(p.range(&shuffled(50_000), &rule).1, 50_000.0);
        assert_eq!(p.range(&shuffled(50_001), &rule).1, 50_000.0);
        let affine = ScaleRule::of(&uint4(), 0.0);
        let negative = |n: usize| -> Vec<f32> { shuffled(n).iter().map(|x| x - n as f32 - 1.0).collect() };
        assert_eq!(p.range(&negative(100_000), &affine).0, -100_000.0);
        assert_eq!(p.range(&negative(100_001), &affine).0, -100_000.0);
        assert_eq!(p.range(&[3.0], &affine), (0.0, 3.0));
    }

    #[test]
    fn percentages_are_checked() {
        let refused = |options| (RECORD.build)(&options).err().unwrap().to_string();
        assert!(refused(json!({ "high": 101.0 })).contains("`low = 0.001` and `high = 101`"));
        assert!(refused(json!({ "low": 60.0, "high": 50.0 })).contains("`low = 60` and `high = 50`"));
        assert!(refused(json!({ "hi": 60.0 })).contains("unknown field `hi`"));
        assert_eq!((RECORD.build)(&json!({})).unwrap().1, json!({ "high": 99.999, "low": 0.001 }));
    }
}
