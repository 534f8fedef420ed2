//! RMSNorm and LayerNorm over the last axis.
//!
//! RMSNorm: `y = x / √(mean(x²) + ε) · w`. LayerNorm: `y = (x − mean x) / √(var x + ε) · w + b`, population variance.

use candle_core::{D, Tensor};

use super::gradient::{layer_norm_backward, rms_norm_backward, step1, traced};
use super::host::{Real, for_real, on_host, tensor, with_slice};
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
        let mut y = x_.to_vec();
        for row in y.chunks_exact_mut(w.len()) {
            let squares = sum(row, |v| v * v);
            let scale = R::of(1.0) / (squares / R::of(w.len() as f64) + R::of(eps)).root();
            for (y, w) in row.iter_mut().zip(w) {
                *y = *y * scale * *w;
            }
        }
        tensor(y, x.shape().clone())
    })))
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
        let n = R::of(w.len() as f64);
        let mut y = x_.to_vec();
        for row in y.chunks_exact_mut(w.len()) {
            let mean = sum(row, |v| v) / n;
            let variance = sum(row, |v| (v - mean) * (v - mean)) / n;
            let scale = R::of(1.0) / (variance + R::of(eps)).root();
            for ((y, w), b) in row.iter_mut().zip(w).zip(b) {
                *y = (*y - mean) * scale * *w + *b;
            }
        }
        tensor(y, x.shape().clone())
    }))))
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
