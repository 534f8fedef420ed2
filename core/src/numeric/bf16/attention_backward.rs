//! The gradients of attention with all products in bf16: the counterpart of `crate::numeric`'s backward pass in f32, whose formulas these are.
//!
//! ```text
//! P = softmax(s·Q Kᵀ)   ∂P = g Vᵀ   ∂S = s·P ⊙ (∂P − δ)          a block of queries of a head; panels of positions
//! ∂Q = ∂S K                                                     panels of channels
//! ∂K ← ∂K + ∂Sᵀ Q   ∂V ← ∂V + Pᵀ g                              pairs of queries
//! ```

use std::ops::Range;

use super::Bf16Unit;
use super::across::{lay_out_across, multiply_across};
use super::attention::{Queries, WIDEST_HEAD};
use super::engine::Engine;
use super::panels::lay_out;
use super::scratch::with_lines;
use super::tile::{COLUMNS, pairs};
use crate::numeric::attention::{AttentionShape, QUERY_BLOCK};
use crate::numeric::softmax::softmax_row;
use crate::numeric::{Kernel, Onto, vectorize};

/// `q`, `out` and `g`, the gradient of `out`, `[t, H·D]`; `k` and `v` `[s, H_kv·D]` → `dq`, and what is added to `dk` and `dv`; heads of at
/// most [`WIDEST_HEAD`] channels.
///
/// # Panics
/// If a slice does not have its size: a bug of the caller.
pub(in crate::numeric) fn attention_backward_bf16(
    unit: Bf16Unit,
    (q, k, v): (&[f32], &[f32], &[f32]),
    (out, g): (&[f32], &[f32]),
    (t, s): (usize, usize),
    shape: &AttentionShape,
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
) {
    let AttentionShape { heads, kv_heads, head_dim: d, .. } = *shape;
    let (q_width, kv_width) = (heads * d, kv_heads * d);
    assert!(d <= WIDEST_HEAD && s >= t, "heads of {d} channels, {t} of {s} positions");
    assert!([q.len(), out.len(), g.len(), dq.len()] == [t * q_width; 4], "queries of {heads} heads");
    assert!([k.len(), v.len(), dk.len(), dv.len()] == [s * kv_width; 4], "keys of {kv_heads} heads");
    let most = QUERY_BLOCK.min(t);
    let (mut probs, mut dprobs) = (vec![0.0; most * s], vec![0.0; most * s]);
    // Panels of positions, of channels, of positions by query, of channels by query.
    let (positions, channels) = (s.div_ceil(COLUMNS), d.div_ceil(COLUMNS));
    let sizes = [positions * pairs(d), positions * pairs(d), channels * pairs(s), positions * pairs(most), channels * pairs(most)];
    for group in 0..kv_heads {
        with_lines(2 * sizes.iter().sum::<usize>(), |mut lines| {
            let [keys, values, across, left, right] = sizes.map(|size| lines.split_off_mut(..2 * size).unwrap_or_default());
            let of_group = |row: usize| row * kv_width + group * d..row * kv_width + group * d + d;
            lay_out(unit, s, d, |row| &k[of_group(row)], keys);
            lay_out(unit, s, d, |row| &v[of_group(row)], values);
            lay_out_across(unit, s, d, |row| &k[of_group(row)], across);
            let per_group = heads / kv_heads;
            for head in group * per_group..(group + 1) * per_group {
                for first in (0..t).step_by(QUERY_BLOCK) {
                    let rows = QUERY_BLOCK.min(t - first);
                    let at = first * q_width + head * d;
                    let seen = {
                        // Gone before the products below lay out tiles of their own.
                        let engine = Engine::new(unit);
                        let queries = Queries { unit, engine: &engine, shape, first: s - t + first, rows, s };
                        queries.against(&q[at..], keys, &mut probs);
                        queries.against(&g[at..], values, &mut dprobs);
                        vectorize(Scores { probs: &mut probs, dprobs: &mut dprobs, out: &out[at..], g: &g[at..], queries: &queries });
                        queries.mix(&dprobs, across, &mut dq[at..]);
                        queries.seen()
                    };
                    let n = seen.len();
                    for (c, weights, x) in [(&mut *dk, &dprobs, q), (&mut *dv, &probs, g)] {
                        lay_out_across(unit, rows, n, |row| &weights[row * n..][..n], left);
                        lay_out_across(unit, rows, d, |row| &x[at + row * q_width..][..d], right);
                        let c = &mut c[seen.start * kv_width + group * d..];
                        multiply_across(unit, pairs(rows), (left, n), (right, d), Onto::Add, (c, kv_width));
                    }
                }
            }
        });
    }
}

/// Makes scores weights, and the gradients of weights those of scores.
struct Scores<'a> {
    probs: &'a mut [f32],
    dprobs: &'a mut [f32],
    out: &'a [f32],
    g: &'a [f32],
    queries: &'a Queries<'a>,
}

impl Kernel for Scores<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let Self { probs, dprobs, out, g, queries } = self;
        let AttentionShape { heads, head_dim: d, scale, .. } = *queries.shape;
        let (n, scale) = (queries.seen().len(), scale as f32);
        let rows = probs.chunks_exact_mut(n).zip(dprobs.chunks_exact_mut(n)).take(queries.rows);
        for (r, (p, dp)) in rows.enumerate() {
            let Range { start, end } = queries.of_row(r);
            softmax_row(&mut p[start..end], scale);
            p[..start].fill(0.0);
            p[end..].fill(0.0);
            let row = r * heads * d..r * heads * d + d;
            let delta: f32 = g[row.clone()].iter().zip(&out[row]).map(|(g, o)| g * o).sum();
            for (dp, p) in dp.iter_mut().zip(&*p) {
                *dp = scale * *p * (*dp - delta);
            }
        }
    }
}
