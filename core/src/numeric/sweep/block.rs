//! A block of columns, of rows side by side: the loop over single columns.
//!
//! ```text
//! for each run of 4 columns
//!   for each of its columns         rounded; its error reaches the rest of the run
//!   the run's errors                reach the rest of the block, each of whose columns is loaded and stored once for all four
//! ```
//!
//! An element receives the errors in the order of their columns either way.

use std::ops::Range;

use pulp::Simd;

use super::{Feedback, SweepParams, Task};
use crate::numeric::accumulator::Limiter;
use crate::numeric::codes::{ROWS_PER_TASK, Unit};
use crate::numeric::vectorize::Kernel;
use crate::scheme::{Coder, WithCoder};

/// Rows held side by side.
pub(super) const ROWS: usize = ROWS_PER_TASK;

/// One value of each row of a bundle, side by side. Rows do not wait for each other, so this is the axis that vectorizes; rows that a
/// short bundle lacks hold zeros.
pub(super) type Column = [f32; ROWS];

/// Columns whose errors reach the rest of their block together.
const RUN: usize = 4;

/// What a bundle of rows writes, block after block.
pub(super) struct Bundle<'a, U> {
    /// Row-major, natural order.
    pub(super) codes: &'a mut [U],
    /// Scales of a refit, one row of tiles for each row; else unused.
    pub(super) scale: &'a mut [f32],
    /// The zero points that go with them.
    pub(super) zero: &'a mut [f32],
    /// Scale and zero point of each tile of columns, for all rows; of a refit those that are fitted so far.
    pub(super) tiles: Vec<(Column, Column)>,
    pub(super) limiter: Option<Limiter>,
    /// Σ e² so far.
    pub(super) loss: f64,
}

/// Room for the columns of a block.
pub(super) struct Room {
    /// The weight, as updated.
    columns: Vec<Column>,
    /// What is fed back of each column: `−e_j`, or `e_j` along a path.
    pub(super) errors: Vec<Column>,
    codes: Vec<[i32; ROWS]>,
}

impl Room {
    pub(super) fn new(columns: usize) -> Self {
        let zeros = vec![[0.0; ROWS]; columns];
        Self { columns: zeros.clone(), errors: zeros, codes: vec![[0; ROWS]; columns] }
    }
}

/// One block of columns of all rows of a bundle; returns Σ e².
pub(super) struct BlockOfRows<'a, 'b, U> {
    pub(super) task: &'a Task<'a>,
    /// Places in the order.
    pub(super) columns: Range<usize>,
    /// All columns of the rows, row-major, in the order of the sweep.
    pub(super) w: &'a [f32],
    /// The same of what errors are taken against, where that is not the weight as updated.
    pub(super) targets: &'a [f32],
    pub(super) room: &'a mut Room,
    pub(super) bundle: &'a mut Bundle<'b, U>,
}

impl<U: Unit> Kernel for BlockOfRows<'_, '_, U> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        self.task.grid.with(Steps { rows: self, simd })
    }
}

/// The steps of a block, for a grid and an instruction set.
struct Steps<'a, 'b, U, S> {
    rows: BlockOfRows<'a, 'b, U>,
    simd: S,
}

