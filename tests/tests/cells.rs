//! Any two choices of the scheme space, the algorithms and the loop go together: whole runs on tiny models.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use qfw_tests::cells::{Runner, Space, cover};

/// Cells that hold every pair of choices, each planned, applied, read again and measured: the perplexity is a number, and the written
/// checkpoint computes what the run computed.
#[test]
fn every_pair_of_choices_runs_and_reads_back_as_it_ran() {
    let runner = Runner::new().unwrap();
    let space = Space::new(runner.registry());
    let cells = cover(&space, 0, 300);
    assert!(cells.len() >= 300);
    let failed = runner.run_all(&space, &cells, &|_| ());
    let mut kinds: Vec<String> = failed.iter().map(|(why, cell)| format!("{why}: {}", space.describe(cell))).collect();
    kinds.dedup_by(|a, b| a.split(':').next() == b.split(':').next());
    assert!(failed.is_empty(), "{} of {} cells:\n{}", failed.len(), cells.len(), kinds[..kinds.len().min(8)].join("\n"));
}
