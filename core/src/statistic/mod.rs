//! What is collected from activations.
//!
//! A statistic is keyed by where it is taken ([`Port`]), what it is ([`StatKind`]) and on which stream of activations ([`Stream`]), so
//! that layers that read the same tensor share it. Partial results are formed per calibration window and combined in a fixed binary
//! tree over window indices ([`TreeSum`]): collected in any order, by any number of threads, the sum has the same bits.

mod channels;
mod collect;
mod mapped;
mod paired;
mod range;
mod shared;
mod tree;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use collect::{Collector, Keep};
pub use paired::CrossGram;
pub use range::{RangeCollector, RangeSite};
pub use tree::TreeSum;

use shared::Shared;

use crate::error::{Error, Result};
use crate::numeric::{FactorOptions, InverseFactor, inverse_factor};
use crate::topology::Port;

/// Which activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Those of the original model.
    Reference,
    /// Those of the model quantized so far; inside the block under work its activations are not rounded.
    Quantized,
    /// Those of the model quantized so far, with the activations of the block under work rounded as the scheme says. Where the scheme
    /// rounds none they are those of [`Self::Quantized`], and cost nothing more.
    Rounded,
}

impl Stream {
    /// Whose hidden states feed the block under work.
    pub fn fed_by(self) -> Self {
        if self == Self::Reference { Self::Reference } else { Self::Quantized }
    }
}

/// What is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StatKind {
    /// `XᵀX` over all tokens, lower triangle, f32.
    Gram,
    /// `X̃ᵀX` over all tokens, all of it, f32: `X̃` is the stream of the key, `X` the reference stream on the same windows. Element
    /// `(i, j)` is `x̃ᵢ·xⱼ`: rows are channels of the key's stream, columns are channels of the reference.
    CrossGram,
    /// The mean over all tokens, f64.
    Mean,
    /// The mean magnitude over all tokens, f64.
    AbsMean,
    /// The smallest value over all tokens.
    Least,
    /// The largest value over all tokens.
    Greatest,
    /// The mean over all tokens of what readers see, where the activation is rounded; nothing where it is not.
    RoundedMean,
}

/// Names a statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatKey {
    /// Where.
    pub port: Port,
    /// What.
    pub kind: StatKind,
    /// Of which activations.
    pub stream: Stream,
}

/// A Gram matrix, with the factorizations made from it so far: layers that share it share them.
pub struct Gram {
    /// Channels.
    pub n: usize,
    /// Row-major `[n, n]`; the lower triangle holds the sums, above it are zeros.
    pub lower: Vec<f32>,
    /// Tokens summed over.
    pub tokens: u64,
    factor: Shared<FactorOptions, InverseFactor>,
}

impl Gram {
    /// A finished sum.
    pub fn new(n: usize, lower: Vec<f32>, tokens: u64) -> Self {
        Self { n, lower, tokens, factor: Shared::default() }
    }

    /// Both triangles, row-major `[n, n]`.
    pub fn full(&self) -> Vec<f32> {
        let mut full = self.lower.clone();
        for i in 0..self.n {
            for j in 0..i {
                full[j * self.n + i] = full[i * self.n + j];
            }
        }
        full
    }

    /// The inverse factor, computed once for the options asked first.
    ///
    /// # Errors
    /// As [`inverse_factor`].
    pub fn inverse_factor(&self, options: &FactorOptions) -> Result<Arc<InverseFactor>> {
        self.factor.get(*options, || inverse_factor(&self.lower, self.n, options))
    }
}

/// A finished statistic.
#[derive(Clone)]
pub enum Stat {
    /// See [`StatKind::Gram`].
    Gram(Arc<Gram>),
    /// See [`StatKind::CrossGram`].
    CrossGram(Arc<CrossGram>),
    /// What a kind says of each channel.
    Channels(Arc<[f64]>),
}

/// Finished statistics by key.
#[derive(Clone, Default)]
pub struct Stats {
    map: BTreeMap<StatKey, Stat>,
}

impl Stats {
    /// Adds one.
    pub fn insert(&mut self, key: StatKey, stat: Stat) {
        self.map.insert(key, stat);
    }

    /// Takes all of `other`.
    pub fn extend(&mut self, other: Self) {
        self.map.extend(other.map);
    }

    /// Makes what is there under `from` known under `to` too.
    pub fn share(&mut self, from: StatKey, to: StatKey) {
        if let Some(stat) = self.map.get(&from).cloned() {
            self.map.insert(to, stat);
        }
    }

    /// Takes of `other` what is known of single channels, which is small enough to be kept.
    pub fn extend_channels(&mut self, other: &Self) {
        let channels = other.map.iter().filter(|(_, stat)| matches!(stat, Stat::Channels(_)));
        self.map.extend(channels.map(|(key, stat)| (*key, stat.clone())));
    }

    /// A statistic of each channel at a port, if it was collected.
    pub fn channels(&self, port: Port, kind: StatKind, stream: Stream) -> Option<&[f64]> {
        match self.map.get(&StatKey { port, kind, stream }) {
            Some(Stat::Channels(values)) => Some(values),
            _ => None,
        }
    }

    /// The Gram matrix at a port.
    ///
    /// # Errors
    /// If nobody declared the need for it.
    pub fn gram(&self, port: Port, stream: Stream) -> Result<&Arc<Gram>> {
        match self.map.get(&StatKey { port, kind: StatKind::Gram, stream }) {
            Some(Stat::Gram(gram)) => Ok(gram),
            _ => Err(Error::internal(format!("the Gram matrix at `{port}` was used without declaring the need for it"))),
        }
    }

    /// The cross-Gram matrix of a stream with the reference, at a port.
    ///
    /// # Errors
    /// If nobody declared the need for it.
    pub fn cross_gram(&self, port: Port, stream: Stream) -> Result<&Arc<CrossGram>> {
        match self.map.get(&StatKey { port, kind: StatKind::CrossGram, stream }) {
            Some(Stat::CrossGram(cross)) => Ok(cross),
            _ => Err(Error::internal(format!("the cross-Gram matrix at `{port}` was used without declaring the need for it"))),
        }
    }
}
