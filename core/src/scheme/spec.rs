//! The resolved quantization of one tensor.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Granularity, Grid, ScaleForm, Zero};

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

/// When parameters are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timing {
    /// Fixed after calibration.
    #[default]
    Static,
    /// At each call.
    Dynamic,
    /// Never: the scale is 1, and the format a cast.
    Cast,
}

/// How the ranges that single calibration windows give become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reducer {
    /// Their mean.
    #[default]
    Mean,
    /// Their union.
    Max,
    /// `r ← (1 − c)·r + c·r_window`, in the order of the windows.
    Ema(f32),
    /// The range of all values at once.
    Concat,
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
    /// How ranges of several windows become one, for static activations.
    pub reduce: Reducer,
    /// Factor on the range that the observer chose.
    pub rescale: f32,
    /// Floor of the statistic before it becomes a scale.
    pub min_threshold: f32,
    /// How scales are stored; codes are chosen for the scale as stored.
    pub scale: ScaleForm,
}

impl QuantSpec {
    /// A scheme as a checkpoint has it: what only quantizing asks for has its default.
    pub fn stored(format: impl Into<String>, bits: u8, grid: Grid, granularity: Granularity, scale: ScaleForm) -> Self {
        Self {
            format: format.into(),
            bits,
            symmetric: matches!(grid.zero(), Zero::None | Zero::Fixed(_)),
            grid,
            granularity,
            convention: Convention::HalfRange,
            observer: ObserverChoice { id: "minmax".to_owned(), options: serde_json::json!({}) },
            timing: Timing::Static,
            reduce: Reducer::Mean,
            rescale: 1.0,
            min_threshold: 0.0,
            scale,
        }
    }

    /// Bits per weight with scales and zero points, for a `[rows, cols]` matrix.
    pub fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        let tiles = self.granularity.layout(rows, cols).tiles() as f64;
        let zero = match self.grid.zero() {
            Zero::None | Zero::Fixed(_) => 0.0,
            Zero::Integer => f64::from(self.bits),
            Zero::Float => self.scale.bits(),
        };
        let global = if self.scale == ScaleForm::TwoLevel { 32.0 } else { 0.0 };
        f64::from(self.bits) + (tiles * (self.scale.bits() + zero) + global) / (rows * cols) as f64
    }
}

impl fmt::Display for QuantSpec {
    /// `int4 group 64 symmetric`, with ` dynamic` where it is; floats and tables have no zero point to speak of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.format)?;
        if self.timing != Timing::Cast {
            write!(f, " {}", self.granularity)?;
        }
        match (&self.grid, self.symmetric) {
            (Grid::Int { .. }, true) => f.write_str(" symmetric")?,
            (Grid::Int { .. }, false) => f.write_str(" affine")?,
            _ => {}
        }
        if let ScaleForm::PowerOfTwo { .. } = self.scale {
            f.write_str(" power-of-two scale")?;
        }
        match self.timing {
            Timing::Static => Ok(()),
            Timing::Dynamic => f.write_str(" dynamic"),
            Timing::Cast => f.write_str(" cast"),
        }
    }
}
