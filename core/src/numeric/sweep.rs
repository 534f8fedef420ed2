//! Rounding column by column with error feedback: the loop GPTQ and its relatives share.
//!
//! For columns `j` in order, with `U` of [`super::inverse_factor`]:
//!
//! ```text
//! q_j = Quant(w_j);  e = (w_j − dequant q_j) / U_jj;  w_k ← w_k − e·U_jk  for k > j
//! ```
//!
//! Rows are independent, so tasks take a fixed number of rows each. Columns go in blocks: inside a block the update is applied at
//! once, behind the block as one matrix product, which reads `U` once per row chunk instead of once per row.

use rayon::prelude::*;

use super::codes::{Codes, ROWS_PER_TASK};
use super::gemm::{Onto, Transpose, gemm};
use super::inverse_factor::InverseFactor;
use super::vectorize::{Kernel, vectorize};
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

/// What a sweep returns.
pub struct Swept {
    /// Codes, natural column order.
    pub codes: Codes,
    /// Parameters used. With [`SweepParams::Refit`] tile columns count groups of the order.
    pub params: QParams,
    /// `½ Σ e²`: the increase of the objective.
    pub loss: f64,
}

struct Task<'a> {
    cols: usize,
    block: usize,
    grid: &'a Grid,
    factor: &'a InverseFactor,
    source: SweepParams<'a>,
}

/// Sweeps a row-major `[rows, cols]` weight. `block` is the number of columns updated at once.
pub fn column_sweep(grid: &Grid, source: SweepParams<'_>, factor: &InverseFactor, weight: &[f32], block: usize) -> Swept {
    let params = match source {
        SweepParams::Fixed(p) | SweepParams::Refit { params: p, .. } => p,
    };
    let layout = params.layout;
    let (cols, tiles_per_row) = (layout.cols, layout.grid().1);
    let mut codes = Codes::new(grid, weight.len());
    let mut fitted = params.clone();
    let task = Task { cols, block: block.max(1), grid, factor, source };
    let (tasks, lo) = (layout.rows.div_ceil(ROWS_PER_TASK), codes.lo);
    let mut losses = vec![0.0; tasks];
    let chunk = ROWS_PER_TASK * cols;
    // A refit writes one row of tiles per row; with tiles of several rows there is nothing to write, and the chunks go unused.
    let refit = matches!(source, SweepParams::Refit { .. });
    let tile_chunk = if refit { ROWS_PER_TASK * tiles_per_row } else { fitted.scale.len().div_ceil(tasks).max(1) };
    codes
        .data
        .par_chunks_mut(chunk)
        .zip(weight.par_chunks(chunk))
        .zip(fitted.scale.par_chunks_mut(tile_chunk).zip(fitted.zero.par_chunks_mut(tile_chunk)).chain(empty_chunks(tasks)))
        .zip(losses.par_iter_mut())
        .enumerate()
        .for_each(|(t, (((codes, weight), (scale, zero)), loss))| {
            *loss = task.run(t * ROWS_PER_TASK, weight, codes, lo, scale, zero);
        });
    Swept { codes, params: fitted, loss: losses.iter().sum::<f64>() / 2.0 }
}

/// What the rows of a task write.
struct RowState<'a> {
    codes: &'a mut [u8],
    lo: i32,
    scale: &'a mut [f32],
    zero: &'a mut [i32],
}

/// One block of columns of all rows of a task; returns Σ e².
struct BlockOfRows<'a, 'b> {
    task: &'a Task<'a>,
    first_row: usize,
    columns: std::ops::Range<usize>,
    w: &'a mut [f32],
    errors: &'a mut [f32],
    state: &'a mut RowState<'b>,
}

impl Kernel for BlockOfRows<'_, '_> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let (n, width) = (self.task.cols, self.columns.len());
        let mut loss = 0.0;
        for (r, w) in self.w.chunks_exact_mut(n).enumerate() {
            let e = &mut self.errors[r * width..(r + 1) * width];
            loss += self.task.block_of_row(self.first_row + r, r, self.columns.clone(), w, e, self.state);
        }
        loss
    }
}

