//! Codes of a quantized matrix, and the verbs between codes and values.

use std::ops::Range;

use rayon::prelude::*;

use crate::scheme::{Grid, QParams};

/// Codes of a row-major matrix, one byte each: `code − lo`, so that every format of up to eight bits fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The grid's smallest code.
    pub lo: i32,
    /// `code − lo`, row-major.
    pub data: Vec<u8>,
}

impl Codes {
    /// Zeroed codes of a `rows × cols` matrix.
    pub fn new(grid: &Grid, len: usize) -> Self {
        Self { lo: grid.limits().0, data: vec![0; len] }
    }
}

/// Rows handled by one task: fixed, so that the work of a task never depends on the number of threads.
pub(crate) const ROWS_PER_TASK: usize = 32;

/// Rounds every element to the nearest code of its tile.
///
/// `weight` is row-major `[rows, cols]` of `params.layout`.
pub fn encode(grid: &Grid, params: &QParams, weight: &[f32]) -> Codes {
    let layout = params.layout;
    let mut codes = Codes::new(grid, weight.len());
    let lo = codes.lo;
    let chunk = ROWS_PER_TASK * layout.cols;
    codes.data.par_chunks_mut(chunk).zip(weight.par_chunks(chunk)).enumerate().for_each(|(task, (codes, weight))| {
        for (r, (codes, weight)) in codes.chunks_mut(layout.cols).zip(weight.chunks(layout.cols)).enumerate() {
            for_each_tile(params, task * ROWS_PER_TASK + r, |tile, cols| {
                let (s, z) = (params.scale[tile], params.zero[tile]);
                for (c, w) in codes[cols.clone()].iter_mut().zip(&weight[cols]) {
                    *c = (grid.encode(*w, s, z) - lo) as u8;
                }
            });
        }
    });
    codes
}

/// The values of rows `rows`, row-major. `group_index` maps columns to tile columns where groups do not run in storage order.
pub fn decode(grid: &Grid, params: &QParams, codes: &Codes, rows: Range<usize>, group_index: Option<&[u32]>, out: &mut Vec<f32>) {
    let layout = params.layout;
    out.clear();
    out.resize(rows.len() * layout.cols, 0.0);
    let tiles_per_row = layout.grid().1;
    let first = rows.start;
    out.par_chunks_mut(ROWS_PER_TASK * layout.cols).enumerate().for_each(|(task, out)| {
        for (r, out) in out.chunks_mut(layout.cols).enumerate() {
            let row = first + task * ROWS_PER_TASK + r;
            let codes_row = &codes.data[row * layout.cols..(row + 1) * layout.cols];
            if let Some(index) = group_index {
                let base = row / layout.tile_rows * tiles_per_row;
                for ((v, c), g) in out.iter_mut().zip(codes_row).zip(index) {
                    let tile = base + *g as usize;
                    *v = grid.decode(i32::from(*c) + codes.lo, params.scale[tile], params.zero[tile]);
                }
            } else {
                for_each_tile(params, row, |tile, cols| {
                    let (s, z) = (params.scale[tile], params.zero[tile]);
                    for (v, c) in out[cols.clone()].iter_mut().zip(&codes_row[cols]) {
                        *v = grid.decode(i32::from(*c) + codes.lo, s, z);
                    }
                });
            }
        }
    });
}

fn for_each_tile(params: &QParams, row: usize, mut f: impl FnMut(usize, Range<usize>)) {
    let layout = params.layout;
    let base = layout.tile(row, 0);
    for (i, start) in (0..layout.cols).step_by(layout.tile_cols).enumerate() {
        f(base + i, start..layout.cols.min(start + layout.tile_cols));
    }
}
