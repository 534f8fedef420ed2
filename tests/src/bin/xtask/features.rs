//! `xtask features`: the counts of `tests/features.toml`, and whether its claims hold.

#![allow(clippy::print_stdout, reason = "the counts are this task's output")]

use qfw_core::{Error, Result};
use qfw_tests::features::{FILE, Features, State, series};
use qfw_tests::workspace;

/// Nothing to choose.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {}

/// Prints the counts and checks the rows.
pub(crate) fn run(_: &Args) -> Result<()> {
    let root = workspace::root();
    let features = Features::read(&root)?;
    for letter in series() {
        let (done, open) = (features.count(letter, State::Done), features.count(letter, State::Open));
        println!("{letter}: {done} done, {open} open, {} in all", done + open);
    }
    let problems = features.problems(&root);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::input("features::unproven", format!("`{FILE}` does not hold:\n  {}", problems.join("\n  ")))
        .hint("a done row names tests that exist: `test = [\"path/from/the/root.rs::test_name\"]`"))
}
