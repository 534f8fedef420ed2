//! Turns what arrives into a few lines for a human.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a slow download is told of, at least.
const INTERVAL: Duration = Duration::from_secs(30);

/// Says how much there is to fetch, and then, at each tenth of it and every so often, how much is there and how long the rest will take.
#[derive(Clone)]
pub(super) struct Progress {
    lines: Sender<String>,
    /// In bytes.
    total: u64,
    state: Arc<Mutex<State>>,
}

struct State {
    begun: Instant,
    told: Instant,
    /// Tenths already told.
    tenths: u64,
    /// Bytes that are there, and those of them that came since the beginning.
    there: u64,
    came: u64,
}

impl Progress {
    pub(super) fn new(lines: Sender<String>, total: u64) -> Self {
        let now = Instant::now();
        let state = State { begun: now, told: now, tenths: 0, there: 0, came: 0 };
        let new = Self { lines, total, state: Arc::new(Mutex::new(state)) };
        if total > 0 {
            new.say(format!("downloading {}", megabytes(total)));
        }
        new
    }

    /// `bytes` were on disk already.
    pub(super) fn found(&self, bytes: u64) {
        self.state().there += bytes;
    }

    /// `bytes` have to be fetched again.
    pub(super) fn lost(&self, bytes: u64) {
        let mut state = self.state();
        state.there = state.there.saturating_sub(bytes);
    }

    /// `bytes` came.
    pub(super) fn came(&self, bytes: u64) {
        let mut state = self.state();
        state.there += bytes;
        state.came += bytes;
        let tenths = state.there.saturating_mul(10).checked_div(self.total).unwrap_or(0);
        let now = Instant::now();
        if tenths > state.tenths || now - state.told > INTERVAL {
            (state.tenths, state.told) = (tenths, now);
            let rate = state.came as f64 / (now - state.begun).as_secs_f64().max(1e-3);
            let left = time_left(self.total.saturating_sub(state.there) as f64 / rate);
            self.say(format!("downloaded {} of {}{left}", megabytes(state.there), megabytes(self.total)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, line: String) {
        // Nobody listens any more: the download goes on in silence.
        let _ = self.lines.send(line);
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Nothing where it is not worth a word.
fn time_left(seconds: f64) -> String {
    match seconds {
        s if s >= 90.0 => format!(", about {:.0} min left", s / 60.0),
        s if s >= 5.0 => format!(", about {s:.0} s left"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_are_told_once_and_time_only_of_what_came() {
        let (lines, told) = std::sync::mpsc::channel();
        let progress = Progress::new(lines, 100_000_000);
        progress.found(40_000_000);
        progress.came(1_000_000);
        progress.came(1_000_000);
        // As if the two had taken ten seconds: 58 are left.
        progress.state().begun -= Duration::from_secs(10);
        progress.came(8_000_000);
        progress.lost(50_000_000);
        progress.came(100_000_000);
        drop(progress);
        assert_eq!(
            told.iter().collect::<Vec<_>>(),
            [
                "downloading 100.0 MB",
                "downloaded 41.0 MB of 100.0 MB",
                "downloaded 50.0 MB of 100.0 MB, about 50 s left",
                "downloaded 100.0 MB of 100.0 MB"
            ]
        );
    }

    #[test]
    fn long_times_are_in_minutes() {
        assert_eq!([1.0, 30.0, 600.0].map(time_left), ["", ", about 30 s left", ", about 10 min left"].map(str::to_owned));
    }
}
