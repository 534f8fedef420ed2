//! Statistics of channels after a change of basis `x' = x·M`, from those before it.
//!
//! `XᵀX` becomes `MᵀXᵀXM`, a mean `mM`. A scaling by positive factors and a permutation carry over every statistic of single channels, a
//! rotation only means: what it cannot carry over is forgotten, and collected anew by whoever needs it. What a rotation carries over is
//! known up to the rounding of the stored sums. So is what depends on how
//! activations are rounded, as rounding does not commute with any of them.

use candle_core::{DType, Device, Tensor};

use super::{CrossGram, Gram, Stat, StatKey, StatKind, Stats, Stream};
use crate::error::Result;
use crate::numeric::transpose;
use crate::numeric::{Onto, Transpose, gemm};
use crate::topology::{Port, Region, Symmetry};

impl Stats {
    /// Whether it is here.
    pub fn holds(&self, key: &StatKey) -> bool {
        self.map.contains_key(key)
    }

    /// Makes the statistics at `port`, whose channels are those of `region`, those of the channels after `symmetry`.
    ///
    /// # Errors
    /// If there are not as many channels at the port as the region says.
    pub fn transform(&mut self, port: Port, symmetry: &Symmetry, region: &Region) -> Result<()> {
        let mut kept = std::collections::BTreeMap::new();
        for (key, stat) in std::mem::take(&mut self.map) {
            if key.port != port {
                kept.insert(key, stat);
            } else if key.stream != Stream::Rounded
                && key.kind != StatKind::RoundedMean
                && let Some(stat) = transformed(&stat, key.kind, symmetry, region)?
            {
                kept.insert(key, stat);
            }
        }
        self.map = kept;
        Ok(())
    }
}

fn transformed(stat: &Stat, kind: StatKind, symmetry: &Symmetry, region: &Region) -> Result<Option<Stat>> {
    let n = match stat {
        Stat::Gram(g) => g.n,
        Stat::CrossGram(c) => c.n,
        Stat::Channels(v) => v.len(),
    };
    let (sources, factors): (Vec<usize>, Vec<f64>) = match symmetry {
        Symmetry::Diagonal(s) => ((0..n).collect(), region.spread(s, n)?),
        Symmetry::Permutation(p) => (region.spread_sources(p, n)?, vec![1.0; n]),
        Symmetry::Orthogonal(r) => return rotated(stat, kind, n, r, region),
    };
    let square = |old: &[f32], at: &dyn Fn(usize, usize) -> usize| -> Vec<f32> {
        let value = |i: usize, j: usize| (f64::from(old[at(sources[i], sources[j])]) * factors[i] * factors[j]) as f32;
        (0..n * n).map(|k| value(k / n, k % n)).collect()
    };
    Ok(Some(match stat {
        Stat::Gram(g) => {
            // Only the lower triangle is there to be read.
            let mut lower = square(&g.lower, &|i, j| i.max(j) * n + i.min(j));
            (0..n).for_each(|i| lower[i * n + i + 1..(i + 1) * n].fill(0.0));
            Stat::Gram(Gram::new(n, lower, g.tokens).into())
        }
        Stat::CrossGram(c) => Stat::CrossGram(CrossGram::new(n, square(&c.values, &|i, j| i * n + j), c.tokens).into()),
        Stat::Channels(v) => Stat::Channels((0..n).map(|i| v[sources[i]] * factors[i]).collect()),
    }))
}

