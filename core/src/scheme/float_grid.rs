//! Small floats: one sign bit, `X` exponent bits, `Y` mantissa bits.
//!
//! With bias `β` and a magnitude code of exponent field `e` and mantissa `m`: `v = m·2^(1−β−Y)` where `e = 0` (subnormal), else
//! `v = (2^Y + m)·2^(e−β−Y)`. Three variants differ in the bias and in what the largest codes mean:
//!
//! | variant | `β` | reserved |
//! |---|---|---|
//! | plain | `2^(X−1) − 1` | none |
//! | OCP | `2^(X−1) − 1` | e4m3: magnitude `1111.111` (NaN); e5m2: exponent `11111` (infinity, NaN); others none |
//! | FNUZ | `2^(X−1)` | negative zero (NaN) |
//!
//! Sources: OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0; Graphcore, AMD and Qualcomm's FNUZ proposal
//! (arXiv:2206.02915). Conversion saturates: what lies beyond the largest finite value becomes it.

use serde::{Deserialize, Serialize};

/// What the largest codes of a float format mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloatVariant {
    /// Every code is a number.
    Plain,
    /// As the Open Compute Project specifies.
    Ocp,
    /// Finite, no negative zero.
    Fnuz,
}

/// The values of a small float format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatGrid {
    exp: u8,
    man: u8,
    variant: FloatVariant,
    bias: i32,
    /// Magnitude code of the largest finite value.
    top: u32,
}

impl FloatGrid {
    /// `exp` (1 to 8) exponent bits and `man` (1 to 10) mantissa bits, at most 16 bits with the sign; `None` for others.
    pub fn new(exp: u8, man: u8, variant: FloatVariant) -> Option<Self> {
        if !(1..=8).contains(&exp) || !(1..=10).contains(&man) || exp + man > 15 {
            return None;
        }
        let half = 1i32 << (exp - 1);
        let all = (1u32 << (exp + man)) - 1;
        let (bias, top) = match (variant, exp, man) {
            (FloatVariant::Ocp, 4, 3) => (half - 1, all - 1),
            (FloatVariant::Ocp, 5, 2) => (half - 1, all - (1 << man)),
            (FloatVariant::Plain | FloatVariant::Ocp, ..) => (half - 1, all),
            (FloatVariant::Fnuz, ..) => (half, all),
        };
        // With eight exponent bits the plain bias reaches 2^128; the largest value that f32 holds ends the format.
        let top = if exp == 8 && bias < 128 { top.min(all - (1 << man)) } else { top };
        Some(Self { exp, man, variant, bias, top })
    }

    /// Width of a code, sign included.
    pub fn bits(&self) -> u8 {
        1 + self.exp + self.man
    }

    /// Exponent and mantissa bits.
    pub fn shape(&self) -> (u8, u8) {
        (self.exp, self.man)
    }

    /// The variant.
    pub fn variant(&self) -> FloatVariant {
        self.variant
    }

    /// The largest finite value.
    pub fn largest(&self) -> f32 {
        self.value(self.top)
    }

    /// Whether a code is a finite number.
    pub fn holds(&self, code: u32) -> bool {
        let magnitude = code & self.magnitude_mask();
        let negative_zero = magnitude == 0 && code != 0;
        magnitude <= self.top && !(negative_zero && self.variant == FloatVariant::Fnuz)
    }

    fn magnitude_mask(&self) -> u32 {
        (1 << (self.exp + self.man)) - 1
    }

    /// The value of a code.
    #[inline(always)]
    pub fn value(&self, code: u32) -> f32 {
        let magnitude = code & self.magnitude_mask();
        let e = (magnitude >> self.man) as i32;
        let m = magnitude & ((1 << self.man) - 1);
        let whole = m + (u32::from(e > 0) << self.man);
        let v = (f64::from(whole) * power(e.max(1) - self.bias - i32::from(self.man))) as f32;
        if code > self.magnitude_mask() { -v } else { v }
    }

    /// `|v|` in steps of its binade, and the exponent of that binade, both after rounding and saturation.
    #[inline(always)]
    fn rounded(&self, v: f32) -> (f64, i32) {
        let (least, man) = (1 - self.bias, i32::from(self.man));
        let a = f64::from(v.abs());
        let step = power(exponent(a).max(least) - man);
        // Dividing by a power of two is exact; rounding may reach the next binade, whose step is then the coarser one.
        let value = ((a / step).round_ties_even() * step).min(f64::from(self.largest()));
        (value, exponent(value).max(least))
    }

    /// The nearest value to `v`, half to even, saturating.
    #[inline(always)]
    pub fn round(&self, v: f32) -> f32 {
        (self.rounded(v).0 as f32).copysign(v)
    }

    /// Its code.
    #[inline(always)]
    pub fn code(&self, v: f32) -> u32 {
        let (value, e) = self.rounded(v);
        let whole = (value / power(e - i32::from(self.man))) as u32;
        let magnitude = (((e + self.bias - 1) as u32) << self.man) + whole;
        let signed = v.is_sign_negative() && !(magnitude == 0 && self.variant == FloatVariant::Fnuz);
        magnitude | (u32::from(signed) << (self.exp + self.man))
    }
}

/// `⌊log₂ a⌋` of a positive normal number; below every format's exponents for 0.
#[inline(always)]
fn exponent(a: f64) -> i32 {
    (a.to_bits() >> 52) as i32 - 1023
}

/// `2^e`, within the exponents of a normal f64.
#[inline(always)]
fn power(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}
