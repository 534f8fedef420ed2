//! The root of a Gram matrix: `H + λI = L·Lᵀ`, so that `tr Δ(H+λI)Δᵀ = ‖Δ·L‖²`.
//!
//! Any root does for that, since they differ by a rotation from the right; Cholesky's is the cheapest. `λ = damp · mean(diag H)`, and ten
//! times as much until the pivots are positive, up to the mean itself. Factored in f64, kept in f32.

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cholesky::damped_cholesky;
use super::gram::Diagonal;
use super::transpose::transpose;
use super::truncated_svd::{Dense, LinearMap};
use crate::error::Result;

/// See the module.
pub struct GramRoot {
    n: usize,
    /// Row-major `[n, n]`, lower.
    l: Vec<f32>,
    /// The damping used, relative to the mean diagonal.
    pub damp: f64,
}

impl GramRoot {
    /// The root of the symmetric `h` (lower triangle of row-major `[n, n]`).
    ///
    /// # Errors
    /// `numeric::zero-gram` if no channel ever fired, `numeric::not-finite`, and `numeric::not-positive-definite` if even damping 1.0
    /// does not help.
    pub fn of(h: &[f32], n: usize, damp: f64) -> Result<Self> {
        let diagonal = Diagonal::of(h, n)?;
        let mean = diagonal.filled.iter().sum::<f64>() / n as f64;
        let (factor, damp) =
            damped_cholesky(&diagonal, damp, |i, j, damp| f64::from(h[i * n + j]) + if i == j { damp * mean } else { 0.0 })?;
        let mut l = vec![0.0; n * n];
        for (i, row) in l.chunks_exact_mut(n).enumerate() {
            row[..=i].iter_mut().enumerate().for_each(|(j, x)| *x = factor[(i, j)] as f32);
        }
        Ok(Self { n, l, damp })
    }

    /// `A·L⁻¹` in place, for row-major `a` `[_, n]`: what undoes the weighting of rows.
    pub fn unweight(&self, a: &mut [f32]) {
        let n = self.n;
        // X·L = A is Lᵀ·Xᵀ = Aᵀ; rows of A are columns of Aᵀ.
        let upper = MatRef::from_row_major_slice(&self.l, n, n).transpose();
        a.par_chunks_mut(4 * n).for_each(|a| {
            let rows = a.len() / n;
            solve_upper_triangular_in_place(upper, MatMut::from_column_major_slice_mut(a, n, rows), Par::Seq);
        });
    }
}

/// `W·L`, never formed.
pub struct Weighted<'a> {
    weight: Dense<'a>,
    root: &'a GramRoot,
}

impl<'a> Weighted<'a> {
    /// The weight `[rows, n]` seen through the root.
    pub fn new(weight: Dense<'a>, root: &'a GramRoot) -> Self {
        Self { weight, root }
    }

    fn l(&self) -> Dense<'_> {
        Dense::square(&self.root.l, self.root.n)
    }
}

impl LinearMap for Weighted<'_> {
    fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }

    fn times(&self, x: &[f32], l: usize) -> Vec<f32> {
        self.weight.times(&self.l().times(x, l), l)
    }

    fn transposed_times(&self, y: &[f32], l: usize) -> Vec<f32> {
        self.l().transposed_times(&self.weight.transposed_times(y, l), l)
    }

    /// Row by row, as `‖Lᵀw‖²`.
    fn energy(&self) -> f64 {
        const ROWS: usize = 64;
        let parts: Vec<f64> = self
            .weight
            .pieces(ROWS)
            .map(|w| {
                let rows = w.len() / self.root.n;
                let columns = transpose(w, rows, self.root.n);
                self.l().transposed_times(&columns, rows).iter().map(|x| f64::from(*x).powi(2)).sum()
            })
            .collect();
        parts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::gram::gram;
    use super::super::random::uniform_u64;
    use super::super::truncated_svd::truncated_svd;
    use super::*;

    fn numbers(n: usize, key: u64) -> Vec<f32> {
        let draw = |i: usize| uniform_u64(&[key, i as u64]) >> 11;
        (0..n).map(|i| (draw(i) as f64 / (1u64 << 53) as f64 - 0.5) as f32).collect()
    }

    /// The best approximation under the weighting errs less there than the plain one, and no weighting is the plain one.
    #[test]
    fn what_is_cut_is_least_where_inputs_are_large() {
        let (rows, n, rank) = (30, 24, 5);
        let w = numbers(rows * n, 1);
        let x: Vec<f32> = numbers(200 * n, 2).iter().enumerate().map(|(i, x)| x * if i % n < 6 { 5.0 } else { 0.3 }).collect();
        let mut h = vec![0.0; n * n];
        gram(&x, n, &mut h);
        let root = GramRoot::of(&h, n, 0.01).unwrap();
        let dense = Dense::new(&w, (rows, n)).unwrap();
        let error = |(a, b): (Vec<f32>, Vec<f32>)| -> f64 {
            let left: Vec<f32> =
                (0..rows * n).map(|ij| w[ij] - (0..rank).map(|k| b[ij / n * rank + k] * a[k * n + ij % n]).sum::<f32>()).collect();
            Weighted::new(Dense::new(&left, (rows, n)).unwrap(), &root).energy()
        };
        let weighted = truncated_svd(&Weighted::new(dense, &root), rank, 0).unwrap();
        let (mut a, b) = weighted.halves();
        root.unweight(&mut a);
        let least = Weighted::new(dense, &root).energy() - weighted.values.iter().map(|s| s * s).sum::<f64>();
        let (of_weighted, of_plain) = (error((a, b)), error(truncated_svd(&dense, rank, 0).unwrap().halves()));
        assert!((of_weighted / least - 1.0).abs() < 1e-3, "{of_weighted} {least}");
        assert!(of_weighted < 0.8 * of_plain, "{of_weighted} {of_plain}");
        // ‖W·L‖² = tr W(H + λI)Wᵀ.
        let lambda = root.damp * (0..n).map(|i| f64::from(h[i * n + i])).sum::<f64>() / n as f64;
        let energy = super::super::gram_energy(&w, &h, n) + lambda * dense.energy();
        assert!((Weighted::new(dense, &root).energy() / energy - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_matrix_that_no_damping_repairs_is_refused() {
        assert_eq!(GramRoot::of(&[0.0; 4], 2, 0.01).err().unwrap().code(), "numeric::zero-gram");
        assert_eq!(GramRoot::of(&[1.0, 0.0, 3.0, 1.0], 2, 0.01).err().unwrap().code(), "numeric::not-positive-definite");
        let repaired = GramRoot::of(&[1.0, 0.0, 1.05, 1.0], 2, 0.01).unwrap();
        assert!((repaired.damp - 0.1).abs() < 1e-12);
    }
}
