//! Causal scaled dot-product attention with grouped keys and values.
//!
//! Query head `h` attends to key/value head `⌊h / (H/H_kv)⌋`: `ctx_h = softmax(s·Q_h K_gᵀ + mask) V_g`. Queries are the last `T` of
//! `S` positions; position `p` sees keys `max(0, p − window + 1) ..= p`. The fused kernel walks over blocks of query rows and never
//! touches the keys after the block, which halves the work of a long window.

use candle_core::{D, DType, Tensor};

use super::bf16::{Bf16Unit, WIDEST_HEAD, attention_bf16};
use super::gemm::{Onto, Transpose, gemm};
use super::gradient::{attention_backward, step3, traced};
use super::host::{Real, for_real, on_host, tensor, with_slice};
use super::softmax::softmax_row;
use super::vectorize::{Kernel, vectorize};
use crate::error::Result;

/// The shape of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1/√head_dim`.
    pub scale: f64,
    /// Sliding window: how many latest positions a query sees, itself included.
    pub window: Option<usize>,
}

pub(super) const QUERY_BLOCK: usize = 64;

/// `q` `[T, H·D]`, `k` and `v` `[S, H_kv·D]`, `S ≥ T` → `[T, H·D]`. Where a unit is given, the operands of both products are rounded to bf16.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape, bf16: Option<Bf16Unit>) -> Result<Tensor> {
    let (t, s) = (q.dim(0)?, k.dim(0)?);
    if traced(&[q, k, v], &[]) {
        let frozen = (q.detach(), k.detach(), v.detach());
        let value = attention(&frozen.0, &frozen.1, &frozen.2, shape, bf16)?;
        let (shape, out, tracked) = (*shape, value.copy()?, [q, k, v].map(Tensor::track_op));
        return step3((q, k, v), value, move |g| {
            let [dq, dk, dv] = attention_backward((&frozen.0, &frozen.1, &frozen.2), &out, &shape, g, bf16)?;
            Ok([tracked[0].then_some(dq), tracked[1].then_some(dk), tracked[2].then_some(dv)])
        });
    }
    if !on_host(&[q, k, v]) {
        let probs = attention_probs(&attention_scores(q, k, shape)?)?;
        return attention_mix(&probs, v, shape);
    }
    if let Some(unit) = bf16.filter(|_| q.dtype() == DType::F32 && shape.head_dim <= WIDEST_HEAD) {
        return with_slice::<f32, _>(q, |q| {
            with_slice::<f32, _>(k, |k| {
                with_slice::<f32, _>(v, |v| {
                    let mut out = vec![0.0; q.len()];
                    attention_bf16(unit, q, (k, v), (t, s), shape, &mut out);
                    tensor(out, (t, shape.heads * shape.head_dim))
                })
            })
        });
    }
    for_real!(q, R => with_slice::<R, _>(q, |q| with_slice::<R, _>(k, |k| with_slice::<R, _>(v, |v| {
        let mut out = vec![R::of(0.0); t * shape.heads * shape.head_dim];
        vectorize(Fused { q, k, v, out: &mut out, t, s, shape });
        tensor(out, (t, shape.heads * shape.head_dim))
    }))))
}

struct Fused<'a, R> {
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    out: &'a mut [R],
    t: usize,
    s: usize,
    shape: &'a AttentionShape,
}

impl<R: Real> Kernel for Fused<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let Self { q, k, v, out, t, s, shape } = self;
        let AttentionShape { heads, kv_heads, head_dim: d, scale, window } = *shape;
        let (q_width, kv_width) = (heads * d, kv_heads * d);
        let scale = R::of(scale);
        let past = s - t;
        let mut scores = vec![R::of(0.0); QUERY_BLOCK * s];
        for h in 0..heads {
            let g = h / (heads / kv_heads) * d;
            for row0 in (0..t).step_by(QUERY_BLOCK) {
                let rows = QUERY_BLOCK.min(t - row0);
                let end = past + row0 + rows;
                let start = window.map_or(0, |w| (past + row0 + 1).saturating_sub(w));
                let n = end - start;
                gemm(
                    (rows, n, d),
                    Onto::Replace,
                    &mut scores,
                    n,
                    &q[row0 * q_width + h * d..],
                    Transpose::No,
                    q_width,
                    &k[start * kv_width + g..],
                    Transpose::Yes,
                    kv_width,
                );
                for r in 0..rows {
                    let row = &mut scores[r * n..(r + 1) * n];
                    let position = past + row0 + r;
                    let first = window.map_or(0, |w| (position + 1).saturating_sub(w)) - start;
                    let last = position + 1 - start;
                    softmax_row(&mut row[first..last], scale);
                    row[..first].fill(R::of(0.0));
                    row[last..].fill(R::of(0.0));
                }
                gemm(
                    (rows, d, n),
                    Onto::Replace,
                    &mut out[row0 * q_width + h * d..],
                    q_width,
                    &scores,
                    Transpose::No,
                    n,
                    &v[start * kv_width + g..],
                    Transpose::No,
                    kv_width,
                );
            }
        }
    }
}

