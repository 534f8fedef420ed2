//! The same algorithm, linked or loaded.
//!
//! A crate that implements [`qfw_core::algorithm::PtqAlgorithm`] and has a record becomes a plugin that is loaded at run time by naming
//! the record:
//!
//! ```ignore
//! use qfw_bridge::Linked;
//! qfw_abi::export_plugin! { id: "com.example.mine", version: env!("CARGO_PKG_VERSION"), algorithms: [&Linked(&mine::RECORD)] }
//! ```
//!
//! [`LinkedFormat`] is the same for a number format.
//!
//! [`Linked`] makes what the algorithm wants to see from what crosses the border, in the library's own copy of `qfw-core`; no type of Rust
//! does cross. Its numbers are those of the linked build, bit for bit, as both run the same code on the same numbers.
//!
//! What needs more than the border carries is refused when it is made, with the reason: transforms of the whole model and of regions by
//! replay, rounding of whole blocks with gradients, and corrections want to run the model.

mod format;
mod linked;
mod region;
mod statistics;
pub mod wire;

pub use format::LinkedFormat;
pub use linked::{Linked, link_time_only};
