//! The border between qfw and plugins that are loaded at run time.
//!
//! `include/qfw_plugin.h` is the interface: plain C, versioned, and only ever appended to. [`raw`] mirrors it for Rust, [`layout`] is what
//! a test compares with `abi.lock`, so that no member moves unseen. [`plugin`] lets a plugin be written in safe Rust: implement
//! [`plugin::Factory`] and [`plugin::Algorithm`], and name them in [`export_plugin!`].
//!
//! The crate depends on nothing, so that a plugin builds without a network.

pub mod layout;
pub mod plugin;
pub mod raw;

/// The header, for those who write plugins in C.
pub const HEADER: &str = include_str!("../include/qfw_plugin.h");
