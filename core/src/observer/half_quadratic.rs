//! Half-quadratic splitting: what `hqo` and `hqq` share.
//!
//! Both minimize `Σ |x − x̂|^p` with `p < 1`, which pays little for outliers, by alternation. With errors `v = x − x̂` and their shrunken
//! copies `E = sign(v)·max(0, |v| − |v|^(p−1)/β)`, a zero point moves to the mean `z ← z − mean(v − E)/s`; then `β ← κβ`.

use super::ScaleRule;
use super::loss::Loss;
use super::minmax::extremes;
use crate::scheme::{Grid, Zero};

/// The numbers of a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct HalfQuadratic {
    pub(super) beta: f64,
    pub(super) kappa: f64,
    pub(super) power: f64,
    pub(super) iterations: u32,
}

impl HalfQuadratic {
    /// `E` of one error. An error of 0 stays 0, though its power does not exist.
    pub(super) fn shrink(&self, v: f64, beta: f64) -> f64 {
        if v == 0.0 {
            return 0.0;
        }
        let a = v.abs();
        (a - a.powf(self.power - 1.0) / beta).max(0.0).copysign(v)
    }

    /// The zero point with the least `Σ |x − x̂|`, the scale being that of the whole range. Ends when the sum no longer falls.
    ///
    /// The search moves a float; for integer zero points its result is rounded, and the first one kept if that is no worse.
    pub(super) fn zero(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let (lo, hi) = extremes(values);
        let (scale, first) = rule.params(lo, hi);
        let free = match &rule.grid {
            Grid::Int { lo, hi, .. } => Grid::Int { lo: *lo, hi: *hi, zero: Zero::Float },
            other => other.clone(),
        };
        let loss = Loss::on(values, &free, 1.0);
        let (mut zero, mut beta) = (first, self.beta);
        let mut best = (f64::INFINITY, first);
        for _ in 0..self.iterations {
            let sum = loss.below(best.0, scale, zero);
            if sum >= best.0 {
                break;
            }
            best = (sum, zero);
            let moved: f64 = values
                .iter()
                .map(|x| {
                    let v = f64::from(*x) - f64::from(free.nearest(*x, scale, zero));
                    v - self.shrink(v, beta)
                })
                .sum();
            let next = (f64::from(zero) - moved / values.len() as f64 / f64::from(scale)) as f32;
            if !next.is_finite() {
                break;
            }
            zero = next;
            beta *= self.kappa;
        }
        let found = rule.stored_zero(best.1);
        let loss = Loss::new(values, rule, 1.0);
        let least = loss.below(f64::INFINITY, scale, first);
        (scale, if loss.below(least, scale, found) < least { found } else { first })
    }

    /// The scale of a format without zero points: `s ← median (x − E)/(x̂/s)` over the values with neither at 0, the lower of two middle
    /// ones; each as it will be stored.
    pub(super) fn scale(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let (lo, hi) = extremes(values);
        let (mut scale, zero) = rule.params(lo, hi);
        let loss = Loss::new(values, rule, 1.0);
        let mut best = (f64::INFINITY, scale);
        let (mut beta, mut ratios) = (self.beta, Vec::with_capacity(values.len()));
        for _ in 0..self.iterations {
            let sum = loss.below(best.0, scale, zero);
            if sum >= best.0 {
                break;
            }
            best = (sum, scale);
            ratios.clear();
            ratios.extend(values.iter().filter_map(|x| {
                let (x, near) = (f64::from(*x), f64::from(rule.grid.nearest(*x, scale, zero)));
                let aim = x - self.shrink(x - near, beta);
                (aim != 0.0 && near != 0.0).then(|| (aim / (near / f64::from(scale))) as f32)
            }));
            if ratios.is_empty() {
                break;
            }
            let middle = (ratios.len() - 1) / 2;
            let median = rule.stored(*ratios.select_nth_unstable_by(middle, f32::total_cmp).1);
            if !median.is_finite() || median == 0.0 {
                break;
            }
            scale = median;
            beta *= self.kappa;
        }
        (best.1, zero)
    }
}
