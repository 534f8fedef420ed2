//! Statistics of each channel: means, of values, of magnitudes and of values as readers see them, and extremes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Tensor};

use super::{Stat, StatKey, StatKind, Stats, TreeSum};
use crate::error::Result;
use crate::model::ActivationQuant;
use crate::numeric::with_slice;
use crate::topology::Port;

/// The statistics of channels of one stream, being gathered.
#[derive(Default)]
pub(super) struct Channels {
    sums: BTreeMap<StatKey, Sum>,
}

struct Sum {
    /// Applied to what comes by first, in order.
    rounding: Vec<ActivationQuant>,
    step: Step,
    sum: TreeSum<Vec<f64>>,
    tokens: AtomicU64,
}

/// How a value enters what its channel has come to, and how two such join.
#[derive(Clone, Copy)]
struct Step {
    start: f64,
    /// Takes a row of values in.
    take: fn(&mut [f64], &[f32]),
    join: fn(&mut Vec<f64>, &Vec<f64>),
    is_mean: bool,
}

impl Step {
    /// That of a kind, if it is one of channels.
    fn of(kind: StatKind) -> Option<Self> {
        let sum = Self { start: 0.0, take: |t, x| take(t, x, |t, x| t + x), join: |a, b| zip(a, b, |a, b| a + b), is_mean: true };
        Some(match kind {
            StatKind::Mean | StatKind::RoundedMean => sum,
            StatKind::AbsMean => Self { take: |t, x| take(t, x, |t, x| t + x.abs()), ..sum },
            StatKind::Least => {
                Self { start: f64::INFINITY, take: |t, x| take(t, x, f64::min), join: |a, b| zip(a, b, f64::min), is_mean: false }
            }
            StatKind::Greatest => {
                Self { start: f64::NEG_INFINITY, take: |t, x| take(t, x, f64::max), join: |a, b| zip(a, b, f64::max), is_mean: false }
            }
            StatKind::Gram | StatKind::CrossGram => return None,
        })
    }
}

fn take(totals: &mut [f64], row: &[f32], f: impl Fn(f64, f64) -> f64) {
    totals.iter_mut().zip(row).for_each(|(t, x)| *t = f(*t, f64::from(*x)));
}

fn zip(a: &mut [f64], b: &[f64], f: impl Fn(f64, f64) -> f64) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a = f(*a, *b));
}

impl Channels {
    /// Statistics for those of `keys` that are of channels; rounded ones only where `rounding` says how.
    pub(super) fn new(keys: impl Iterator<Item = StatKey>, rounding: &[&ActivationQuant]) -> Self {
        let mut sums = BTreeMap::new();
        for key in keys {
            let Some(step) = Step::of(key.kind) else { continue };
            let rounding: Vec<ActivationQuant> = match key.kind {
                StatKind::RoundedMean => rounding.iter().filter(|a| a.place.port == key.port).map(|a| (*a).clone()).collect(),
                _ => Vec::new(),
            };
            if key.kind != StatKind::RoundedMean || !rounding.is_empty() {
                sums.insert(key, Sum { rounding, step, sum: TreeSum::new(step.join), tokens: AtomicU64::new(0) });
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
            let Step { start, take, .. } = sum.step;
            let total = with_slice::<f32, _>(&x, |x| {
                let mut total = vec![start; channels];
                x.chunks_exact(channels).for_each(|row| take(&mut total, row));
                Ok(total)
            })?;
            sum.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
            sum.sum.insert(index, total, drop)?;
        }
        Ok(())
    }

    /// The finished statistics over windows `0..n`.
    pub(super) fn finish(self, n: usize, stats: &mut Stats) -> Result<()> {
        for (key, sum) in self.sums {
            let divisor = if sum.step.is_mean { sum.tokens.into_inner() as f64 } else { 1.0 };
            let values: Arc<[f64]> = sum.sum.finish(n)?.into_iter().map(|t| t / divisor).collect();
            stats.insert(key, Stat::Channels(values));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::statistic::{Collector, Stream};
    use crate::topology::PortName;

    #[test]
    fn each_kind_is_what_its_name_says_over_all_windows() {
        let port = Port::of(PortName::DownIn);
        let kinds = [StatKind::Mean, StatKind::AbsMean, StatKind::Least, StatKind::Greatest];
        let key = |kind| StatKey { port, kind, stream: Stream::Quantized };
        let collector = Collector::new(Stream::Quantized, kinds.map(key), &[], None);
        for (i, window) in [[1.0f32, -2.0, 3.0, -4.0], [5.0, -6.0, -7.0, -8.0]].iter().enumerate() {
            use crate::model::Tap as _;
            collector.window(i, None).at(port, Tensor::from_slice(window, (2, 2), &Device::Cpu).unwrap()).unwrap();
        }
        let stats = collector.finish(2).unwrap();
        let of = |kind| stats.channels(port, kind, Stream::Quantized).unwrap().to_vec();
        assert_eq!(kinds.map(of), [[0.5, -5.0], [4.0, 5.0], [-7.0, -8.0], [5.0, -2.0]]);
    }
}
