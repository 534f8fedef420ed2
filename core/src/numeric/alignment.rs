//! Moving a weight so that error feedback on quantized inputs aims at the original layer's output (Qronos, arXiv:2505.11695).
//!
//! With `H = X̃ᵀX̃`, `G = XᵀX̃`, `K = H + λI`, original weight `w`, weight as it stands `v`, the method is: round the first column at
//!
//! ```text
//! a₀ = (w·G_{:,0} − Σ_{j>0} v_j·H_0j) / H_00
//! ```
//!
//! move the rest to `v ← (w·(G + λI)_{:,1:} − q₀·H_{0,1:})·A` with `A = (K_{1:,1:})⁻¹`, and go on as GPTQ with the upper factor of `A`.
//! Three identities make that one change of the weight before an ordinary sweep:
//!
//! - With `K = RRᵀ`, `R` upper, `U = R⁻¹`: the trailing block of `U` factors `A`, so the sweep with `U` is the right one from column 1 on.
//! - The sweep's own first step adds `(a₀ − q₀)·H_{0,1:}·A`, as `U_{0,1:}/U_00 = −H_{0,1:}·A`. So `q₀` drops out.
//! - `w·(G + λI)_{:,1:}·A = w_{1:} + (w₀·H_{0,1:} + (w·Δ)_{1:})·A` with `Δ = G − H`, a small correction instead of a large product.
//!
//! Hence the sweep starts at `[a₀, w_{1:} + ((w₀ − a₀)·H_{0,1:} + (w·Δ)_{1:})·A]`. Where the streams agree, `Δ = 0` and it starts at `w`:
//! GPTQ. `A` can be as large as `1/λ`, so all of this is in f64.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::codes::ROWS_PER_TASK;
use super::eigenvalue::largest_eigenvalue;
use super::gemm::{Onto, Transpose, gemm};
use super::gram::{Diagonal, finite};
use super::inverse_factor::{InverseFactor, damped_inverse, upper};
use crate::error::Result;

/// How to damp and order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlignmentOptions {
    /// `λ = alpha · σ_max(H)`; positive.
    pub alpha: f64,
    /// Order the columns by falling diagonal (ties by index).
    pub by_diagonal: bool,
}

/// What layers that read the same input share.
pub struct Alignment {
    /// For the sweep. Its `damp` is the `alpha` used.
    pub factor: InverseFactor,
    /// `U` in f64.
    u: Vec<f64>,
    /// `Δ`, row-major `[n, n]`, in the order of the sweep.
    delta: Vec<f32>,
    /// The first row of `H` in the order of the sweep.
    first: Vec<f64>,
}

/// Columns of a panel in the products below.
const PANEL: usize = 128;

impl Alignment {
    /// From the lower triangle `h` and the whole of `c` (element `(i, j)` is `x̃ᵢ·xⱼ`, so `G = Cᵀ`), both row-major `[n, n]`.
    ///
    /// # Errors
    /// As [`super::inverse_factor`].
    pub fn new(h: &[f32], c: &[f32], n: usize, options: &AlignmentOptions) -> Result<Self> {
        let diagonal = Diagonal::of(h, n)?;
        finite(&(0..n).map(|i| f64::from(c[i * n + i])).collect::<Vec<_>>())?;
        let order = options.by_diagonal.then(|| diagonal.falling());
        let top = largest_eigenvalue(h, n);
        let (inverse, damp) = damped_inverse(h, &diagonal, order.as_deref(), options.alpha, top)?;
        let u = upper(&inverse, |x| x);
        drop(inverse);
        let column = |i: usize| order.as_ref().map_or(i, |o| o[i] as usize);
        let gram = |a: usize, b: usize| if a == b { diagonal.filled[a] } else { f64::from(h[a.max(b) * n + a.min(b)]) };
        let first = (0..n).map(|j| gram(column(0), column(j))).collect();
        let mut delta = vec![0.0; n * n];
        delta.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
            let from = column(i);
            for (j, delta) in row.iter_mut().enumerate() {
                let to = column(j);
                *delta = c[to * n + from] - h[from.max(to) * n + from.min(to)];
            }
        });
        let factor = InverseFactor { n, u: u.iter().map(|x| *x as f32).collect(), order, dead: diagonal.dead, damp };
        Ok(Self { factor, u, delta, first })
    }

    /// The weight to start the sweep at, row-major `[rows, n]`, natural column order. `current` is the weight as it stands.
    pub fn start(&self, original: &[f32], current: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; original.len()];
        let chunk = ROWS_PER_TASK * self.factor.n;
        out.par_chunks_mut(chunk).zip(original.par_chunks(chunk)).zip(current.par_chunks(chunk)).for_each(|((out, w), v)| {
            self.start_rows(w, v, out);
        });
        out
    }

    fn start_rows(&self, original: &[f32], current: &[f32], out: &mut [f32]) {
        let n = self.factor.n;
        let rows = original.len() / n;
        let column = |i: usize| self.factor.order.as_ref().map_or(i, |o| o[i] as usize);
        let ordered = |x: &[f32]| -> Vec<f64> { (0..rows * n).map(|i| f64::from(x[i / n * n + column(i % n)])).collect() };
        let w = ordered(original);
        // b = w·Δ, in panels of rows of Δ.
        let mut b = vec![0.0; rows * n];
        let mut panel = Vec::new();
        for (p, delta) in self.delta.chunks(PANEL * n).enumerate() {
            panel.clear();
            panel.extend(delta.iter().map(|x| f64::from(*x)));
            gemm((rows, n, delta.len() / n), Onto::Add, &mut b, n, &w[p * PANEL..], Transpose::No, n, &panel, Transpose::No, n);
        }
        let v = if std::ptr::eq(original, current) || original == current { None } else { Some(ordered(current)) };
        let mut starts = vec![0.0; rows];
        for (r, (b, start)) in b.chunks_exact_mut(n).zip(&mut starts).enumerate() {
            let w = &w[r * n..][..n];
            let moved = v.as_ref().map_or(0.0, |v| (1..n).map(|j| (w[j] - v[r * n + j]) * self.first[j]).sum());
            *start = w[0] + (b[0] + moved) / self.first[0];
            let open = w[0] - *start;
            b.iter_mut().zip(&self.first).for_each(|(b, h)| *b += open * h);
            b[0] = 0.0;
        }
        let y = self.times_inverse(&b, rows);
        for (r, out) in out.chunks_exact_mut(n).enumerate() {
            out[column(0)] = starts[r] as f32;
            for j in 1..n {
                out[column(j)] = (w[r * n + j] + y[r * n + j]) as f32;
            }
        }
    }

    /// `b·A` in the columns behind the first, of which `b` makes no use: `A = U₁ᵀU₁` with the trailing block `U₁`, half of a product each.
    fn times_inverse(&self, b: &[f64], rows: usize) -> Vec<f64> {
        let n = self.factor.n;
        let (mut z, mut y) = (vec![0.0; rows * n], vec![0.0; rows * n]);
        for first in (1..n).step_by(PANEL) {
            let width = PANEL.min(n - first);
            let (b, u) = (&b[first..], &self.u[first * n + first..]);
            gemm((rows, width, n - first), Onto::Replace, &mut z[first..], n, b, Transpose::No, n, u, Transpose::Yes, n);
        }
        for first in (1..n).step_by(PANEL) {
            let width = PANEL.min(n - first);
            let (z, u) = (&z[1..], &self.u[n + first..]);
            gemm((rows, width, first + width - 1), Onto::Replace, &mut y[first..], n, z, Transpose::No, n, u, Transpose::No, n);
        }
        y
    }
}