/// Padding for [`column_sweep`]'s zip where there are fewer chunks of tiles than tasks.
fn empty_chunks<'a>(n: usize) -> impl IndexedParallelIterator<Item = (&'a mut [f32], &'a mut [i32])> {
    (0..n).into_par_iter().map(|_| (&mut [][..], &mut [][..]))
}

impl Task<'_> {
    /// Sweeps the rows of one task and returns Σ e².
    fn run(&self, first_row: usize, weight: &[f32], codes: &mut [u8], lo: i32, scale: &mut [f32], zero: &mut [i32]) -> f64 {
        let (n, rows) = (self.cols, weight.len() / self.cols);
        let mut w = self.ordered(weight);
        let mut errors = vec![0.0; rows * self.block];
        let mut loss = 0.0;
        let mut start = 0;
        while start < n {
            let end = self.block_end(start);
            let width = end - start;
            let mut state = RowState { codes, lo, scale, zero };
            loss +=
                vectorize(BlockOfRows { task: self, first_row, columns: start..end, w: &mut w, errors: &mut errors, state: &mut state });
            if end < n {
                // W_{:, end..} ← W_{:, end..} − E·U_{start..end, end..}; the product is formed on −E.
                let u = &self.factor.u[start * n + end..];
                gemm((rows, n - end, width), Onto::Add, &mut w[end..], n, &errors, Transpose::No, width, u, Transpose::No, n);
            }
            start = end;
        }
        loss
    }

    /// Columns of one row in one block. `e` receives `−e_j`.
    #[inline(always)]
    fn block_of_row(
        &self,
        row: usize,
        local: usize,
        columns: std::ops::Range<usize>,
        w: &mut [f32],
        e: &mut [f32],
        state: &mut RowState<'_>,
    ) -> f64 {
        let (n, start, end) = (self.cols, columns.start, columns.end);
        let codes = &mut state.codes[local * n..(local + 1) * n];
        let mut loss = 0.0;
        for j in columns {
            let column = self.factor.order.as_ref().map_or(j, |o| o[j] as usize);
            let (s, z) = match self.source {
                SweepParams::Fixed(p) => {
                    let tile = p.layout.tile(row, column);
                    (p.scale[tile], p.zero[tile])
                }
                SweepParams::Refit { params, observer, rule } => {
                    let (g, tiles) = (params.layout.tile_cols, params.layout.grid().1);
                    let tile = local * tiles + j / g;
                    if j % g == 0 {
                        (state.scale[tile], state.zero[tile]) = observer.fit(&w[j..n.min(j + g)], rule);
                    }
                    (state.scale[tile], state.zero[tile])
                }
            };
            let u = &self.factor.u[j * n + j..j * n + end];
            let code = self.grid.encode(w[j], s, z);
            codes[column] = (code - state.lo) as u8;
            let error = (w[j] - self.grid.decode(code, s, z)) / u[0];
            loss += f64::from(error) * f64::from(error);
            e[j - start] = -error;
            for (w, u) in w[j + 1..end].iter_mut().zip(&u[1..]) {
                *w = u.mul_add(-error, *w);
            }
        }
        loss
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

    /// The rows with columns in the factor's order, dead columns zeroed.
    fn ordered(&self, weight: &[f32]) -> Vec<f32> {
        let mut w = weight.to_vec();
        for row in w.chunks_exact_mut(self.cols) {
            for d in &self.factor.dead {
                row[*d as usize] = 0.0;
            }
        }
        if let Some(order) = &self.factor.order {
            let mut scratch = vec![0.0; self.cols];
            for row in w.chunks_exact_mut(self.cols) {
                for (s, o) in scratch.iter_mut().zip(order) {
                    *s = row[*o as usize];
                }
                row.copy_from_slice(&scratch);
            }
        }
        w
    }
}
