//! `C ← A·Bᵀ` with B, the weight, in panels made once.
//!
//! ```text
//! for 512 rows of A                            rounded to pairs once, for every B that they are multiplied with
//!   for each 8 panels of 32 rows of B          their part of C stays in the second cache, over all of k
//!     for each block of k
//!       for each panel, for each 12 rows of A  the panel stays in the first cache, a tile of C in registers
//! ```
//!
//! Tiles of AMX are faster than the second cache: there the two innermost loops change places, and 32 rows of A stay in the first cache, for
//! half a block of `k` at a time.

use std::ops::Range;

use super::Bf16Unit;
use super::across::lay_out_across;
use super::amx::turned_back;
use super::engine::{Engine, HIGH};
use super::scratch::with_words;
use super::tile::{COLUMNS, Keep, Line, pairs, round};
use crate::numeric::Onto;

/// Longest block of `k`.
pub(super) const DEPTH: usize = 576;
/// Words from one rounded row of A to the next: known to the compiler, and no power of two, so that rows do not share places of a cache.
pub(super) const STRIDE: usize = DEPTH / 2;
/// Rows of A rounded at once.
const HEIGHT: usize = 512;
/// Panels of B whose part of C is finished before the next.
const TOGETHER: usize = 8;

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

    /// What rounds what it is multiplied with.
    pub fn unit(&self) -> Bf16Unit {
        self.unit
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
        Self::products([self], a, m, onto, [c]);
    }

    /// [`Self::product`] of one A with several B, which is rounded once.
    ///
    /// # Panics
    /// If a slice does not have its size, or these B differ in `k`: a bug of the caller.
    pub fn products<const N: usize>(all: [&Self; N], a: &[f32], m: usize, onto: Onto, mut c: [&mut [f32]; N]) {
        let Some(k) = all.first().map(|b| b.k) else { return };
        for (b, c) in all.iter().zip(&mut c) {
            assert!(b.k == k && (a.len(), c.len()) == (m * k, m * b.n), "A is {m}x{k}, B {}x{}, C {m}x{}", b.n, b.k, b.n);
            if k == 0 && onto == Onto::Replace {
                c.fill(0.0);
            }
        }
        if k == 0 {
            return;
        }
        for (a, first) in a.chunks(HEIGHT * k).zip((0..m).step_by(HEIGHT)) {
            with_rows(all[0].unit, a, k, |rows| {
                for (b, c) in all.iter().zip(&mut c) {
                    for panels in b.parts() {
                        let column = panels.start * COLUMNS;
                        b.times(rows, panels, onto, (&mut c[first * b.n + column..], b.n));
                    }
                }
            });
        }
    }

    /// `C ← f(A·Bᵀ, A·Dᵀ)`, element by element: some columns of both products after the other, while they are in the cache. `f` is given
    /// a part of a row of both, and leaves in the first what C is to be.
    ///
    /// # Panics
    /// If a slice does not have its size, or B and D are of two shapes: a bug of the caller.
    pub fn combined(b: &Self, d: &Self, a: &[f32], m: usize, c: &mut [f32], f: impl Fn(&mut [f32], &[f32])) {
        let (n, k) = b.shape();
        assert!(d.shape() == (n, k) && (a.len(), c.len()) == (m * k, m * n), "A is {m}x{k}, B {n}x{k}, D {:?}, C {m}x{n}", d.shape());
        if n == 0 || k == 0 {
            c.fill(0.0);
            return f(c, &vec![0.0; m * n]);
        }
        let width = n.min(TOGETHER * COLUMNS);
        let mut other = vec![0.0; m.min(HEIGHT) * width];
        for (a, c) in a.chunks(HEIGHT * k).zip(c.chunks_mut(HEIGHT * n)) {
            with_rows(b.unit, a, k, |rows| {
                for panels in b.parts() {
                    b.times(rows, panels.clone(), Onto::Replace, (&mut c[panels.start * COLUMNS..], n));
                    d.times(rows, panels.clone(), Onto::Replace, (&mut other, width));
                    let columns = panels.start * COLUMNS..n.min(panels.end * COLUMNS);
                    for (c, other) in c.chunks_exact_mut(n).zip(other.chunks_exact(width)) {
                        f(&mut c[columns.clone()], &other[..columns.len()]);
                    }
                }
            });
        }
    }

    /// Panels, [`TOGETHER`] at a time.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let all = self.n.div_ceil(COLUMNS);
        (0..all).step_by(TOGETHER).map(move |first| first..all.min(first + TOGETHER))
    }

    /// `C ← A·Bᵀ`, or added to C, for the columns of some panels: `c` begins at the first of them, and has rows `stride` long.
    fn times(&self, rows: &Rows<'_>, panels: Range<usize>, onto: Onto, (c, stride): (&mut [f32], usize)) {
        let engine = Engine::new(self.unit);
        let mut rest = self.lines.as_slice();
        for (block, words) in blocks(self.k).zip(rows.words.chunks_exact(rows.block)) {
            let length = 2 * pairs(block.len());
            let (here, behind) = rest.split_at(length * self.n.div_ceil(COLUMNS));
            rest = behind;
            let onto = if block.start == 0 { onto } else { Onto::Add };
            for high in engine.strips(rows.count) {
                for (depth, onto) in engine.depths(length / 2, onto) {
                    for panel in panels.clone() {
                        let column = panel * COLUMNS;
                        let keep = Keep { width: COLUMNS.min(self.n - column), below: COLUMNS };
                        let c = (&mut c[high.start * stride + column - panels.start * COLUMNS..], stride);
                        let (a, b) = (&words[high.start * STRIDE + depth.start..], &here[panel * length..]);
                        engine.panel(high.len(), a, &b[2 * depth.start..2 * depth.end], c, keep, onto);
                    }
                }
            }
        }
    }
}

/// Rows of A as pairs: for each block of `k`, so many words, [`STRIDE`] of them a row.
struct Rows<'a> {
    count: usize,
    block: usize,
    words: &'a [u32],
}

/// Rounds the rows of `a`, each `k` long, for `f`, which must not ask for words.
fn with_rows(unit: Bf16Unit, a: &[f32], k: usize, f: impl FnOnce(&Rows<'_>)) {
    let count = a.len() / k;
    let block = count.next_multiple_of(HIGH) * STRIDE;
    with_words(blocks(k).count() * block, |words| {
        for (range, words) in blocks(k).zip(words.chunks_exact_mut(block)) {
            for (a, words) in a.chunks_exact(k).zip(words.chunks_exact_mut(STRIDE)) {
                round(unit, &a[range.clone()], words);
            }
        }
        f(&Rows { count, block, words });
    });
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
