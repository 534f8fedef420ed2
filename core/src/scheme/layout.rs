//! Which elements of a matrix share quantization parameters.

use serde::{Deserialize, Serialize};

/// Tiles on a `[rows, cols]` matrix; the last tile of a row or column may be smaller. The one closed form of every granularity:
/// kernels and containers know tiles, not names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TileLayout {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Rows of a tile.
    pub tile_rows: usize,
    /// Columns of a tile.
    pub tile_cols: usize,
}

impl TileLayout {
    /// Tiles along each axis.
    pub fn grid(&self) -> (usize, usize) {
        (self.rows.div_ceil(self.tile_rows), self.cols.div_ceil(self.tile_cols))
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        let (r, c) = self.grid();
        r * c
    }

    /// The tile of element `(row, col)`, tiles counted row by row.
    #[inline(always)]
    pub fn tile(&self, row: usize, col: usize) -> usize {
        (row / self.tile_rows) * self.cols.div_ceil(self.tile_cols) + col / self.tile_cols
    }
}
