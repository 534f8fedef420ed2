//! Formats defined together with their scales: the microscaling formats of the Open Compute Project, and NVFP4.
//!
//! MX (OCP Microscaling Formats 1.0): runs of 32 elements share a power of two, `s = 2^(⌊log₂ a⌋ − e_max)`, with `a` the largest
//! magnitude and `e_max` the exponent of the element format's largest value. `mxint8` counts its integers in units of `2^−6`, so its
//! exponent is `⌊log₂ a⌋ − 6`.
//!
//! NVFP4: runs of 16 e2m1 elements share an e4m3 scale, and the tensor an f32 factor that puts those scales into e4m3's range.

use std::sync::Arc;

use super::float::{no_zero_point, shape};
use super::{Ask, FormatRecord, Meaning, QuantFormat};
use crate::error::{Error, Result};
use crate::scheme::{Convention, FloatVariant, Granularity, Grid, PowerRounding, ScaleForm, Zero};

struct Mx {
    id: &'static str,
    bits: u8,
}

impl Mx {
    /// The elements and the exponent of the largest.
    fn elements(&self) -> Option<(Grid, i32)> {
        if self.id == "mxint8" {
            return Some((Grid::Int { lo: -128, hi: 127, zero: Zero::None }, 6));
        }
        let text = match self.id {
            "mxfp4" => "e2m1",
            id => id.split_once('-')?.1,
        };
        let grid = shape(text, FloatVariant::Ocp)?;
        Some((Grid::Float(grid), PowerRounding::Floor.exponent(f64::from(grid.largest()))))
    }
}

impl QuantFormat for Mx {
    fn id(&self) -> String {
        self.id.to_owned()
    }

    fn bits(&self) -> u8 {
        self.bits
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        if !ask.symmetric {
            return Err(no_zero_point(self.id));
        }
        let (grid, offset) = self.elements().ok_or_else(|| Error::internal(format!("`{}` has no elements", self.id)))?;
        let rounding = ask.power_of_two.unwrap_or(PowerRounding::Floor);
        Ok(Meaning { grid, scale: ScaleForm::PowerOfTwo { rounding, offset }, symmetric: true, convention: Convention::PowB1 })
    }

    fn granularity(&self) -> Option<Granularity> {
        Some(Granularity::group(32))
    }
}

struct Nvfp4;

impl QuantFormat for Nvfp4 {
    fn id(&self) -> String {
        "nvfp4".to_owned()
    }

    fn bits(&self) -> u8 {
        4
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        if !ask.symmetric {
            return Err(no_zero_point("nvfp4"));
        }
        if ask.power_of_two.is_some() {
            return Err(Error::plan("plan::unsupported", "`nvfp4` has e4m3 scales, not powers of two").hint("leave `scale` out"));
        }
        let grid = shape("e2m1", FloatVariant::Ocp).ok_or_else(|| Error::internal("there is no e2m1"))?;
        Ok(Meaning { grid: Grid::Float(grid), scale: ScaleForm::TwoLevel, symmetric: true, convention: Convention::default() })
    }

    fn granularity(&self) -> Option<Granularity> {
        Some(Granularity::group(16))
    }
}

macro_rules! records {
    ($($id:literal $bits:literal $summary:literal;)*) => {
        pub(super) const RECORDS: &[FormatRecord] = &[
            $(FormatRecord {
                id: $id,
                summary: $summary,
                version: env!("CARGO_PKG_VERSION"),
                source: "qfw-core",
                find: |name| if name == $id { Some(Arc::new(Mx { id: $id, bits: $bits })) } else { None },
            },)*
            FormatRecord {
                id: "nvfp4",
                summary: "e2m1 in runs of 16 with e4m3 scales and a factor per tensor",
                version: env!("CARGO_PKG_VERSION"),
                source: "qfw-core",
                find: |name| if name == "nvfp4" { Some(Arc::new(Nvfp4)) } else { None },
            },
        ];
    };
}

records! {
    "mxfp4" 4 "e2m1 in runs of 32 that share a power of two";
    "mxfp6-e2m3" 6 "e2m3 in runs of 32 that share a power of two";
    "mxfp6-e3m2" 6 "e3m2 in runs of 32 that share a power of two";
    "mxfp8-e4m3" 8 "e4m3 in runs of 32 that share a power of two";
    "mxfp8-e5m2" 8 "e5m2 in runs of 32 that share a power of two";
    "mxint8" 8 "8-bit integers in runs of 32 that share a power of two";
}
