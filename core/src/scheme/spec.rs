//! The resolved quantization of one tensor.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{FloatKind, Grid, TileLayout};

/// How the scale `s` of a symmetric `b`-bit integer follows from the largest magnitude `a` (five conventions are in use).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// `s = a/2^(b−1)`; the positive extreme clips by one step (brevitas, DeepSpeed).
    PowB1,
    /// `s = a/(2^(b−1)−1)`, codes from `−2^(b−1)` (AWQ without zero point, SmoothQuant, QuaRot).
    PowB1m1,
    /// `s = 2a/(2^b−1)` (GPTQ, compressed-tensors).
    #[default]
    HalfRange,
    /// `s = a/(2^(b−1)−1)`, codes from `−(2^(b−1)−1)`.
    Narrow,
    /// `s = ±a/2^(b−1)`, signed so that the larger side maps to `−2^(b−1)` (AutoRound).
    SignedFull,
}

/// Which elements of a weight share parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// All.
    Tensor,
    /// One row (output channel).
    Channel,
    /// A run of so many columns of a row; the last may be shorter.
    Group(u32),
    /// `[rows, cols]`
    Block(u32, u32),
}

impl Granularity {
    /// The tiles on a `[rows, cols]` matrix.
    pub fn layout(self, rows: usize, cols: usize) -> TileLayout {
        let (tile_rows, tile_cols) = match self {
            Self::Tensor => (rows, cols),
            Self::Channel => (1, cols),
            Self::Group(g) => (1, (g as usize).min(cols)),
            Self::Block(r, c) => ((r as usize).min(rows), (c as usize).min(cols)),
        };
        TileLayout { rows, cols, tile_rows: tile_rows.max(1), tile_cols: tile_cols.max(1) }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Channel => f.write_str("channel"),
            Self::Group(g) => write!(f, "group {g}"),
            Self::Block(r, c) => write!(f, "block {r}x{c}"),
        }
    }
}

/// When parameters are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timing {
    /// Fixed after calibration.
    #[default]
    Static,
    /// At each call.
    Dynamic,
}

/// An observer and its options, checked by the observer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ObserverChoice {
    /// Its id.
    pub id: String,
    /// Its options, defaults filled in.
    pub options: serde_json::Value,
}

/// How one tensor is quantized: everything that decides codes, scales and zero points, as plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QuantSpec {
    /// Id of the number format.
    pub format: String,
    /// Width of a code.
    pub bits: u8,
    /// Its values, in units of the scale.
    pub grid: Grid,
    /// Which elements share parameters.
    pub granularity: Granularity,
    /// Without zero points.
    pub symmetric: bool,
    /// The scale of symmetric integers.
    pub convention: Convention,
    /// Who chooses the range.
    pub observer: ObserverChoice,
    /// When.
    pub timing: Timing,
    /// Floor of the statistic before it becomes a scale.
    pub min_threshold: f32,
    /// The type scales are stored in; codes are chosen for the scale as stored.
    pub scale_kind: FloatKind,
}

impl QuantSpec {
    /// Bits per weight with scales and zero points, for a `[rows, cols]` matrix.
    pub fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        let tiles = self.granularity.layout(rows, cols).tiles() as f64;
        let scale = if self.scale_kind == FloatKind::F32 { 32.0 } else { 16.0 };
        let zero = if self.symmetric { 0.0 } else { f64::from(self.bits) };
        f64::from(self.bits) + tiles * (scale + zero) / (rows * cols) as f64
    }
}

impl fmt::Display for QuantSpec {
    /// `int4 group 64 symmetric`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.format, self.granularity, if self.symmetric { "symmetric" } else { "affine" })
    }
}
