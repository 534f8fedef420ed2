//! Run-time plugins: found, checked, loaded, and put into a registry like any other algorithm.
//!
//! A package is a directory with a `plugin.toml` ([`Manifest`]) and a library. [`Catalog::scan`] reads manifests and runs nothing;
//! [`Catalog::register`] makes entries of a registry from them. A library is opened when one of its algorithms is built first, after its
//! hash has been compared with the one that was pinned when the user added it. Then, in this order: the symbol, the version of the
//! interface, what it declares against what its manifest says. It stays open until the process ends.
//!
//! What a plugin returns is checked before it is used. Errors name the plugin; those of a broken contract end a run with the kind
//! [`qfw_core::ErrorKind::Plugin`]. A plugin is native code with the rights of its user: a hash says which code runs, not that it means well.
//!
//! All `unsafe` of the host's side is in this crate, so that `qfw-core` has none of it.

mod added;
mod algorithm;
mod call;
mod catalog;
pub mod conformance;
mod contract;
mod describe;
mod format;
mod given;
mod guest;
mod in_flight;
mod library;
mod manifest;
mod numeric;
mod options;
mod package;
mod passed;
mod site;
mod tensor;

pub use added::{Added, AddedPlugin};
pub use catalog::{Catalog, Places, Policy};
pub use guest::Host;
pub use in_flight::InFlight;
pub use manifest::{Manifest, ManifestAlgo, ManifestFormat, target};
pub use package::{Origin, Package, hash_file, shell_word};

use qfw_core::{Error, ErrorKind};

/// An error about a plugin: exit code 3.
pub(crate) fn plugin_error(code: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Plugin, code, message)
}
