//! Attention with both products in bf16: `P = softmax(s·Q_h K_gᵀ + mask)` from rounded Q and K, `ctx_h = P V_g` from rounded P and V.
//! Scores and softmax are f32.

use super::Bf16Unit;
use super::engine::{Engine, HIGH};
use super::gram::lay_out_across;
use super::panels::{DEPTH, STRIDE, lay_out};
use super::scratch::{with_lines, with_words};
use super::tile::{COLUMNS, Keep, Line, pairs, round};
use crate::numeric::attention::{AttentionShape, QUERY_BLOCK};
use crate::numeric::softmax::softmax_row;
use crate::numeric::{Kernel, Onto, vectorize};

/// Widest head that fits.
pub(in crate::numeric) const WIDEST_HEAD: usize = DEPTH;

/// `q` `[t, H·D]`, `k` and `v` `[s, H_kv·D]`, `s ≥ t` → `out` `[t, H·D]`, heads of at most [`WIDEST_HEAD`] channels; the counterpart of
/// [`crate::numeric::attention`].
///
/// # Panics
/// If a slice does not have its size: a bug of the caller.
pub(in crate::numeric) fn attention_bf16(
    unit: Bf16Unit,
    q: &[f32],
    (k, v): (&[f32], &[f32]),
    (t, s): (usize, usize),
    shape: &AttentionShape,
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim: d, .. } = *shape;
    assert!(d <= WIDEST_HEAD && s >= t, "heads of {d} channels, {t} of {s} positions");
    assert_eq!((q.len(), out.len()), (t * heads * d, t * heads * d), "queries of {heads} heads");
    assert_eq!((k.len(), v.len()), (s * kv_heads * d, s * kv_heads * d), "keys of {kv_heads} heads");
    let width = kv_heads * d;
    let (key_lines, value_lines) = (s.div_ceil(COLUMNS) * pairs(d) * 2, d.div_ceil(COLUMNS) * pairs(s) * 2);
    let engine = Engine::new(unit);
    let mut scores = vec![0.0; QUERY_BLOCK * s];
    for group in 0..kv_heads {
        with_lines(key_lines + value_lines, |lines| {
            let (keys, values) = lines.split_at_mut(key_lines);
            lay_out(unit, s, d, |row| &k[row * width + group * d..][..d], keys);
            lay_out_across(unit, s, d, |row| &v[row * width + group * d..][..d], values);
            let per_group = heads / kv_heads;
            for head in group * per_group..(group + 1) * per_group {
                for first in (0..t).step_by(QUERY_BLOCK) {
                    let rows = QUERY_BLOCK.min(t - first);
                    let at = first * heads * d + head * d;
                    let queries = Queries { unit, engine: &engine, keys, values, shape, first: s - t + first, rows, s };
                    let probs = queries.probs(&q[at..], &mut scores);
                    queries.mix(probs, &scores, &mut out[at..]);
                }
            }
        });
    }
}

/// A block of queries of one head.
struct Queries<'a> {
    unit: Bf16Unit,
    engine: &'a Engine,
    /// Panels of 32 positions, pairs of channels.
    keys: &'a [Line],
    /// Panels of 32 channels, pairs of positions.
    values: &'a [Line],
    shape: &'a AttentionShape,
    /// Position of the first query.
    first: usize,
    rows: usize,
    s: usize,
}

impl Queries<'_> {
    /// The positions that any of the queries sees, from the beginning of a panel on.
    fn seen(&self) -> std::ops::Range<usize> {
        let start = self.shape.window.map_or(0, |w| (self.first + 1).saturating_sub(w));
        start / COLUMNS * COLUMNS..self.first + self.rows
    }

    /// Rows of attention weights over the positions seen, in `scores`; returns which positions these are.
    fn probs(&self, q: &[f32], scores: &mut [f32]) -> std::ops::Range<usize> {
        let (d, stride, seen) = (self.shape.head_dim, self.shape.heads * self.shape.head_dim, self.seen());
        with_words(self.rows.next_multiple_of(HIGH) * STRIDE, |rounded| {
            for (row, rounded) in rounded.chunks_exact_mut(STRIDE).enumerate().take(self.rows) {
                round(self.unit, &q[row * stride..][..d], rounded);
            }
            let panels = self.keys.chunks_exact(2 * pairs(d)).enumerate();
            for (panel, b) in panels.take(seen.end.div_ceil(COLUMNS)).skip(seen.start / COLUMNS) {
                let at = panel * COLUMNS - seen.start;
                let keep = Keep { width: COLUMNS.min(seen.len() - at), below: COLUMNS };
                self.engine.panel(self.rows, rounded, b, (&mut scores[at..], seen.len()), keep, Onto::Replace);
            }
        });
        vectorize(Softmax { scores, queries: self, seen: seen.clone() });
        seen
    }

    /// `out ← P V`, a block of positions after the other.
    fn mix(&self, seen: std::ops::Range<usize>, probs: &[f32], out: &mut [f32]) {
        let (d, stride) = (self.shape.head_dim, self.shape.heads * self.shape.head_dim);
        for start in seen.clone().step_by(DEPTH) {
            let block = start..seen.end.min(start + DEPTH);
            let onto = if start == seen.start { Onto::Replace } else { Onto::Add };
            with_words(self.rows.next_multiple_of(HIGH) * STRIDE, |rounded| {
                for (probs, rounded) in probs.chunks_exact(seen.len()).zip(rounded.chunks_exact_mut(STRIDE)) {
                    round(self.unit, &probs[start - seen.start..block.end - seen.start], rounded);
                }
                for (panel, b) in self.values.chunks_exact(2 * pairs(self.s)).enumerate() {
                    let b = &b[start..start + 2 * pairs(block.len())];
                    let keep = Keep { width: COLUMNS.min(d - panel * COLUMNS), below: COLUMNS };
                    self.engine.panel(self.rows, rounded, b, (&mut out[panel * COLUMNS..], stride), keep, onto);
                }
            });
        }
    }
}

struct Softmax<'a> {
    scores: &'a mut [f32],
    queries: &'a Queries<'a>,
    seen: std::ops::Range<usize>,
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let Self { scores, queries, seen } = self;
        for (r, row) in scores.chunks_exact_mut(seen.len()).take(queries.rows).enumerate() {
            let position = queries.first + r;
            let first = queries.shape.window.map_or(0, |w| (position + 1).saturating_sub(w)).max(seen.start) - seen.start;
            let last = position + 1 - seen.start;
            softmax_row(&mut row[first..last], queries.shape.scale as f32);
            row[..first].fill(0.0);
            row[last..].fill(0.0);
        }
    }
}
