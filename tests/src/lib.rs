//! What the end-to-end tests and the developers' tasks share.

pub mod cells;
pub mod features;
pub mod parity;
pub mod workspace;
