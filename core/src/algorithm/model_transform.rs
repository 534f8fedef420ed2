//! What a transform of the whole model sees before the first block is read.

use super::LearnRotations;
use crate::error::Result;
use crate::topology::{Linear, Rewrite, Topology};

/// Chooses changes of basis of the whole model from what the topology says of it. Core rewrites every tensor as it is loaded, and turns
/// activations where a change cannot be fused into weights.
///
/// Norms stand in the way of a rotation of the residual stream; core folds them first, and gives a tied head a tensor of its own.
pub trait ModelTransform: Send + Sync {
    /// The steps, in order.
    ///
    /// # Errors
    /// If the model does not allow what the options ask for.
    fn rewrites(&self, cx: &ModelContext<'_>) -> Result<Vec<Rewrite>>;

    /// What learns the rotations that [`Self::rewrites`] says are learned, if any are.
    fn learns(&self) -> Option<&dyn LearnRotations> {
        None
    }
}

/// A model, before it is read.
pub struct ModelContext<'a> {
    /// What it is made of.
    pub topology: &'a Topology,
    /// The linears whose weights or inputs are going to be rounded, or all of them where nothing is.
    pub linears: &'a [&'a Linear],
    /// Channels of an attention head.
    pub head_dim: usize,
    /// The run's seed.
    pub seed: u64,
}
