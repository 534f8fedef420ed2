//! `qfw`: quantize language models with one binary.

mod allocator;
mod arguments;
mod assets;
mod command;
mod compat;
mod dynamic;
mod hub;
mod plugins;
mod terminal;
mod unknown_flag;

use std::process::ExitCode;

use clap::Parser;
use qfw_core::ErrorKind;

use arguments::{Cli, Command};

fn main() -> ExitCode {
    allocator::tune();
    let command = std::env::args_os().nth(1).and_then(|word| word.into_string().ok()).unwrap_or_default();
    let cli = Cli::try_parse().unwrap_or_else(|e| unknown_flag::with_keys(e, &command).exit());
    let result = match cli.command {
        Command::Quickstart(a) => command::quickstart::run(&a),
        Command::ListPlugins(a) => command::list_plugins::run(&a),
        Command::Plan(a) => command::plan::run(&a),
        Command::Apply(a) => command::apply::run(&a),
        Command::Eval(a) => command::eval::run(&a),
        Command::Compare(a) => command::compare::run(&a),
        Command::Inspect(a) => command::inspect::run(&a),
        Command::Export(a) => command::export::run(&a),
        Command::Verify(a) => command::verify::run(&a),
        Command::Generate(a) => command::generate::run(&a),
        Command::Topology(a) => command::topology::run(&a),
        Command::Plugin(a) => command::plugin::run(&a),
        Command::Schema => command::schema::run(),
        Command::Completions(a) => command::completions::run(&a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            terminal::print_error(&e);
            ExitCode::from(match e.kind() {
                ErrorKind::Config | ErrorKind::Plan => 2,
                ErrorKind::Plugin => 3,
                ErrorKind::Numeric => 4,
                ErrorKind::Interrupted => 130,
                _ => 1,
            })
        }
    }
}
