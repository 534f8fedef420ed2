//! Collecting the statistics a sweep was asked for.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Tensor};

use super::{Gram, Stat, StatKey, StatKind, Stats, Stream, TreeSum};
use crate::error::{Error, Result};
use crate::model::Tap;
use crate::numeric::{Bf16Unit, add_lower, gram, gram_bf16, with_slice};
use crate::topology::Port;

/// The statistics of one stream, being summed. Shared by all threads of a sweep.
pub struct Collector {
    stream: Stream,
    bf16: Option<Bf16Unit>,
    grams: BTreeMap<Port, GramSum>,
}

struct GramSum {
    sum: TreeSum<Vec<f32>>,
    spare: Mutex<Vec<Vec<f32>>>,
    tokens: AtomicU64,
}

impl Collector {
    /// Collects `keys`, which all name the same stream. Products are of values rounded to bf16 where a unit is given.
    pub fn new(stream: Stream, keys: impl IntoIterator<Item = StatKey>, bf16: Option<Bf16Unit>) -> Self {
        let mut grams = BTreeMap::new();
        for key in keys {
            match key.kind {
                StatKind::Gram => {
                    let add = |a: &mut Vec<f32>, b: &Vec<f32>| add_lower(a, b, b.len().isqrt());
                    grams.insert(key.port, GramSum { sum: TreeSum::new(add), spare: Mutex::default(), tokens: AtomicU64::new(0) });
                }
            }
        }
        Self { stream, bf16, grams }
    }

    /// The last port a sweep has to reach, or `None` if nothing is collected.
    pub fn last_port(&self) -> Option<Port> {
        self.grams.keys().max().copied()
    }

    /// The tap for window `index`.
    pub fn window(&self, index: usize) -> impl Tap + '_ {
        WindowTap { collector: self, index }
    }

    /// The finished statistics over windows `0..n`.
    ///
    /// # Errors
    /// If a window is missing.
    pub fn finish(self, n: usize) -> Result<Stats> {
        let mut stats = Stats::default();
        for (port, g) in self.grams {
            let lower = g.sum.finish(n)?;
            let gram = Gram::new(lower.len().isqrt(), lower, g.tokens.into_inner());
            stats.insert(StatKey { port, kind: StatKind::Gram, stream: self.stream }, Stat::Gram(gram.into()));
        }
        Ok(stats)
    }
}

struct WindowTap<'a> {
    collector: &'a Collector,
    index: usize,
}

impl Tap for WindowTap<'_> {
    fn wants(&self, port: Port) -> bool {
        self.collector.grams.contains_key(&port)
    }

    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor> {
        if let Some(g) = self.collector.grams.get(&port) {
            let (t, n) = x.dims2()?;
            let mut h = g.take(n)?;
            let x32 = x.to_dtype(DType::F32)?;
            with_slice::<f32, _>(&x32, |x| {
                match self.collector.bf16 {
                    Some(unit) => gram_bf16(unit, x, n, &mut h),
                    None => gram(x, n, &mut h),
                }
                Ok(())
            })?;
            g.tokens.fetch_add(t as u64, Ordering::Relaxed);
            g.sum.insert(self.index, h, |old| g.give(old))?;
        }
        Ok(x)
    }
}

impl GramSum {
    /// A buffer whose lower triangle will be overwritten; the strict upper one stays zero, as nobody writes it.
    fn take(&self, n: usize) -> Result<Vec<f32>> {
        let spare = self.spare.lock().map_err(|_| Error::internal("a thread panicked while collecting"))?.pop();
        Ok(spare.unwrap_or_else(|| vec![0.0; n * n]))
    }

    fn give(&self, buffer: Vec<f32>) {
        if let Ok(mut spare) = self.spare.lock() {
            spare.push(buffer);
        }
    }
}
