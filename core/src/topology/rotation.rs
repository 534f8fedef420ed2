//! Rotations as plain data, and the operators they stand for.
//!
//! ```text
//! hadamard               v ↦ v·H            H = H_K ⊗ H_{2^p} / √n, the same in every run
//! randomized-hadamard    v ↦ v·D·H          D of random signs
//! orthogonal             v ↦ v·Q            Q uniformly distributed over the orthogonal matrices
//! ```
//!
//! Where the mean of the channels has to stay (`R·1 = 1`), a Hadamard kind is `H·D·Hᵀ` with `D₀₀ = 1`: `1·H = √n·e₀`, which `D` leaves
//! alone. The other entries of `R` are then sums of `n` signs over `n`, as spread out as those of a random rotation, and applying it
//! still takes `n·log n` operations. `Q` becomes a random rotation of the complement of `1`.
//!
//! A rotation of `w` channels acts on a space of a multiple of `w` channels as on one head after the other.

use std::fmt;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::numeric::{Hadamard, Onto, Transpose, fixing_ones, gemm, random_orthogonal, uniform_u64};

/// What kind of orthogonal matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotationKind {
    /// A Hadamard matrix, the same in every run.
    Hadamard,
    /// A Hadamard matrix behind random signs.
    #[default]
    RandomizedHadamard,
    /// Uniformly random.
    Orthogonal,
}

/// An orthogonal matrix, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rotation {
    /// Its kind.
    pub kind: RotationKind,
    /// Its size.
    pub size: usize,
    /// The seed of what is random in it.
    pub seed: u64,
    /// Whether `R·1 = 1`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_mean: bool,
}

impl fmt::Display for Rotation {
    /// `randomized-hadamard of 576`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RotationKind::Hadamard => "hadamard",
            RotationKind::RandomizedHadamard => "randomized-hadamard",
            RotationKind::Orthogonal => "orthogonal",
        };
        write!(f, "{kind} of {}{}", self.size, if self.keeps_mean { ", R·1 = 1" } else { "" })
    }
}

impl Rotation {
    /// The operator.
    ///
    /// # Errors
    /// If there is no Hadamard matrix of that size.
    pub fn turn(&self) -> Result<Turn> {
        let n = self.size;
        let form = match (self.kind, self.keeps_mean) {
            (RotationKind::Hadamard, false) => Form::Hadamard(Hadamard::new(n)?),
            (RotationKind::RandomizedHadamard, false) => Form::Hadamard(Hadamard::randomized(n, self.seed)?),
            (RotationKind::Hadamard | RotationKind::RandomizedHadamard, true) => {
                let sign = |i: usize| if i > 0 && uniform_u64(&[self.seed, i as u64]) & 1 == 1 { -1.0 } else { 1.0 };
                Form::Conjugated { hadamard: Hadamard::new(n)?, signs: (0..n).map(sign).collect() }
            }
            (RotationKind::Orthogonal, false) => Form::Dense(random_orthogonal(n, self.seed)?),
            (RotationKind::Orthogonal, true) => Form::Dense(fixing_ones(&random_orthogonal(n.saturating_sub(1), self.seed)?, n)?),
        };
        Ok(Turn { size: n, form })
    }
}

/// The operator `v ↦ v·R`.
#[derive(Debug)]
pub struct Turn {
    size: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Hadamard(Hadamard),
    /// `H·D·Hᵀ`
    Conjugated {
        hadamard: Hadamard,
        signs: Vec<f64>,
    },
    /// Row-major.
    Dense(Vec<f64>),
}

