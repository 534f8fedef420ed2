//! A tensor as rows of numbers, whatever it is stored as.
//!
//! Codes become *steps* by a table, and steps become values by the arithmetic of their format, in f32:
//!
//! | arithmetic | value | where |
//! |---|---|---|
//! | scaled | `s·(n − z)` | integers with zero points, floats and tables (`z = 0`) |
//! | minimum | `s·n + m` | GGUF's blocks with a minimum |
//! | factor | `f·(s·n)` | GGUF's NVFP4, whose tensor has a factor beside it |
//!
//! The step of a code is `n − z`: what it says without its scale, which is the same in every container that holds the same codes.

use crate::bits;
use crate::error::{Error, Result};
use crate::store::{Store, Tensor};

/// How values follow from steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arithmetic {
    Scaled,
    /// `zero` holds the minima.
    Minimum,
    Factor(f32),
}

/// A quantized matrix `[rows, cols]`.
#[derive(Debug)]
pub(crate) struct Matrix {
    pub rows: usize,
    pub cols: usize,
    /// One for each element, row by row.
    pub codes: Vec<u16>,
    /// What each code counts.
    pub table: Vec<f32>,
    pub tiles: Tiles,
    /// One for each tile.
    pub scale: Vec<f32>,
    /// One for each tile: zero points, or minima.
    pub zero: Vec<f32>,
    pub arithmetic: Arithmetic,
}

/// Which tile each element is in; tiles are counted row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tiles {
    /// Rows of a tile.
    pub rows: usize,
    /// Tiles side by side.
    pub across: usize,
    /// For each column the tile of its row that it is in.
    pub column: Vec<u32>,
}

impl Tiles {
    /// Tiles of `height` rows and `width` columns on a `[rows, cols]` matrix, the last of each shorter if need be.
    pub(crate) fn new(cols: usize, height: usize, width: usize) -> Self {
        let width = width.clamp(1, cols.max(1));
        Self { rows: height.max(1), across: cols.div_ceil(width), column: (0..cols).map(|c| (c / width) as u32).collect() }
    }

    /// Tiles of one row by a group for each column.
    ///
    /// # Errors
    /// If a column names a group that is not there.
    pub(crate) fn indexed(name: &str, index: &[i32], groups: usize) -> Result<Self> {
        let column: Option<Vec<u32>> = index.iter().map(|g| u32::try_from(*g).ok().filter(|g| (*g as usize) < groups)).collect();
        let Some(column) = column else {
            let wrong = index.iter().find(|g| usize::try_from(**g).is_ok_and(|g| g >= groups) || **g < 0).copied().unwrap_or(0);
            return Err(Error::tensor(format!("`{name}` names group {wrong}, and there are {groups}")));
        };
        Ok(Self { rows: 1, across: groups, column })
    }

    /// How many there are on so many rows.
    pub(crate) fn count(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows) * self.across
    }
}

/// One row.
#[derive(Debug, Default)]
pub(crate) struct Row {
    pub values: Vec<f32>,
    /// What the codes say without their scales; empty where there are no codes, or nobody can tell.
    pub steps: Vec<f32>,
}

impl Matrix {
    /// Checks that all parts have the sizes that the shape asks for.
    ///
    /// # Errors
    /// Names the part of `module` that has not.
    pub(crate) fn checked(self, module: &str) -> Result<Self> {
        let tiles = self.tiles.count(self.rows);
        let parts = [
            ("codes", self.codes.len(), self.rows.checked_mul(self.cols)),
            ("scales", self.scale.len(), Some(tiles)),
            ("zero points", self.zero.len(), Some(tiles)),
            ("columns of tiles", self.tiles.column.len(), Some(self.cols)),
        ];
        match parts.into_iter().find(|(_, has, needs)| Some(*has) != *needs) {
            Some((what, has, needs)) => {
                let needs = needs.unwrap_or(usize::MAX);
                Err(Error::tensor(format!("`{module}` has {has} {what}, and {} x {} asks for {needs}", self.rows, self.cols)))
            }
            None => Ok(self),
        }
    }

    /// Row `r`.
    pub(crate) fn row(&self, r: usize, out: &mut Row) {
        let base = r / self.tiles.rows * self.tiles.across;
        let codes = &self.codes[r * self.cols..][..self.cols];
        let elements = || {
            codes.iter().zip(&self.tiles.column).map(|(code, tile)| {
                let tile = base + *tile as usize;
                (self.table.get(usize::from(*code)).copied().unwrap_or(f32::NAN), self.scale[tile], self.zero[tile])
            })
        };
        out.values.clear();
        out.steps.clear();
        match self.arithmetic {
            Arithmetic::Scaled => {
                out.steps.extend(elements().map(|(n, _, z)| n - z));
                out.values.extend(out.steps.iter().zip(elements()).map(|(step, (_, s, _))| s * step));
            }
            Arithmetic::Minimum => {
                out.values.extend(elements().map(|(n, s, m)| s * n + m));
                let steps = elements().map(|(n, s, m)| whole(-m / s).map(|z| n - z));
                if let Some(steps) = steps.collect::<Option<Vec<f32>>>() {
                    out.steps = steps;
                }
            }
            Arithmetic::Factor(f) => {
                out.steps.extend(elements().map(|(n, ..)| n));
                out.values.extend(elements().map(|(n, s, _)| f * (s * n)));
            }
        }
    }
}

