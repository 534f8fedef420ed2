//! The built-in number formats, one file per family.
//!
//! A format is a name for a grid and a scale rule. Families answer to many names (`int2` … `int16`, `float-e4m3`), so a record is asked
//! whether a name is its own.

mod block_scaled;
mod float;
mod int;
mod levels;

use std::sync::Arc;

use crate::error::Result;
use crate::scheme::{Convention, FloatKind, Granularity, Grid, PowerRounding, ScaleForm, Zero};

/// What a scheme asks of a format.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Without zero points.
    pub symmetric: bool,
    /// The scale of symmetric integers.
    pub convention: Convention,
    /// Zero points are floats, added before rounding.
    pub float_zero: bool,
    /// Scales are powers of two, rounded so; `None` leaves it to the format.
    pub power_of_two: Option<PowerRounding>,
    /// The float type scales are stored in where they are floats.
    pub stored: FloatKind,
}

/// What a format makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Meaning {
    /// Its values.
    pub grid: Grid,
    /// How scales are formed.
    pub scale: ScaleForm,
    /// Without zero points.
    pub symmetric: bool,
    /// The convention that holds; formats with one of their own ignore what was asked.
    pub convention: Convention,
}

/// A number format.
pub trait QuantFormat: Send + Sync {
    /// Its canonical id.
    fn id(&self) -> String;
    /// Width of a code.
    fn bits(&self) -> u8;
    /// Its values and scales.
    ///
    /// # Errors
    /// If it has no such variant.
    fn resolve(&self, ask: &Ask) -> Result<Meaning>;
    /// The one granularity it is defined with, if there is one.
    fn granularity(&self) -> Option<Granularity> {
        None
    }
    /// The observer it is defined with, if there is one.
    fn observer(&self) -> Option<&'static str> {
        None
    }
}

/// The record of a format, or of a family of them, in the registry.
pub struct FormatRecord {
    /// Its id, or the pattern of a family's ids.
    pub id: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// The format of this name, if it is one of the family's.
    pub find: fn(&str) -> Option<Arc<dyn QuantFormat>>,
}

inventory::collect!(FormatRecord);

/// The formats of this crate.
pub const BUILTIN: &[&[FormatRecord]] = &[int::RECORDS, float::RECORDS, levels::RECORDS, block_scaled::RECORDS];

/// The scale of a format without zero points whose statistic is divided by `2^offset` (powers of two) or by its largest value (floats).
fn symmetric_scale(ask: &Ask, offset: i32) -> ScaleForm {
    match ask.power_of_two {
        Some(rounding) => ScaleForm::PowerOfTwo { rounding, offset },
        None => ScaleForm::Float(ask.stored),
    }
}

/// A zero point as asked.
fn zero_of(ask: &Ask) -> Zero {
    if ask.float_zero { Zero::Float } else { Zero::Integer }
}
