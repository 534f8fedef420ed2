//! `C ← GᵀX`, sums over rows, from rounded numbers: pairs of rows, panels of columns.
//!
//! ```text
//! for each 8 panels of 32 columns of X       on `vdpbf16ps` each by itself
//!   for each 32 columns of G                 on `vdpbf16ps` all of them at once
//!     for each block of rows                 of all pairs of matrices that are summed: a part of C is visited while it is near
//! ```

use std::ops::Range;

use super::amx::turned;
use super::engine::{Engine, HIGH};
use super::panels::STRIDE;
use super::scratch::{with_lines, with_words};
use super::tile::{COLUMNS, Keep, Line, ROWS, pairs, round_across, tile, words, words_mut};
use super::{Bf16Unit, Instructions};
use crate::numeric::Onto;

/// Most rows summed between two visits to C.
pub(super) const DEPTH: usize = 512;
/// Panels that are laid out side by side: what is written of each stays in the first cache.
const SIDE_BY_SIDE: usize = 4;

/// A matrix G `[t, n]`, rounded and laid out once for products `GᵀX`.
#[derive(Debug)]
pub(in crate::numeric) struct Bf16Left {
    unit: Bf16Unit,
    t: usize,
    n: usize,
    lines: Vec<Line>,
}

/// A matrix X `[t, n]`, rounded and laid out once for products `GᵀX`.
#[derive(Debug)]
pub(in crate::numeric) struct Bf16Right {
    unit: Bf16Unit,
    t: usize,
    n: usize,
    lines: Vec<Line>,
}

/// Rows of each block of `t`.
fn blocks(t: usize) -> impl Iterator<Item = Range<usize>> {
    (0..t).step_by(DEPTH).map(move |first| first..t.min(first + DEPTH))
}

impl Bf16Left {
    /// Rounds and lays out row-major `g`, of `n` columns.
    ///
    /// # Panics
    /// If the slice is not of whole rows: a bug of the caller.
    pub(in crate::numeric) fn new(unit: Bf16Unit, g: &[f32], n: usize) -> Self {
        let t = g.len() / n.max(1);
        assert_eq!(g.len(), t * n, "rows of {n}");
        let panels = n.div_ceil(COLUMNS);
        let size = |block: Range<usize>| panels * panel_of_left(unit, pairs(block.len())) / 16;
        let mut lines = vec![Line([0; 16]); blocks(t).map(size).sum()];
        let mut rest = lines.as_mut_slice();
        for block in blocks(t) {
            let (here, behind) = rest.split_at_mut(size(block.clone()));
            rest = behind;
            let (pairs, row) = (pairs(block.len()), |token: usize| &g[(block.start + token) * n..][..n]);
            match unit.0 {
                Instructions::Pairs => lay_out_across(unit, block.len(), n, row, here),
                Instructions::Tiles => with_lines(panels * 2 * pairs, |across| {
                    lay_out_across(unit, block.len(), n, row, across);
                    turn_panels(across, pairs, words_mut(here));
                }),
            }
        }
        Self { unit, t, n, lines }
    }
}

impl Bf16Right {
    /// Rounds and lays out row-major `x`, of `n` columns.
    ///
    /// # Panics
    /// If the slice is not of whole rows: a bug of the caller.
    pub(in crate::numeric) fn new(unit: Bf16Unit, x: &[f32], n: usize) -> Self {
        let t = x.len() / n.max(1);
        assert_eq!(x.len(), t * n, "rows of {n}");
        let size = |block: Range<usize>| n.div_ceil(COLUMNS) * 2 * pairs(block.len());
        let mut lines = vec![Line([0; 16]); blocks(t).map(size).sum()];
        let mut rest = lines.as_mut_slice();
        for block in blocks(t) {
            let (here, behind) = rest.split_at_mut(size(block.clone()));
            rest = behind;
            lay_out_across(unit, block.len(), n, |token| &x[(block.start + token) * n..][..n], here);
        }
        Self { unit, t, n, lines }
    }
}

/// `C ← Σ GᵀX` over these, in their order, or added to C: columns `columns` of every G, the first of them a multiple of 32; `c` is row-major
/// `[columns, n]`.
///
/// # Panics
/// If the sizes do not fit: a bug of the caller.
pub(in crate::numeric) fn sum_across(all: &[(&Bf16Left, &Bf16Right)], columns: Range<usize>, onto: Onto, c: &mut [f32]) {
    let (m, n) = (columns.len(), all.first().map_or(0, |(_, x)| x.n));
    assert!(columns.start.is_multiple_of(COLUMNS), "the first of columns {columns:?} begins a panel");
    let mut parts = Vec::new();
    for (g, x) in all {
        assert!((g.t, g.unit) == (x.t, x.unit) && x.n == n && columns.end <= g.n, "G is {}x{}, X {}x{}", g.t, g.n, x.t, x.n);
        let (mut left, mut right) = (words(&g.lines), x.lines.as_slice());
        for block in blocks(g.t) {
            let pairs = pairs(block.len());
            let panel = panel_of_left(g.unit, pairs);
            let (here, behind) = left.split_at(panel * g.n.div_ceil(COLUMNS));
            let (panels, below) = right.split_at(2 * pairs * n.div_ceil(COLUMNS));
            (left, right) = (behind, below);
            parts.push(Part { left: Left { words: &here[columns.start / COLUMNS * panel..], pairs }, right: panels });
        }
    }
    assert_eq!(c.len(), m * n, "a result of {m}x{n}");
    match all.first() {
        Some((g, _)) if !parts.is_empty() => multiply(&Engine::new(g.unit), &parts, (m, n), onto, (c, n)),
        _ if onto == Onto::Replace => c.fill(0.0),
        _ => {}
    }
}

