//! Learning the rotations of a model, before its first block is rounded.
//!
//! ```text
//! network          L = mean over tokens of −log p(next token), of the model whose activations (and weights) are rounded
//! reconstruction   L = Σ over layers of mean (Q(V) − V)²,  V the rotated weight
//! ```
//!
//! Core runs the model forwards and backwards block by block, and turns the gradients of weights into those of the rotations; what a method
//! learns are matrices that it keeps orthogonal. The loop is that of all methods that learn ([`super::minimize_stored`]), with the rotations,
//! row-major, in the place of weights.

use super::{Learning, Store, Training};
use crate::error::Result;

/// What rotations are to make small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The model's own loss on the calibration windows, with its activations rounded.
    Network {
        /// Whether weights are rounded too, to nearest.
        weights: bool,
    },
    /// What rounding does to the weights themselves; reads no data.
    Reconstruction,
}

/// A rotation to be learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The region whose channels it turns.
    pub region: String,
    /// Channels.
    pub size: usize,
    /// Whether `R·1 = 1` has to hold.
    pub keeps_mean: bool,
    /// Where it starts, `[size, size]`, row-major: `v ↦ v·R`.
    pub matrix: Vec<f64>,
}

/// The rotations of a model, and what they are good for.
pub struct RotationsContext<'a> {
    /// What is learned.
    pub starts: &'a [Start],
    /// The objective, and its gradients with respect to the entries of each matrix, as if those were free.
    pub training: &'a dyn Training,
    /// Where learning is stored after each step: a step runs the whole model.
    pub store: &'a dyn Store,
    /// The run's seed.
    pub seed: u64,
}

/// Learns rotations.
pub trait LearnRotations: Send + Sync {
    /// What they are to make small.
    fn objective(&self) -> Objective;

    /// How many steps it takes, for progress.
    fn steps(&self) -> usize;

    /// The rotations, in the order of the context; orthogonal up to rounding, which core makes good.
    ///
    /// # Errors
    /// What running the model returns.
    fn learn(&self, cx: &RotationsContext<'_>) -> Result<(Vec<Vec<f64>>, Learning)>;
}
