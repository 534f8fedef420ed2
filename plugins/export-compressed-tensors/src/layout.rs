//! Which format a module is stored in.
//!
//! Readers choose a format by the first rule that fits: block-scaled floats, then integers with rounded inputs, then packed integers,
//! then floats. So does [`Layout::of`], and `config.json` says what it chose.

use qfw_core::Result;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::checkpoint::{StoredDtype, TensorDecl};
use qfw_core::scheme::{FloatKind, Grid, QuantSpec, ScaleForm};

use crate::{fp4, fp8, int};

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// What fits.
    Auto,
    /// One byte for each code.
    Int8,
}

/// How the weight of a module is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Packed,
    Int,
    Fp8,
    Nvfp4,
    Mxfp4,
    Mxfp8,
}

impl Layout {
    /// The layout for a weight and what its linear reads, both of which may still be refused.
    pub(crate) fn of(choice: Choice, weight: &QuantSpec, input: Option<&QuantSpec>) -> Self {
        match (&weight.grid, weight.scale) {
            (Grid::Float(_), ScaleForm::TwoLevel) => Self::Nvfp4,
            (Grid::Float(f), ScaleForm::PowerOfTwo { .. }) if f.shape() == (2, 1) => Self::Mxfp4,
            (grid, ScaleForm::PowerOfTwo { .. }) if fp8::holds(grid) => Self::Mxfp8,
            (Grid::Float(_), _) => Self::Fp8,
            _ if choice == Choice::Int8 || input.is_some() => Self::Int,
            _ => Self::Packed,
        }
    }

    /// Its name.
    pub(crate) fn format(self) -> &'static str {
        match self {
            Self::Packed => "pack-quantized",
            Self::Int => "int-quantized",
            Self::Fp8 => "float-quantized",
            Self::Nvfp4 => "nvfp4-pack-quantized",
            Self::Mxfp4 => "mxfp4-pack-quantized",
            Self::Mxfp8 => "mxfp8-quantized",
        }
    }

    /// Declarations of one module, in the order in which they are filled.
    pub(crate) fn declare(self, site: &NativeSite) -> Vec<TensorDecl> {
        match self {
            Self::Packed => int::declare(site, true),
            Self::Int => int::declare(site, false),
            Self::Fp8 | Self::Mxfp8 => fp8::declare(site),
            Self::Nvfp4 | Self::Mxfp4 => fp4::declare(site),
        }
    }

    /// The bytes of the declared tensor called `suffix`.
    pub(crate) fn encode(self, site: &NativeSite, rounded: &Rounded, suffix: &str) -> Result<Vec<u8>> {
        match self {
            Self::Packed => Ok(int::encode(site, rounded, suffix, true)),
            Self::Int => Ok(int::encode(site, rounded, suffix, false)),
            Self::Fp8 | Self::Mxfp8 => Ok(fp8::encode(site, rounded, suffix)),
            Self::Nvfp4 | Self::Mxfp4 => fp4::encode(rounded, suffix),
        }
    }
}

/// The declaration of `M.suffix`.
pub(crate) fn decl(module: &str, suffix: &str, dtype: StoredDtype, shape: Vec<usize>) -> TensorDecl {
    TensorDecl { name: format!("{module}.{suffix}"), dtype, shape }
}

/// The type of e4m3 in safetensors.
pub(crate) fn e4m3() -> StoredDtype {
    StoredDtype::Other("F8_E4M3".to_owned())
}

/// The float type of scales, which `accept` has made sure of.
pub(crate) fn scale_kind(spec: &QuantSpec) -> FloatKind {
    match spec.scale {
        ScaleForm::Float(kind) => kind,
        _ => FloatKind::F32,
    }
}

/// Its name as a stored type.
pub(crate) fn scale_dtype(spec: &QuantSpec) -> StoredDtype {
    match scale_kind(spec) {
        FloatKind::F32 => StoredDtype::F32,
        FloatKind::F16 => StoredDtype::F16,
        FloatKind::Bf16 => StoredDtype::BF16,
    }
}
