//! Which elements of a tensor share parameters.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::TileLayout;

/// The extent of a tile along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// The whole axis.
    All,
    /// So many elements; the last tile may be shorter.
    Of(u32),
}

impl Extent {
    fn of(self, axis: usize) -> usize {
        match self {
            Self::All => axis,
            Self::Of(n) => (n as usize).min(axis),
        }
        .max(1)
    }
}

/// Tiles on the `[rows, cols]` view of a tensor: rows are output channels of a weight and tokens of an activation. Every granularity,
/// whatever its name, comes down to this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Granularity {
    /// The rule it came from.
    pub id: String,
    /// Rows of a tile.
    pub rows: Extent,
    /// Columns of a tile.
    pub cols: Extent,
}

impl Granularity {
    /// A tile of this extent.
    pub fn new(id: &str, rows: Extent, cols: Extent) -> Self {
        Self { id: id.to_owned(), rows, cols }
    }

    /// One tile.
    pub fn tensor() -> Self {
        Self::new("tensor", Extent::All, Extent::All)
    }

    /// One tile a row.
    pub fn channel() -> Self {
        Self::new("channel", Extent::Of(1), Extent::All)
    }

    /// Runs of `n` columns of a row.
    pub fn group(n: u32) -> Self {
        Self::new("group", Extent::Of(1), Extent::Of(n))
    }

    /// Blocks.
    pub fn block(rows: u32, cols: u32) -> Self {
        Self::new("block", Extent::Of(rows), Extent::Of(cols))
    }

    /// The tiles on a `[rows, cols]` matrix.
    pub fn layout(&self, rows: usize, cols: usize) -> TileLayout {
        TileLayout { rows, cols, tile_rows: self.rows.of(rows), tile_cols: self.cols.of(cols) }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.rows, self.cols) {
            (Extent::Of(1), Extent::Of(n)) | (Extent::Of(n), Extent::Of(1)) if n > 1 => write!(f, "{} {n}", self.id),
            (Extent::Of(r), Extent::Of(c)) if r > 1 && c > 1 => write!(f, "{} {r}x{c}", self.id),
            _ => f.write_str(&self.id),
        }
    }
}
