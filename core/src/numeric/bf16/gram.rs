//! `H = XᵀX`, and `GᵀX`, of one window from rounded numbers: pairs of tokens, panels of channels.

use std::ops::Range;

use super::Bf16Unit;
use super::amx::turned;
use super::engine::{Engine, HIGH};
use super::panels::STRIDE;
use super::scratch::{with_lines, with_words};
use super::tile::{COLUMNS, Keep, Line, ROWS, pairs, round_across, tile, words};
use crate::numeric::Onto;

/// Most tokens summed between two visits to H.
const DEPTH: usize = 512;

/// Lower triangle of `XᵀX` for row-major `x` `[t, n]`, rounded to bf16, written to row-major `h` `[n, n]`; the strict upper triangle is
/// not touched. The counterpart of [`crate::numeric::gram`].
///
/// # Panics
/// If the slices do not have these sizes: a bug of the caller.
pub fn gram_bf16(unit: Bf16Unit, x: &[f32], n: usize, h: &mut [f32]) {
    assert_eq!(h.len(), n * n, "the result is {n}x{n}");
    if n == 0 {
        return;
    }
    let t = x.len() / n;
    assert_eq!(x.len(), t * n, "rows of {n}");
    if t == 0 {
        for (i, h) in h.chunks_exact_mut(n).enumerate() {
            h[..=i].fill(0.0);
        }
    }
    for (block, x) in x.chunks(DEPTH * n).enumerate() {
        let tokens = x.len() / n;
        let onto = if block == 0 { Onto::Replace } else { Onto::Add };
        with_lines(n.div_ceil(COLUMNS) * pairs(tokens) * 2, |lines| {
            lay_out_across(unit, tokens, n, |token| &x[token * n..][..n], lines);
            with_left(unit, lines, pairs(tokens), |left| triangle(&left, lines, h, n, onto));
        });
    }
}

/// `C ← GᵀX`, or added to C: columns `columns` of row-major `g` `[t, width]`, and row-major `x` `[t, n]`, both rounded to bf16; `c` is
/// row-major `[columns, n]`.
///
/// # Panics
/// If the slices do not have these sizes: a bug of the caller.
pub fn across_bf16(unit: Bf16Unit, (g, width, columns): (&[f32], usize, Range<usize>), (x, n): (&[f32], usize), onto: Onto, c: &mut [f32]) {
    let m = columns.len();
    assert!(columns.end <= width && c.len() == m * n, "columns {columns:?} of {width}, a result of {m}x{n}");
    if m == 0 || n == 0 {
        return;
    }
    assert!(x.len() % n == 0 && g.len() == x.len() / n * width, "as many rows of both");
    if x.is_empty() && onto == Onto::Replace {
        c.fill(0.0);
    }
    for (block, (g, x)) in g.chunks(DEPTH * width).zip(x.chunks(DEPTH * n)).enumerate() {
        let tokens = x.len() / n;
        let onto = if block == 0 { onto } else { Onto::Add };
        let length = 2 * pairs(tokens);
        let (of_g, of_x) = (m.div_ceil(COLUMNS) * length, n.div_ceil(COLUMNS) * length);
        with_lines(of_g + of_x, |lines| {
            let (left, right) = lines.split_at_mut(of_g);
            lay_out_across(unit, tokens, m, |token| &g[token * width..][columns.clone()], left);
            lay_out_across(unit, tokens, n, |token| &x[token * n..][..n], right);
            multiply_across(unit, pairs(tokens), (left, m), (right, n), onto, (c, n));
        });
    }
}

/// `C ← AᵀB`, or added to C: both in panels of as many pairs, of `m` and of `n` columns; rows of C are `stride` long.
pub(super) fn multiply_across(
    unit: Bf16Unit,
    pairs: usize,
    (left, m): (&[Line], usize),
    (right, n): (&[Line], usize),
    onto: Onto,
    (c, stride): (&mut [f32], usize),
) {
    with_left(unit, left, pairs, |left| {
        let all = n.div_ceil(COLUMNS);
        for first in (0..all).step_by(left.together()) {
            for above in 0..m.div_ceil(COLUMNS) {
                for (depth, onto) in left.depths(pairs, onto) {
                    for panel in first..all.min(first + left.together()) {
                        let (i, column) = (above * COLUMNS, panel * COLUMNS);
                        let keep = Keep { width: COLUMNS.min(n - column), below: COLUMNS };
                        let b = &right[panel * 2 * pairs..][..2 * pairs];
                        left.times(above, COLUMNS.min(m - i), &depth, b, (&mut c[i * stride + column..], stride), keep, onto);
                    }
                }
            }
        }
    });
}

