//! `cargo xtask targets`: writes the page of what engines load from the rules.

use qfw_core::{Error, Result};
use qfw_tests::workspace;

/// Nothing to choose.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    let path = workspace::root().join("docs/targets.md");
    std::fs::write(&path, qfw_core::target::page()?).map_err(|e| Error::io(&path, "write", e))
}
