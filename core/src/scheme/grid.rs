//! The set of values a code can stand for, before scaling.
//!
//! Integers: `x̂ = s·(q − z)`. Floats and tables: `x̂ = s·v(q)`, with `v` the value of a code. Rounding is to the nearest value, half to
//! even, and saturates.

use serde::{Deserialize, Serialize};

use super::FloatGrid;

/// Whether and how a code has a zero point: `x̂ = s·(q − z)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Zero {
    /// `z = 0`
    None,
    /// `z` is the same constant for every tile (unsigned storage of a symmetric format).
    Fixed(i32),
    /// An integer per tile, within the code range.
    Integer,
    /// A float per tile, added before rounding: `q = round(x/s + z)`.
    Float,
}

/// A number format's values in units of the scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Grid {
    /// The integers `lo ..= hi`.
    Int {
        /// Smallest code.
        lo: i32,
        /// Largest code.
        hi: i32,
        /// The zero point.
        zero: Zero,
    },
    /// A small float; codes are sign and magnitude, `0 ..= 2^bits − 1`.
    Float(FloatGrid),
    /// A table of at most 256 values, rising; codes count them from 0.
    Levels(Vec<f32>),
}

impl Grid {
    /// Smallest and largest code. Within them a float format may have codes that stand for nothing: see [`Grid::holds`].
    pub fn limits(&self) -> (i32, i32) {
        match self {
            Self::Int { lo, hi, .. } => (*lo, *hi),
            Self::Float(f) => (0, (1 << f.bits()) - 1),
            Self::Levels(v) => (0, v.len() as i32 - 1),
        }
    }

    /// Whether `code` stands for a finite value.
    pub fn holds(&self, code: i32) -> bool {
        let (lo, hi) = self.limits();
        let within = (lo..=hi).contains(&code);
        if let Self::Float(f) = self { within && f.holds(code as u32) } else { within }
    }

    /// How many codes stand for something.
    pub fn codes(&self) -> usize {
        let (lo, hi) = self.limits();
        (lo..=hi).filter(|code| self.holds(*code)).count()
    }

    /// How zero points enter.
    pub fn zero(&self) -> Zero {
        match self {
            Self::Int { zero, .. } => *zero,
            _ => Zero::None,
        }
    }

    /// The largest magnitude of a value, in units of the scale.
    pub fn largest(&self) -> f32 {
        match self {
            Self::Int { lo, hi, .. } => lo.abs().max(hi.abs()) as f32,
            Self::Float(f) => f.largest(),
            Self::Levels(v) => v.iter().fold(0.0, |m, x| x.abs().max(m)),
        }
    }

    /// Runs `visit` with the kernel of this grid: one dispatch for a whole loop.
    #[inline(always)]
    pub(crate) fn with<V: WithCoder>(&self, visit: V) -> V::Output {
        match self {
            Self::Int { lo, hi, zero: Zero::Float } => visit.run(&IntFloatZero { lo: *lo as f32, hi: *hi as f32 }),
            Self::Int { lo, hi, .. } => visit.run(&Int { lo: *lo as f32, hi: *hi as f32 }),
            Self::Float(f) => visit.run(f),
            Self::Levels(v) => visit.run(&v[..]),
        }
    }

    /// The code nearest to `x`, clamped to the code range.
    pub fn encode(&self, x: f32, scale: f32, zero: f32) -> i32 {
        struct Encode(f32, f32, f32);
        impl WithCoder for Encode {
            type Output = i32;
            #[inline(always)]
            fn run<C: Coder + ?Sized>(self, c: &C) -> i32 {
                c.encode(self.0, self.1, self.2)
            }
        }
        self.with(Encode(x, scale, zero))
    }

    /// The value of a code.
    pub fn decode(&self, code: i32, scale: f32, zero: f32) -> f32 {
        struct Decode(i32, f32, f32);
        impl WithCoder for Decode {
            type Output = f32;
            #[inline(always)]
            fn run<C: Coder + ?Sized>(self, c: &C) -> f32 {
                c.decode(self.0, self.1, self.2)
            }
        }
        self.with(Decode(code, scale, zero))
    }

    /// `decode(encode(x))`
    pub fn nearest(&self, x: f32, scale: f32, zero: f32) -> f32 {
        self.decode(self.encode(x, scale, zero), scale, zero)
    }
}

/// One grid's rounding, to be inlined into loops.
pub(crate) trait Coder {
    /// The code nearest to `x`.
    fn encode(&self, x: f32, scale: f32, zero: f32) -> i32;
    /// The value of a code.
    fn decode(&self, code: i32, scale: f32, zero: f32) -> f32;
    /// `decode(encode(x))`
    #[inline(always)]
    fn nearest(&self, x: f32, scale: f32, zero: f32) -> f32 {
        self.decode(self.encode(x, scale, zero), scale, zero)
    }
}

/// A computation over any coder.
pub(crate) trait WithCoder {
    /// What it returns.
    type Output;
    /// Computes it. Implementations mark it `#[inline(always)]`.
    fn run<C: Coder + ?Sized>(self, coder: &C) -> Self::Output;
}

