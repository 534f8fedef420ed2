//! `xtask matrix`: every valid entry of every part of the scheme, in whole runs on tiny models.
//!
//! First the pairwise cover that the tests run, then as many cells as the longest list has entries, so that the whole product of each part
//! (weights, inputs, each tensor of attention) occurs, crossed with the other parts at random.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the summary is this task's output, the progress a developer's")]

use std::time::Instant;

use qfw_core::{Error, Result};
use qfw_tests::cells::{Runner, Space, cover, every_entry};

/// How much of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// At most so many runs
    #[arg(long)]
    limit: Option<usize>,
    /// Seed of the choice
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs the cells and prints a summary.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runner = Runner::new()?;
    let space = Space::new(runner.registry());
    let pairs = cover(&space, args.seed, 300);
    let covering = pairs.len();
    let mut cells = pairs;
    cells.extend(every_entry(&space, args.seed));
    println!("valid entries of each part: {:?}; {covering} cells hold every pair, {} hold every entry", space.sizes(), cells.len());
    cells.truncate(args.limit.unwrap_or(usize::MAX));
    let (start, mut failed, mut worst, mut largest) = (Instant::now(), 0, 0.0f64, 0.0f64);
    for (i, cell) in cells.iter().enumerate() {
        let outcome = runner.run(&space, cell);
        if let Ok(o) = &outcome {
            worst = worst.max(o.distance);
            largest = largest.max(o.perplexity);
        }
        let why = match outcome {
            Ok(o) if o.perplexity.is_finite() && o.distance < 1e-5 => None,
            Ok(o) => Some(format!("{o:?}")),
            Err(e) => Some(e.to_string()),
        };
        if let Some(why) = why {
            failed += 1;
            println!("{why}: {}", space.describe(cell));
        }
        if (i + 1) % 500 == 0 {
            eprintln!("{} of {}, {failed} failed, {:.0} s", i + 1, cells.len(), start.elapsed().as_secs_f64());
        }
    }
    println!(
        "{} runs, {failed} failed, {:.0} s; largest perplexity {largest:.1}, largest distance between run and checkpoint {worst:.1e}",
        cells.len(),
        start.elapsed().as_secs_f64()
    );
    if failed == 0 {
        return Ok(());
    }
    Err(Error::numeric("matrix::failed", format!("{failed} of {} cells failed", cells.len())).hint("each is listed above"))
}