/// `C ← GᵀX` for row-major `g` `[t, m]` and `x` `[t, n]`, both rounded to bf16; `c` is row-major `[m, n]`.
///
/// # Panics
/// If the slices do not have these sizes: a bug of the caller.
pub fn across_bf16(unit: Bf16Unit, (g, m): (&[f32], usize), (x, n): (&[f32], usize), c: &mut [f32]) {
    sum_across(&[(&Bf16Left::new(unit, g, m), &Bf16Right::new(unit, x, n))], 0..m, Onto::Replace, c);
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
    with_left(unit, left, pairs, |engine, left| multiply(engine, &[Part { left, right }], (m, n), onto, (c, stride)));
}

/// A block of rows of both operands.
struct Part<'a> {
    left: Left<'a>,
    /// Panels.
    right: &'a [Line],
}

/// `C ← Σ AᵀB`, or added to C, for the first `m` columns of every A; rows of C are `stride` long.
fn multiply(engine: &Engine, parts: &[Part<'_>], (m, n): (usize, usize), onto: Onto, (c, stride): (&mut [f32], usize)) {
    const { assert!(HIGH == COLUMNS) };
    let all = n.div_ceil(COLUMNS);
    for first in (0..all).step_by(engine.together()) {
        for strip in engine.strips(m) {
            for (nth, Part { left, right }) in parts.iter().enumerate() {
                let onto = if nth == 0 { onto } else { Onto::Add };
                for i in strip.clone().step_by(COLUMNS) {
                    for (depth, onto) in engine.depths(left.pairs, onto) {
                        for panel in first..all.min(first + engine.together()) {
                            let column = panel * COLUMNS;
                            let keep = Keep { width: COLUMNS.min(n - column), below: COLUMNS };
                            let b = &right[panel * 2 * left.pairs..][..2 * left.pairs];
                            let c = (&mut c[i * stride + column..], stride);
                            left.times(engine, (i / COLUMNS, COLUMNS.min(m - i)), &depth, b, c, keep, onto);
                        }
                    }
                }
            }
        }
    }
}

/// A left operand, as the instructions read it: panels of its transpose for those that take pairs from anywhere, else its rows, [`STRIDE`]
/// words apart.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    words: &'a [u32],
    pairs: usize,
}

/// Words of 32 columns of a left operand.
fn panel_of_left(unit: Bf16Unit, pairs: usize) -> usize {
    match unit.0 {
        Instructions::Pairs => COLUMNS * pairs,
        Instructions::Tiles => HIGH * STRIDE,
    }
}

fn turn_panels(panels: &[Line], pairs: usize, rows: &mut [u32]) {
    for (panel, rows) in panels.chunks_exact(2 * pairs).zip(rows.chunks_exact_mut(HIGH * STRIDE)) {
        turned(panel, rows);
    }
}

/// Runs `f` with what `panels`, of so many pairs each, are the transpose of.
pub(super) fn with_left<R>(unit: Bf16Unit, panels: &[Line], pairs: usize, f: impl FnOnce(&Engine, Left<'_>) -> R) -> R {
    match unit.0 {
        Instructions::Pairs => f(&Engine::new(unit), Left { words: words(panels), pairs }),
        Instructions::Tiles => with_words(panels.len() / (2 * pairs) * panel_of_left(unit, pairs), |words| {
            turn_panels(panels, pairs, words);
            f(&Engine::new(unit), Left { words, pairs })
        }),
    }
}

impl Left<'_> {
    /// `C ← A·B`, or added to C, for the first rows of a panel of A's transpose and the columns of a panel of B, and some of their pairs.
    #[allow(clippy::too_many_arguments, reason = "a product, its part, and where it goes")]
    pub(super) fn times(
        &self,
        engine: &Engine,
        (panel, rows): (usize, usize),
        depth: &Range<usize>,
        b: &[Line],
        (c, stride): (&mut [f32], usize),
        keep: Keep,
        onto: Onto,
    ) {
        let b = &b[2 * depth.start..2 * depth.end];
        match engine {
            Engine::Pairs(unit) => {
                for row in (0..rows).step_by(ROWS) {
                    let (a, c) = (&self.words[(panel * self.pairs + depth.start) * COLUMNS + row..], &mut c[row * stride..]);
                    tile::<1, COLUMNS>(*unit, ROWS.min(rows - row), a, b, (c, stride), keep.from(row), onto);
                }
            }
            Engine::Tiles(_) => engine.panel(rows, &self.words[panel * HIGH * STRIDE + depth.start..], b, (c, stride), keep, onto),
        }
    }
}

/// Rounds the rows of a matrix `[tokens, n]` into panels of its transpose: pairs of tokens, 32 channels each, zeros for what is missing.
pub(super) fn lay_out_across<'a>(unit: Bf16Unit, tokens: usize, n: usize, row: impl Fn(usize) -> &'a [f32], lines: &mut [Line]) {
    let (pairs, panels) = (pairs(tokens), n.div_ceil(COLUMNS));
    let row = |token: usize| if token < tokens { row(token) } else { &[] };
    for first in (0..panels).step_by(SIDE_BY_SIDE) {
        for pair in 0..pairs {
            let (even, odd) = (row(2 * pair), row(2 * pair + 1));
            for panel in first..panels.min(first + SIDE_BY_SIDE) {
                let part = |x: &'a [f32]| if x.is_empty() { x } else { &x[panel * COLUMNS..n.min((panel + 1) * COLUMNS)] };
                if let Some((both, _)) = lines[(panel * pairs + pair) * 2..].split_first_chunk_mut() {
                    round_across(unit, part(even), part(odd), both);
                }
            }
        }
    }
}
