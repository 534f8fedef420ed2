//! Codes of a quantized matrix, and the verbs between codes and values.

use std::ops::Range;

use rayon::prelude::*;

use super::vectorize::{Kernel, vectorize};
use crate::error::{Error, Result};
use crate::scheme::{Coder, Grid, QParams, WithCoder};

/// Codes of a row-major matrix: `code − lo`, one byte each for formats of up to eight bits, else two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The grid's smallest code.
    pub lo: i32,
    /// `code − lo`, row-major.
    pub data: Units,
}

/// Codes of one width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Units {
    /// Up to eight bits.
    Narrow(Vec<u8>),
    /// Up to sixteen.
    Wide(Vec<u16>),
}

/// Codes that one thread looks through at a time.
const PIECE: usize = 1 << 20;

/// The values of the nearest codes of a matrix, row-major.
pub fn nearest_values(grid: &Grid, params: &QParams, weight: &[f32]) -> Vec<f32> {
    let (mut out, cols) = (weight.to_vec(), params.layout.cols);
    out.par_chunks_mut(ROWS_PER_TASK * cols).enumerate().for_each(|(task, out)| {
        for (r, out) in out.chunks_mut(cols).enumerate() {
            for_each_tile(params, task * ROWS_PER_TASK + r, |tile, cols| {
                round_values(grid, (params.scale[tile], params.zero[tile]), &mut out[cols])
            });
        }
    });
    out
}

/// Makes numbers that share a scale and a zero point the values of their nearest codes.
pub fn round_values(grid: &Grid, (s, z): (f32, f32), x: &mut [f32]) {
    vectorize(OverGrid(grid, RoundTile { x, s, z }));
}

/// What a code is stored in while it is worked on.
pub trait Unit: Copy + Default + Send + Sync + 'static {
    /// The low bits of `code`.
    fn of(code: i32) -> Self;
    /// The code again.
    fn code(self) -> i32;
}

impl Unit for u8 {
    #[inline(always)]
    fn of(code: i32) -> Self {
        code as Self
    }
    #[inline(always)]
    fn code(self) -> i32 {
        i32::from(self)
    }
}

impl Unit for u16 {
    #[inline(always)]
    fn of(code: i32) -> Self {
        code as Self
    }
    #[inline(always)]
    fn code(self) -> i32 {
        i32::from(self)
    }
}

/// Evaluates `$body` with `$units` bound to the vector, whatever its width.
macro_rules! with_units {
    ($data:expr, $units:ident => $body:expr) => {
        match $data {
            $crate::numeric::Units::Narrow($units) => $body,
            $crate::numeric::Units::Wide($units) => $body,
        }
    };
}
pub(crate) use with_units;

impl Codes {
    /// Puts the codes of further rows behind these.
    ///
    /// # Errors
    /// If they are of another grid.
    pub fn extend(&mut self, more: &Self) -> Result<()> {
        match (&mut self.data, &more.data) {
            (Units::Narrow(all), Units::Narrow(more)) => all.extend_from_slice(more),
            (Units::Wide(all), Units::Wide(more)) => all.extend_from_slice(more),
            _ => return Err(Error::internal("codes of two widths")),
        }
        Ok(())
    }

    /// Zeroed codes of a `rows × cols` matrix.
    pub fn new(grid: &Grid, len: usize) -> Self {
        let (lo, hi) = grid.limits();
        let data = if hi - lo < 256 { Units::Narrow(vec![0; len]) } else { Units::Wide(vec![0; len]) };
        Self { lo, data }
    }

    /// Whether every one of them stands for a value of `grid`.
    pub fn stand_for(&self, grid: &Grid) -> bool {
        let (lo, hi) = grid.limits();
        let holds = |unit: i32| grid.holds(lo + unit);
        // In the codes' own width, which vectorizes; in pieces that are worth a thread.
        let largest =
            with_units!(&self.data, d => d.par_chunks(PIECE).map(|p| p.iter().fold(0, |m, c| (*c).max(m))).max().unwrap_or(0).code());
        // Only floats have codes within their limits that stand for nothing.
        let gaps = matches!(grid, Grid::Float(_)) && (0..=hi - lo).any(|unit| !holds(unit));
        self.lo == lo && largest <= hi - lo && !(gaps && with_units!(&self.data, d => d.iter().any(|c| !holds(c.code()))))
    }

    /// How many.
    pub fn len(&self) -> usize {
        with_units!(&self.data, d => d.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The codes themselves, row-major.
    pub fn iter(&self) -> impl Iterator<Item = i32> + '_ {
        (0..self.len()).map(|i| self.lo + with_units!(&self.data, d => d[i].code()))
    }

    /// `code − lo`, if the format has at most eight bits.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.data {
            Units::Narrow(d) => Some(d),
            Units::Wide(_) => None,
        }
    }
}

/// Rows handled by one task: fixed, so that the work of a task never depends on the number of threads.
pub(crate) const ROWS_PER_TASK: usize = 32;

/// Rounds every element to the nearest code of its tile.
///
/// `weight` is row-major `[rows, cols]` of `params.layout`.
pub fn encode(grid: &Grid, params: &QParams, weight: &[f32]) -> Codes {
    let mut codes = Codes::new(grid, weight.len());
    let lo = codes.lo;
    with_units!(&mut codes.data, data => encode_into(grid, params, weight, data, lo));
    codes
}

/// [`encode`] to where codes, less the grid's smallest, are wanted: bytes for formats of up to eight bits.
pub fn encode_narrow(grid: &Grid, params: &QParams, weight: &[f32], codes: &mut [u8]) {
    encode_into(grid, params, weight, codes, grid.limits().0);
}

