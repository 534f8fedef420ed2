//! `H = XᵀX` of one window from rounded numbers.

use super::Bf16Unit;
use super::across::{DEPTH, Left, lay_out_across, with_left};
use super::engine::Engine;
use super::scratch::with_lines;
use super::tile::{COLUMNS, Keep, Line, pairs};
use crate::numeric::Onto;

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
            with_left(unit, lines, pairs(tokens), |engine, left| triangle(engine, left, lines, (h, n), onto));
        });
    }
}

/// The tiles on and below the diagonal.
fn triangle(engine: &Engine, left: Left<'_>, lines: &[Line], (h, n): (&mut [f32], usize), onto: Onto) {
    let panels = n.div_ceil(COLUMNS);
    let length = lines.len() / panels;
    for first in (0..panels).step_by(engine.together()) {
        for above in first..panels {
            for (depth, onto) in engine.depths(length / 2, onto) {
                for panel in first..(above + 1).min(first + engine.together()) {
                    let (i, column) = (above * COLUMNS, panel * COLUMNS);
                    let keep = Keep { width: COLUMNS.min(n - column), below: i - column + 1 };
                    let b = &lines[panel * length..][..length];
                    left.times(engine, (above, COLUMNS.min(n - i)), &depth, b, (&mut h[i * n + column..], n), keep, onto);
                }
            }
        }
    }
}
