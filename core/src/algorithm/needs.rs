//! What an algorithm asks of the harness before the run.

use super::BranchNeed;
use crate::scheme::QuantSpec;
use crate::statistic::{StatKind, Stream};
use crate::topology::{Linear, Topology};

/// Statistics at the input of every site a pass works on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// Collected at the input port of each site. [`Stream::Reference`] and [`StatKind::CrossGram`] make the run keep the activations of the
    /// original model too.
    pub inputs: Vec<(StatKind, Stream)>,
    /// Its groups do not run in storage order: the container has to hold a group index per input channel.
    pub group_index: bool,
    /// Its sites have to have a bias; core gives zeros to those that lack one.
    pub bias: bool,
    /// The step of its sites is to be this fraction of what their ranges say; 0 leaves it. The planner makes it `rescale` of their scheme.
    pub rescale: f64,
    /// A transform wants to run the module behind a region again, with other weights.
    pub replay: bool,
    /// It runs the block again and again, with gradients, on this stream: [`Stream::Reference`] or [`Stream::Quantized`]. The activations of
    /// the original model are kept, as what it aims at, unless the configuration says otherwise; the original block's outputs on the same
    /// inputs are the aim then.
    pub training: Option<Stream>,
    /// Windows that it runs through the whole model at once, with gradients, before the first block is rounded.
    pub network: usize,
    /// The branches that a pass of the split phase puts beside its sites; no other phase has any.
    pub branch: Option<BranchNeed>,
    /// Solver scratch in bytes for the widest site, for the memory plan.
    pub scratch_bytes: u64,
}

/// What an algorithm may look at when it states its needs.
pub struct PlanContext<'a> {
    /// The model.
    pub topology: &'a Topology,
    /// The sites it will work on.
    pub sites: &'a [&'a Linear],
    /// For each of them: what its weight is to become.
    pub weights: &'a [&'a QuantSpec],
    /// For each of them: how its input is rounded, if it is.
    pub inputs: &'a [Option<&'a QuantSpec>],
    /// The stream the run propagates, and so the one to take statistics on by default.
    pub stream: Stream,
}

impl PlanContext<'_> {
    /// Input channels of the widest site.
    pub fn widest_input(&self) -> usize {
        self.sites.iter().map(|s| s.shape.1).max().unwrap_or(0)
    }
}
