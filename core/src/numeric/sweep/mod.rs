//! Rounding column by column with error feedback: the loop GPTQ and its relatives share.
//!
//! For columns `j` in order, with `U` of [`super::inverse_factor`]:
//!
//! ```text
//! q_j = Quant(w_j);  e = (w_j − dequant q_j) / U_jj;  w_k ← w_k − e·U_jk  for k > j
//! ```
//!
//! Greedy path following ([`super::greedy_path`]) is the same loop from another start, with the error taken against the original weight
//! and a fixed matrix in place of `U`. Either can be held to the room of an accumulator ([`super::accumulator`]).
//!
//! Rows are independent. A few are held side by side, which is the axis that vectorizes; a task takes several such bundles. Columns go in
//! blocks: inside a block the update is applied at once ([`block`]), behind the block as one matrix product for all rows of the task, so
//! that `U`, which is larger than any cache, is read once per task.

mod block;

use rayon::prelude::*;

use block::{BlockOfRows, Bundle, Column, ROWS, Room};

use super::accumulator::{AccumulatorLimit, Limiter};
use super::codes::{Codes, Unit, with_units};
use super::gemm::{Onto, Transpose, gemm};
use super::greedy_path::GreedyPath;
use super::inverse_factor::InverseFactor;
use super::vectorize::vectorize;
use crate::observer::{Observer, ScaleRule};
use crate::scheme::{Grid, QParams};

/// Where the quantization parameters of a column come from.
#[derive(Clone, Copy)]
pub enum SweepParams<'a> {
    /// Fixed before the sweep; tiles by natural column index, whatever the order.
    Fixed(&'a QParams),
    /// Fitted when the sweep reaches the first column of a group, on the columns as updated so far; groups are runs of the order.
    /// `params` gives the layout and receives the fits.
    Refit {
        /// The layout: tiles of one row.
        params: &'a QParams,
        /// Chooses the range.
        observer: &'a dyn Observer,
        /// Turns it into parameters.
        rule: &'a ScaleRule,
    },
}

impl<'a> SweepParams<'a> {
    fn params(self) -> &'a QParams {
        match self {
            Self::Fixed(p) | Self::Refit { params: p, .. } => p,
        }
    }
}

/// What a sweep returns.
pub struct Swept {
    /// Codes, natural column order.
    pub codes: Codes,
    /// Parameters used. With [`SweepParams::Refit`] tile columns count groups of the order.
    pub params: QParams,
    /// `½ Σ e²` of the errors fed back; with [`Feedback::Inverse`] the increase of the objective.
    pub loss: f64,
}

/// How the error of a column moves those behind it.
#[derive(Clone, Copy)]
pub enum Feedback<'a> {
    /// `e_j = (w_j − q_j)/U_jj`, `w_k ← w_k − e_j·U_jk`.
    Inverse(&'a InverseFactor),
    /// `e_j = o_j − q_j` with the original weight `o`, `w_k ← w_k + e_j·F_jk`.
    Path {
        /// Where the sweep starts, and `F`.
        path: &'a GreedyPath,
        /// The original weight, row-major `[rows, cols]`.
        original: &'a [f32],
    },
}

impl<'a> Feedback<'a> {
    fn matrix(self) -> &'a [f32] {
        match self {
            Self::Inverse(f) => &f.u,
            Self::Path { path, .. } => &path.forward,
        }
    }

    fn order(self) -> Option<&'a [u32]> {
        match self {
            Self::Inverse(f) => f.order.as_deref(),
            Self::Path { path, .. } => path.order.as_deref(),
        }
    }

    fn dead(self) -> &'a [u32] {
        match self {
            Self::Inverse(f) => &f.dead,
            Self::Path { path, .. } => &path.dead,
        }
    }
}

/// A sweep of the columns of a weight.
#[derive(Clone, Copy)]
pub struct ColumnSweep<'a> {
    /// The codes there are.
    pub grid: &'a Grid,
    /// Scales and zero points.
    pub params: SweepParams<'a>,
    /// What becomes of errors.
    pub feedback: Feedback<'a>,
    /// The room that sums of codes have; wants symmetric integers, parameters fixed before, and one scale in each of its tiles.
    pub limit: Option<&'a AccumulatorLimit>,
    /// Columns updated at once; changes speed, not the result beyond rounding.
    pub block: usize,
}

