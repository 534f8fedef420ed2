//! The factor of the inverse that error feedback needs: upper `U` with `(H + λI)⁻¹ = UᵀU`.
//!
//! The textbook path is Cholesky, inverse, Cholesky. One factorization is enough: with `J` the exchange matrix and
//! `J(H+λI)J = LLᵀ`, the upper `R = JLJ` gives `H+λI = RRᵀ`, hence `U = R⁻¹ = J L⁻¹ J`. Work is in f64 (n³/3 + n³/3 flops) in one `n²`
//! buffer for `L` and one for its inverse.
//!
//! Guards: a column that never fired (`H_jj = 0`) gets `H_jj = 1`, and the caller zeroes its weights. If a pivot is not positive, the
//! damping grows tenfold up to `1.0`, and what was used is reported.

use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Par};
use serde::{Deserialize, Serialize};

use super::cholesky::damped_cholesky;
use super::gram::Diagonal;
use crate::error::Result;

/// How to damp and order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactorOptions {
    /// `λ = damp · mean(diag H)`.
    pub damp: f64,
    /// Order the columns by falling diagonal (ties by index).
    pub by_diagonal: bool,
}

/// `U`, its order, and what had to be done to get it.
#[derive(Clone, Debug)]
pub struct InverseFactor {
    /// Columns.
    pub n: usize,
    /// Row-major upper triangular `[n, n]`; in the order of `order`.
    pub u: Vec<f32>,
    /// `order[i]` is the column that comes `i`-th, if not the identity.
    pub order: Option<Vec<u32>>,
    /// Columns (natural index) that never fired.
    pub dead: Vec<u32>,
    /// The damping used, relative to the mean diagonal.
    pub damp: f64,
}

/// Factors the symmetric `h` (lower triangle of row-major `[n, n]`).
///
/// # Errors
/// `numeric::zero-gram` if no column ever fired, `numeric::not-finite` for a Gram matrix that is not, and
/// `numeric::not-positive-definite` if even damping 1.0 does not help.
pub fn inverse_factor(h: &[f32], n: usize, options: &FactorOptions) -> Result<InverseFactor> {
    let diagonal = Diagonal::of(h, n)?;
    let mean = diagonal.filled.iter().sum::<f64>() / n as f64;
    let order = options.by_diagonal.then(|| diagonal.falling());
    let (inverse, damp) = damped_inverse(h, &diagonal, order.as_deref(), options.damp, mean)?;
    let u = upper(&inverse, |x| x as f32);
    Ok(InverseFactor { n, u, order, dead: diagonal.dead, damp })
}

/// `L⁻¹` of `JP(H + λI)PᵀJ = LLᵀ` in the given order, and the damping that it took: `λ = damp · unit`.
pub(super) fn damped_inverse(h: &[f32], diagonal: &Diagonal, order: Option<&[u32]>, asked: f64, unit: f64) -> Result<(Mat<f64>, f64)> {
    let n = diagonal.filled.len();
    let column = |i: usize| order.map_or(i, |o| o[i] as usize);
    // Element (i, j) of J·P(H + λI)Pᵀ·J.
    let (l, damp) = damped_cholesky(diagonal, asked, |i, j, damp| {
        let (a, b) = (column(n - 1 - i), column(n - 1 - j));
        if a == b { diagonal.filled[a] + damp * unit } else { f64::from(h[a.max(b) * n + a.min(b)]) }
    })?;
    let mut inverse = Mat::<f64>::zeros(n, n);
    invert_lower_triangular(inverse.as_mut(), l.as_ref(), Par::Seq);
    Ok((inverse, damp))
}

/// `U = J L⁻¹ J`, row-major, from `L⁻¹`.
pub(super) fn upper<T: Copy + Default>(inverse: &Mat<f64>, of: impl Fn(f64) -> T) -> Vec<T> {
    let n = inverse.nrows();
    let mut u = vec![T::default(); n * n];
    for (i, row) in u.chunks_exact_mut(n).enumerate() {
        for (j, u) in row.iter_mut().enumerate().skip(i) {
            *u = of(inverse[(n - 1 - i, n - 1 - j)]);
        }
    }
    u
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_gram(n: usize, t: usize) -> Vec<f32> {
        let x: Vec<f64> = (0..t * n).map(|i| ((i * 7919 % 1013) as f64 * 0.731).sin()).collect();
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = (0..t).map(|r| x[r * n + i] * x[r * n + j]).sum::<f64>() as f32;
            }
        }
        h
    }

    #[test]
    fn u_transposed_times_u_is_the_damped_inverse() {
        let n = 24;
        let h = random_gram(n, 60);
        for by_diagonal in [false, true] {
            let f = inverse_factor(&h, n, &FactorOptions { damp: 0.01, by_diagonal }).unwrap();
            let mean = (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64;
            let column = |i: usize| f.order.as_ref().map_or(i, |o| o[i] as usize);
            // (UᵀU)(H + λI) = I, in the factor's order.
            let inverse = |i: usize, j: usize| (0..n).map(|k| f64::from(f.u[k * n + i]) * f64::from(f.u[k * n + j])).sum::<f64>();
            for i in 0..n {
                for j in 0..n {
                    let product: f64 = (0..n)
                        .map(|k| {
                            let (a, b) = (column(k), column(j));
                            let lambda = if a == b { 0.01 * mean } else { 0.0 };
                            inverse(i, k) * (f64::from(h[a * n + b]) + lambda)
                        })
                        .sum();
                    assert!((product - f64::from(u8::from(i == j))).abs() < 1e-3, "{i},{j}: {product}");
                }
            }
        }
    }

    #[test]
    fn dead_columns_and_damping_are_reported() {
        let n = 6;
        let mut h = random_gram(n, 3);
        for k in 0..n {
            h[2 * n + k] = 0.0;
            h[k * n + 2] = 0.0;
        }
        let f = inverse_factor(&h, n, &FactorOptions { damp: 0.01, by_diagonal: true }).unwrap();
        assert_eq!(f.dead, [2]);
        assert!(f.u.iter().all(|u| u.is_finite()));
        let error = inverse_factor(&vec![0.0; n * n], n, &FactorOptions { damp: 0.01, by_diagonal: false }).unwrap_err();
        assert_eq!(error.code(), "numeric::zero-gram");
        // An indefinite "Gram" matrix, as cancellation can leave behind.
        let indefinite = [1.0, 0.0, 3.0, 1.0];
        let error = inverse_factor(&indefinite, 2, &FactorOptions { damp: 0.01, by_diagonal: false }).unwrap_err();
        assert_eq!(error.code(), "numeric::not-positive-definite");
        let repaired = inverse_factor(&[1.0, 0.0, 1.05, 1.0], 2, &FactorOptions { damp: 0.01, by_diagonal: false }).unwrap();
        assert!(repaired.damp > 0.01);
    }
}
