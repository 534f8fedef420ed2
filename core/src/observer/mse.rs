//! The shrunken range with the least error.
//!
//! Candidates `p_i = 1 − i/grid`, `i = 0 … ⌊max-shrink·grid⌋`, shrink both ends of the range; the winner minimizes
//! `Σ |x − x̂|^norm`. Ties keep the wider range. `norm = 2.4, grid = 100, max-shrink = 0.2` are llm-compressor's; `max-shrink = 0.8` is the
//! search of the GPTQ reference code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::minmax::extremes;
use super::{Observer, ObserverRecord, ScaleRule};
use crate::error::{Error, Result};

/// Options of the observer `mse`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Mse {
    /// Exponent of the error.
    norm: f32,
    /// Steps of the full range.
    grid: u32,
    /// Largest shrinking tried, as a part of the range.
    max_shrink: f32,
}

impl Default for Mse {
    fn default() -> Self {
        Self { norm: 2.4, grid: 100, max_shrink: 0.2 }
    }
}

impl Observer for Mse {
    fn range(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let (lo, hi) = extremes(values);
        let steps = (self.max_shrink * self.grid as f32) as u32;
        let mut best = (f32::INFINITY, (lo, hi));
        for i in 0..=steps {
            let p = 1.0 - i as f32 / self.grid as f32;
            let (scale, zero) = rule.params(p * lo, p * hi);
            let error: f32 = values.iter().map(|x| (x - rule.grid.nearest(*x, scale, zero)).abs().powf(self.norm)).sum();
            if error < best.0 {
                best = (error, (p * lo, p * hi));
            }
        }
        best.1
    }
}

fn check(mse: &Mse) -> Result<()> {
    let bad = |key: &str, value: f64, range: &str| {
        Err(Error::config("config::invalid", format!("option `{key}` of observer `mse` is {value}")).hint(format!("it must be {range}")))
    };
    if !(mse.norm > 0.0 && mse.norm <= 8.0) {
        return bad("norm", f64::from(mse.norm), "above 0 and at most 8");
    }
    if mse.grid == 0 || mse.grid > 10_000 {
        return bad("grid", f64::from(mse.grid), "from 1 to 10000");
    }
    if !(0.0..1.0).contains(&mse.max_shrink) {
        return bad("max-shrink", f64::from(mse.max_shrink), "at least 0 and below 1");
    }
    Ok(())
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "mse",
    summary: "the shrunken range with the least error",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || schemars::schema_for!(Mse).to_value(),
    build: |options| {
        let mse: Mse = serde_json::from_value(options.clone()).map_err(|e| {
            Error::config("config::invalid", format!("options of observer `mse`: {e}")).hint("its options: norm, grid, max-shrink")
        })?;
        check(&mse)?;
        let resolved = serde_json::to_value(&mse).map_err(|e| Error::internal(e.to_string()))?;
        Ok((Box::new(mse), resolved))
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::tests::int4;

    #[test]
    fn never_worse_than_the_full_range_and_better_with_an_outlier() {
        let rule = ScaleRule::of(&int4(), 0.0);
        let mut values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        values[5] = 1.3;
        let error = |(s, z): (f32, f32)| -> f32 { values.iter().map(|x| (x - rule.grid.nearest(*x, s, z)).abs().powf(2.4)).sum() };
        let (lo, hi) = extremes(&values);
        assert!(error(Mse::default().fit(&values, &rule)) < error(rule.params(lo, hi)));
    }
}