impl ColumnSweep<'_> {
    /// Sweeps a row-major `[rows, cols]` weight.
    pub fn run(&self, weight: &[f32]) -> Swept {
        let mut codes = Codes::new(self.grid, weight.len());
        let lo = codes.lo;
        with_units!(&mut codes.data, data => {
            let (params, loss) = sweep_into(self, weight, data, lo);
            Swept { codes, params, loss }
        })
    }
}

struct Task<'a> {
    cols: usize,
    block: usize,
    grid: &'a Grid,
    feedback: Feedback<'a>,
    source: SweepParams<'a>,
    limit: Option<&'a AccumulatorLimit>,
    /// The grid's smallest code.
    lo: i32,
}

fn sweep_into<U: Unit>(sweep: &ColumnSweep<'_>, weight: &[f32], codes: &mut [U], lo: i32) -> (QParams, f64) {
    let ColumnSweep { grid, params: source, feedback, limit, block } = *sweep;
    let params = source.params();
    let layout = params.layout;
    let (cols, tiles_per_row) = (layout.cols, layout.grid().1);
    let mut fitted = params.clone();
    let task = Task { cols, block: block.max(1), grid, feedback, source, limit, lo };
    let rows_per_task = rows_per_task(layout.rows);
    let tasks = layout.rows.div_ceil(rows_per_task);
    let mut losses = vec![0.0; tasks];
    let chunk = rows_per_task * cols;
    // A refit writes one row of tiles per row; with tiles of several rows there is nothing to write, and the chunks go unused.
    let refit = matches!(source, SweepParams::Refit { .. });
    let tile_chunk = if refit { rows_per_task * tiles_per_row } else { fitted.scale.len().div_ceil(tasks).max(1) };
    codes
        .par_chunks_mut(chunk)
        .zip(weight.par_chunks(chunk))
        .zip(fitted.scale.par_chunks_mut(tile_chunk).zip(fitted.zero.par_chunks_mut(tile_chunk)).chain(empty_chunks(tasks)))
        .zip(losses.par_iter_mut())
        .enumerate()
        .for_each_init(Vec::new, |scratch, (t, (((codes, weight), (scale, zero)), loss))| {
            *loss = task.run(t * rows_per_task, weight, codes, (scale, zero), scratch);
        });
    (fitted, losses.iter().sum::<f64>() / 2.0)
}

/// Rows of a task: bundles enough to read `U` seldom, and tasks enough for many threads. Depends on the shape alone.
fn rows_per_task(rows: usize) -> usize {
    const BUNDLES: usize = 4;
    (rows / 8 / ROWS).clamp(1, BUNDLES) * ROWS
}

/// Padding for the zip above where there are fewer chunks of tiles than tasks.
fn empty_chunks<'a>(n: usize) -> impl IndexedParallelIterator<Item = (&'a mut [f32], &'a mut [f32])> {
    (0..n).into_par_iter().map(|_| (&mut [][..], &mut [][..]))
}

