//! `xtask matrix`: every valid entry of every part of the scheme, in whole runs on tiny models.
//!
//! First the pairwise cover that the tests run, then as many cells as the longest list has entries, so that the whole product of each part
//! (weights, inputs, each tensor of attention) occurs, crossed with the other parts at random.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the summary is this task's output, the progress a developer's")]

use std::sync::Mutex;
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
    let start = Instant::now();
    // Runs so far, the largest perplexity and the largest distance.
    let sums = Mutex::new((0usize, 0.0f64, 0.0f64));
    let failed = runner.run_all(&space, &cells, &|outcome| {
        let Ok(mut sums) = sums.lock() else { return };
        sums.0 += 1;
        if let Ok(o) = outcome {
            (sums.1, sums.2) = (sums.1.max(o.perplexity), sums.2.max(o.distance));
        }
        if sums.0.is_multiple_of(500) {
            eprintln!("{} of {}, {:.0} s", sums.0, cells.len(), start.elapsed().as_secs_f64());
        }
    });
    for (why, cell) in &failed {
        println!("{why}: {}", space.describe(cell));
    }
    let (runs, largest, worst) = sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "{runs} runs, {} failed, {:.0} s; largest perplexity {largest:.1}, largest distance between run and checkpoint {worst:.1e}",
        failed.len(),
        start.elapsed().as_secs_f64()
    );
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::numeric("matrix::failed", format!("{} of {} cells failed", failed.len(), cells.len())).hint("each is listed above"))
}