/// A statistic of rotated channels: `r` is one matrix for the region, or one for each key/value head.
fn rotated(stat: &Stat, kind: StatKind, n: usize, r: &Tensor, region: &Region) -> Result<Option<Stat>> {
    let size = r.dims().last().copied().unwrap_or(1);
    let matrices: Vec<f64> = r.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    // Query heads take the rotation of the key/value head they share.
    let repeat = region.homes(n)?.len() / region.width;
    let blocks: Vec<&[f64]> = matrices.chunks_exact(size * size).flat_map(|m| std::iter::repeat_n(m, repeat)).collect();
    let square = |old: Vec<f64>| -> Vec<f32> {
        // (Aᵀ·R)ᵀ·R = RᵀA·R
        let half = transpose(&times(&transpose(&old, n, n), n, &blocks, size), n, n);
        times(&half, n, &blocks, size).into_iter().map(|x| x as f32).collect()
    };
    Ok(match stat {
        Stat::Gram(g) => {
            let whole = (0..n * n).map(|k| f64::from(g.lower[(k / n).max(k % n) * n + (k / n).min(k % n)])).collect();
            let mut lower = square(whole);
            (0..n).for_each(|i| lower[i * n + i + 1..(i + 1) * n].fill(0.0));
            Some(Stat::Gram(Gram::new(n, lower, g.tokens).into()))
        }
        Stat::CrossGram(c) => {
            let all = c.values.iter().map(|x| f64::from(*x)).collect();
            Some(Stat::CrossGram(CrossGram::new(n, square(all), c.tokens).into()))
        }
        Stat::Channels(v) if kind == StatKind::Mean => Some(Stat::Channels(times(v, n, &blocks, size).into())),
        Stat::Channels(_) => None,
    })
}

