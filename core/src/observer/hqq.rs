//! Half-quadratic quantization (Badri and Shaji 2023; `hqq/core/optimize.py`): the zero point of affine weights, at the scale of the whole
//! range.
//!
//! `β = 10, κ = 1.01, p = 0.7`, twenty steps. A float zero point is what the method finds; an integer one is its result rounded. Where
//! the reference code ends one step after the best, the best is taken here. The maths is in `half_quadratic.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::half_quadratic::HalfQuadratic;
use super::minmax::extremes;
use super::{Observer, ObserverRecord, ScaleRule, parse, refuse};
use crate::error::{Error, Result};
use crate::scheme::{Grid, ScaleForm, Zero};

/// Options of the observer `hqq`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Hqq {
    /// Most steps taken.
    iterations: u32,
    /// `β` of the first step.
    beta: f64,
    /// `κ`: `β` grows by this factor each step.
    kappa: f64,
    /// `p`: the exponent of the error.
    norm: f64,
}

impl Default for Hqq {
    fn default() -> Self {
        Self { iterations: 20, beta: 10.0, kappa: 1.01, norm: 0.7 }
    }
}

impl Observer for Hqq {
    fn range(&self, values: &[f32], _: &ScaleRule) -> (f32, f32) {
        extremes(values)
    }

    fn fit(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        if rule.symmetric() {
            let (lo, hi) = extremes(values);
            return rule.params(lo, hi);
        }
        let Self { iterations, beta, kappa, norm } = *self;
        HalfQuadratic { beta, kappa, power: norm, iterations }.zero(values, rule)
    }

    fn chooses_ranges(&self) -> bool {
        false
    }

    fn suits(&self, grid: &Grid, _: ScaleForm) -> Result<()> {
        match grid.zero() {
            Zero::Integer | Zero::Float => Ok(()),
            Zero::None | Zero::Fixed(_) => {
                refuse("hqq", "it moves zero points, and there are none", "set `symmetric = false`, or use hqo or mse")
            }
        }
    }
}

fn check(hqq: &Hqq) -> Result<()> {
    let bad = |key: &str, value: f64, range: &str| {
        Err(Error::config("config::invalid", format!("option `{key}` of observer `hqq` is {value}")).hint(format!("it must be {range}")))
    };
    if !(1..=100_000).contains(&hqq.iterations) {
        return bad("iterations", f64::from(hqq.iterations), "from 1 to 100000");
    }
    if !(hqq.beta > 0.0 && hqq.beta.is_finite()) {
        return bad("beta", hqq.beta, "above 0");
    }
    if !(1.0..=10.0).contains(&hqq.kappa) {
        return bad("kappa", hqq.kappa, "from 1 to 10");
    }
    if !(hqq.norm > 0.0 && hqq.norm <= 1.0) {
        return bad("norm", hqq.norm, "above 0 and at most 1");
    }
    Ok(())
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "hqq",
    summary: "half-quadratic search for the zero point of affine weights",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || schemars::schema_for!(Hqq).to_value(),
    build: |options| {
        let hqq: Hqq = parse("hqq", "iterations, beta, kappa, norm", options)?;
        check(&hqq)?;
        let resolved = serde_json::to_value(&hqq).map_err(|e| Error::internal(e.to_string()))?;
        Ok((Box::new(hqq), resolved))
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observer::loss::Loss;
    use crate::observer::tests::{heavy_tailed, int4, uint4};
    use crate::scheme::QuantSpec;

    fn float_zero() -> QuantSpec {
        QuantSpec { grid: Grid::Int { lo: 0, hi: 15, zero: Zero::Float }, ..uint4() }
    }

    #[test]
    fn a_float_zero_point_lowers_the_mean_error() {
        let values = heavy_tailed(512);
        let rule = ScaleRule::of(&float_zero(), 0.0);
        let (lo, hi) = extremes(&values);
        let loss = Loss::new(&values, &rule, 1.0);
        let error = |(s, z): (f32, f32)| loss.below(f64::INFINITY, s, z);
        let found = Hqq::default().fit(&values, &rule);
        assert!(error(found) < error(rule.params(lo, hi)), "{found:?}");
        let integer = Hqq::default().fit(&values, &ScaleRule::of(&uint4(), 0.0));
        assert_eq!((integer.0, integer.1.fract()), (found.0, 0.0));
    }

    /// The loop of the reference code, written as there: inverse scale, codes, mean of `q − (W − E)·s`.
    #[test]
    fn it_is_the_reference_loop() {
        let values = heavy_tailed(96);
        let rule = ScaleRule::of(&float_zero(), 0.0);
        let (lo, hi) = extremes(&values);
        let (s, first) = rule.params(lo, hi);
        let inverse = 1.0 / f64::from(s);
        let (mut zero, mut beta, mut best) = (f64::from(first), 10.0f64, (f64::INFINITY, 0.0));
        for _ in 0..20 {
            let codes: Vec<f64> = values.iter().map(|w| (f64::from(*w) * inverse + zero).round_ties_even().clamp(0.0, 15.0)).collect();
            let pairs = || values.iter().map(|w| f64::from(*w)).zip(&codes);
            let error = pairs().map(|(w, q)| (w - (q - zero) / inverse).abs()).sum::<f64>() / values.len() as f64;
            if error >= best.0 {
                break;
            }
            best = (error, zero);
            let moved = pairs().map(|(w, q)| {
                let v = w - (q - zero) / inverse;
                let shrunk = v.signum() * (v.abs() - v.abs().powf(-0.3) / beta).max(0.0);
                q - (w - shrunk) * inverse
            });
            zero = moved.sum::<f64>() / values.len() as f64;
            beta *= 1.01;
        }
        let (_, found) = Hqq::default().fit(&values, &rule);
        assert!((f64::from(found) - best.1).abs() < 1e-4, "{found} for {}", best.1);
        assert!(found != first);
    }

    #[test]
    fn options_and_formats_are_checked() {
        let refused = |options| (RECORD.build)(&options).err().unwrap().to_string();
        assert!(refused(json!({ "norm": 2.0 })).contains("option `norm` of observer `hqq` is 2"));
        assert!(refused(json!({ "kappa": 0.5 })).contains("option `kappa` of observer `hqq` is 0.5"));
        assert!(refused(json!({ "p": 0.5 })).contains("unknown field `p`"));
        let message = Hqq::default().suits(&int4().grid, int4().scale).unwrap_err().to_string();
        assert!(message.contains("observer `hqq`"), "{message}");
    }
}
