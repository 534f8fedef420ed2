//! Greedy path following: what the column sweep needs to walk `X̃Q` along `XW`.
//!
//! With `H = X̃ᵀX̃` and `C = X̃ᵀX` the greedy choice for column `t`, given the columns before it, is
//!
//! ```text
//! a_t = (C_tt/H_tt)·v_t + Σ_{j<t} (C_tj·w_j − H_tj·q_j)/H_tt;   q_t = Quant(a_t)
//! ```
//!
//! with `w` the original weight and `v` the weight as it stands. The sum is a small difference of large terms, so it is taken apart:
//!
//! ```text
//! a_t = κ_t·v_t + Σ_{j<t} w_j·S_jt + Σ_{j<t} (w_j − q_j)·F_jt,   κ_t = C_tt/H_tt,  S_jt = (C_tj − H_tj)/H_tt,  F_jt = H_tj/H_tt
//! ```
//!
//! The first two terms are known before any column is rounded: one triangular matrix product. The third is error feedback with a fixed
//! upper triangular matrix, as in GPTQ; only that the error is taken against the original weight. Where the streams agree, `S = 0` and
//! `κ = 1`. There is no factorization, and so nothing to damp.

use rayon::prelude::*;

use super::gemm::{Onto, Transpose, gemm};
use super::gram::{Diagonal, finite};
use crate::error::Result;

/// `κ`, `S` and `F` in the order of the sweep.
#[derive(Clone, Debug)]
pub struct GreedyPath {
    /// Columns.
    pub n: usize,
    /// `order[i]` is the column that comes `i`-th, if not the identity.
    pub order: Option<Vec<u32>>,
    /// Columns (natural index) that never fired.
    pub dead: Vec<u32>,
    /// `κ`; zero for dead columns.
    gain: Vec<f32>,
    /// `S`, row-major `[n, n]`, strictly upper.
    shift: Vec<f32>,
    /// `F`, row-major `[n, n]`, strictly upper.
    pub(super) forward: Vec<f32>,
}

impl GreedyPath {
    /// From the lower triangle `h` and the whole of `c` (element `(i, j)` is `x̃ᵢ·xⱼ`), both row-major `[n, n]`.
    ///
    /// # Errors
    /// `numeric::zero-gram` if no column ever fired, `numeric::not-finite` for sums that are not.
    pub fn new(h: &[f32], c: &[f32], n: usize, by_diagonal: bool) -> Result<Self> {
        let diagonal = Diagonal::of(h, n)?;
        let cross: Vec<f64> = (0..n).map(|i| f64::from(c[i * n + i])).collect();
        finite(&cross)?;
        let order = by_diagonal.then(|| diagonal.falling());
        let column = |i: usize| order.as_ref().map_or(i, |o| o[i] as usize);
        // One over H_tt; nothing is fed into dead columns.
        let mut inverse: Vec<f64> = diagonal.filled.iter().map(|d| 1.0 / d).collect();
        diagonal.dead.iter().for_each(|d| inverse[*d as usize] = 0.0);
        let gain = (0..n).map(|t| (cross[column(t)] * inverse[column(t)]) as f32).collect();
        let (mut shift, mut forward) = (vec![0.0; n * n], vec![0.0; n * n]);
        shift.par_chunks_exact_mut(n).zip(forward.par_chunks_exact_mut(n)).enumerate().for_each(|(j, (shift, forward))| {
            let from = column(j);
            for t in j + 1..n {
                let to = column(t);
                let (h, c) = (f64::from(h[from.max(to) * n + from.min(to)]), f64::from(c[to * n + from]));
                shift[t] = ((c - h) * inverse[to]) as f32;
                forward[t] = (h * inverse[to]) as f32;
            }
        });
        Ok(Self { n, order, dead: diagonal.dead, gain, shift, forward })
    }

    /// `w ← κ∘w + O·S` for some rows, in the order of the sweep.
    pub(super) fn start(&self, w: &mut [f32], original: &[f32]) {
        const COLUMNS: usize = 128;
        let (n, rows) = (self.n, w.len() / self.n);
        for row in w.chunks_exact_mut(n) {
            row.iter_mut().zip(&self.gain).for_each(|(w, k)| *w *= k);
        }
        for first in (0..n).step_by(COLUMNS) {
            let end = n.min(first + COLUMNS);
            // Below its diagonal S is zero, so columns up to `end` ask for no more rows than that.
            let (w, s) = (&mut w[first..], &self.shift[first..]);
            gemm((rows, end - first, end), Onto::Add, w, n, original, Transpose::No, n, s, Transpose::No, n);
        }
    }
}
