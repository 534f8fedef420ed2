//! Cholesky factors of Gram matrices, damped until there is one.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::{Mat, Par, Spec};

use super::gram::Diagonal;
use crate::error::{Error, Result};

/// Lower `L` with `LLᵀ` the matrix whose `entry(i, j, damp)`, `j ≤ i`, are given, and the damping that it took: the one asked for, or
/// tenfold until the pivots are positive, up to 1.
///
/// # Errors
/// `numeric::not-positive-definite` if even 1 does not help.
pub(super) fn damped_cholesky(diagonal: &Diagonal, asked: f64, entry: impl Fn(usize, usize, f64) -> f64) -> Result<(Mat<f64>, f64)> {
    let n = diagonal.filled.len();
    let mut damp = asked;
    loop {
        let mut l = Mat::<f64>::from_fn(n, n, |i, j| if j > i { 0.0 } else { entry(i, j, damp) });
        if factor(&mut l) {
            return Ok((l, damp));
        }
        if damp >= 1.0 {
            let dead = diagonal.dead.len();
            let message = format!("the Gram matrix ({n} columns, {dead} dead) is not positive definite even with damping {damp}");
            return Err(Error::numeric("numeric::not-positive-definite", message)
                .hint("calibrate on more samples, or raise the damping of the pass (`damp`, `alpha`)"));
        }
        // From no damping at all the first step is one that can matter.
        damp = if damp > 0.0 { damp * 10.0 } else { 1e-3 }.min(1.0);
    }
}

fn factor(l: &mut Mat<f64>) -> bool {
    let n = l.nrows();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Spec::default()));
    cholesky_in_place(l.as_mut(), LltRegularization::default(), Par::Seq, MemStack::new(&mut memory), Spec::default()).is_ok()
        && (0..n).all(|i| l[(i, i)].is_finite() && l[(i, i)] > 0.0)
}
