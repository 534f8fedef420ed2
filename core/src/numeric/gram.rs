//! `H = XᵀX` of one window: the lower triangle of a symmetric `[n, n]` matrix, f32.

use rayon::prelude::*;

use super::gemm::{Onto, Transpose, gemm};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, MatMut, MatRef, Par};

use crate::error::{Error, Result};

/// Lower triangle of `XᵀX` for row-major `x` `[t, n]`, written to row-major `h` `[n, n]`; the strict upper triangle is not touched.
/// Half the work of a full product.
///
/// # Panics
/// If the slices do not have these sizes: a bug of the caller.
pub fn gram(x: &[f32], n: usize, h: &mut [f32]) {
    assert_eq!(h.len(), n * n, "the result is {n}x{n}");
    let t = x.len() / n;
    assert_eq!(x.len(), t * n, "rows of {n}");
    let x = MatRef::from_row_major_slice(x, t, n);
    // Row-major lower is column-major upper of the same symmetric matrix; faer is asked for what lies lower in our memory.
    let h = MatMut::from_row_major_slice_mut(h, n, n);
    matmul(
        h,
        BlockStructure::TriangularLower,
        Accum::Replace,
        x.transpose(),
        BlockStructure::Rectangular,
        x,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
}

/// `a ← a + b` on lower triangles.
pub fn add_lower(a: &mut [f32], b: &[f32], n: usize) {
    for (i, (a, b)) in a.chunks_exact_mut(n).zip(b.chunks_exact(n)).enumerate() {
        for (a, b) in a[..=i].iter_mut().zip(&b[..=i]) {
            *a += *b;
        }
    }
}

/// The diagonal of a Gram matrix, fit to divide by.
pub(super) struct Diagonal {
    /// As it is, with 1 where a channel never fired.
    pub(super) filled: Vec<f64>,
    /// Channels that never fired.
    pub(super) dead: Vec<u32>,
}

impl Diagonal {
    /// That of the row-major `[n, n]` `h`.
    ///
    /// # Errors
    /// `numeric::not-finite` and `numeric::zero-gram`.
    pub(super) fn of(h: &[f32], n: usize) -> Result<Self> {
        let mut filled: Vec<f64> = (0..n).map(|i| f64::from(h[i * n + i])).collect();
        finite(&filled)?;
        let dead: Vec<u32> = (0..n).filter(|i| filled[*i] <= 0.0).map(|i| i as u32).collect();
        if dead.len() == n {
            return Err(Error::numeric("numeric::zero-gram", "no input of this layer ever fired on the calibration data")
                .hint("calibrate on more text, or leave the layer out with `skip`"));
        }
        dead.iter().for_each(|i| filled[*i as usize] = 1.0);
        Ok(Self { filled, dead })
    }

    /// Channels by falling value, ties by index.
    pub(super) fn falling(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.filled.len() as u32).collect();
        order.sort_by(|a, b| self.filled[*b as usize].total_cmp(&self.filled[*a as usize]).then(a.cmp(b)));
        order
    }
}

/// The error for sums over tokens that are not finite. By Cauchy and Schwarz the diagonal tells of the whole matrix.
pub(super) fn finite(diagonal: &[f64]) -> Result<()> {
    if diagonal.iter().all(|d| d.is_finite()) {
        return Ok(());
    }
    Err(Error::numeric("numeric::not-finite", "the Gram matrix is not finite")
        .hint("the activations overflowed; look at the weights of earlier blocks"))
}

/// `tr MHMᵀ = 2·⟨ML, M⟩ − ⟨MD, M⟩` with the lower triangle `L` of `H` and its diagonal `D`. Columns of `ML` are formed in blocks, each
/// from the rows of `L` at and below its diagonal: half of a full product.
///
/// `m` is row-major `[rows, n]`, `lower` `[n, n]`.
pub fn gram_energy(m: &[f32], lower: &[f32], n: usize) -> f64 {
    const ROWS: usize = 64;
    const COLUMNS: usize = 192;
    let h = lower;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition_in_f64() {
        for (t, n) in [(1, 1), (3, 5), (40, 33), (17, 130)] {
            let x: Vec<f32> = (0..t * n).map(|i| (i as f32 * 0.37).sin()).collect();
            let mut h = vec![0.0; n * n];
            gram(&x, n, &mut h);
            for i in 0..n {
                for j in 0..=i {
                    let want: f64 = (0..t).map(|r| f64::from(x[r * n + i]) * f64::from(x[r * n + j])).sum();
                    assert!((f64::from(h[i * n + j]) - want).abs() <= 1e-5 * t as f64, "{t}x{n} at {i},{j}");
                }
            }
        }
    }
}
