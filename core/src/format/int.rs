//! Integers of two to sixteen bits, signed (`int4`) and stored unsigned (`uint4`), and ternary.
//!
//! A symmetric unsigned format is its signed sibling shifted by `2^(b−1)`, the same values and scales; it exists because some
//! containers store it so. `ternary` is `{−1, 0, 1}` with the mean magnitude as its scale (1.58 bits of information, stored in 2).

use std::sync::Arc;

use super::{Ask, FormatRecord, Meaning, QuantFormat, symmetric_scale, zero_of};
use crate::error::{Error, Result};
use crate::scheme::{Convention, Grid, ScaleForm, Zero};

struct Int {
    bits: u8,
    signed: bool,
}

impl QuantFormat for Int {
    fn id(&self) -> String {
        format!("{}{}", if self.signed { "int" } else { "uint" }, self.bits)
    }

    fn bits(&self) -> u8 {
        self.bits
    }

    /// Powers of two divide the statistic by `2^(b−1)`, or by `2^b` the range of an affine format.
    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        let half = 1 << (self.bits - 1);
        let shift = if self.signed { 0 } else { half };
        let zero = match (ask.symmetric, self.signed) {
            (false, _) => zero_of(ask),
            (true, true) => Zero::None,
            (true, false) => Zero::Fixed(half),
        };
        let narrow = i32::from(ask.symmetric && ask.convention == Convention::Narrow);
        let offset = i32::from(self.bits) - i32::from(ask.symmetric);
        Ok(Meaning {
            grid: Grid::Int { lo: -half + shift + narrow, hi: half - 1 + shift, zero },
            scale: symmetric_scale(ask, offset),
            symmetric: ask.symmetric,
            convention: ask.convention,
        })
    }
}

struct Ternary;

impl QuantFormat for Ternary {
    fn id(&self) -> String {
        "ternary".to_owned()
    }

    fn bits(&self) -> u8 {
        2
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        if !ask.symmetric || ask.power_of_two.is_some() {
            return Err(Error::plan("plan::unsupported", "`ternary` has no zero point and no power-of-two scale")
                .hint("leave `symmetric` and `scale` out"));
        }
        let grid = Grid::Int { lo: -1, hi: 1, zero: Zero::None };
        Ok(Meaning { grid, scale: ScaleForm::Float(ask.stored), symmetric: true, convention: Convention::Narrow })
    }

    fn observer(&self) -> Option<&'static str> {
        Some("absmean")
    }
}

fn find(name: &str, prefix: &str, signed: bool) -> Option<Arc<dyn QuantFormat>> {
    let digits = name.strip_prefix(prefix)?;
    // "int04" is not a name.
    let bits = digits.parse::<u8>().ok().filter(|b| (2..=16).contains(b) && b.to_string() == digits)?;
    Some(Arc::new(Int { bits, signed }))
}

pub(super) const RECORDS: &[FormatRecord] = &[
    FormatRecord {
        id: "intN",
        summary: "signed integers of 2 to 16 bits: int2 … int16",
        version: env!("CARGO_PKG_VERSION"),
        source: "qfw-core",
        find: |name| find(name, "int", true),
    },
    FormatRecord {
        id: "uintN",
        summary: "integers of 2 to 16 bits, stored unsigned: uint2 … uint16",
        version: env!("CARGO_PKG_VERSION"),
        source: "qfw-core",
        find: |name| find(name, "uint", false),
    },
    FormatRecord {
        id: "ternary",
        summary: "-1, 0 and 1 in units of the mean magnitude (1.58 bits)",
        version: env!("CARGO_PKG_VERSION"),
        source: "qfw-core",
        find: |name| if name == "ternary" { Some(Arc::new(Ternary)) } else { None },
    },
];
