//! How scales are formed and stored.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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
            Self::Bf16 => bf16::from_f32(x.clamp(bf16::MIN.to_f32(), bf16::MAX.to_f32())).to_f32(),
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

    /// The largest number that it has.
    pub fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
        }
    }

    /// The type that the configuration of a model states for its floats, by either name of the key.
    pub fn of_config(config: &serde_json::Value) -> Option<Self> {
        let name = config.get("dtype").or_else(|| config.get("torch_dtype"))?.as_str()?;
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|k| k.name() == name)
    }

    /// Says in a configuration that its floats are of this type.
    pub(crate) fn state_in(self, config: &mut serde_json::Map<String, serde_json::Value>) {
        // The newer spelling, if that is what the configuration uses.
        let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        config.insert(key.to_owned(), self.name().into());
    }

    /// Its name in configurations of models.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The nearest number of this type.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::Bf16 => bf16::from_f32(x).to_f32(),
        }
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

/// Which power of two stands for a number between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerRounding {
    /// The smaller.
    Floor,
    /// The larger.
    Ceil,
    /// The nearer on the logarithmic scale.
    Round,
}

impl PowerRounding {
    /// `ρ(log₂ a)` of a positive normal number.
    pub fn exponent(self, a: f64) -> i32 {
        let bits = a.to_bits();
        let floor = (bits >> 52) as i32 - 1023;
        let mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
        floor
            + match self {
                Self::Floor => 0,
                Self::Ceil => i32::from(mantissa > 1.0),
                Self::Round => i32::from(mantissa > std::f64::consts::SQRT_2),
            }
    }
}

/// How a scale follows from its ideal value, and so what it is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleForm {
    /// Rounded to a float type.
    Float(FloatKind),
    /// `s = 2^(ρ(log₂ a) − offset)`, with `a` the statistic. Stored as its exponent (E8M0), so within `2^±127`.
    PowerOfTwo {
        /// `ρ`
        rounding: PowerRounding,
        /// The exponent that the format itself has.
        offset: i32,
    },
    /// `s = local / global`: `local` an OCP e4m3 per tile, `global` an f32 per tensor (NVFP4).
    TwoLevel,
    /// 1: the format is a cast.
    One,
}

impl ScaleForm {
    /// `scale` as a container that has scales of type `kind` holds it. Powers of two are held as they are or not at all: whoever asked for
    /// them asked for exact ones.
    ///
    /// # Errors
    /// If it is larger than what `kind` has, or a power of two that `kind` has not.
    pub fn held_in(self, kind: FloatKind, scale: f32) -> Result<f32> {
        let held = kind.round_scale(scale);
        let exact = !matches!(self, Self::PowerOfTwo { .. }) || held == scale;
        if scale.abs() <= kind.largest() && exact {
            return Ok(held);
        }
        let name = kind.name();
        let what = format!("a scale is {scale:e}, and the container holds scales as {name}, whose largest is {}", kind.largest());
        let what = if exact {
            what
        } else {
            format!("a scale is {scale:e}, a power of two that {name}, in which the container holds scales, has not")
        };
        Err(Error::numeric("container::overflow", what).hint("use `--format qfw`, which holds them as f32"))
    }

    /// Bits a stored scale takes; [`ScaleForm::TwoLevel`] has 32 more per tensor.
    pub fn bits(self) -> f64 {
        match self {
            Self::Float(FloatKind::F32) => 32.0,
            Self::Float(_) => 16.0,
            Self::PowerOfTwo { .. } | Self::TwoLevel => 8.0,
            Self::One => 0.0,
        }
    }
}
