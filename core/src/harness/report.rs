//! What a run tells while it works and when it is done.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::algorithm::Event;

/// A step of a run, for progress displays.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Progress {
    /// Blocks `done` of `total` were finished by an earlier run.
    Resumed {
        /// Finished blocks.
        done: u32,
        /// All blocks.
        total: u32,
    },
    /// Steps `done` of `total` of learning the rotations of the model were taken by an earlier run.
    RotationsResumed {
        /// Steps so far.
        done: usize,
        /// All steps.
        total: usize,
    },
    /// A step of learning the rotations of the model was taken.
    Rotations {
        /// Steps so far.
        done: usize,
        /// All steps.
        total: usize,
        /// The objective before the step, on its windows.
        loss: f64,
    },
    /// Work on a block began.
    Block {
        /// The block.
        block: u32,
        /// All blocks.
        total: u32,
    },
    /// A step inside the block.
    Step {
        /// `collect`, `transform`, `round`, `learn`, `correct`, `propagate` or `write`.
        name: &'static str,
    },
    /// One call of an algorithm has come so far; those that are loaded at run time tell.
    Call {
        /// What is called, and on what.
        what: String,
        /// Steps so far, of a unit of its own.
        done: u64,
        /// All steps; at least `done`.
        total: u64,
    },
    /// A block is on disk.
    BlockDone {
        /// Blocks finished so far.
        done: u32,
        /// All blocks.
        total: u32,
        /// Seconds it took.
        seconds: f64,
        /// Its sites.
        sites: Vec<SiteReport>,
    },
    /// A container is being written.
    Export {
        /// Its id.
        format: String,
    },
}

/// What became of a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SiteReport {
    /// Role path.
    pub site: String,
    /// The algorithm that rounded it.
    pub algo: String,
    /// `‖W − Ŵ‖ / ‖W‖`
    pub weight_error: f64,
    /// `‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖` on the calibration activations, where they were collected.
    pub output_error: Option<f64>,
    /// What happened on the way.
    pub events: Vec<Event>,
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Every site, in order.
    pub sites: Vec<SiteReport>,
    /// Seconds of this process's part of the run.
    pub seconds: f64,
    /// Seconds spent rounding each site, by name; sites that an earlier process finished have none.
    pub site_seconds: BTreeMap<String, f64>,
    /// Bytes of the containers' weight files.
    pub bytes: u64,
    /// The same for each format.
    pub format_bytes: BTreeMap<String, u64>,
    /// Nothing had to be done: OUT was finished under the same plan.
    pub already_done: bool,
}

/// Peak resident memory of this process so far (`VmHWM`), in bytes; 0 where the system does not say.
pub fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
