//! Integers of two to eight bits, signed (`int4`) and stored unsigned (`uint4`).
//!
//! A symmetric unsigned format is its signed sibling shifted by `2^(b−1)`, the same values and scales; it exists because some
//! containers store it so.

use super::{FormatRecord, QuantFormat};
use crate::error::Result;
use crate::scheme::{Convention, Grid, Zero};

struct Int {
    id: &'static str,
    bits: u8,
    signed: bool,
}

impl QuantFormat for Int {
    fn id(&self) -> &'static str {
        self.id
    }

    fn bits(&self) -> u8 {
        self.bits
    }

    fn grid(&self, symmetric: bool, convention: Convention) -> Result<Grid> {
        let half = 1 << (self.bits - 1);
        let shift = if self.signed { 0 } else { half };
        let zero = match (symmetric, self.signed) {
            (false, _) => Zero::Integer,
            (true, true) => Zero::None,
            (true, false) => Zero::Fixed(half),
        };
        let narrow = i32::from(symmetric && convention == Convention::Narrow);
        Ok(Grid::Int { lo: -half + shift + narrow, hi: half - 1 + shift, zero })
    }
}

macro_rules! records {
    ($($id:literal $bits:literal $signed:literal $summary:literal;)*) => {
        pub(super) const RECORDS: &[FormatRecord] = &[$(FormatRecord {
            id: $id,
            summary: $summary,
            version: env!("CARGO_PKG_VERSION"),
            source: "qfw-core",
            format: &Int { id: $id, bits: $bits, signed: $signed },
        }),*];
    };
}

records! {
    "int2" 2 true "signed 2-bit integer";
    "int3" 3 true "signed 3-bit integer";
    "int4" 4 true "signed 4-bit integer";
    "int5" 5 true "signed 5-bit integer";
    "int6" 6 true "signed 6-bit integer";
    "int7" 7 true "signed 7-bit integer";
    "int8" 8 true "signed 8-bit integer";
    "uint2" 2 false "2-bit integer stored unsigned";
    "uint3" 3 false "3-bit integer stored unsigned";
    "uint4" 4 false "4-bit integer stored unsigned";
    "uint5" 5 false "5-bit integer stored unsigned";
    "uint6" 6 false "6-bit integer stored unsigned";
    "uint7" 7 false "7-bit integer stored unsigned";
    "uint8" 8 false "8-bit integer stored unsigned";
}
