//! What is known of two streams together.

use std::sync::Arc;

use super::Gram;
use super::shared::Shared;
use crate::error::Result;
use crate::numeric::{Alignment, AlignmentOptions, GreedyPath};

/// A cross-Gram matrix, with what was made from it and the Gram matrix of its stream: layers that share both share these.
pub struct CrossGram {
    /// Channels.
    pub n: usize,
    /// Row-major `[n, n]`; element `(i, j)` is `x̃ᵢ·xⱼ`, see [`super::StatKind::CrossGram`].
    pub values: Vec<f32>,
    /// Tokens summed over.
    pub tokens: u64,
    path: Shared<bool, GreedyPath>,
    alignment: Shared<AlignmentOptions, Alignment>,
}

impl CrossGram {
    /// A finished sum.
    pub fn new(n: usize, values: Vec<f32>, tokens: u64) -> Self {
        Self { n, values, tokens, path: Shared::default(), alignment: Shared::default() }
    }

    /// What greedy path following needs; `gram` is that of the same stream and port.
    ///
    /// # Errors
    /// As [`GreedyPath::new`].
    pub fn greedy_path(&self, gram: &Gram, by_diagonal: bool) -> Result<Arc<GreedyPath>> {
        self.path.get(by_diagonal, || GreedyPath::new(&gram.lower, &self.values, self.n, by_diagonal))
    }

    /// What aligning a weight with the reference needs; `gram` is that of the same stream and port.
    ///
    /// # Errors
    /// As [`Alignment::new`].
    pub fn alignment(&self, gram: &Gram, options: &AlignmentOptions) -> Result<Arc<Alignment>> {
        self.alignment.get(*options, || Alignment::new(&gram.lower, &self.values, self.n, options))
    }
}
