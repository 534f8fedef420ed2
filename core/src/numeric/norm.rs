//! RMSNorm and LayerNorm over the last axis.
//!
//! RMSNorm: `y = x / √(mean(x²) + ε) · w`. LayerNorm: `y = (x − mean x) / √(var x + ε) · w + b`, population variance.

use candle_core::{D, Tensor};

use super::elementwise::part_by_part;
use super::gradient::{layer_norm_backward, rms_norm_backward, step1, traced};
use super::host::{Real, for_real, on_host, tensor, with_slice};
use super::vectorize::{Kernel, vectorize};
use crate::error::Result;

/// RMSNorm of `x` `[T, n·C]` with weight `[C]`: of every stretch of `C` channels, such as the heads of queries, for itself.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if traced(&[x], &[weight]) {
        let (frozen, weight) = (x.detach(), weight.clone());
        let value = rms_norm(&frozen, &weight, eps)?;
        return step1(x, value, move |g| rms_norm_backward(&frozen, &weight, eps, g));
    }
    if !on_host(&[x, weight]) {
        let parts = x.reshape(((), weight.elem_count()))?;
        let scale = (parts.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        return Ok(parts.broadcast_mul(&scale)?.broadcast_mul(weight)?.reshape(x.shape())?);
    }
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(weight, |w| {
        tensor(vectorize(Rms { x: x_, w, eps: R::of(eps) }), x.shape().clone())
    })))
}

struct Rms<'a, R> {
    x: &'a [R],
    w: &'a [R],
    eps: R,
}

impl<R: Real> Kernel for Rms<'_, R> {
    type Output = Vec<R>;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> Vec<R> {
        let Self { x, w, eps } = self;
        part_by_part(x, w.len(), |_, row| {
            let scale = R::of(1.0) / (sum(row, |v| v * v) / R::of(w.len() as f64) + eps).root();
            for (y, w) in row.iter_mut().zip(w) {
                *y = *y * scale * *w;
            }
        })
    }
}

/// LayerNorm of `x` `[T, C]` with weight and bias `[C]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if traced(&[x], &[weight, bias]) {
        let (frozen, weight) = (x.detach(), weight.clone());
        let value = layer_norm(&frozen, &weight, bias, eps)?;
        return step1(x, value, move |g| layer_norm_backward(&frozen, &weight, eps, g));
    }
    if !on_host(&[x, weight, bias]) {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        return Ok(centred.broadcast_mul(&scale)?.broadcast_mul(weight)?.broadcast_add(bias)?);
    }
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(weight, |w| with_slice::<R, _>(bias, |b| {
        tensor(vectorize(Centred { x: x_, w, b, eps: R::of(eps) }), x.shape().clone())
    }))))
}

struct Centred<'a, R> {
    x: &'a [R],
    w: &'a [R],
    b: &'a [R],
    eps: R,
}

impl<R: Real> Kernel for Centred<'_, R> {
    type Output = Vec<R>;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> Vec<R> {
        let Self { x, w, b, eps } = self;
        let n = R::of(w.len() as f64);
        part_by_part(x, w.len(), |_, row| {
            let mean = sum(row, |v| v) / n;
            let variance = sum(row, |v| (v - mean) * (v - mean)) / n;
            let scale = R::of(1.0) / (variance + eps).root();
            for ((y, w), b) in row.iter_mut().zip(w).zip(b) {
                *y = (*y - mean) * scale * *w + *b;
            }
        })
    }
}

/// Σ f(v) over eight interleaved partial sums: a fixed order that vectorizes.
#[inline(always)]
pub(super) fn sum<R: Real>(row: &[R], f: impl Fn(R) -> R) -> R {
    let mut lanes = [R::of(0.0); 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(*v);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (b + f)) + ((c + g) + (d + h))
}
