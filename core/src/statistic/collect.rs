//! Collecting the statistics a sweep was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};

use super::channels::Channels;
use super::{CrossGram, Gram, Stat, StatKey, StatKind, Stats, Stream, TreeSum};
use crate::error::{Error, Result};
use crate::model::{ActivationQuant, Tap};
use crate::numeric::{Bf16Unit, Onto, Transpose, across_bf16, add_lower, gemm, gram, gram_bf16, with_slice};
use crate::topology::Port;

/// The statistics of one stream, being summed. Shared by all threads of a sweep.
pub struct Collector {
    stream: Stream,
    bf16: Option<Bf16Unit>,
    grams: BTreeMap<Port, MatrixSum>,
    crosses: BTreeMap<Port, MatrixSum>,
    channels: Channels,
}

/// A square matrix, summed over windows.
struct MatrixSum {
    sum: TreeSum<Vec<f32>>,
    spare: Mutex<Vec<Vec<f32>>>,
    tokens: AtomicU64,
}

impl Collector {
    /// Collects `keys`, which all name the same stream. Rounded means are taken where `rounding` says how. Gram matrices are of
    /// values rounded to bf16 where a unit is given.
    pub fn new(stream: Stream, keys: impl IntoIterator<Item = StatKey>, rounding: &[&ActivationQuant], bf16: Option<Bf16Unit>) -> Self {
        let (mut grams, mut crosses, mut channels) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for key in keys {
            match key.kind {
                StatKind::Gram => drop(grams.insert(key.port, MatrixSum::new(|a, b| add_lower(a, b, b.len().isqrt())))),
                StatKind::CrossGram => {
                    crosses.insert(key.port, MatrixSum::new(|a, b| a.iter_mut().zip(b).for_each(|(a, b)| *a += *b)));
                }
                _ => channels.push(key),
            }
        }
        Self { stream, bf16, grams, crosses, channels: Channels::new(channels.into_iter(), rounding) }
    }

    /// The last port a sweep has to reach, or `None` if nothing is collected.
    pub fn last_port(&self) -> Option<Port> {
        self.grams.keys().chain(self.crosses.keys()).max().copied().max(self.channels.last_port())
    }

    /// The ports where the tensors of the reference stream have to be kept for [`Self::window`].
    pub fn paired_ports(&self) -> BTreeSet<Port> {
        self.crosses.keys().copied().collect()
    }

    /// The tap for window `index`; `reference` holds what the same window of the reference stream has at [`Self::paired_ports`].
    pub fn window<'a>(&'a self, index: usize, reference: Option<&'a Keep>) -> impl Tap + 'a {
        WindowTap { collector: self, index, reference }
    }

    /// The finished statistics over windows `0..n`.
    ///
    /// # Errors
    /// If a window is missing.
    pub fn finish(self, n: usize) -> Result<Stats> {
        let mut stats = Stats::default();
        let key = |port, kind| StatKey { port, kind, stream: self.stream };
        for (port, g) in self.grams {
            let (lower, tokens) = (g.sum.finish(n)?, g.tokens.into_inner());
            stats.insert(key(port, StatKind::Gram), Stat::Gram(Gram::new(lower.len().isqrt(), lower, tokens).into()));
        }
        for (port, c) in self.crosses {
            let (values, tokens) = (c.sum.finish(n)?, c.tokens.into_inner());
            stats.insert(key(port, StatKind::CrossGram), Stat::CrossGram(CrossGram::new(values.len().isqrt(), values, tokens).into()));
        }
        self.channels.finish(n, &mut stats)?;
        Ok(stats)
    }
}

/// A tap that keeps the tensors at some ports.
#[derive(Default)]
pub struct Keep {
    ports: BTreeSet<Port>,
    kept: BTreeMap<Port, Tensor>,
}

impl Keep {
    /// Keeps what passes `ports`.
    pub fn new(ports: BTreeSet<Port>) -> Self {
        Self { ports, kept: BTreeMap::new() }
    }
}

impl Tap for Keep {
    fn wants(&self, port: Port) -> bool {
        self.ports.contains(&port)
    }

    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor> {
        self.kept.insert(port, x.clone());
        Ok(x)
    }
}

struct WindowTap<'a> {
    collector: &'a Collector,
    index: usize,
    reference: Option<&'a Keep>,
}

