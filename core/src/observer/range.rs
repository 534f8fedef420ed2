//! From a range to a scale and a zero point.
//!
//! Symmetric, with `a = max(|lo|, |hi|)`: the [`Convention`] gives `s(a)`. Affine: the range is first stretched to hold 0, then
//! `s = (hi − lo)/(q_max − q_min)` and `z = clamp(round(q_min − lo/s))`, so that 0 is exact.

use crate::scheme::{Convention, FloatKind, Grid, QuantSpec, Zero};

/// Everything that turns a range into parameters.
#[derive(Clone, Copy, Debug)]
pub struct ScaleRule {
    /// The grid.
    pub grid: Grid,
    bits: u8,
    convention: Convention,
    min_threshold: f32,
    scale_kind: FloatKind,
}

impl ScaleRule {
    /// The rule of a spec.
    pub fn of(spec: &QuantSpec) -> Self {
        Self {
            grid: spec.grid,
            bits: spec.bits,
            convention: spec.convention,
            min_threshold: spec.min_threshold,
            scale_kind: spec.scale_kind,
        }
    }

    /// Scale and zero point of the range `lo ..= hi`. A range of zero width at zero gives scale 1: any scale represents it.
    pub fn params(&self, lo: f32, hi: f32) -> (f32, i32) {
        match self.grid.zero() {
            Zero::None => (self.symmetric(lo, hi), 0),
            Zero::Fixed(z) => (self.symmetric(lo, hi), z),
            Zero::Integer => self.affine(lo, hi),
        }
    }

    fn symmetric(&self, lo: f32, hi: f32) -> f32 {
        let a = lo.abs().max(hi.abs()).max(self.min_threshold);
        if a == 0.0 {
            return 1.0;
        }
        let half = f32::from(1u16 << (self.bits - 1));
        let s = match self.convention {
            Convention::PowB1 => a / half,
            Convention::PowB1m1 | Convention::Narrow => a / (half - 1.0),
            Convention::HalfRange => a / (half - 0.5),
            Convention::SignedFull => {
                if hi.abs() > lo.abs() {
                    -a / half
                } else {
                    a / half
                }
            }
        };
        self.scale_kind.round_scale(s)
    }

    fn affine(&self, lo: f32, hi: f32) -> (f32, i32) {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let (q_lo, q_hi) = self.grid.limits();
        let range = (hi - lo).max(self.min_threshold);
        if range == 0.0 {
            return (1.0, 0.clamp(q_lo, q_hi));
        }
        let s = self.scale_kind.round_scale(range / (q_hi - q_lo) as f32);
        let z = (q_lo as f32 - lo / s).round_ties_even().clamp(q_lo as f32, q_hi as f32) as i32;
        (s, z)
    }
}
