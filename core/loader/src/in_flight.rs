//! Which plugins are at work right now, for whoever waits for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Calls that have not returned.
#[derive(Clone, Default)]
pub struct InFlight(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    calls: BTreeMap<u64, (String, Instant)>,
}

/// A call; dropped when it returns.
pub(crate) struct Flying {
    of: InFlight,
    number: u64,
}

impl InFlight {
    /// The calls, oldest first, and how long ago they began: ``plugin `com.example.near` 0.1.0 in `blocks.0.attn.q` ``.
    pub fn calls(&self) -> Vec<(String, Duration)> {
        self.0.lock().map(|s| s.calls.values().map(|(what, since)| (what.clone(), since.elapsed())).collect()).unwrap_or_default()
    }

    pub(crate) fn enter(&self, what: String) -> Flying {
        let mut number = 0;
        if let Ok(mut state) = self.0.lock() {
            number = state.next;
            state.next += 1;
            state.calls.insert(number, (what, Instant::now()));
        }
        Flying { of: self.clone(), number }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        if let Ok(mut state) = self.of.0.lock() {
            state.calls.remove(&self.number);
        }
    }
}
