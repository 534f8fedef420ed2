//! The set of values a code can stand for, before scaling.

use serde::{Deserialize, Serialize};

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
}

/// A number format's values in units of the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl Grid {
    /// Smallest and largest code.
    pub fn limits(&self) -> (i32, i32) {
        match *self {
            Self::Int { lo, hi, .. } => (lo, hi),
        }
    }

    /// How zero points enter.
    pub fn zero(&self) -> Zero {
        match *self {
            Self::Int { zero, .. } => zero,
        }
    }

    /// The code nearest to `x` (half to even), clamped to the code range.
    #[inline(always)]
    pub fn encode(&self, x: f32, scale: f32, zero: i32) -> i32 {
        match *self {
            // The clamp is done in f32 before the conversion: it also bounds what an infinite ratio converts to.
            Self::Int { lo, hi, .. } => ((x / scale).round_ties_even() + zero as f32).clamp(lo as f32, hi as f32) as i32,
        }
    }

    /// The value of a code.
    #[inline(always)]
    pub fn decode(&self, code: i32, scale: f32, zero: i32) -> f32 {
        match *self {
            Self::Int { .. } => scale * (code - zero) as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_fixed_point_and_codes_are_monotone() {
        for bits in 2..=8 {
            for (lo, hi) in [(-(1 << (bits - 1)), (1 << (bits - 1)) - 1), (0, (1 << bits) - 1)] {
                for zero in [lo, 0.max(lo), hi] {
                    let grid = Grid::Int { lo, hi, zero: Zero::Integer };
                    let mut last = f32::NEG_INFINITY;
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
        let codes: Vec<i32> = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5].map(|x| grid.encode(x, 1.0, 0)).to_vec();
        assert_eq!(codes, [-2, -2, 0, 0, 2, 2]);
    }
}
