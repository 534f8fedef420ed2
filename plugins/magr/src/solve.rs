//! The proximal gradient method for
//!
//! ```text
//! min_W  ½‖X̄(W − W₀)ᵀ‖² + t·Σ ‖w_range‖_∞         X̄ᵀX̄ = H/σ_max(H)
//! ```
//!
//! Rows do not know each other. A step of length 1 (the gradient's Lipschitz constant is 1) is `V = W − (W − W₀)H/σ`, then each range of
//! `V` is clamped at the `θ` with `Σ max(|v| − θ, 0) = t`: the proximal map of `t‖·‖_∞`, which by Moreau's identity is `v` minus its
//! projection on the ℓ₁ ball of radius `t`.

use qfw_core::numeric::{Onto, Transpose, gemm};
use rayon::prelude::*;

/// Rows of one task: fixed, so that no result depends on the number of threads.
const ROWS: usize = 64;

/// What is to be solved, for every row.
pub(crate) struct Problem<'a> {
    /// Input channels.
    pub n: usize,
    /// `H/σ_max(H)`, both triangles.
    pub h: &'a [f32],
    /// Channels of a range; the last one of a row may be shorter.
    pub range: usize,
    /// Weight of the largest magnitudes.
    pub t: f32,
    /// Steps.
    pub iterations: usize,
    /// A row is done when a step lowers its objective by less than this share.
    pub tolerance: f64,
    /// Steps start from where the last two point to (FISTA) instead of from the last.
    pub accelerated: bool,
}

impl Problem<'_> {
    /// Solves for a row-major `[rows, n]` weight in place.
    pub(crate) fn solve(&self, weight: &mut [f32]) {
        weight.par_chunks_mut(ROWS * self.n).for_each(|w| self.rows(w));
    }

    fn rows(&self, weight: &mut [f32]) {
        let (n, rows) = (self.n, weight.len() / self.n);
        let original = weight.to_vec();
        // x: where each row is, with its gradient (x − w₀)H/σ; y: where its step starts from.
        let (mut x, mut gradient) = (original.clone(), vec![0.0; weight.len()]);
        let (mut y, mut y_gradient) = (x.clone(), gradient.clone());
        let (mut next, mut next_gradient, mut shift) = (vec![0.0; weight.len()], vec![0.0; weight.len()], vec![0.0; weight.len()]);
        let mut objective: Vec<f64> =
            (0..rows).map(|r| self.objective(&x[r * n..][..n], &original[r * n..][..n], &gradient[r * n..][..n])).collect();
        let mut momentum = vec![1.0f64; rows];
        let mut done = vec![false; rows];
        for _ in 0..self.iterations {
            for (next, (y, g)) in next.iter_mut().zip(y.iter().zip(&y_gradient)) {
                *next = y - g;
            }
            for row in next.chunks_exact_mut(n) {
                row.chunks_mut(self.range).for_each(|range| shrink(range, self.t));
            }
            for (s, (a, b)) in shift.iter_mut().zip(next.iter().zip(&original)) {
                *s = a - b;
            }
            gemm((rows, n, n), Onto::Replace, &mut next_gradient, n, &shift, Transpose::No, n, self.h, Transpose::No, n);
            for r in (0..rows).filter(|r| !done[*r]).collect::<Vec<_>>() {
                let of = r * n..(r + 1) * n;
                let now = self.objective(&next[of.clone()], &original[of.clone()], &next_gradient[of.clone()]);
                let gain = objective[r] - now;
                if gain < 0.0 {
                    // The momentum has overshot, or rounding is all that is left. Without momentum a step cannot raise the objective but by rounding.
                    if momentum[r] == 1.0 {
                        done[r] = true;
                    } else {
                        momentum[r] = 1.0;
                        y[of.clone()].copy_from_slice(&x[of.clone()]);
                        y_gradient[of.clone()].copy_from_slice(&gradient[of]);
                    }
                    continue;
                }
                let following = f64::midpoint(1.0, (1.0 + 4.0 * momentum[r] * momentum[r]).sqrt());
                let beta = if self.accelerated { ((momentum[r] - 1.0) / following) as f32 } else { 0.0 };
                if self.accelerated {
                    momentum[r] = following;
                }
                // The gradient is affine, so that of y follows from those of the two points it lies on a line with.
                for i in of {
                    y[i] = next[i] + beta * (next[i] - x[i]);
                    y_gradient[i] = next_gradient[i] + beta * (next_gradient[i] - gradient[i]);
                    (x[i], gradient[i]) = (next[i], next_gradient[i]);
                }
                objective[r] = now;
                done[r] = gain <= self.tolerance * now;
            }
            if done.iter().all(|d| *d) {
                break;
            }
        }
        weight.copy_from_slice(&x);
    }

    /// `½⟨x − w₀, (x − w₀)H/σ⟩ + t·Σ‖x_range‖_∞`
    pub(crate) fn objective(&self, x: &[f32], original: &[f32], gradient: &[f32]) -> f64 {
        let energy: f64 = x.iter().zip(original).zip(gradient).map(|((x, w), g)| f64::from(x - w) * f64::from(*g)).sum();
        let largest: f64 = x.chunks(self.range).map(|r| f64::from(r.iter().fold(0.0f32, |m, v| m.max(v.abs())))).sum();
        energy / 2.0 + f64::from(self.t) * largest
    }
}

