//! `qfw completions`

use clap::CommandFactory;
use qfw_core::Result;

use crate::arguments::{Cli, Completions};

pub(crate) fn run(a: &Completions) -> Result<()> {
    clap_complete::generate(a.shell, &mut Cli::command(), "qfw", &mut anstream::stdout());
    Ok(())
}