/// The zero point that a minimum came from. A minimum is an f16: of one below 64 it is off by less than 1/32.
fn whole(z: f32) -> Option<f32> {
    let nearest = z.round_ties_even();
    ((z - nearest).abs() < 1.0 / 16.0).then_some(nearest)
}

/// The codes `0 .. 2^bits` less `first`.
pub(crate) fn integers(bits: u32, first: i32) -> Vec<f32> {
    (0..1 << bits).map(|code| (code + first) as f32).collect()
}

/// Codes of `bits` bits in rows that each begin on a byte of their own. `row_bytes` apart.
///
/// # Errors
/// If there are not enough bytes, or bits.
pub(crate) fn rows_of_codes(tensor: &Tensor, bytes: &[u8], bits: u32, rows: usize, cols: usize) -> Result<Vec<u16>> {
    let short = || Error::tensor(format!("tensor `{}` is too short for {rows} x {cols} codes of {bits} bits", tensor.name));
    let mut out = Vec::new();
    if rows == 0 {
        return Ok(out);
    }
    let row_bytes = bytes.len() / rows;
    for row in 0..rows {
        bits::stream(&bytes[row * row_bytes..][..row_bytes], bits, cols, &mut out).ok_or_else(short)?;
    }
    Ok(out)
}

/// Those of `suffixes` that a module has.
pub(crate) fn parts_of(store: &Store, module: &str, suffixes: &[&str]) -> Vec<String> {
    suffixes.iter().map(|s| format!("{module}.{s}")).filter(|name| store.get(name).is_some()).collect()
}

/// What reads a quantized matrix into memory.
pub(crate) trait Load {
    /// Outputs and inputs.
    fn shape(&self) -> (usize, usize);

    /// The stored tensors that [`load`](Self::load) and [`global`](Self::global) read: others beside them are nobody's.
    fn parts(&self, store: &Store) -> Vec<String>;

    /// The number that all scales are multiples of, where it is stored for readers that want it and values do not tell it.
    ///
    /// # Errors
    /// If it is missing or malformed.
    fn global(&self, store: &Store) -> Result<Option<f32>> {
        let _ = store;
        Ok(None)
    }

    /// Reads it.
    ///
    /// # Errors
    /// If a tensor is missing or of another type or shape than its format says.
    fn load(&self, store: &Store) -> Result<Matrix>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(arithmetic: Arithmetic, zero: Vec<f32>) -> Matrix {
        let tiles = Tiles::new(4, 1, 2);
        Matrix { rows: 1, cols: 4, codes: vec![0, 3, 1, 2], table: integers(2, 0), tiles, scale: vec![0.5, 2.0], zero, arithmetic }
    }

    #[test]
    fn values_and_steps_follow_their_arithmetic() {
        let mut row = Row::default();
        matrix(Arithmetic::Scaled, vec![1.0, 2.0]).row(0, &mut row);
        assert_eq!((&row.steps[..], &row.values[..]), (&[-1.0, 2.0, -1.0, 0.0][..], &[-0.5, 1.0, -2.0, 0.0][..]));
        matrix(Arithmetic::Minimum, vec![-0.5, -4.0]).row(0, &mut row);
        assert_eq!((&row.steps[..], &row.values[..]), (&[-1.0, 2.0, -1.0, 0.0][..], &[-0.5, 1.0, -2.0, 0.0][..]));
        matrix(Arithmetic::Minimum, vec![-0.25, -4.0]).row(0, &mut row);
        assert_eq!((row.steps.len(), &row.values[..]), (0, &[-0.25, 1.25, -2.0, 0.0][..]));
        matrix(Arithmetic::Factor(4.0), vec![0.0; 2]).row(0, &mut row);
        assert_eq!((&row.steps[..], &row.values[..]), (&[0.0, 3.0, 1.0, 2.0][..], &[0.0, 6.0, 8.0, 16.0][..]));
    }

    #[test]
    fn groups_and_sizes_have_to_fit() {
        assert_eq!(Tiles::new(5, 1, 2).column, [0, 0, 1, 1, 2]);
        assert!(Tiles::indexed("g_idx", &[0, 2, 1], 2).is_err_and(|e| e.message.contains("names group 2")));
        assert!(Tiles::indexed("g_idx", &[0, -1], 2).is_err_and(|e| e.message.contains("names group -1")));
        assert!(matrix(Arithmetic::Scaled, vec![0.0]).checked("m").is_err_and(|e| e.message.contains("1 zero points")));
    }
}
