//! The error of a tile for given parameters, the inner loop of every search.
//!
//! `Σ (|x − x̂| / a)^p`, with `a` the largest magnitude: without that unit the power of a large error overflows. Sums run in sixteen
//! lanes whatever the instruction set, and nothing is fused, so they do not depend on the machine.

use rayon::prelude::*;

use super::ScaleRule;
use crate::numeric::{Kernel, vectorize};
use crate::scheme::{Coder, Grid, WithCoder};

/// What is summed, and over what.
pub(super) struct Loss<'a> {
    values: &'a [f32],
    grid: &'a Grid,
    unit: f32,
    power: f32,
}

impl<'a> Loss<'a> {
    /// The error of `values` on the rule's grid, to the power `power`.
    pub(super) fn new(values: &'a [f32], rule: &'a ScaleRule, power: f32) -> Self {
        Self::on(values, &rule.grid, power)
    }

    /// The same on a grid of one's own.
    pub(super) fn on(values: &'a [f32], grid: &'a Grid, power: f32) -> Self {
        let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        Self { values, grid, unit: (1.0 / largest).min(f32::MAX), power }
    }

    /// The sum, or infinity as soon as it reaches `limit`: a search that asks for less than its best learns the same from it.
    pub(super) fn below(&self, limit: f64, scale: f32, zero: f32) -> f64 {
        let sum = |values: &[f32]| vectorize(Sum { loss: &Loss { values, ..*self }, limit, scale, zero });
        let total = in_chunks(self.values, sum);
        if total >= limit { f64::INFINITY } else { total }
    }
}

struct Sum<'a> {
    loss: &'a Loss<'a>,
    limit: f64,
    scale: f32,
    zero: f32,
}

impl Kernel for Sum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> f64 {
        self.loss.grid.with(self)
    }
}

impl WithCoder for Sum<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) -> f64 {
        let power = self.loss.power;
        if power == 1.0 {
            self.sum(coder, |e| e)
        } else if power == 2.0 {
            self.sum(coder, |e| e * e)
        } else {
            self.sum(coder, |e| raised(e, power))
        }
    }
}

impl Sum<'_> {
    #[inline(always)]
    fn sum<C: Coder + ?Sized>(&self, coder: &C, term: impl Fn(f32) -> f32) -> f64 {
        let of = |x: f32| term((x - coder.nearest(x, self.scale, self.zero)).abs() * self.loss.unit);
        summed(self.loss.values, self.limit, of)
    }
}

/// `Σ of(x)` in sixteen lanes, or infinity as soon as it reaches `limit`.
#[inline(always)]
pub(super) fn summed(values: &[f32], limit: f64, of: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0;
    for block in values.chunks(512) {
        let mut lanes = [0f32; 16];
        let mut sixteens = block.chunks_exact(16);
        for values in &mut sixteens {
            for (lane, x) in lanes.iter_mut().zip(values) {
                *lane += of(*x);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(sixteens.remainder()) {
            *lane += of(*x);
        }
        total += lanes.iter().map(|x| f64::from(*x)).sum::<f64>();
        if total >= limit {
            return f64::INFINITY;
        }
    }
    total
}

/// A sum over values from those over chunks, which all threads form where there are many and which are added in order.
pub(super) fn in_chunks(values: &[f32], sum: impl Fn(&[f32]) -> f64 + Send + Sync) -> f64 {
    const CHUNK: usize = 1 << 15;
    if values.len() <= CHUNK {
        return sum(values);
    }
    values.par_chunks(CHUNK).map(sum).collect::<Vec<f64>>().iter().sum()
}

/// `e^p` for `e ≥ 0`, to a few units in the last place while the result is not much below 1; vectorizes, unlike `powf`.
///
/// `log₂ m = 2/ln 2 · atanh((m − 1)/(m + 1))` by its series for `m` within `√½ … √2`, and `2^r` by that of the exponential.
#[inline(always)]
pub(super) fn raised(e: f32, p: f32) -> f32 {
    // Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
    const WHOLE: f32 = 12_582_912.0;
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let shift = e.to_bits().wrapping_sub(SQRT_HALF) & 0xff80_0000;
    let m = f32::from_bits(e.to_bits().wrapping_sub(shift));
    let exponent = (shift as i32 >> 23) as f32;
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    let series = 1.0 + t2 * (1.0 / 3.0 + t2 * (0.2 + t2 * (1.0 / 7.0 + t2 * (1.0 / 9.0))));
    let log = exponent + 2.0 * std::f32::consts::LOG2_E * t * series;
    let y = (p * log).clamp(-126.0, 126.0);
    let shifted = y + WHOLE;
    let r = (y - (shifted - WHOLE)) * std::f32::consts::LN_2;
    let mut power = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * r + c;
    }
    let whole = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if e < f32::MIN_POSITIVE { 0.0 } else { power * whole }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::tests::int4;

    #[test]
    fn powers_are_close_to_those_of_the_library() {
        for i in 0..4000 {
            let e = 10f32.powf(-6.0 + i as f32 * 0.0016);
            for p in [0.3f32, 0.7, 1.5, 2.4, 3.0] {
                let want = f64::from(e).powf(f64::from(p));
                let error = (f64::from(raised(e, p)) / want - 1.0).abs();
                assert!(error < 8e-6, "{e}^{p}: {} for {want}", raised(e, p));
            }
        }
        assert_eq!([raised(0.0, 2.4), raised(1e-40, 2.4), raised(1.0, 2.4)], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn sums_are_those_of_the_definition_at_any_magnitude() {
        let spec = int4();
        let rule = ScaleRule::of(&spec, 0.0);
        for size in [1e-30f32, 1.0, 1e30] {
            let values: Vec<f32> = (0..1037).map(|i| (i as f32 * 0.37).sin() * size).collect();
            let (s, z) = rule.params(-0.8 * size, 0.8 * size);
            let largest = values.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            for power in [1.0f32, 2.0, 2.4] {
                let term = |x: &f32| f64::from((x - rule.grid.nearest(*x, s, z)).abs() / largest).powf(f64::from(power));
                let want: f64 = values.iter().map(term).sum();
                let loss = Loss::new(&values, &rule, power);
                let got = loss.below(f64::INFINITY, s, z);
                assert!((got / want - 1.0).abs() < 1e-5, "{power}: {got} for {want}");
                assert_eq!(loss.below(0.5 * want, s, z), f64::INFINITY);
            }
        }
    }
}