impl Tap for WindowTap<'_> {
    fn wants(&self, port: Port) -> bool {
        self.collector.grams.contains_key(&port) || self.collector.crosses.contains_key(&port) || self.collector.channels.wants(port)
    }

    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor> {
        let (t, n) = x.dims2()?;
        let host = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        if let Some(g) = self.collector.grams.get(&port) {
            g.add(self.index, t, n, |h| {
                with_slice::<f32, _>(&host, |x| {
                    match self.collector.bf16 {
                        Some(unit) => gram_bf16(unit, x, n, h),
                        None => gram(x, n, h),
                    }
                    Ok(())
                })
            })?;
        }
        if let Some(c) = self.collector.crosses.get(&port) {
            let reference = self.reference.and_then(|k| k.kept.get(&port));
            let reference = reference.ok_or_else(|| Error::internal(format!("nothing was kept of the reference stream at `{port}`")))?;
            if reference.dims() != x.dims() {
                return Err(Error::internal(format!("two streams differ in shape at `{port}`: {:?} and {:?}", x.dims(), reference.dims())));
            }
            let reference = reference.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            c.add(self.index, t, n, |h| {
                with_slice::<f32, _>(&host, |x| {
                    with_slice::<f32, _>(&reference, |r| {
                        match self.collector.bf16 {
                            Some(unit) => across_bf16(unit, (x, n), (r, n), h),
                            None => gemm((n, n, t), Onto::Replace, h, n, x, Transpose::Yes, n, r, Transpose::No, n),
                        }
                        Ok(())
                    })
                })
            })?;
        }
        self.collector.channels.at(self.index, port, &x)?;
        Ok(x)
    }
}

impl MatrixSum {
    fn new(add: fn(&mut Vec<f32>, &Vec<f32>)) -> Self {
        Self { sum: TreeSum::new(add), spare: Mutex::default(), tokens: AtomicU64::new(0) }
    }

    /// Adds the matrix that `form` writes for a window of `t` tokens.
    fn add(&self, index: usize, t: usize, n: usize, form: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
        let mut h = self.take(n)?;
        form(&mut h)?;
        self.tokens.fetch_add(t as u64, Ordering::Relaxed);
        self.sum.insert(index, h, |old| self.give(old))
    }

    /// A buffer that will be overwritten; of a triangle, the other half stays zero, as nobody writes it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::PortName;

    #[test]
    fn rows_of_the_cross_gram_matrix_are_channels_of_the_quantized_stream() {
        let port = Port::of(PortName::DownIn);
        let key = StatKey { port, kind: StatKind::CrossGram, stream: Stream::Quantized };
        let collector = Collector::new(Stream::Quantized, [key], &[], None);
        assert_eq!(collector.paired_ports(), BTreeSet::from([port]));
        let windows = [([1.0f32, 2.0, 3.0, 4.0], [5.0f32, 6.0, 7.0, 8.0]), ([1.0, 0.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.25])];
        for (i, (quantized, reference)) in windows.iter().enumerate() {
            let tensor = |x: &[f32; 4]| Tensor::from_slice(x, (2, 2), &Device::Cpu).unwrap();
            let mut keep = Keep::new(collector.paired_ports());
            keep.at(port, tensor(reference)).unwrap();
            collector.window(i, Some(&keep)).at(port, tensor(quantized)).unwrap();
        }
        let stats = collector.finish(2).unwrap();
        let cross = stats.cross_gram(port, Stream::Quantized).unwrap();
        // Σ over tokens of x̃ᵢ·xⱼ: (0, 1) is 1·6 + 3·8 from the first window, and nothing from the second.
        assert_eq!(cross.values, [26.5, 30.0, 38.0, 44.25]);
        assert_eq!(cross.tokens, 4);
        assert!(stats.gram(port, Stream::Quantized).is_err());
    }

    #[test]
    fn a_pair_without_its_reference_is_a_bug_that_is_named() {
        let port = Port::of(PortName::DownIn);
        let key = StatKey { port, kind: StatKind::CrossGram, stream: Stream::Quantized };
        let collector = Collector::new(Stream::Quantized, [key], &[], None);
        let x = Tensor::from_slice(&[1.0f32; 4], (2, 2), &Device::Cpu).unwrap();
        let error = collector.window(0, None).at(port, x).unwrap_err();
        assert_eq!(error.to_string(), "nothing was kept of the reference stream at `down.in`");
    }
}
