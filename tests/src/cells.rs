//! Whole runs drawn from the scheme space: a set in which any two choices that can go together do so once.
//!
//! A *cell* is a choice for every part of the scheme, the algorithm and the loop. What is valid within a part is asked of the planner and
//! listed whole; parts do not restrict each other, so a cell is one valid entry from each list.

mod cover;
mod run;
mod space;

pub use cover::{cover, every_entry};
pub use run::{Outcome, Runner};
pub use space::{Cell, Space};
