//! Causal attention, backwards. The weights are computed again, one block of query rows at a time: nothing of size `T²` is kept.
//!
//! ```text
//! P = softmax(s·Q Kᵀ)   O = P V   δ = Σ_c g⊙O over the channels of a head
//! ∂V = Pᵀ g   ∂P = g Vᵀ   ∂S = s·P ⊙ (∂P − δ)   ∂Q = ∂S K   ∂K = ∂Sᵀ Q
//! ```

use candle_core::{DType, Tensor};

use super::super::attention::{AttentionShape, QUERY_BLOCK};
use super::super::bf16::{Bf16Unit, WIDEST_HEAD, attention_backward_bf16};
use super::super::gemm::{Onto, Transpose, gemm};
use super::super::host::{Real, for_real, tensor, with_slices};
use super::super::softmax::softmax_row;
use super::super::vectorize::{Kernel, vectorize};
use crate::error::Result;

struct Back<'a, R> {
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    out: &'a [R],
    g: &'a [R],
    dq: &'a mut [R],
    dk: &'a mut [R],
    dv: &'a mut [R],
    shape: &'a AttentionShape,
}

impl<R: Real> Kernel for Back<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let Self { q, k, v, out, g, dq, dk, dv, shape } = self;
        let AttentionShape { heads, kv_heads, head_dim: d, scale, window } = *shape;
        let (q_width, kv_width) = (heads * d, kv_heads * d);
        let (t, s) = (q.len() / q_width, k.len() / kv_width);
        let (scale, past) = (R::of(scale), s - t);
        let (mut probs, mut dprobs) = (vec![R::of(0.0); QUERY_BLOCK * s], vec![R::of(0.0); QUERY_BLOCK * s]);
        for h in 0..heads {
            let (head, group) = (h * d, h / (heads / kv_heads) * d);
            for row0 in (0..t).step_by(QUERY_BLOCK) {
                let rows = QUERY_BLOCK.min(t - row0);
                let end = past + row0 + rows;
                let start = window.map_or(0, |w| (past + row0 + 1).saturating_sub(w));
                let n = end - start;
                let (at_q, at_k) = (row0 * q_width + head, start * kv_width + group);
                let by_key = |c: &mut [R], a: &[R], b: &[R]| {
                    gemm((rows, n, d), Onto::Replace, c, n, a, Transpose::No, q_width, b, Transpose::Yes, kv_width);
                };
                by_key(&mut probs, &q[at_q..], &k[at_k..]);
                by_key(&mut dprobs, &g[at_q..], &v[at_k..]);
                for r in 0..rows {
                    let (p, dp) = (&mut probs[r * n..(r + 1) * n], &mut dprobs[r * n..(r + 1) * n]);
                    let position = past + row0 + r;
                    let first = window.map_or(0, |w| (position + 1).saturating_sub(w)) - start;
                    let last = position + 1 - start;
                    softmax_row(&mut p[first..last], scale);
                    p[..first].fill(R::of(0.0));
                    p[last..].fill(R::of(0.0));
                    let row = at_q + r * q_width..at_q + r * q_width + d;
                    let delta = g[row.clone()].iter().zip(&out[row]).fold(R::of(0.0), |sum, (g, o)| sum + *g * *o);
                    for (dp, p) in dp.iter_mut().zip(&*p) {
                        *dp = scale * *p * (*dp - delta);
                    }
                }
                gemm((rows, d, n), Onto::Replace, &mut dq[at_q..], q_width, &dprobs, Transpose::No, n, &k[at_k..], Transpose::No, kv_width);
                let onto_keys = |c: &mut [R], a: &[R], b: &[R]| {
                    gemm((n, d, rows), Onto::Add, c, kv_width, a, Transpose::Yes, n, b, Transpose::No, q_width);
                };
                onto_keys(&mut dk[at_k..], &dprobs, &q[at_q..]);
                onto_keys(&mut dv[at_k..], &probs, &g[at_q..]);
            }
        }
    }
}

/// The gradients of queries, keys and values, from `g`, that of `out`, what attention makes of them; where a unit is given, the operands of
/// all products are rounded to bf16.
pub(in super::super) fn attention_backward(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    out: &Tensor,
    shape: &AttentionShape,
    g: &Tensor,
    bf16: Option<Bf16Unit>,
) -> Result<[Tensor; 3]> {
    let all = [q, k, v, out, g];
    let zeros = [q, k, v].map(Tensor::elem_count);
    if let Some(unit) = bf16.filter(|_| q.dtype() == DType::F32 && shape.head_dim <= WIDEST_HEAD) {
        let [mut dq, mut dk, mut dv] = zeros.map(|n| vec![0.0; n]);
        let (t, s) = (q.dim(0)?, k.dim(0)?);
        with_slices(all, |[q, k, v, out, g]| {
            attention_backward_bf16(unit, (q, k, v), (out, g), (t, s), shape, (&mut dq, &mut dk, &mut dv));
            Ok(())
        })?;
        return Ok([tensor(dq, q.shape().clone())?, tensor(dk, k.shape().clone())?, tensor(dv, v.shape().clone())?]);
    }
    for_real!(q, R => {
        let [mut dq, mut dk, mut dv] = zeros.map(|n| vec![R::of(0.0); n]);
        with_slices::<R, _, _>(all, |[q, k, v, out, g]| {
            vectorize(Back { q, k, v, out, g, dq: &mut dq, dk: &mut dk, dv: &mut dv, shape });
            Ok(())
        })?;
        Ok([tensor(dq, q.shape().clone())?, tensor(dk, k.shape().clone())?, tensor(dv, v.shape().clone())?])
    })
}