impl Turn {
    /// The operator of a matrix `R`, row-major `[size, size]`.
    ///
    /// # Errors
    /// If it has another size, or is not orthogonal.
    pub fn dense(size: usize, matrix: Vec<f64>) -> Result<Self> {
        if matrix.len() != size * size {
            return Err(Error::internal(format!("a rotation of {size} with {} numbers", matrix.len())));
        }
        let mut product = vec![0.0; size * size];
        gemm((size, size, size), Onto::Replace, &mut product, size, &matrix, Transpose::No, size, &matrix, Transpose::Yes, size);
        let gap = product.iter().enumerate().map(|(i, x)| (x - if i / size == i % size { 1.0 } else { 0.0 }).abs());
        let gap = gap.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        if gap.is_nan() || gap > 1e-9 {
            return Err(Error::numeric("topology::not-orthogonal", format!("a matrix of {size} is {gap:.1e} away from a rotation"))
                .hint("start over with `--overwrite`"));
        }
        Ok(Self { size, form: Form::Dense(matrix) })
    }

    /// Its matrix, row-major.
    pub fn matrix(&self) -> Vec<f64> {
        let mut rows = vec![0.0; self.size * self.size];
        (0..self.size).for_each(|i| rows[i * self.size + i] = 1.0);
        self.rows(&mut rows);
        rows
    }
}

/// Rows of a product one task computes: a constant, so that results do not depend on the number of threads.
const STRIPE: usize = 64;

impl Turn {
    /// Channels of one rotation.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rotates every stretch of `size` values in `x`.
    pub fn rows(&self, x: &mut [f64]) {
        let n = self.size;
        match &self.form {
            Form::Hadamard(h) => h.rows(x),
            Form::Conjugated { hadamard, signs } => {
                hadamard.rows(x);
                x.par_chunks_mut(n).for_each(|v| v.iter_mut().zip(signs).for_each(|(v, s)| *v *= s));
                hadamard.rows_transposed(x);
            }
            Form::Dense(r) => x.par_chunks_mut(STRIPE * n).for_each(|new| {
                let old = new.to_vec();
                let m = new.len() / n;
                gemm((m, n, n), Onto::Replace, new, n, &old, Transpose::No, n, r, Transpose::No, n);
            }),
        }
    }

    /// Undoes [`Self::rows`]: `v ↦ v·Rᵀ`.
    pub fn rows_back(&self, x: &mut [f64]) {
        let n = self.size;
        match &self.form {
            Form::Hadamard(h) => h.rows_transposed(x),
            // It is its own inverse.
            Form::Conjugated { .. } => self.rows(x),
            Form::Dense(r) => x.par_chunks_mut(STRIPE * n).for_each(|new| {
                let old = new.to_vec();
                let m = new.len() / n;
                gemm((m, n, n), Onto::Replace, new, n, &old, Transpose::No, n, r, Transpose::Yes, n);
            }),
        }
    }

    /// As [`Self::rows`], in f32 where the rotation is one of additions.
    pub fn rows_f32(&self, x: &mut [f32]) {
        match &self.form {
            Form::Hadamard(h) => h.rows(x),
            Form::Conjugated { .. } | Form::Dense(_) => {
                let mut wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                self.rows(&mut wide);
                x.iter_mut().zip(wide).for_each(|(x, w)| *x = w as f32);
            }
        }
    }

