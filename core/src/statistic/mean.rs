//! Means of activations, as they are and as they are rounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Tensor};

use super::{Stat, StatKey, StatKind, Stats, TreeSum};
use crate::error::Result;
use crate::model::ActivationQuant;
use crate::numeric::with_slice;
use crate::topology::Port;

/// The means of one stream, being summed.
#[derive(Default)]
pub(super) struct Means {
    sums: BTreeMap<StatKey, Sum>,
}

struct Sum {
    /// Applied to what comes by before it is summed, in order.
    rounding: Vec<ActivationQuant>,
    sum: TreeSum<Vec<f64>>,
    tokens: AtomicU64,
}

impl Means {
    /// Means for `keys` of the two kinds; rounded ones only where `rounding` says how.
    pub(super) fn new(keys: impl Iterator<Item = StatKey>, rounding: &[&ActivationQuant]) -> Self {
        let mut sums = BTreeMap::new();
        for key in keys {
            let rounding: Vec<ActivationQuant> = match key.kind {
                StatKind::RoundedMean => rounding.iter().filter(|a| a.place.port == key.port).map(|a| (*a).clone()).collect(),
                _ => Vec::new(),
            };
            if key.kind == StatKind::Mean || !rounding.is_empty() {
                let add = |a: &mut Vec<f64>, b: &Vec<f64>| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                sums.insert(key, Sum { rounding, sum: TreeSum::new(add), tokens: AtomicU64::new(0) });
            }
        }
        Self { sums }
    }

    /// The last port wanted.
    pub(super) fn last_port(&self) -> Option<Port> {
        self.sums.keys().map(|k| k.port).max()
    }

    pub(super) fn wants(&self, port: Port) -> bool {
        self.sums.keys().any(|k| k.port == port)
    }

    /// Adds window `index`, of which `x` `[tokens, channels]` came by at `port`.
    pub(super) fn at(&self, index: usize, port: Port, x: &Tensor) -> Result<()> {
        for (_, sum) in self.sums.iter().filter(|(k, _)| k.port == port) {
            let x = sum.rounding.iter().try_fold(x.to_dtype(DType::F32)?, |x, rounding| rounding.apply(&x))?;
            let (tokens, channels) = x.dims2()?;
            let total = with_slice::<f32, _>(&x, |x| {
                let mut total = vec![0.0; channels];
                x.chunks_exact(channels).for_each(|row| total.iter_mut().zip(row).for_each(|(t, x)| *t += f64::from(*x)));
                Ok(total)
            })?;
            sum.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
            sum.sum.insert(index, total, drop)?;
        }
        Ok(())
    }

    /// The finished means over windows `0..n`.
    pub(super) fn finish(self, n: usize, stats: &mut Stats) -> Result<()> {
        for (key, sum) in self.sums {
            let tokens = sum.tokens.into_inner() as f64;
            let mean: Arc<[f64]> = sum.sum.finish(n)?.into_iter().map(|t| t / tokens).collect();
            stats.insert(key, Stat::Mean(mean));
        }
        Ok(())
    }
}
