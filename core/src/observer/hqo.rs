//! Half-quadratic optimization as in brevitas (`core/stats/stats_op.py`): of the scale for formats without zero points, of the zero point
//! for affine ones, until the mean error no longer falls.
//!
//! Scale: `β = 10⁵, κ = 1.01, p = 0.7`. Zero point: `β = 1, κ = 1.01, p = 0.5`. brevitas stops all tiles of a tensor together; here each
//! stops by itself. The maths is in `half_quadratic.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::half_quadratic::HalfQuadratic;
use super::minmax::extremes;
use super::{Observer, ObserverRecord, ScaleRule, parse, refuse};
use crate::error::{Error, Result};
use crate::scheme::{Grid, ScaleForm};

/// Options of the observer `hqo`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Hqo {
    /// Most steps taken.
    iterations: u32,
}

impl Default for Hqo {
    fn default() -> Self {
        Self { iterations: 1000 }
    }
}

impl Observer for Hqo {
    fn range(&self, values: &[f32], _: &ScaleRule) -> (f32, f32) {
        extremes(values)
    }

    fn fit(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let iterations = self.iterations;
        if rule.symmetric() {
            HalfQuadratic { beta: 1e5, kappa: 1.01, power: 0.7, iterations }.scale(values, rule)
        } else {
            HalfQuadratic { beta: 1.0, kappa: 1.01, power: 0.5, iterations }.zero(values, rule)
        }
    }

    fn chooses_ranges(&self) -> bool {
        false
    }

    fn suits(&self, grid: &Grid, form: ScaleForm) -> Result<()> {
        match (grid, form) {
            (Grid::Int { .. }, ScaleForm::Float(_)) => Ok(()),
            (Grid::Int { .. }, _) => refuse("hqo", "it moves scales freely, and these are not floats", "leave `scale` out, or use mse"),
            _ => refuse("hqo", "it is for integers", "use mse, or an integer format"),
        }
    }
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "hqo",
    summary: "half-quadratic search for the scale, or the zero point of affine weights",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || schemars::schema_for!(Hqo).to_value(),
    build: |options| {
        let hqo: Hqo = parse("hqo", "iterations", options)?;
        if !(1..=100_000).contains(&hqo.iterations) {
            let message = format!("option `iterations` of observer `hqo` is {}", hqo.iterations);
            return Err(Error::config("config::invalid", message).hint("it must be from 1 to 100000; 1000 is usual"));
        }
        let resolved = serde_json::to_value(&hqo).map_err(|e| Error::internal(e.to_string()))?;
        Ok((Box::new(hqo), resolved))
    },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::loss::Loss;
    use crate::observer::tests::{heavy_tailed, int4, uint4};
    use crate::scheme::{FloatKind, QuantSpec, Zero};

    #[test]
    fn the_mean_error_falls() {
        let values = heavy_tailed(512);
        let float = QuantSpec { grid: Grid::Int { lo: 0, hi: 15, zero: Zero::Float }, ..uint4() };
        for spec in [int4(), uint4(), float] {
            let rule = ScaleRule::of(&spec, 0.0);
            let (lo, hi) = extremes(&values);
            let loss = Loss::new(&values, &rule, 1.0);
            let error = |(s, z): (f32, f32)| loss.below(f64::INFINITY, s, z);
            let found = Hqo::default().fit(&values, &rule);
            assert!(error(found) <= error(rule.params(lo, hi)), "{:?}: {found:?}", rule.grid);
            if rule.symmetric() {
                assert!(error(found) < error(rule.params(lo, hi)), "scales move: {found:?}");
            } else {
                assert_eq!(found.0, rule.params(lo, hi).0, "the scale stays");
            }
        }
    }

    /// By hand: at `s = 8/7.5` the codes are 1, 2, 3, 4 and 7 (8 clips), the errors sum to 1.2; with a small `β` all `E` are 0, the ratios
    /// `x/q` are 1, 1, 1, 1 and 8/7, and at their median the sum is 1.
    #[test]
    fn a_step_takes_the_lower_median_of_the_ratios() {
        let rule = ScaleRule::of(&int4(), 0.0);
        let values = [1.0, 2.0, 3.0, 4.0, 8.0];
        let search = |beta| HalfQuadratic { beta, kappa: 1.0, power: 0.7, iterations: 2 }.scale(&values, &rule).0;
        assert_eq!(search(1e-9), 1.0);
    }

    #[test]
    fn scales_are_as_stored_and_formats_are_checked() {
        let spec = QuantSpec { scale: ScaleForm::Float(FloatKind::F16), ..int4() };
        let (scale, _) = Hqo::default().fit(&heavy_tailed(300), &ScaleRule::of(&spec, 0.0));
        assert_eq!(FloatKind::F16.round_scale(scale), scale);
        let message = Hqo::default().suits(&int4().grid, ScaleForm::TwoLevel).unwrap_err().to_string();
        assert!(message.contains("observer `hqo`"), "{message}");
        assert!(Hqo::default().suits(&Grid::Levels(vec![0.0]), ScaleForm::Float(FloatKind::F32)).is_err());
    }
}