impl Task<'_> {
    /// Sweeps the rows of one task and returns Σ e². `w` is room for the weight as it is updated; tasks after one another share it, since
    /// fresh pages cost more than what is done to them.
    fn run<U: Unit>(
        &self,
        first_row: usize,
        weight: &[f32],
        codes: &mut [U],
        (scale, zero): (&mut [f32], &mut [f32]),
        w: &mut Vec<f32>,
    ) -> f64 {
        let (n, rows) = (self.cols, weight.len() / self.cols);
        w.clear();
        w.extend_from_slice(weight);
        for row in w.chunks_exact_mut(n) {
            for d in self.feedback.dead() {
                row[*d as usize] = 0.0;
            }
        }
        self.reorder(w);
        let mut targets = Vec::new();
        if let Feedback::Path { path, original } = self.feedback {
            targets.extend_from_slice(&original[first_row * n..][..weight.len()]);
            self.reorder(&mut targets);
            path.start(w, &targets);
        }
        let mut bundles = self.bundles(first_row, weight, codes, scale, zero);
        let widest = self.block.min(n);
        let mut room = Room::new(widest);
        // Of all bundles: `[columns of the block, rows]`.
        let mut fed_back = vec![0.0; widest * rows];
        let mut start = 0;
        while start < n {
            let end = self.block_end(start);
            let width = end - start;
            for (i, bundle) in bundles.iter_mut().enumerate() {
                let first = i * ROWS;
                let range = first * n..rows.min(first + ROWS) * n;
                let (w, targets) = (&w[range.clone()], targets.get(range.clone()).unwrap_or_default());
                bundle.loss += vectorize(BlockOfRows { task: self, columns: start..end, w, targets, room: &mut room, bundle });
                let held = range.len() / n;
                for (all, column) in fed_back.chunks_exact_mut(rows).zip(&room.errors[..width]) {
                    all[first..first + held].copy_from_slice(&column[..held]);
                }
            }
            if end < n {
                // W_{:, end..} ← W_{:, end..} − E·U_{start..end, end..}; the product is formed on what is fed back.
                let u = &self.feedback.matrix()[start * n + end..];
                gemm((rows, n - end, width), Onto::Add, &mut w[end..], n, &fed_back, Transpose::Yes, rows, u, Transpose::No, n);
            }
            start = end;
        }
        bundles.iter().map(|b| b.loss).sum()
    }

    /// What each bundle of the task's rows writes.
    fn bundles<'b, U>(
        &self,
        first_row: usize,
        weight: &[f32],
        codes: &'b mut [U],
        scale: &'b mut [f32],
        zero: &'b mut [f32],
    ) -> Vec<Bundle<'b, U>> {
        let chunk = ROWS * self.cols;
        let layout = self.source.params().layout;
        let refit = matches!(self.source, SweepParams::Refit { .. });
        // Where nothing is refitted nothing is written, and one bundle may hold it all.
        let tiles = if refit { ROWS * layout.grid().1 } else { scale.len().max(1) };
        let mut tiles = scale.chunks_mut(tiles).zip(zero.chunks_mut(tiles));
        let bundle = |(i, (codes, weight)): (usize, (&'b mut [U], &[f32]))| {
            let limiter = self.limit.map(|limit| {
                let QParams { layout, scale, .. } = self.source.params();
                let first = first_row + i * ROWS;
                Limiter::new(*limit, weight, self.cols, |r, column| scale[layout.tile(first + r, column)])
            });
            let (scale, zero) = tiles.next().unwrap_or_default();
            let tiles = self.side_by_side(first_row + i * ROWS, weight.len() / self.cols);
            Bundle { codes, scale, zero, tiles, limiter, loss: 0.0 }
        };
        codes.chunks_mut(chunk).zip(weight.chunks(chunk)).enumerate().map(bundle).collect()
    }

    /// Scales and zero points of some rows, tile of columns after tile of columns; of a refit, room for them.
    fn side_by_side(&self, first_row: usize, rows: usize) -> Vec<(Column, Column)> {
        let QParams { layout, scale, zero, .. } = self.source.params();
        let mut tiles = vec![([1.0; ROWS], [0.0; ROWS]); layout.grid().1];
        if matches!(self.source, SweepParams::Fixed(_)) {
            for r in 0..rows {
                let row = layout.tile(first_row + r, 0);
                for (tile, (scale, zero)) in tiles.iter_mut().zip(scale[row..].iter().zip(&zero[row..])) {
                    (tile.0[r], tile.1[r]) = (*scale, *zero);
                }
            }
        }
        tiles
    }

    /// Where the block that starts at `start` ends. A refit reads its whole group, so no group may straddle a block.
    fn block_end(&self, start: usize) -> usize {
        let width = match self.source {
            SweepParams::Fixed(_) => self.block,
            SweepParams::Refit { params, .. } => {
                let g = params.layout.tile_cols;
                if g <= self.block { self.block / g * g } else { self.block.min(g - start % g) }
            }
        };
        self.cols.min(start + width)
    }

    /// Puts the columns of some rows in the order of the sweep.
    fn reorder(&self, w: &mut [f32]) {
        let Some(order) = self.feedback.order() else { return };
        let mut scratch = vec![0.0; self.cols];
        for row in w.chunks_exact_mut(self.cols) {
            for (s, o) in scratch.iter_mut().zip(order) {
                *s = row[*o as usize];
            }
            row.copy_from_slice(&scratch);
        }
    }
}