/// Scaled and masked scores `[H, T, S]`; masked entries are −∞. The explicit path, for taps and gradients.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention_scores(q: &Tensor, k: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    let (t, s) = (q.dim(0)?, k.dim(0)?);
    let q = q.reshape((t, shape.heads, shape.head_dim))?.transpose(0, 1)?.contiguous()?;
    let k = repeat_heads(k, shape)?;
    let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? * shape.scale)?;
    let past = s - t;
    let mask: Vec<f32> = (0..t * s)
        .map(|i| {
            let (position, key) = (past + i / s, i % s);
            let visible = key <= position && shape.window.is_none_or(|w| key + w > position);
            if visible { 0.0 } else { f32::NEG_INFINITY }
        })
        .collect();
    let mask = Tensor::from_vec(mask, (1, t, s), scores.device())?.to_dtype(scores.dtype())?;
    Ok(scores.broadcast_add(&mask)?)
}

/// Row softmax of scores `[H, T, S]`.
///
/// # Errors
/// None on the CPU.
pub fn attention_probs(scores: &Tensor) -> Result<Tensor> {
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?;
    let e = shifted.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

/// `probs` `[H, T, S]` times the values → `[T, H·D]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention_mix(probs: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    let t = probs.dim(1)?;
    let v = repeat_heads(v, shape)?;
    Ok(probs.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((t, shape.heads * shape.head_dim))?)
}

/// `[S, H_kv·D]` → `[H, S, D]`, each key/value head repeated for its queries.
fn repeat_heads(x: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    let s = x.dim(0)?;
    let index: Vec<u32> = (0..shape.heads).map(|h| (h / (shape.heads / shape.kv_heads)) as u32).collect();
    let index = Tensor::new(index, x.device())?.to_dtype(DType::U32)?;
    let x = x.reshape((s, shape.kv_heads, shape.head_dim))?.transpose(0, 1)?.contiguous()?;
    Ok(x.index_select(&index, 0)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn wave(n: usize, f: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * f).sin()).collect()
    }

    #[test]
    fn the_fused_kernel_equals_the_explicit_path() {
        for (t, past, window) in [(1, 0, None), (70, 0, None), (130, 5, None), (130, 5, Some(9)), (3, 40, Some(16))] {
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, scale: 0.3, window };
            let s = t + past;
            let q = Tensor::from_vec(wave(t * 32, 0.37), (t, 32), &Device::Cpu).unwrap();
            let k = Tensor::from_vec(wave(s * 16, 0.71), (s, 16), &Device::Cpu).unwrap();
            let v = Tensor::from_vec(wave(s * 16, 0.13), (s, 16), &Device::Cpu).unwrap();
            let fused = attention(&q, &k, &v, &shape, None).unwrap();
            let probs = attention_probs(&attention_scores(&q, &k, &shape).unwrap()).unwrap();
            let explicit = attention_mix(&probs, &v, &shape).unwrap();
            let gap = (fused - explicit).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(gap < 1e-12, "T={t} past={past} window={window:?}: {gap}");
        }
    }

    #[test]
    fn fast_exponential_is_accurate() {
        for i in -8700..=8800 {
            let x = i as f32 * 0.01;
            let (got, want) = (f64::from(x.exp_fast()), f64::from(x).exp());
            assert!((got - want).abs() <= 2e-7 * want, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(f32::NEG_INFINITY.exp_fast(), 0.0);
        // Both are within an ulp of the truth.
        for i in -70_800..=70_900 {
            let x = f64::from(i) * 0.01;
            let (got, want) = (x.exp_fast(), x.exp());
            assert!((got - want).abs() <= 2.0 * f64::EPSILON * want, "exp({x}) = {got}, not {want}");
        }
        assert_eq!((f64::NEG_INFINITY.exp_fast(), 0.0_f64.exp_fast()), (0.0, 1.0));
    }
}
