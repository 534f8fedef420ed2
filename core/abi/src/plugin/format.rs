//! Number formats of a library.

use std::ptr::null;

use super::export::forever;
use super::{Failure, Result, Status};
use crate::raw;

/// What the codes of a format stand for, but for a scale. None of them have zero points.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Every integer from the one to the other.
    Integers {
        /// The smallest.
        least: i32,
        /// The largest.
        greatest: i32,
    },
    /// A table of 2 to 256 finite numbers, rising.
    Levels(Vec<f32>),
}

/// What is known of a number format.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatDescriptor {
    /// Its id, such as `example.seven`.
    pub id: String,
    /// One line.
    pub summary: String,
    /// Its values.
    pub values: Values,
}

/// A number format: a name for a grid, which then works in every algorithm.
pub trait Format: Sync {
    /// What is known of it. The same each time.
    ///
    /// # Errors
    /// If it cannot be described so.
    fn descriptor(&self) -> Result<FormatDescriptor>;
}

/// The description of a format as it crosses, for the life of the process.
pub(super) struct Described {
    pub(super) raw: raw::FormatDesc,
    // What `raw` points to.
    _grid: Box<raw::Grid>,
    _levels: Vec<f32>,
}

// SAFETY: its pointers are to what it owns, and to leaked strings; nobody writes to either.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Described {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Described {}

/// Bits of a code that tells so many values apart.
fn bits(values: u64) -> u32 {
    values.next_power_of_two().trailing_zeros().max(1)
}

impl Described {
    /// Asks a format.
    ///
    /// # Errors
    /// Its own, or that it has no values at all.
    pub(super) fn of(format: &dyn Format) -> Result<Self> {
        let FormatDescriptor { id, summary, values } = format.descriptor()?;
        let empty = || Failure::new(Status::Unsupported, format!("the number format `{id}` has no values"));
        let (kind, (lo, hi), levels) = match values {
            Values::Integers { least, greatest } if least <= greatest => (raw::GRID_INT, (least, greatest), Vec::new()),
            Values::Levels(levels) if !levels.is_empty() => {
                (raw::GRID_LEVELS, (0, i32::try_from(levels.len() - 1).map_err(|_| empty())?), levels)
            }
            _ => return Err(empty()),
        };
        let grid = Box::new(raw::Grid {
            size: size_of::<raw::Grid>() as u32,
            kind,
            lo,
            hi,
            bits: bits(u64::from(hi.abs_diff(lo)) + 1),
            zero: raw::ZERO_NONE,
            fixed_zero: 0,
            exponent: 0,
            mantissa: 0,
            variant: 0,
            levels: if levels.is_empty() { null() } else { levels.as_ptr() },
            n_levels: levels.len(),
        });
        let raw = raw::FormatDesc {
            size: size_of::<raw::FormatDesc>() as u32,
            reserved: 0,
            id: forever(&id),
            summary: forever(&summary),
            grid: &*grid,
        };
        Ok(Self { raw, _grid: grid, _levels: levels })
    }
}