/// A whole number of less than 23 bits as an integer, and 0 for what is none; `as` does the same for any number, but not side by side.
#[inline(always)]
fn whole(x: f32) -> i32 {
    // 1.5·2²³: what is added to it ends up in its lowest bits.
    const SHIFT: f32 = 12_582_912.0;
    if x.is_nan() { 0 } else { (x + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32 }
}

struct Int {
    lo: f32,
    hi: f32,
}

impl Coder for Int {
    #[inline(always)]
    fn encode(&self, x: f32, scale: f32, zero: f32) -> i32 {
        // The clamp is done in f32 before the conversion: it also bounds what an infinite ratio converts to.
        whole(((x / scale).round_ties_even() + zero).clamp(self.lo, self.hi))
    }

    #[inline(always)]
    fn decode(&self, code: i32, scale: f32, zero: f32) -> f32 {
        scale * (code as f32 - zero)
    }

    #[inline(always)]
    fn nearest(&self, x: f32, scale: f32, zero: f32) -> f32 {
        scale * (((x / scale).round_ties_even() + zero).clamp(self.lo, self.hi) - zero)
    }
}

struct IntFloatZero {
    lo: f32,
    hi: f32,
}

impl Coder for IntFloatZero {
    #[inline(always)]
    fn encode(&self, x: f32, scale: f32, zero: f32) -> i32 {
        whole((x / scale + zero).round_ties_even().clamp(self.lo, self.hi))
    }

    #[inline(always)]
    fn decode(&self, code: i32, scale: f32, zero: f32) -> f32 {
        scale * (code as f32 - zero)
    }
}

impl Coder for FloatGrid {
    #[inline(always)]
    fn encode(&self, x: f32, scale: f32, _: f32) -> i32 {
        self.code(x / scale) as i32
    }

    #[inline(always)]
    fn decode(&self, code: i32, scale: f32, _: f32) -> f32 {
        scale * self.value(code as u32)
    }

    #[inline(always)]
    fn nearest(&self, x: f32, scale: f32, _: f32) -> f32 {
        scale * self.round(x / scale)
    }
}

impl Coder for [f32] {
    /// Between two levels the nearer one; halfway the one with the even code.
    #[inline(always)]
    fn encode(&self, x: f32, scale: f32, _: f32) -> i32 {
        let v = x / scale;
        let above = self.partition_point(|level| *level < v);
        if above == 0 {
            return 0;
        }
        if above == self.len() {
            return self.len() as i32 - 1;
        }
        let (down, up) = (v - self[above - 1], self[above] - v);
        let nearer_below = down < up || (down == up && above % 2 == 1);
        above as i32 - i32::from(nearer_below)
    }

    #[inline(always)]
    fn decode(&self, code: i32, scale: f32, _: f32) -> f32 {
        scale * self[code as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_converted_as_by_the_language() {
        for x in -(1 << 22)..=1 << 22 {
            assert_eq!(whole(x as f32), x);
        }
        assert_eq!((whole(f32::NAN), whole(-f32::NAN), whole(-0.0)), (0, 0, 0));
    }

    #[test]
    fn every_code_is_a_fixed_point_and_codes_are_monotone() {
        for bits in 2..=16 {
            for (lo, hi) in [(-(1 << (bits - 1)), (1 << (bits - 1)) - 1), (0, (1 << bits) - 1)] {
                for zero in [lo, 0.max(lo), hi] {
                    let grid = Grid::Int { lo, hi, zero: Zero::Integer };
                    let mut last = f32::NEG_INFINITY;
                    let zero = zero as f32;
                    for code in lo..=hi {
                        let value = grid.decode(code, 0.37, zero);
                        assert!(value > last);
                        assert_eq!(grid.encode(value, 0.37, zero), code);
                        last = value;
                    }
                    assert_eq!(grid.encode(f32::INFINITY, 0.37, zero), hi);
                    assert_eq!(grid.encode(f32::NEG_INFINITY, 0.37, zero), lo);
                }
            }
        }
    }

    #[test]
    fn halves_round_to_even() {
        let grid = Grid::Int { lo: -8, hi: 7, zero: Zero::None };
        let codes: Vec<i32> = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5].map(|x| grid.encode(x, 1.0, 0.0)).to_vec();
        assert_eq!(codes, [-2, -2, 0, 0, 2, 2]);
        // A float zero point moves the halves: round(0.5 + 0.25) = 1, round(−0.75 + 0.25) = 0 (half to even).
        let grid = Grid::Int { lo: 0, hi: 15, zero: Zero::Float };
        assert_eq!([0.5, -0.75, 3.25].map(|x| grid.encode(x, 1.0, 0.25)), [1, 0, 4]);
        assert_eq!(grid.decode(4, 2.0, 0.25), 7.5);
    }

    #[test]
    fn tables_take_the_nearer_level() {
        let grid = Grid::Levels(vec![-1.0, -0.5, 0.0, 0.25, 1.0]);
        let codes: Vec<i32> = [-9.0, -0.8, -0.75, -0.74, -0.25, 0.1, 0.125, 0.6, 0.7, 9.0].map(|x| grid.encode(x, 1.0, 0.0)).to_vec();
        // −0.75 and −0.25 and 0.125 lie halfway: even codes 0, 2 and 2.
        assert_eq!(codes, [0, 0, 0, 1, 2, 2, 2, 3, 4, 4]);
        for code in 0..5 {
            assert_eq!(grid.encode(grid.decode(code, -0.3, 0.0), -0.3, 0.0), code);
        }
        assert_eq!(grid.largest(), 1.0);
    }
}
