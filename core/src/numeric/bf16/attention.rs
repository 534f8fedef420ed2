//! Attention with both products in bf16: `P = softmax(s·Q_h K_gᵀ + mask)` from rounded Q and K, `ctx_h = P V_g` from rounded P and V.
//! Scores and softmax are f32.

use std::ops::Range;

use super::Bf16Unit;
use super::across::lay_out_across;
use super::engine::{Engine, HIGH};
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
    let mut scores = vec![0.0; QUERY_BLOCK.min(t) * s];
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
                    let queries = Queries { unit, engine: &engine, shape, first: s - t + first, rows, s };
                    queries.against(&q[at..], keys, &mut scores);
                    vectorize(Softmax { scores: &mut scores, queries: &queries });
                    queries.mix(&scores, values, &mut out[at..]);
                }
            }
        });
    }
}

/// A block of queries of one head.
pub(super) struct Queries<'a> {
    pub(super) unit: Bf16Unit,
    pub(super) engine: &'a Engine,
    pub(super) shape: &'a AttentionShape,
    /// Position of the first query.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Positions.
    pub(super) s: usize,
}

impl Queries<'_> {
    /// The positions that any of the queries sees, from the beginning of a panel on.
    pub(super) fn seen(&self) -> Range<usize> {
        let start = self.shape.window.map_or(0, |w| (self.first + 1).saturating_sub(w));
        start / COLUMNS * COLUMNS..self.first + self.rows
    }

    /// Those of them that query `row` sees.
    pub(super) fn of_row(&self, row: usize) -> Range<usize> {
        let (position, start) = (self.first + row, self.seen().start);
        let first = self.shape.window.map_or(0, |w| (position + 1).saturating_sub(w)).max(start);
        first - start..position + 1 - start
    }

    /// `out ← X Yᵀ` over the positions seen: rows of a head's channels, and `panels` of 32 positions, pairs of channels.
    pub(super) fn against(&self, x: &[f32], panels: &[Line], out: &mut [f32]) {
        let (d, stride, seen) = (self.shape.head_dim, self.shape.heads * self.shape.head_dim, self.seen());
        with_words(self.rows.next_multiple_of(HIGH) * STRIDE, |rounded| {
            for (row, rounded) in rounded.chunks_exact_mut(STRIDE).enumerate().take(self.rows) {
                round(self.unit, &x[row * stride..][..d], rounded);
            }
            let panels = panels.chunks_exact(2 * pairs(d)).enumerate();
            for (panel, b) in panels.take(seen.end.div_ceil(COLUMNS)).skip(seen.start / COLUMNS) {
                let at = panel * COLUMNS - seen.start;
                let keep = Keep { width: COLUMNS.min(seen.len() - at), below: COLUMNS };
                self.engine.panel(self.rows, rounded, b, (&mut out[at..], seen.len()), keep, Onto::Replace);
            }
        });
    }

    /// `out ← P Y`, a block of positions after the other: `panels` of 32 channels, pairs of positions.
    pub(super) fn mix(&self, probs: &[f32], panels: &[Line], out: &mut [f32]) {
        let (d, stride, seen) = (self.shape.head_dim, self.shape.heads * self.shape.head_dim, self.seen());
        for start in seen.clone().step_by(DEPTH) {
            let block = start..seen.end.min(start + DEPTH);
            let onto = if start == seen.start { Onto::Replace } else { Onto::Add };
            with_words(self.rows.next_multiple_of(HIGH) * STRIDE, |rounded| {
                for (probs, rounded) in probs.chunks_exact(seen.len()).zip(rounded.chunks_exact_mut(STRIDE)) {
                    round(self.unit, &probs[start - seen.start..block.end - seen.start], rounded);
                }
                for (panel, b) in panels.chunks_exact(2 * pairs(self.s)).enumerate() {
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
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let Self { scores, queries } = self;
        for (r, row) in scores.chunks_exact_mut(queries.seen().len()).take(queries.rows).enumerate() {
            let Range { start, end } = queries.of_row(r);
            softmax_row(&mut row[start..end], queries.shape.scale as f32);
            row[..start].fill(0.0);
            row[end..].fill(0.0);
        }
    }
}
