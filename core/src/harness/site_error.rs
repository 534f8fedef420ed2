//! How far a rounded weight is from what it was.

use rayon::prelude::*;

use crate::numeric::{Onto, Transpose, gemm};
use crate::statistic::Gram;

/// `‖W − Ŵ‖ / ‖W‖`
pub(super) fn weight_error(w: &[f32], decoded: &[f32]) -> f64 {
    let mut error = WeightError::default();
    error.add(w, decoded);
    error.relative()
}

/// `‖W − Ŵ‖²` and `‖W‖²`, over parts of a weight.
#[derive(Clone, Copy, Default)]
pub(super) struct WeightError {
    error: f64,
    norm: f64,
}

impl WeightError {
    /// Adds a part.
    pub(super) fn add(&mut self, w: &[f32], decoded: &[f32]) {
        for (a, b) in w.iter().zip(decoded) {
            let d = f64::from(a - b);
            self.error += d * d;
            self.norm += f64::from(*a) * f64::from(*a);
        }
    }

    /// `‖W − Ŵ‖ / ‖W‖`
    pub(super) fn relative(self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }
}

/// `√(tr ΔHΔᵀ / tr WHWᵀ)` from the lower triangle of `H`.
pub(super) fn output_error(w: &[f32], decoded: &[f32], gram: &Gram) -> f64 {
    let delta: Vec<f32> = w.iter().zip(decoded).map(|(a, b)| a - b).collect();
    let norm = energy(w, gram);
    if norm > 0.0 { (energy(&delta, gram).max(0.0) / norm).sqrt() } else { 0.0 }
}

/// `tr MHMᵀ = 2·⟨ML, M⟩ − ⟨MD, M⟩` with the lower triangle `L` of `H` and its diagonal `D`. Columns of `ML` are formed in blocks, each
/// from the rows of `L` at and below its diagonal: half of a full product.
fn energy(m: &[f32], gram: &Gram) -> f64 {
    const ROWS: usize = 64;
    const COLUMNS: usize = 192;
    let (n, h) = (gram.n, &gram.lower);
    let parts: Vec<f64> = m
        .par_chunks(ROWS * n)
        .map(|m| {
            let (rows, mut sum) = (m.len() / n, 0.0);
            let mut product = vec![0.0; rows * COLUMNS];
            for first in (0..n).step_by(COLUMNS) {
                let (width, below) = (COLUMNS.min(n - first), n - first);
                let (a, l) = (&m[first..], &h[first * n + first..]);
                gemm((rows, width, below), Onto::Replace, &mut product, width, a, Transpose::No, n, l, Transpose::No, n);
                for (m, p) in m.chunks_exact(n).zip(product.chunks_exact(width)) {
                    for (j, (m, p)) in m[first..].iter().zip(p).enumerate() {
                        let (m, diagonal) = (f64::from(*m), f64::from(h[(first + j) * n + first + j]));
                        sum += m * (2.0 * f64::from(*p) - m * diagonal);
                    }
                }
            }
            sum
        })
        .collect();
    parts.iter().sum()
}
