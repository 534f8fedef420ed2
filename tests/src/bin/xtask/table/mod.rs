//! `xtask table`: a model quantized by each row of a table and measured, as one Markdown file.
//!
//! Rows are data ([`Table`]); this folder knows how to run, keep and print them. Every finished row is a line of a file beside the
//! output, so a run that was killed goes on where it stood.

#![allow(clippy::print_stderr, reason = "a developer watches the rows go by")]

mod measure;
mod render;
mod schemes;

use std::path::PathBuf;

use qfw_core::{Error, Result};

use crate::program::{Evaluation, build};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Which table: schemes
    table: String,
    /// Directory with config.json and *.safetensors
    model: PathBuf,
    /// Calibration data, as for `qfw apply --data`
    #[arg(long)]
    data: PathBuf,
    /// Windows of calibration
    #[arg(long, default_value_t = 8)]
    samples: usize,
    /// Data to measure perplexity on, as for `qfw eval --data`
    #[arg(long)]
    eval: PathBuf,
    /// Tokens per window of the evaluation
    #[arg(long, default_value_t = 512)]
    seq_len: usize,
    /// Windows of the evaluation
    #[arg(long, default_value_t = 8)]
    max_windows: usize,
    /// The Markdown file; finished rows are kept beside it as FILE.jsonl
    #[arg(long, default_value = "table.md")]
    out: PathBuf,
    /// What to say of the date and the machine
    #[arg(long)]
    note: Option<String>,
    /// Only rows whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// A table: what is run, and what is expected of it.
struct Table {
    title: &'static str,
    rows: Vec<Row>,
    orderings: Vec<Ordering>,
    /// Why a row is worse than one it was expected to beat: better, worse, reason.
    reasons: &'static [(&'static str, &'static str, &'static str)],
}

/// One way to quantize the model.
#[derive(Clone, Debug)]
struct Row {
    /// Part of the table.
    section: &'static str,
    /// Its name, unique in the table.
    id: String,
    /// The `run.toml` without model and data; none for the float model.
    recipe: Option<String>,
}

/// Two rows of which the first should not have the larger loss.
#[derive(Clone, Debug)]
struct Ordering {
    kind: &'static str,
    better: String,
    worse: String,
}

/// Runs the rows that are not done yet and writes the table.
pub(crate) fn run(args: &Args) -> Result<()> {
    let table = match args.table.as_str() {
        "schemes" => schemes::table(),
        other => return Err(Error::config("table::unknown", format!("unknown table `{other}`")).hint("tables: schemes")),
    };
    let evaluation = Evaluation { data: args.eval.clone(), seq_len: args.seq_len, max_windows: args.max_windows };
    let job = measure::Job { qfw: &build()?, model: &args.model, data: &args.data, samples: args.samples, evaluation: &evaluation };
    let mut kept = measure::Kept::open(&args.out.with_extension("jsonl"))?;
    let mut done = Vec::new();
    // What everything is compared with comes first, and is always needed.
    let wanted = |row: &Row| row.recipe.is_none() || args.only.as_ref().is_none_or(|part| row.id.contains(part.as_str()));
    for row in table.rows.iter().filter(|r| wanted(r)) {
        let measured = match kept.find(&job, row)? {
            Some(measured) => measured,
            None => kept.add(&job, row, job.run(row)?)?,
        };
        eprintln!("{}: {:.3}", row.id, measured.perplexity);
        done.push((row, measured));
    }
    let text = render::markdown(&table, args, &done);
    std::fs::write(&args.out, text).map_err(|e| Error::io(&args.out, "write", e))
}