/// Clamps at the `θ` with `Σ max(|v| − θ, 0) = t`, or to zeros where `Σ|v| ≤ t`.
pub(crate) fn shrink(v: &mut [f32], t: f32) {
    let (sum, largest) = v.iter().fold((0.0f64, 0.0f64), |(s, m), x| (s + f64::from(x.abs()), m.max(f64::from(x.abs()))));
    let t = f64::from(t);
    if sum <= t {
        v.fill(0.0);
        return;
    }
    // The sum is convex and falls in θ: Newton's steps from below rise to the solution, and end when the set above θ stays the same.
    let mut theta = (largest - t).max((sum - t) / v.len() as f64);
    loop {
        let (above, count) = v.iter().map(|x| f64::from(x.abs())).filter(|x| *x > theta).fold((0.0, 0u32), |(s, n), x| (s + x, n + 1));
        let better = if count == 0 { theta } else { (above - t) / f64::from(count) };
        if better <= theta {
            break;
        }
        theta = better;
    }
    let theta = theta as f32;
    for x in v {
        *x = x.clamp(-theta, theta);
    }
}

/// The largest sum of magnitudes over a column.
pub(crate) fn one_norm(h: &[f32], n: usize) -> f64 {
    // Symmetric: rows do.
    h.chunks_exact(n).map(|row| row.iter().map(|x| f64::from(x.abs())).sum::<f64>()).fold(0.0, f64::max)
}

/// `tr(H)² / ‖H‖²`: the number of equal eigenvalues that would have this trace and this norm.
pub(crate) fn effective_rank(h: &[f32], n: usize) -> f64 {
    let trace: f64 = (0..n).map(|i| f64::from(h[i * n + i])).sum();
    let norm: f64 = h.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    if norm > 0.0 { trace * trace / norm } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By its definition: the projection on the ℓ₁ ball by sorting (Duchi et al. 2008), in f64.
    fn by_sorting(v: &[f32], t: f64) -> Vec<f64> {
        let mut sorted: Vec<f64> = v.iter().map(|x| f64::from(x.abs()) / t).collect();
        if sorted.iter().sum::<f64>() <= 1.0 {
            return vec![0.0; v.len()];
        }
        sorted.sort_by(|a, b| b.total_cmp(a));
        let (mut sum, mut threshold) = (0.0, 0.0);
        for (k, x) in sorted.iter().enumerate() {
            sum += x;
            let candidate = (sum - 1.0) / (k + 1) as f64;
            if *x > candidate {
                threshold = candidate;
            }
        }
        let projected = |x: f32| f64::from(x.signum()) * (f64::from(x.abs()) / t - threshold).max(0.0);
        v.iter().map(|x| f64::from(*x) - t * projected(*x)).collect()
    }

    #[test]
    fn the_proximal_map_is_that_of_the_definition() {
        for (n, t) in [(1, 0.1), (5, 0.3), (64, 0.01), (64, 2.0), (64, 100.0), (257, 1.0)] {
            let v: Vec<f32> = (0..n).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
            let mut shrunk = v.clone();
            shrink(&mut shrunk, t);
            for (a, b) in shrunk.iter().zip(by_sorting(&v, f64::from(t))) {
                assert!((f64::from(*a) - b).abs() < 2e-6, "{n} {t}: {a} {b}");
            }
        }
    }

    /// A Householder reflection between known eigenvalues.
    #[test]
    fn the_effective_rank_is_that_of_the_eigenvalues() {
        let n = 40;
        let u: Vec<f64> = (0..n).map(|i| (i as f64 + 1.0).sin()).collect();
        let norm: f64 = u.iter().map(|x| x * x).sum();
        let eigen: Vec<f64> = (0..n).map(|i| 0.7f64.powi(i as i32) * 13.0).collect();
        let q = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * u[i] * u[j] / norm;
        let h: Vec<f32> = (0..n * n).map(|ij| (0..n).map(|k| q(ij / n, k) * eigen[k] * q(ij % n, k)).sum::<f64>() as f32).collect();
        let rank = eigen.iter().sum::<f64>().powi(2) / eigen.iter().map(|x| x * x).sum::<f64>();
        assert!((effective_rank(&h, n) - rank).abs() < 1e-3);
    }
}
