//! Half-quadratic splitting: what `hqo` and `hqq` share.
//!
//! Both minimize `Σ |x − x̂|^p` with `p < 1`, which pays little for outliers, by alternation. With errors `v = x − x̂` and their shrunken
//! copies `E = sign(v)·max(0, |v| − |v|^(p−1)/β)`, a zero point moves to the mean `z ← z − mean(v − E)/s`; then `β ← κβ`.

use super::ScaleRule;
use super::loss::{Loss, in_chunks, raised, summed};
use super::minmax::extremes;
use crate::numeric::{Kernel, vectorize};
use crate::scheme::{Coder, Grid, WithCoder, Zero};

/// The numbers of a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct HalfQuadratic {
    pub(super) beta: f64,
    pub(super) kappa: f64,
    pub(super) power: f64,
    pub(super) iterations: u32,
}

impl HalfQuadratic {
    /// `Σ (v − E)` over the values, for a scale and a zero point. `v − E = sign(v)·min(|v|, |v|^(p−1)/β)`.
    fn kept(&self, values: &[f32], grid: &Grid, scale: f32, zero: f32, beta: f64) -> f64 {
        let power = (self.power - 1.0) as f32;
        in_chunks(values, |values| vectorize(Kept { values, grid, scale, zero, power, over: (1.0 / beta) as f32 }))
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
            let moved = self.kept(values, &free, scale, zero, beta);
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
                let v = x - near;
                let aim = if v == 0.0 { near } else { near + v.abs().min(v.abs().powf(self.power - 1.0) / beta).copysign(v) };
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

/// See [`HalfQuadratic::kept`].
struct Kept<'a> {
    values: &'a [f32],
    grid: &'a Grid,
    scale: f32,
    zero: f32,
    /// `p − 1`
    power: f32,
    /// `1/β`
    over: f32,
}

impl Kernel for Kept<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> f64 {
        self.grid.with(self)
    }
}

impl WithCoder for Kept<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) -> f64 {
        // The square root is exact, and the usual case.
        if self.power == -0.5 { self.sum(coder, |a| 1.0 / a.sqrt()) } else { self.sum(coder, |a| raised(a, self.power)) }
    }
}

impl Kept<'_> {
    #[inline(always)]
    fn sum<C: Coder + ?Sized>(&self, coder: &C, power: impl Fn(f32) -> f32) -> f64 {
        let of = |x: f32| {
            let v = x - coder.nearest(x, self.scale, self.zero);
            let (a, b) = (v.abs(), power(v.abs()) * self.over);
            (if b < a { b } else { a }).copysign(v)
        };
        summed(self.values, f64::INFINITY, of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::tests::{heavy_tailed, uint4};

    /// `E` as the papers have it, in f64.
    fn shrunk(v: f64, beta: f64, p: f64) -> f64 {
        if v == 0.0 { 0.0 } else { (v.abs() - v.abs().powf(p - 1.0) / beta).max(0.0).copysign(v) }
    }

    #[test]
    fn what_is_kept_of_the_errors_is_what_shrinking_leaves() {
        let values = heavy_tailed(70_001);
        let grid = Grid::Int { lo: 0, hi: 15, zero: Zero::Float };
        let spec = uint4();
        let rule = ScaleRule::of(&spec, 0.0);
        let (lo, hi) = extremes(&values);
        let (scale, zero) = rule.params(lo, hi);
        for (power, beta) in [(0.5, 1.0), (0.7, 10.0), (0.7, 1e5), (0.5, 40.0)] {
            let search = HalfQuadratic { beta, kappa: 1.01, power, iterations: 1 };
            let errors = values.iter().map(|x| f64::from(*x - grid.nearest(*x, scale, zero)));
            let (sum, size) = errors.fold((0.0, 0.0), |(s, n), v| {
                let kept = v - shrunk(v, beta, power);
                (s + kept, n + kept.abs())
            });
            let found = search.kept(&values, &grid, scale, zero, beta);
            assert!((found - sum).abs() < 1e-5 * size, "p {power}, β {beta}: {found} and {sum} of {size}");
        }
    }
}
