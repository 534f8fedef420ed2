//! `C ← A·Bᵀ` with B, the weight, in panels made once.
//!
//! ```text
//! for each block of k                      C is touched once a block
//!   for 512 rows of A                      rounded to pairs, they stay in the second cache
//!     for each panel of 32 rows of B       it stays in the first cache
//!       for each 12 rows of A              a tile of C in registers
//! ```
//!
//! Tiles of AMX are faster than the second cache: there the two innermost loops change places within eight panels, and 32 rows of A stay in
//! the first cache, for half a block of `k` at a time.

use std::ops::Range;

use super::Bf16Unit;
use super::amx::turned_back;
use super::engine::{Engine, HIGH};
use super::gram::lay_out_across;
use super::scratch::with_words;
use super::tile::{COLUMNS, Keep, Line, pairs, round};
use crate::numeric::Onto;

/// Longest block of `k`.
pub(super) const DEPTH: usize = 576;
/// Words from one rounded row of A to the next: known to the compiler, and no power of two, so that rows do not share places of a cache.
pub(super) const STRIDE: usize = DEPTH / 2;
/// Rows of A rounded at once.
const HEIGHT: usize = 512;

/// A matrix B `[n, k]`, rounded and laid out for products with it.
///
/// For each block of `k`, for each 32 rows: the pairs of these rows along `k`, the rows of a pair side by side.
#[derive(Clone, Debug)]
pub struct Bf16Panels {
    unit: Bf16Unit,
    n: usize,
    k: usize,
    lines: Vec<Line>,
}

/// `0..k` in blocks of nearly equal length, all but the last a multiple of 32. They depend on `k` alone, and so does the order of a sum.
fn blocks(k: usize) -> impl Iterator<Item = Range<usize>> {
    let length = k.div_ceil(k.div_ceil(DEPTH).max(1)).next_multiple_of(COLUMNS);
    (0..k).step_by(length.max(1)).map(move |start| start..k.min(start + length))
}

impl Bf16Panels {
    /// Rounds and lays out row-major `b` `[n, k]`.
    ///
    /// # Panics
    /// If the slice does not have that size: a bug of the caller.
    pub fn new(unit: Bf16Unit, b: &[f32], (n, k): (usize, usize)) -> Self {
        assert_eq!(b.len(), n * k, "a matrix of {n}x{k}");
        let mut lines = Self::room(n, k);
        let mut rest = lines.as_mut_slice();
        for block in blocks(k) {
            let (here, behind) = rest.split_at_mut(2 * pairs(block.len()) * n.div_ceil(COLUMNS));
            rest = behind;
            lay_out(unit, n, block.len(), |row| &b[row * k..][block.clone()], here);
        }
        Self { unit, n, k, lines }
    }

    /// The same of the transpose of row-major `b` `[k, n]`, without making it.
    ///
    /// # Panics
    /// If the slice does not have that size: a bug of the caller.
    pub fn of_transpose(unit: Bf16Unit, b: &[f32], (k, n): (usize, usize)) -> Self {
        assert_eq!(b.len(), n * k, "a matrix of {k}x{n}");
        let mut lines = Self::room(n, k);
        let mut rest = lines.as_mut_slice();
        for block in blocks(k) {
            let (here, behind) = rest.split_at_mut(2 * pairs(block.len()) * n.div_ceil(COLUMNS));
            rest = behind;
            lay_out_across(unit, block.len(), n, |i| &b[(block.start + i) * n..][..n], here);
        }
        Self { unit, n, k, lines }
    }

    fn room(n: usize, k: usize) -> Vec<Line> {
        vec![Line([0; 16]); n.div_ceil(COLUMNS) * 2 * blocks(k).map(|block| pairs(block.len())).sum::<usize>()]
    }

    /// Rows and columns of B.
    pub fn shape(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    /// `C ← A·Bᵀ`, or added to C, all row-major: `a` `[m, k]`, `c` `[m, n]`.
    ///
    /// # Panics
    /// If a slice does not have its size: a bug of the caller.
    pub fn product(&self, a: &[f32], m: usize, onto: Onto, c: &mut [f32]) {
        let (n, k) = (self.n, self.k);
        assert_eq!((a.len(), c.len()), (m * k, m * n), "A is {m}x{k}, C {m}x{n}");
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 && onto == Onto::Replace {
            c.fill(0.0);
        }
        with_words(HEIGHT.min(m).next_multiple_of(HIGH) * STRIDE, |rounded| self.multiply(a, onto, c, rounded));
    }

    fn multiply(&self, a: &[f32], onto: Onto, c: &mut [f32], rounded: &mut [u32]) {
        let (n, k) = (self.n, self.k);
        let engine = Engine::new(self.unit);
        let mut rest = self.lines.as_slice();
        for block in blocks(k) {
            let length = 2 * pairs(block.len());
            let (here, behind) = rest.split_at(length * n.div_ceil(COLUMNS));
            rest = behind;
            let onto = if block.start == 0 { onto } else { Onto::Add };
            for (a, c) in a.chunks(HEIGHT * k).zip(c.chunks_mut(HEIGHT * n)) {
                for (a, rounded) in a.chunks_exact(k).zip(rounded.chunks_exact_mut(STRIDE)) {
                    round(self.unit, &a[block.clone()], rounded);
                }
                let (rows, all) = (a.len() / k, n.div_ceil(COLUMNS));
                for (first, high) in (0..all).step_by(engine.together()).flat_map(|p| engine.strips(rows).map(move |r| (p, r))) {
                    for (depth, onto) in engine.depths(length / 2, onto) {
                        for panel in first..all.min(first + engine.together()) {
                            let column = panel * COLUMNS;
                            let keep = Keep { width: COLUMNS.min(n - column), below: COLUMNS };
                            let c = (&mut c[high.start * n + column..], n);
                            let (a, b) = (&rounded[high.start * STRIDE + depth.start..], &here[panel * length..]);
                            engine.panel(high.len(), a, &b[2 * depth.start..2 * depth.end], c, keep, onto);
                        }
                    }
                }
            }
        }
    }
}

/// Rounds the `n` rows of a matrix, each `length` long and at most [`DEPTH`], into panels: 32 rows each, zeros for those that are missing.
pub(super) fn lay_out<'a>(unit: Bf16Unit, n: usize, length: usize, row: impl Fn(usize) -> &'a [f32], lines: &mut [Line]) {
    let mut rounded = [0; COLUMNS * STRIDE];
    for (panel, lines) in lines.chunks_exact_mut(2 * pairs(length)).enumerate() {
        for (j, rounded) in rounded.chunks_exact_mut(STRIDE).enumerate() {
            let j = panel * COLUMNS + j;
            if j < n {
                round(unit, row(j), rounded);
            } else {
                rounded.fill(0);
            }
        }
        turned_back(&rounded, lines);
    }
}