/// A left operand that came in panels of its transpose.
enum Left<'a> {
    /// As it came: for tiles that read pairs anywhere.
    Across { unit: Bf16Unit, words: &'a [u32], pairs: usize },
    /// Its rows, [`STRIDE`] words apart.
    Rows { engine: Engine, words: &'a [u32] },
}

/// Runs `f` with what `panels`, of so many pairs each, are the transpose of.
fn with_left<R>(unit: Bf16Unit, panels: &[Line], pairs: usize, f: impl FnOnce(Left<'_>) -> R) -> R {
    match Engine::new(unit) {
        Engine::Pairs(unit) => f(Left::Across { unit, words: words(panels), pairs }),
        engine @ Engine::Tiles(_) => with_words(panels.len() / (2 * pairs) * HIGH * STRIDE, |words| {
            for (panel, rows) in panels.chunks_exact(2 * pairs).zip(words.chunks_exact_mut(HIGH * STRIDE)) {
                turned(panel, rows);
            }
            f(Left::Rows { engine, words })
        }),
    }
}

impl Left<'_> {
    /// See [`Engine::together`].
    fn together(&self) -> usize {
        match self {
            Self::Across { .. } => 1,
            Self::Rows { engine, .. } => engine.together(),
        }
    }

    /// See [`Engine::depths`].
    fn depths(&self, pairs: usize, onto: Onto) -> impl Iterator<Item = (Range<usize>, Onto)> + use<> {
        match self {
            Self::Across { unit, .. } => Engine::Pairs(*unit).depths(pairs, onto),
            Self::Rows { engine, .. } => engine.depths(pairs, onto),
        }
    }

    /// `C ← A·B`, or added to C, for the first rows of a panel of A's transpose and the columns of a panel of B, and some of their pairs.
    #[allow(clippy::too_many_arguments, reason = "a product, its part, and where it goes")]
    fn times(&self, panel: usize, rows: usize, depth: &Range<usize>, b: &[Line], (c, stride): (&mut [f32], usize), keep: Keep, onto: Onto) {
        let b = &b[2 * depth.start..2 * depth.end];
        match self {
            Self::Across { unit, words, pairs } => {
                for row in (0..rows).step_by(ROWS) {
                    let (a, c) = (&words[(panel * pairs + depth.start) * COLUMNS + row..], &mut c[row * stride..]);
                    tile::<1, COLUMNS>(*unit, ROWS.min(rows - row), a, b, (c, stride), keep.from(row), onto);
                }
            }
            Self::Rows { engine, words } => engine.panel(rows, &words[panel * HIGH * STRIDE + depth.start..], b, (c, stride), keep, onto),
        }
    }
}

/// Rounds the rows of a matrix `[tokens, n]` into panels of its transpose: pairs of tokens, 32 channels each, zeros for what is missing.
pub(super) fn lay_out_across<'a>(unit: Bf16Unit, tokens: usize, n: usize, row: impl Fn(usize) -> &'a [f32], lines: &mut [Line]) {
    let pairs = pairs(tokens);
    let row = |token: usize| if token < tokens { row(token) } else { &[] };
    for pair in 0..pairs {
        let (even, odd) = (row(2 * pair), row(2 * pair + 1));
        for panel in 0..n.div_ceil(COLUMNS) {
            let part = |x: &'a [f32]| if x.is_empty() { x } else { &x[panel * COLUMNS..n.min((panel + 1) * COLUMNS)] };
            if let Some((both, _)) = lines[(panel * pairs + pair) * 2..].split_first_chunk_mut() {
                round_across(unit, part(even), part(odd), both);
            }
        }
    }
}

/// The tiles on and below the diagonal.
fn triangle(left: &Left<'_>, lines: &[Line], h: &mut [f32], n: usize, onto: Onto) {
    let panels = n.div_ceil(COLUMNS);
    let length = lines.len() / panels;
    for first in (0..panels).step_by(left.together()) {
        for above in first..panels {
            for (depth, onto) in left.depths(length / 2, onto) {
                for panel in first..(above + 1).min(first + left.together()) {
                    let (i, column) = (above * COLUMNS, panel * COLUMNS);
                    let keep = Keep { width: COLUMNS.min(n - column), below: i - column + 1 };
                    let b = &lines[panel * length..][..length];
                    left.times(above, COLUMNS.min(n - i), &depth, b, (&mut h[i * n + column..], n), keep, onto);
                }
            }
        }
    }
}