impl<U: Unit, S: Simd> WithCoder for Steps<'_, '_, U, S> {
    type Output = f64;
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) -> f64 {
        let (BlockOfRows { task, columns, w, targets, room, bundle }, simd) = (self.rows, self.simd);
        let (n, rows, width) = (task.cols, w.len() / task.cols, columns.len());
        let (block, errors, codes) = (&mut room.columns[..width], &mut room.errors[..width], &mut room.codes[..width]);
        block.fill([0.0; ROWS]);
        for (r, w) in w.chunks_exact(n).enumerate() {
            for (column, w) in block.iter_mut().zip(&w[columns.clone()]) {
                column[r] = *w;
            }
        }
        let (matrix, order) = (task.feedback.matrix(), task.feedback.order());
        let mut losses = [0.0; ROWS];
        let mut start = 0;
        while start < width {
            let end = width.min(task.run_end(columns.start + start) - columns.start);
            for i in start..end {
                let j = columns.start + i;
                let natural = order.map_or(j, |o| o[j] as usize);
                let tile = task.tile((i, j), natural, (w, block), (bundle.scale, bundle.zero), &mut bundle.tiles);
                let (scale, zero) = &bundle.tiles[tile];
                let u = &matrix[j * n + j..j * n + columns.start + end];
                let (now, later) = block[i..end].split_at_mut(1);
                // Bounds that the compiler does not know: else it unrolls these loops and vectorizes across columns, by gathering.
                let (now, codes, errors) = (&mut now[0][..rows], &mut codes[i][..rows], &mut errors[i]);
                if let Some(limiter) = &mut bundle.limiter {
                    let tile = natural / limiter.limit.tile;
                    let (thresholds, sums) = (&limiter.thresholds[tile], &mut limiter.sums[tile]);
                    for (r, (code, w)) in codes.iter_mut().zip(now.iter()).enumerate() {
                        let shrunk = w.signum() * (w.abs() - thresholds[r]).max(0.0);
                        *code = sums[r].fit(coder.encode(shrunk, scale[r], zero[r]), &limiter.limit);
                    }
                } else {
                    for (code, ((w, s), z)) in codes.iter_mut().zip(now.iter().zip(scale).zip(zero)) {
                        *code = coder.encode(*w, *s, *z);
                    }
                }
                let divisor = match task.feedback {
                    Feedback::Inverse(_) => u[0],
                    Feedback::Path { .. } => {
                        for (now, row) in now.iter_mut().zip(targets.chunks_exact(n)) {
                            *now = row[j];
                        }
                        -1.0
                    }
                };
                for ((error, loss), (((w, code), s), z)) in
                    errors[..rows].iter_mut().zip(&mut losses[..rows]).zip(now.iter().zip(&*codes).zip(scale).zip(zero))
                {
                    let e = (w - coder.decode(*code, *s, *z)) / divisor;
                    *error = -e;
                    *loss += f64::from(e) * f64::from(e);
                }
                for (column, u) in later.iter_mut().zip(&u[1..]) {
                    feed_back(simd, column, std::array::from_ref(errors), [*u]);
                }
            }
            let (fed, rest) = (&errors[start..end], &mut block[end..]);
            let u = |t: usize| &matrix[(columns.start + start + t) * n..][columns.start + end..columns.end];
            if let Ok(fed) = <&[Column; RUN]>::try_from(fed) {
                let [u0, u1, u2, u3] = [u(0), u(1), u(2), u(3)];
                for ((((column, u0), u1), u2), u3) in rest.iter_mut().zip(u0).zip(u1).zip(u2).zip(u3) {
                    feed_back(simd, column, fed, [*u0, *u1, *u2, *u3]);
                }
            } else {
                for (t, fed) in fed.iter().enumerate() {
                    for (column, u) in rest.iter_mut().zip(u(t)) {
                        feed_back(simd, column, std::array::from_ref(fed), [*u]);
                    }
                }
            }
            start = end;
        }
        // Row by row: rows may lie a power of two apart, and then share the places of a cache.
        for (r, row) in bundle.codes.chunks_exact_mut(n).enumerate() {
            match order {
                None => row[columns.clone()].iter_mut().zip(&*codes).for_each(|(to, codes)| *to = U::of(codes[r] - task.lo)),
                Some(order) => {
                    for (codes, natural) in codes.iter().zip(&order[columns.clone()]) {
                        row[*natural as usize] = U::of(codes[r] - task.lo);
                    }
                }
            }
        }
        losses[..rows].iter().sum()
    }
}

/// `w ← w + Σ_t u_t·e_t`, added in this order.
#[inline(always)]
fn feed_back<S: Simd, const N: usize>(simd: S, w: &mut Column, errors: &[Column; N], u: [f32; N]) {
    for (lane, w) in S::as_mut_simd_f32s(w).0.iter_mut().enumerate() {
        let mut sum = *w;
        for (e, u) in errors.iter().zip(u) {
            sum = simd.mul_add_f32s(simd.splat_f32s(u), S::as_simd_f32s(e).0[lane], sum);
        }
        *w = sum;
    }
}

impl Task<'_> {
    /// Which tile a column belongs to; a refit fits it where a group begins. `i` is the column's place in the block, `j` in the order.
    #[inline(always)]
    fn tile(
        &self,
        (i, j): (usize, usize),
        natural: usize,
        (w, block): (&[f32], &[Column]),
        (scale, zero): (&mut [f32], &mut [f32]),
        fitted: &mut [(Column, Column)],
    ) -> usize {
        match self.source {
            SweepParams::Fixed(p) => natural / p.layout.tile_cols,
            SweepParams::Refit { params, observer, rule } => {
                let (g, tiles) = (params.layout.tile_cols, params.layout.grid().1);
                if j.is_multiple_of(g) {
                    let end = self.cols.min(j + g);
                    for (r, w) in w.chunks_exact(self.cols).enumerate() {
                        // Behind the first column the block is ahead of the rows; a group that begins there lies in the block.
                        let values: Vec<f32> =
                            if i == 0 { w[j..end].to_vec() } else { block[i..i + end - j].iter().map(|column| column[r]).collect() };
                        let (s, z) = observer.fit(&values, rule);
                        (scale[r * tiles + j / g], zero[r * tiles + j / g]) = (s, z);
                        (fitted[j / g].0[r], fitted[j / g].1[r]) = (s, z);
                    }
                }
                j / g
            }
        }
    }

    /// Where the run of columns that starts at `start` ends. A refit reads its whole group as updated by all columns before it.
    fn run_end(&self, start: usize) -> usize {
        match self.source {
            SweepParams::Fixed(_) => start + RUN,
            SweepParams::Refit { params, .. } => (start + RUN).min((start / params.layout.tile_cols + 1) * params.layout.tile_cols),
        }
    }
}
