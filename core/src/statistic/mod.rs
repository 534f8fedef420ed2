//! What is collected from activations.
//!
//! A statistic is keyed by where it is taken ([`Port`]), what it is ([`StatKind`]) and on which stream of activations ([`Stream`]), so
//! that layers that read the same tensor share it. Partial results are formed per calibration window and combined in a fixed binary
//! tree over window indices ([`TreeSum`]): collected in any order, by any number of threads, the sum has the same bits.

mod collect;
mod mean;
mod range;
mod tree;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

pub use collect::Collector;
pub use range::{RangeCollector, RangeSite};
pub use tree::TreeSum;

use crate::error::{Error, Result};
use crate::numeric::{FactorOptions, InverseFactor, inverse_factor};
use crate::topology::Port;

/// Which activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Those of the original model.
    Reference,
    /// Those of the model quantized so far.
    Quantized,
}

/// What is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StatKind {
    /// `XᵀX` over all tokens, lower triangle, f32.
    Gram,
    /// The mean over all tokens, f64.
    Mean,
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

/// A factor, or why there is none, for every layer that reads the same input.
type SharedFactor = std::result::Result<Arc<InverseFactor>, Arc<Error>>;

/// A Gram matrix, with the factorizations made from it so far: layers that share it share them.
pub struct Gram {
    /// Channels.
    pub n: usize,
    /// Row-major `[n, n]`; the lower triangle holds the sums, above it are zeros.
    pub lower: Vec<f32>,
    /// Tokens summed over.
    pub tokens: u64,
    factor: OnceLock<(FactorOptions, SharedFactor)>,
}

impl Gram {
    /// A finished sum.
    pub fn new(n: usize, lower: Vec<f32>, tokens: u64) -> Self {
        Self { n, lower, tokens, factor: OnceLock::new() }
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
        let compute = || inverse_factor(&self.lower, self.n, options).map(Arc::new).map_err(Arc::new);
        let (known, result) = self.factor.get_or_init(|| (*options, compute()));
        let result = if known == options { result.clone() } else { compute() };
        result.map_err(|e| {
            let copy = Error::new(e.kind(), e.code(), e.to_string());
            match e.hint_text() {
                Some(hint) => copy.hint(hint),
                None => copy,
            }
        })
    }
}

/// A finished statistic.
#[derive(Clone)]
pub enum Stat {
    /// See [`StatKind::Gram`].
    Gram(Arc<Gram>),
    /// See [`StatKind::Mean`] and [`StatKind::RoundedMean`].
    Mean(Arc<[f64]>),
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

    /// Takes the means of `other`, which are small enough to be kept.
    pub fn extend_means(&mut self, other: &Self) {
        let means = other.map.iter().filter(|(_, stat)| matches!(stat, Stat::Mean(_)));
        self.map.extend(means.map(|(key, stat)| (*key, stat.clone())));
    }

    /// A mean at a port, if it was collected.
    pub fn mean(&self, port: Port, kind: StatKind, stream: Stream) -> Option<&[f64]> {
        match self.map.get(&StatKey { port, kind, stream }) {
            Some(Stat::Mean(mean)) => Some(mean),
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
}
