//! Small floats `eXmY`, in the three variants of [`FloatGrid`]: `float-e4m3`, `float-ocp-e4m3`, `float-fnuz-e4m3`.
//!
//! The scale is the statistic over the largest finite value. With powers of two the offset is the exponent of that value, which is the
//! rule of OCP's microscaling formats. `fp8` is `float-ocp-e4m3`, `fp4` is `float-e2m1`.

use std::sync::Arc;

use super::{Ask, FormatRecord, Meaning, QuantFormat, symmetric_scale};
use crate::error::{Error, Result};
use crate::scheme::{Convention, FloatGrid, FloatVariant, Grid, PowerRounding};

struct Float(FloatGrid);

impl QuantFormat for Float {
    fn id(&self) -> String {
        let (exp, man) = self.0.shape();
        let variant = match self.0.variant() {
            FloatVariant::Plain => "",
            FloatVariant::Ocp => "ocp-",
            FloatVariant::Fnuz => "fnuz-",
        };
        format!("float-{variant}e{exp}m{man}")
    }

    fn bits(&self) -> u8 {
        self.0.bits()
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        if !ask.symmetric {
            return Err(no_zero_point(&self.id()));
        }
        let offset = PowerRounding::Floor.exponent(f64::from(self.0.largest()));
        Ok(Meaning { grid: Grid::Float(self.0), scale: symmetric_scale(ask, offset), symmetric: true, convention: Convention::default() })
    }
}

/// Why a format of signed values refuses to be affine.
pub(super) fn no_zero_point(id: &str) -> Error {
    Error::plan("plan::unsupported", format!("`{id}` has no zero point")).hint("leave `symmetric` out, or use an integer format")
}

/// `e4m3`
pub(super) fn shape(text: &str, variant: FloatVariant) -> Option<FloatGrid> {
    let (exp, man) = text.strip_prefix('e')?.split_once('m')?;
    let digit = |s: &str| s.parse::<u8>().ok().filter(|n| n.to_string() == s);
    FloatGrid::new(digit(exp)?, digit(man)?, variant)
}

fn find(name: &str, prefix: &str, variant: FloatVariant) -> Option<Arc<dyn QuantFormat>> {
    Some(Arc::new(Float(shape(name.strip_prefix(prefix)?, variant)?)))
}

pub(super) const RECORDS: &[FormatRecord] = &[
    FormatRecord {
        id: "float-eXmY",
        summary: "floats of X exponent and Y mantissa bits, every code a number; fp4 is float-e2m1",
        version: env!("CARGO_PKG_VERSION"),
        source: "qfw-core",
        find: |name| find(if name == "fp4" { "float-e2m1" } else { name }, "float-", FloatVariant::Plain),
    },
    FormatRecord {
        id: "float-ocp-eXmY",
        summary: "floats as the Open Compute Project defines them; fp8 is float-ocp-e4m3",
        version: env!("CARGO_PKG_VERSION"),
        source: "qfw-core",
        find: |name| find(if name == "fp8" { "float-ocp-e4m3" } else { name }, "float-ocp-", FloatVariant::Ocp),
    },
    FormatRecord {
        id: "float-fnuz-eXmY",
        summary: "floats without infinity and negative zero",
        version: env!("CARGO_PKG_VERSION"),
        source: "qfw-core",
        find: |name| find(name, "float-fnuz-", FloatVariant::Fnuz),
    },
];
