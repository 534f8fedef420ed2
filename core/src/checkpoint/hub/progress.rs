//! Turns transfer events into a few lines for a human.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};

/// Says when a download starts and each time another tenth has arrived.
pub(super) struct Reporter {
    state: Mutex<State>,
}

struct State {
    lines: Sender<String>,
    total: u64,
    /// Bytes so far of files that are fetched one by one.
    files: BTreeMap<String, u64>,
    /// Bytes so far of files that are fetched together.
    batch: u64,
    /// Tenths already told.
    told: u64,
}

impl Reporter {
    pub(super) fn new(lines: Sender<String>) -> Self {
        Self { state: Mutex::new(State { lines, total: 0, files: BTreeMap::new(), batch: 0, told: 0 }) }
    }
}

impl ProgressHandler for Reporter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            DownloadEvent::Start { total_bytes, .. } if *total_bytes > 0 => {
                state.total = *total_bytes;
                state.say(format!("downloading {}", megabytes(*total_bytes)));
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    state.files.insert(file.filename.clone(), file.bytes_completed);
                }
                state.tell_tenths();
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => {
                state.batch = *bytes_completed;
                state.tell_tenths();
            }
            _ => {}
        }
    }
}

impl State {
    fn tell_tenths(&mut self) {
        let done = self.files.values().sum::<u64>().saturating_add(self.batch).min(self.total);
        let tenths = done.saturating_mul(10).checked_div(self.total).unwrap_or(0);
        if tenths > self.told {
            self.told = tenths;
            self.say(format!("downloaded {} of {}", megabytes(done), megabytes(self.total)));
        }
    }

    fn say(&self, line: String) {
        // Nobody listens any more: the download goes on in silence.
        let _ = self.lines.send(line);
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
