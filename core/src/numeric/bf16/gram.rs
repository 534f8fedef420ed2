//! `H = XᵀX`, and `GᵀX`, of one window from rounded numbers: pairs of tokens, panels of channels.

use std::ops::Range;

use super::Bf16Unit;
use super::scratch::with_lines;
use super::tile::{COLUMNS, Keep, Line, ROWS, round_across, tile, words};
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
        let pairs = tokens.div_ceil(2);
        let onto = if block == 0 { Onto::Replace } else { Onto::Add };
        with_lines(n.div_ceil(COLUMNS) * pairs * 2, |lines| {
            lay_out_across(unit, tokens, n, |token| &x[token * n..][..n], lines);
            triangle(unit, lines, pairs, h, n, onto);
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
        let pairs = tokens.div_ceil(2);
        let onto = if block == 0 { onto } else { Onto::Add };
        let (of_g, of_x) = (m.div_ceil(COLUMNS) * pairs * 2, n.div_ceil(COLUMNS) * pairs * 2);
        with_lines(of_g + of_x, |lines| {
            let (left, right) = lines.split_at_mut(of_g);
            lay_out_across(unit, tokens, m, |token| &g[token * width..][columns.clone()], left);
            lay_out_across(unit, tokens, n, |token| &x[token * n..][..n], right);
            let left = words(left);
            for (panel, b) in right.chunks_exact(2 * pairs).enumerate() {
                let column = panel * COLUMNS;
                let keep = Keep { width: COLUMNS.min(n - column), below: COLUMNS };
                for above in 0..m.div_ceil(COLUMNS) {
                    for row in (0..COLUMNS.min(m - above * COLUMNS)).step_by(ROWS) {
                        let i = above * COLUMNS + row;
                        let a = &left[above * pairs * COLUMNS + row..];
                        let rows = ROWS.min(m - i).min(COLUMNS - row);
                        tile::<1, COLUMNS>(unit, rows, a, b, (&mut c[i * n + column..], n), keep, onto);
                    }
                }
            }
        });
    }
}

/// Rounds the rows of a matrix `[tokens, n]` into panels of its transpose: pairs of tokens, 32 channels each, zeros for what is missing.
pub(super) fn lay_out_across<'a>(unit: Bf16Unit, tokens: usize, n: usize, row: impl Fn(usize) -> &'a [f32], lines: &mut [Line]) {
    let pairs = tokens.div_ceil(2);
    for pair in 0..pairs {
        let even = row(2 * pair);
        let odd = if 2 * pair + 1 < tokens { row(2 * pair + 1) } else { &[] };
        for panel in 0..n.div_ceil(COLUMNS) {
            let part = |x: &'a [f32]| if x.is_empty() { x } else { &x[panel * COLUMNS..n.min((panel + 1) * COLUMNS)] };
            if let Some((both, _)) = lines[(panel * pairs + pair) * 2..].split_first_chunk_mut() {
                round_across(unit, part(even), part(odd), both);
            }
        }
    }
}

/// The tiles on and below the diagonal; both operands are panels.
fn triangle(unit: Bf16Unit, lines: &[Line], pairs: usize, h: &mut [f32], n: usize, onto: Onto) {
    let words = words(lines);
    for (panel, b) in lines.chunks_exact(2 * pairs).enumerate() {
        let column = panel * COLUMNS;
        let width = COLUMNS.min(n - column);
        for above in panel..n.div_ceil(COLUMNS) {
            for row in (0..COLUMNS.min(n - above * COLUMNS)).step_by(ROWS) {
                let i = above * COLUMNS + row;
                let rows = ROWS.min(n - i).min(COLUMNS - row);
                let keep = Keep { width, below: i - column + 1 };
                let a = &words[above * pairs * COLUMNS + row..];
                tile::<1, COLUMNS>(unit, rows, a, b, (&mut h[i * n + column..], n), keep, onto);
            }
        }
    }
}
