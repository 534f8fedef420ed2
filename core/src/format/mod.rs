//! The built-in number formats, one file per family.

mod int;

use crate::error::Result;
use crate::scheme::{Convention, Grid};

/// A number format: a name for a grid.
pub trait QuantFormat: Send + Sync {
    /// Its id.
    fn id(&self) -> &'static str;
    /// Width of a code.
    fn bits(&self) -> u8;
    /// Its values, with or without zero points.
    ///
    /// # Errors
    /// If it has no such variant.
    fn grid(&self, symmetric: bool, convention: Convention) -> Result<Grid>;
}

/// The record of a format in the registry.
pub struct FormatRecord {
    /// Its id.
    pub id: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// The implementation.
    pub format: &'static dyn QuantFormat,
}

inventory::collect!(FormatRecord);

/// The formats of this crate.
pub const BUILTIN: &[FormatRecord] = int::RECORDS;
