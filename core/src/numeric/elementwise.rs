//! Sums of equal shapes, and what else goes through an activation once.

use candle_core::Tensor;

use super::gradient::{step2, traced};
use super::host::{for_real, on_host, tensor, with_slice};
use crate::error::Result;

/// Numbers of a part that stays in the first cache, with those of two others beside it.
pub(super) const PART: usize = 2048;

/// A copy of `x`, each `n` numbers of it changed by `f`, which is told where they begin, while they are in the cache.
#[inline(always)]
pub(super) fn part_by_part<R: Copy>(x: &[R], n: usize, mut f: impl FnMut(usize, &mut [R])) -> Vec<R> {
    let mut y = Vec::with_capacity(x.len());
    for part in x.chunks(n) {
        let start = y.len();
        y.extend_from_slice(part);
        f(start, &mut y[start..]);
    }
    y
}

/// `a + b`, equal shapes.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() == b.dims() && traced(&[a, b], &[]) {
        let value = add(&a.detach(), &b.detach())?;
        let tracked = [a, b].map(Tensor::track_op);
        return step2((a, b), value, move |g| Ok(tracked.map(|t| t.then(|| g.clone()))));
    }
    if !on_host(&[a, b]) || a.dims() != b.dims() {
        return Ok((a + b)?);
    }
    for_real!(a, R => with_slice::<R, _>(a, |x| {
        with_slice::<R, _>(b, |y| tensor(x.iter().zip(y).map(|(x, y)| *x + *y).collect(), a.shape().clone()))
    }))
}
