//! Rotary position embedding, half-split layout.
//!
//! Per head, with `d` rotated channels: `(x₁, x₂) ↦ (x₁ cos θ − x₂ sin θ, x₂ cos θ + x₁ sin θ)` where `x₁` are channels `0..d/2` and
//! `x₂` channels `d/2..d`; channels from `d` on pass through.

use candle_core::{D, Tensor};

use super::elementwise::part_by_part;
use super::gradient::{step1, traced};
use super::host::{Real, for_real, on_host, tensor, with_slice};
use super::vectorize::{Kernel, vectorize};
use crate::error::Result;

/// Rotates `x` `[T, heads·head_dim]` by `cos`, `sin` `[T, d/2]`, `d ≤ head_dim`.
///
/// # Errors
/// If the shapes do not fit.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize) -> Result<Tensor> {
    let (t, width) = x.dims2()?;
    let half = cos.dim(1)?;
    if traced(&[x], &[cos, sin]) {
        let value = rotate(&x.detach(), cos, sin, head_dim)?;
        // Back by the same angles.
        let (cos, sin) = (cos.clone(), sin.neg()?);
        return step1(x, value, move |g| rotate(g, &cos, &sin, head_dim));
    }
    if !on_host(&[x, cos, sin]) {
        let heads = x.reshape((t, width / head_dim, head_dim))?;
        let (x1, x2) = (heads.narrow(D::Minus1, 0, half)?, heads.narrow(D::Minus1, half, half)?);
        let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
        let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
        let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
        let rest = heads.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?;
        let parts = if 2 * half < head_dim { vec![y1, y2, rest] } else { vec![y1, y2] };
        return Ok(Tensor::cat(&parts, D::Minus1)?.reshape((t, width))?);
    }
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(cos, |cos| with_slice::<R, _>(sin, |sin| {
        tensor(vectorize(Heads { x: x_, cos, sin, width, half, head_dim }), (t, width))
    }))))
}

struct Heads<'a, R> {
    x: &'a [R],
    cos: &'a [R],
    sin: &'a [R],
    width: usize,
    half: usize,
    head_dim: usize,
}

impl<R: Real> Kernel for Heads<'_, R> {
    type Output = Vec<R>;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> Vec<R> {
        let Self { x, cos, sin, width, half, head_dim } = self;
        let mut angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        part_by_part(x, width, |_, row| {
            let Some((cos, sin)) = angles.next() else { return };
            for head in row.chunks_exact_mut(head_dim) {
                let (x1, x2) = head[..2 * half].split_at_mut(half);
                for (((a, b), c), s) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
                    (*a, *b) = (*a * *c - *b * *s, *b * *c + *a * *s);
                }
            }
        })
    }
}