    /// Rotates every column of `x`, `[size, cols]`: `x ← Rᵀ·x`.
    pub fn columns(&self, x: &mut [f64], cols: usize) {
        let n = self.size;
        match &self.form {
            Form::Hadamard(h) => h.columns(x, cols),
            Form::Conjugated { hadamard, signs } => {
                hadamard.columns(x, cols);
                x.par_chunks_mut(cols).zip(signs).for_each(|(row, s)| row.iter_mut().for_each(|x| *x *= s));
                hadamard.columns_transposed(x, cols);
            }
            Form::Dense(r) => {
                let old = x.to_vec();
                x.par_chunks_mut(STRIPE * cols).enumerate().for_each(|(i, new)| {
                    let (first, m) = (i * STRIPE, new.len() / cols);
                    gemm((m, cols, n), Onto::Replace, new, cols, &r[first..], Transpose::Yes, n, &old, Transpose::No, cols);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(turn: &Turn) -> Vec<Vec<f64>> {
        let n = turn.size();
        let mut rows: Vec<f64> = (0..n * n).map(|k| f64::from(k / n == k % n)).collect();
        turn.rows(&mut rows);
        rows.chunks_exact(n).map(<[f64]>::to_vec).collect()
    }

    /// Every kind of that size, and whether it keeps the mean.
    fn all(size: usize) -> Vec<(Turn, bool)> {
        let kinds = [RotationKind::Hadamard, RotationKind::RandomizedHadamard, RotationKind::Orthogonal];
        let both = kinds.into_iter().flat_map(|kind| [(kind, false), (kind, true)]);
        both.map(|(kind, keeps_mean)| (Rotation { kind, size, seed: 5, keeps_mean }.turn().unwrap(), keeps_mean)).collect()
    }

    #[test]
    fn every_kind_is_orthogonal_and_keeps_the_mean_where_it_must() {
        for n in [4, 12, 20, 28, 36, 64] {
            for (turn, keeps_mean) in all(n) {
                let r = matrix(&turn);
                for i in 0..n {
                    for j in 0..n {
                        let dot: f64 = (0..n).map(|k| r[i][k] * r[j][k]).sum();
                        assert!((dot - f64::from(i == j)).abs() < 1e-12, "{n} {i} {j}: {dot}");
                    }
                    assert!(!keeps_mean || (r[i].iter().sum::<f64>() - 1.0).abs() < 1e-12, "{n}: row {i}");
                }
            }
        }
    }

    #[test]
    fn rows_columns_and_both_float_types_agree_with_the_matrix() {
        let n = 12;
        for (turn, _) in all(n) {
            let r = matrix(&turn);
            let w: Vec<f64> = (0..n * 5).map(|i| (i as f64 * 0.7).sin()).collect();
            let mut turned = w.clone();
            turn.columns(&mut turned, 5);
            for i in 0..n {
                for c in 0..5 {
                    let expected: f64 = (0..n).map(|k| r[k][i] * w[k * 5 + c]).sum();
                    assert!((turned[i * 5 + c] - expected).abs() < 1e-12);
                }
            }
            let mut wide = w.clone();
            turn.rows(&mut wide);
            let mut back = wide.clone();
            turn.rows_back(&mut back);
            assert!(back.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-12));
            let mut narrow: Vec<f32> = w.iter().map(|x| *x as f32).collect();
            turn.rows_f32(&mut narrow);
            for (a, b) in wide.iter().zip(&narrow) {
                assert!((a - f64::from(*b)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_rotation_that_keeps_the_mean_spreads_what_stands_out() {
        // The largest entry of a random rotation of n is about √(2·ln(n²)/n).
        let turn = Rotation { kind: RotationKind::Hadamard, size: 576, seed: 0, keeps_mean: true }.turn().unwrap();
        let mut spike = vec![0.0; 576];
        spike[77] = 1.0;
        turn.rows(&mut spike);
        assert!(spike.iter().all(|x| x.abs() < 0.22), "{:?}", spike.iter().fold(0.0f64, |m, x| m.max(x.abs())));
    }

    #[test]
    fn it_is_plain_data() {
        let rotation = Rotation { kind: RotationKind::RandomizedHadamard, size: 576, seed: 3, keeps_mean: false };
        let text = serde_json::to_string(&rotation).unwrap();
        assert_eq!(text, r#"{"kind":"randomized-hadamard","size":576,"seed":3}"#);
        assert_eq!(serde_json::from_str::<Rotation>(&text).unwrap(), rotation);
        assert_eq!(rotation.to_string(), "randomized-hadamard of 576");
        let error = Rotation { size: 7, ..rotation }.turn().unwrap_err();
        assert!(error.to_string().contains('7'), "{error}");
    }
}
