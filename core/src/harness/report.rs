//! What a run tells while it works and when it is done.

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
    /// Work on a block began.
    Block {
        /// The block.
        block: u32,
        /// All blocks.
        total: u32,
    },
    /// A step inside the block.
    Step {
        /// `collect`, `round`, `propagate` or `write`.
        name: &'static str,
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
    /// Seconds per site are not kept; seconds of this process's part of the run.
    pub seconds: f64,
    /// Bytes of the containers' weight files.
    pub bytes: u64,
    /// Nothing had to be done: OUT was finished under the same plan.
    pub already_done: bool,
}