/// The same in sixteen bits.
pub fn encode_wide(grid: &Grid, params: &QParams, weight: &[f32], codes: &mut [u16]) {
    encode_into(grid, params, weight, codes, grid.limits().0);
}

fn encode_into<U: Unit>(grid: &Grid, params: &QParams, weight: &[f32], codes: &mut [U], lo: i32) {
    let cols = params.layout.cols;
    let chunk = ROWS_PER_TASK * cols;
    codes.par_chunks_mut(chunk).zip(weight.par_chunks(chunk)).enumerate().for_each(|(task, (codes, weight))| {
        for (r, (codes, weight)) in codes.chunks_mut(cols).zip(weight.chunks(cols)).enumerate() {
            for_each_tile(params, task * ROWS_PER_TASK + r, |tile, cols| {
                let (s, z) = (params.scale[tile], params.zero[tile]);
                vectorize(OverGrid(grid, EncodeTile { codes: &mut codes[cols.clone()], weight: &weight[cols], s, z, lo }));
            });
        }
    });
}

/// A loop over the numbers of a grid.
struct OverGrid<'a, V>(&'a Grid, V);

impl<V: WithCoder> Kernel for OverGrid<'_, V> {
    type Output = V::Output;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> V::Output {
        self.0.with(self.1)
    }
}

struct RoundTile<'a> {
    x: &'a mut [f32],
    s: f32,
    z: f32,
}

impl WithCoder for RoundTile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) {
        for x in self.x {
            *x = coder.nearest(*x, self.s, self.z);
        }
    }
}

struct EncodeTile<'a, U> {
    codes: &'a mut [U],
    weight: &'a [f32],
    s: f32,
    z: f32,
    lo: i32,
}

impl<U: Unit> WithCoder for EncodeTile<'_, U> {
    type Output = ();
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) {
        for (c, w) in self.codes.iter_mut().zip(self.weight) {
            *c = U::of(coder.encode(*w, self.s, self.z) - self.lo);
        }
    }
}

/// The values of rows `rows`, row-major. `group_index` maps columns to tile columns where groups do not run in storage order.
pub fn decode(grid: &Grid, params: &QParams, codes: &Codes, rows: Range<usize>, group_index: Option<&[u32]>, out: &mut Vec<f32>) {
    out.clear();
    out.resize(rows.len() * params.layout.cols, 0.0);
    with_units!(&codes.data, data => decode_into(grid, params, data, codes.lo, rows.start, group_index, out));
}

fn decode_into<U: Unit>(grid: &Grid, params: &QParams, codes: &[U], lo: i32, first: usize, group_index: Option<&[u32]>, out: &mut [f32]) {
    let layout = params.layout;
    let tiles_per_row = layout.grid().1;
    out.par_chunks_mut(ROWS_PER_TASK * layout.cols).enumerate().for_each(|(task, out)| {
        for (r, out) in out.chunks_mut(layout.cols).enumerate() {
            let row = first + task * ROWS_PER_TASK + r;
            let codes = &codes[row * layout.cols..(row + 1) * layout.cols];
            if let Some(index) = group_index {
                let base = row / layout.tile_rows * tiles_per_row;
                for ((v, c), g) in out.iter_mut().zip(codes).zip(index) {
                    let tile = base + *g as usize;
                    *v = grid.decode(c.code() + lo, params.scale[tile], params.zero[tile]);
                }
            } else {
                for_each_tile(params, row, |tile, cols| {
                    let (s, z) = (params.scale[tile], params.zero[tile]);
                    vectorize(OverGrid(grid, DecodeTile { codes: &codes[cols.clone()], out: &mut out[cols], s, z, lo }));
                });
            }
        }
    });
}

struct DecodeTile<'a, U> {
    codes: &'a [U],
    out: &'a mut [f32],
    s: f32,
    z: f32,
    lo: i32,
}

impl<U: Unit> WithCoder for DecodeTile<'_, U> {
    type Output = ();
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) {
        for (v, c) in self.out.iter_mut().zip(self.codes) {
            *v = coder.decode(c.code() + self.lo, self.s, self.z);
        }
    }
}

fn for_each_tile(params: &QParams, row: usize, mut f: impl FnMut(usize, Range<usize>)) {
    let layout = params.layout;
    let base = layout.tile(row, 0);
    for (i, start) in (0..layout.cols).step_by(layout.tile_cols).enumerate() {
        f(base + i, start..layout.cols.min(start + layout.tile_cols));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::{TileLayout, Zero};

    #[test]
    fn the_nearest_values_are_those_of_the_nearest_codes() {
        let (rows, cols) = (37, 70);
        let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let layout = TileLayout { rows, cols, tile_rows: 1, tile_cols: 32 };
        let int = |lo, hi, zero| Grid::Int { lo, hi, zero };
        for (grid, zero) in [(int(-8, 7, Zero::None), 0.0), (int(0, 15, Zero::Integer), 5.0), (int(0, 15, Zero::Float), 5.3)] {
            let scale = (0..layout.tiles()).map(|t| 0.2 + t as f32 * 0.01).collect();
            let params = QParams { layout, scale, zero: vec![zero; layout.tiles()], global: None };
            let mut decoded = Vec::new();
            decode(&grid, &params, &encode(&grid, &params, &weight), 0..rows, None, &mut decoded);
            assert_eq!(nearest_values(&grid, &params, &weight), decoded, "{grid:?}");
        }
    }
}