/// `x·R` for row-major `x` of `n` columns, `R` of these blocks of `size`.
fn times(x: &[f64], n: usize, blocks: &[&[f64]], size: usize) -> Vec<f64> {
    let (rows, mut out) = (x.len() / n, vec![0.0; x.len()]);
    for (i, r) in blocks.iter().enumerate() {
        let at = i * size;
        gemm((rows, size, size), Onto::Replace, &mut out[at..], n, &x[at..], Transpose::No, n, r, Transpose::No, size);
    }
    out
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::model::Tap as _;
    use crate::statistic::{Collector, Keep};
    use crate::topology::{Allows, PortName, Space, Tie};

    /// Cosine and sine of 30 degrees.
    const C: f64 = 0.866_025_403_784_438_6;
    const S: f64 = 0.5;

    /// Two key/value heads of two channels, each shared by two query heads: what is collected behind the change is what the change makes of
    /// what was collected before it.
    #[test]
    fn collecting_and_changing_commute() {
        let per_head = Tie::PerKvHead { width: 2, repeat: 2 };
        let region = Region {
            id: "r".to_owned(),
            space: Space::Values,
            block: Some(0),
            width: 4,
            producers: Vec::new(),
            consumers: Vec::new(),
            companions: Vec::new(),
            allows: Allows { diagonal: per_head, permutation: per_head, orthogonal: per_head },
        };
        let port = Port::of(PortName::DownIn);
        let x: Vec<f32> = (0..3 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
        let reference: Vec<f32> = (0..3 * 8).map(|i| (i as f32 * 0.4).cos()).collect();
        let collected = |x: &[f32], reference: &[f32]| {
            let kinds = [StatKind::Gram, StatKind::CrossGram, StatKind::Mean, StatKind::AbsMean, StatKind::Least, StatKind::Greatest];
            let keys = kinds.map(|kind| StatKey { port, kind, stream: Stream::Quantized });
            let collector = Collector::new(Stream::Quantized, keys, &[], None);
            let tensor = |x: &[f32]| Tensor::from_slice(x, (3, 8), &Device::Cpu).unwrap();
            let mut keep = Keep::new(collector.paired_ports());
            keep.at(port, tensor(reference)).unwrap();
            collector.window(0, Some(&keep)).at(port, tensor(x)).unwrap();
            collector.finish(1).unwrap()
        };
        // Query heads 0 and 1 share key/value head 0, heads 2 and 3 share head 1.
        let factors = [2.0f32, 0.5, 3.0, 0.25];
        let source = [1usize, 0, 3, 2];
        for (symmetry, change) in [
            (
                Symmetry::Diagonal(factors.map(f64::from).to_vec()),
                &(|x: &[f32]| (0..24).map(|k| x[k] * factors[k % 8 / 4 * 2 + k % 2]).collect()) as &dyn Fn(&[f32]) -> Vec<f32>,
            ),
            (Symmetry::Permutation(source.map(|i| i as u32).to_vec()), &|x: &[f32]| {
                (0..24).map(|k| x[k / 2 * 2 + source[k % 2]]).collect()
            }),
            // By 30 degrees in the first key/value head, by −60 in the second.
            (
                Symmetry::Orthogonal(Tensor::new(&[[[C, S], [-S, C]], [[S, -C], [C, S]]], &Device::Cpu).unwrap()),
                &(|x: &[f32]| {
                    let turned = |k: usize| {
                        let (c, s) = if k % 8 < 4 { (C, S) } else { (S, -C) };
                        let (a, b) = (f64::from(x[k / 2 * 2]), f64::from(x[k / 2 * 2 + 1]));
                        (if k.is_multiple_of(2) { a * c - b * s } else { a * s + b * c }) as f32
                    };
                    (0..24).map(turned).collect()
                }),
            ),
        ] {
            let mut before = collected(&x, &reference);
            before.transform(port, &symmetry, &region).unwrap();
            let after = collected(&change(&x), &change(&reference));
            // Of a rotation, the extremes and mean magnitudes of channels are forgotten.
            let kept = |key: &StatKey| {
                let sums = [StatKind::Gram, StatKind::CrossGram, StatKind::Mean].contains(&key.kind);
                sums || !matches!(symmetry, Symmetry::Orthogonal(_))
            };
            assert_eq!(before.map.len(), after.map.keys().filter(|k| kept(k)).count());
            for (key, stat) in after.map.iter().filter(|(k, _)| kept(k)) {
                let numbers = |stat: &Stat| -> Vec<f64> {
                    match stat {
                        Stat::Gram(g) => g.lower.iter().map(|x| f64::from(*x)).collect(),
                        Stat::CrossGram(c) => c.values.iter().map(|x| f64::from(*x)).collect(),
                        Stat::Channels(v) => v.to_vec(),
                    }
                };
                let (expected, found) = (numbers(stat), numbers(&before.map[key]));
                for (a, b) in expected.iter().zip(&found) {
                    assert!((a - b).abs() < 1e-5, "{key:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_carried_over_is_forgotten() {
        let region = Region {
            id: "r".to_owned(),
            space: Space::MlpIn,
            block: Some(0),
            width: 2,
            producers: Vec::new(),
            consumers: Vec::new(),
            companions: Vec::new(),
            allows: Allows { diagonal: Tie::Free, permutation: Tie::Free, orthogonal: Tie::Free },
        };
        let (port, other) = (Port::of(PortName::DownIn), Port::of(PortName::MlpIn));
        let mut stats = Stats::default();
        let key = |port, kind, stream| StatKey { port, kind, stream };
        for k in [
            key(port, StatKind::Mean, Stream::Rounded),
            key(port, StatKind::RoundedMean, Stream::Quantized),
            key(port, StatKind::Mean, Stream::Quantized),
            key(other, StatKind::RoundedMean, Stream::Quantized),
        ] {
            stats.insert(k, Stat::Channels([1.0, 2.0].into()));
        }
        stats.transform(port, &Symmetry::Diagonal(vec![2.0, 4.0]), &region).unwrap();
        assert_eq!(stats.channels(port, StatKind::Mean, Stream::Quantized), Some(&[2.0, 8.0][..]));
        assert!(stats.holds(&key(other, StatKind::RoundedMean, Stream::Quantized)));
        assert_eq!(stats.map.len(), 2);
        let rotation = Tensor::from_slice(&[0.0f64, 1.0, -1.0, 0.0], (2, 2), &Device::Cpu).unwrap();
        stats.transform(port, &Symmetry::Orthogonal(rotation), &region).unwrap();
        assert_eq!(stats.channels(port, StatKind::Mean, Stream::Quantized), Some(&[-8.0, 2.0][..]));
    }
}
