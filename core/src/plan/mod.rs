//! From raw configuration to the resolved, immutable plan.
//!
//! Raw configuration is plain data: the texts of presets, files and flags become one tree that remembers where each key came from
//! ([`layer`]), and that tree becomes a strict, typed [`raw::RawRun`]. Nothing here knows a model or a plugin.

mod activation;
mod alias;
mod branches;
mod budget;
pub mod cell;
#[cfg(test)]
mod cell_tests;
pub mod layer;
mod node;
mod online;
pub mod options;
mod passes;
pub mod preset;
mod quant;
pub mod raw;
#[cfg(test)]
mod raw_tests;
mod read;
mod resolve;
mod resolved;
mod rewrites;
pub mod section;
mod select;
mod set_path;
mod sites;
pub mod size;
pub mod spec;
mod streams;

pub use branches::PlannedBranch;
pub(crate) use branches::{fit as branches_fit, turned as turned_branch};
pub use budget::Budget;
pub(crate) use online::fit as online_fit;
pub use resolve::{ModelFacts, Resolved, needs_calibration, resolve};
pub use resolved::{
    CalibrationPlan, Failure, HarnessPlan, OutputPlan, Plan, PlannedActivation, PlannedOrigin, PlannedPass, PlannedSite, Products,
    Propagate, Sequence,
};
pub use rewrites::needs_untied_head;
