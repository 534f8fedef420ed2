//! What an algorithm asks of the harness before the run.

use crate::statistic::{StatKind, Stream};
use crate::topology::{Linear, Topology};

/// Statistics at the input of every site a pass works on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Collected at the input port of each site.
    pub inputs: Vec<(StatKind, Stream)>,
    /// Its groups do not run in storage order: the container has to hold a group index per input channel.
    pub group_index: bool,
    /// Solver scratch in bytes for the widest site, for the memory plan.
    pub scratch_bytes: u64,
}

/// What an algorithm may look at when it states its needs.
pub struct PlanContext<'a> {
    /// The model.
    pub topology: &'a Topology,
    /// The sites it will work on.
    pub sites: &'a [&'a Linear],
    /// The stream the run propagates, and so the one to take statistics on by default.
    pub stream: Stream,
}

impl PlanContext<'_> {
    /// Input channels of the widest site.
    pub fn widest_input(&self) -> usize {
        self.sites.iter().map(|s| s.shape.1).max().unwrap_or(0)
    }
}
