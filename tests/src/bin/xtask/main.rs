//! `cargo xtask`: what developers run and users do not. A task is one file (or folder) and one arm of [`Task`].

mod compare;
mod features;
mod fuzz;
mod interop;
mod kept;
mod logits;
mod matrix;
mod parity;
mod program;
mod roofline;
mod table;
mod targets;
mod train_tiny;

use std::process::ExitCode;

use clap::Parser as _;

/// Rates are measured as the program runs.
#[global_allocator]
static ALLOCATOR: qfw_core::CacheLines = qfw_core::CacheLines;

/// Tasks of this repository's developers
#[derive(clap::Parser)]
#[command(name = "cargo xtask")]
struct Line {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Time qfw and a peer (llm-compressor, AutoRound, Brevitas) side by side, with the same recipe on the same ids
    Compare(compare::Args),
    /// Count the rows of `tests/features.toml`, and fail if a done one names no test
    Features(features::Args),
    /// Feed hostile input to every reader, guided by coverage
    Fuzz(fuzz::Args),
    /// Run every container in the engines that read it, and compare with ours and with `--target`
    Interop(interop::Args),
    /// Write our logits of the first windows of a text
    Logits(logits::Args),
    /// Run every valid scheme on tiny models
    Matrix(matrix::Args),
    /// Compare our logits of a model with those of transformers
    Parity(parity::Args),
    /// Count the arithmetic of a GPTQ run, and hold the run to what it takes at this machine's rates
    Roofline(roofline::Args),
    /// Quantize a model by every row of a table, and write the table
    Table(table::Args),
    /// Write `docs/targets.md` from the rules about engines
    Targets(targets::Args),
    /// Train the tiny models that `qfw quickstart` carries
    TrainTiny(train_tiny::Args),
}

#[allow(clippy::print_stderr, reason = "a developer's task reports failure on stderr")]
fn main() -> ExitCode {
    let done = match &Line::parse().task {
        Task::Compare(args) => compare::run(args),
        Task::Features(args) => features::run(args),
        Task::Fuzz(args) => fuzz::run(args),
        Task::Interop(args) => interop::run(args),
        Task::Logits(args) => logits::run(args),
        Task::Matrix(args) => matrix::run(args),
        Task::Parity(args) => parity::run(args),
        Task::Roofline(args) => roofline::run(args),
        Task::Table(args) => table::run(args),
        Task::Targets(args) => targets::run(args),
        Task::TrainTiny(args) => train_tiny::run(args),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    if let Some(hint) = error.hint_text() {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}
