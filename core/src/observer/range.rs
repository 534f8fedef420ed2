//! From a range to a scale and a zero point.
//!
//! Symmetric, with `a = max(|lo|, |hi|)`: integers have `s(a)` by their [`Convention`], floats and tables `s = a / (largest value)`,
//! powers of two as [`ScaleForm`] says. Affine: the range is first stretched to hold 0, then `s = (hi − lo)/(q_max − q_min)` and
//! `z = q_min − lo/s`, rounded and clamped where zero points are integers, so that 0 is exact.

use crate::scheme::{Convention, FloatGrid, FloatVariant, Grid, PowerRounding, QuantSpec, ScaleForm, Zero};

/// Everything that turns a range into parameters.
#[derive(Clone, Debug)]
pub struct ScaleRule {
    /// The grid.
    pub grid: Grid,
    bits: u8,
    convention: Convention,
    min_threshold: f32,
    rescale: f32,
    form: ScaleForm,
    global: f32,
}

impl ScaleRule {
    /// The rule of a spec. `amax` is the largest magnitude over the tensors that share a factor, which only [`ScaleForm::TwoLevel`] asks.
    pub fn of(spec: &QuantSpec, amax: f32) -> Self {
        // The largest local scale becomes e4m3's largest number.
        let global = if amax > 0.0 { LOCAL_LARGEST * spec.grid.largest() / amax } else { 1.0 };
        Self {
            grid: spec.grid.clone(),
            bits: spec.bits,
            convention: spec.convention,
            min_threshold: spec.min_threshold,
            rescale: spec.rescale,
            form: spec.scale,
            global: if global.is_finite() { global } else { f32::MAX },
        }
    }

    /// The tensor's own factor, where scales have two levels.
    pub fn global(&self) -> Option<f32> {
        (self.form == ScaleForm::TwoLevel).then_some(self.global)
    }

    /// Whether the rule keeps 0 at the middle of the code range.
    pub fn symmetric(&self) -> bool {
        matches!(self.grid.zero(), Zero::None | Zero::Fixed(_))
    }

    /// Scale and zero point of the range `lo ..= hi`. A range of zero width at zero gives scale 1: any scale represents it.
    pub fn params(&self, lo: f32, hi: f32) -> (f32, f32) {
        let rescaled = |x: f32| (x * self.rescale).clamp(f32::MIN, f32::MAX);
        let (lo, hi) = (rescaled(lo), rescaled(hi));
        match self.grid.zero() {
            Zero::None => (self.magnitude_scale(lo, hi), 0.0),
            Zero::Fixed(z) => (self.magnitude_scale(lo, hi), z as f32),
            Zero::Integer | Zero::Float => self.affine(lo, hi),
        }
    }

    /// A free scale, as it will be stored: the nearest that the form has.
    pub fn stored(&self, scale: f32) -> f32 {
        match self.form {
            ScaleForm::Float(kind) => kind.round_scale(normal(f64::from(scale))),
            ScaleForm::PowerOfTwo { .. } => power_of_two(PowerRounding::Round.exponent(f64::from(normal(f64::from(scale.abs()))))),
            ScaleForm::TwoLevel => self.local(scale) / self.global,
            ScaleForm::One => 1.0,
        }
    }

    /// A free zero point, as it will be stored.
    pub fn stored_zero(&self, zero: f32) -> f32 {
        let (q_lo, q_hi) = self.grid.limits();
        match self.grid.zero() {
            Zero::None => 0.0,
            Zero::Fixed(z) => z as f32,
            Zero::Integer => zero.round_ties_even().clamp(q_lo as f32, q_hi as f32),
            Zero::Float => zero,
        }
    }

    /// The range `lo ..= hi` clipped at the magnitude `t`. Symmetric ranges become `±t`, unless the sign of the scale is that of the larger
    /// side, which must then remain to be seen.
    pub fn clipped(&self, (lo, hi): (f32, f32), t: f32) -> (f32, f32) {
        if self.symmetric() && self.convention != Convention::SignedFull { (-t, t) } else { (lo.clamp(-t, t), hi.clamp(-t, t)) }
    }

    fn magnitude_scale(&self, lo: f32, hi: f32) -> f32 {
        let a = lo.abs().max(hi.abs()).max(self.min_threshold);
        if self.form == ScaleForm::One {
            return 1.0;
        }
        if a == 0.0 && self.form != ScaleForm::TwoLevel {
            return 1.0;
        }
        let ideal = match &self.grid {
            Grid::Int { .. } => self.integer_scale(lo, hi, a),
            grid => normal(f64::from(a) / f64::from(grid.largest())),
        };
        match self.form {
            ScaleForm::Float(kind) => kind.round_scale(ideal),
            ScaleForm::PowerOfTwo { rounding, offset } => power_of_two(rounding.exponent(f64::from(a)) - offset),
            ScaleForm::TwoLevel => self.local(ideal) / self.global,
            ScaleForm::One => 1.0,
        }
    }

    fn integer_scale(&self, lo: f32, hi: f32, a: f32) -> f32 {
        let half = f64::from(1u32 << (self.bits - 1));
        let a = f64::from(a);
        normal(match self.convention {
            Convention::PowB1 => a / half,
            Convention::PowB1m1 | Convention::Narrow => a / (half - 1.0),
            Convention::HalfRange => a / (half - 0.5),
            Convention::SignedFull if hi.abs() > lo.abs() => -a / half,
            Convention::SignedFull => a / half,
        })
    }

    /// The e4m3 number nearest to a tile's scale in units of the tensor's; one that vanished would have no inverse.
    fn local(&self, ideal: f32) -> f32 {
        let rounded = FloatGrid::new(4, 3, FloatVariant::Ocp).map_or(0.0, |g| g.round(ideal * self.global));
        if rounded == 0.0 { LOCAL_OF_NOTHING } else { rounded }
    }

    fn affine(&self, lo: f32, hi: f32) -> (f32, f32) {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let (q_lo, q_hi) = self.grid.limits();
        // In f32, as everywhere else; but the width of a range that f32 holds may be one that it does not.
        let width = if (hi - lo).is_finite() { f64::from(hi - lo) } else { f64::from(hi) - f64::from(lo) };
        let range = width.max(f64::from(self.min_threshold));
        if range == 0.0 {
            return (1.0, 0.clamp(q_lo, q_hi) as f32);
        }
        let s = match self.form {
            ScaleForm::PowerOfTwo { rounding, offset } => power_of_two(rounding.exponent(range) - offset),
            _ => self.stored(normal(range / f64::from(q_hi - q_lo))),
        };
        (s, self.stored_zero(q_lo as f32 - lo / s))
    }
}

/// To f32, away from the numbers below its normal ones: those have few digits, and vanish on devices that flush them.
fn normal(scale: f64) -> f32 {
    (scale.abs().clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)) as f32).copysign(scale as f32)
}

/// The largest e4m3 number.
const LOCAL_LARGEST: f32 = 448.0;
/// The local scale of a tile of zeros, as compressed-tensors writes it.
const LOCAL_OF_NOTHING: f32 = 0.125;

/// `2^e` within the exponents of E8M0.
fn power_of_two(e: i32) -> f32 {
    2f64.powi(e.clamp(-127, 127)) as f32
}
