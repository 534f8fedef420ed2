//! Quantization parameters of a tensor.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::TileLayout;

/// A stored float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatKind {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
}

impl FloatKind {
    /// `x` rounded to this type, half to even. Overflow saturates; what would underflow to zero becomes the smallest positive value,
    /// since a scale of zero has no inverse.
    pub fn round_scale(self, x: f32) -> f32 {
        let rounded = match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        };
        if rounded != 0.0 || x == 0.0 {
            return rounded;
        }
        let smallest = match self {
            Self::F32 => x.abs(),
            Self::F16 => f16::from_bits(1).to_f32(),
            Self::Bf16 => bf16::from_bits(1).to_f32(),
        };
        smallest.copysign(x)
    }

    /// The bytes of `values` in this type, little-endian.
    pub fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }
}

/// Scales and zero points, one per tile of a layout.
#[derive(Clone, Debug, PartialEq)]
pub struct QParams {
    /// The tiles.
    pub layout: TileLayout,
    /// One per tile; finite, not zero, exactly representable in the type it will be stored in.
    pub scale: Vec<f32>,
    /// One per tile, in code units.
    pub zero: Vec<i32>,
}
