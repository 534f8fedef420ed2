//! Random models and random symmetries, from a seed.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::model::MapWeights;
use crate::topology::symmetry::mix;
use crate::topology::{Kind, Part, Region, Role, SiteId, Symmetry, Tie, Topology};

/// A stream of random numbers for one purpose: the `i`-th number depends on the seed, the purpose and `i` alone.
pub(super) struct Draws {
    key: u64,
    count: u64,
}

impl Draws {
    pub(super) fn new(seed: u64, purpose: &str) -> Self {
        let key = purpose.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
        Self { key, count: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.count += 1;
        mix(self.key.wrapping_add(mix(self.count)))
    }

    /// Uniform in (0, 1).
    fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        ((self.uniform() * n as f64) as usize).min(n - 1)
    }

    /// Standard normal (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn normals(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| scale * self.normal()).collect()
    }

    /// Between 1/e and e.
    fn factor(&mut self) -> f64 {
        (2.0 * self.uniform() - 1.0).exp()
    }

    fn shuffle(&mut self, items: &mut [u32]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A random orthogonal matrix `[n, n]`: Gram-Schmidt on normal rows, twice because once leaves the rounding errors of cancellation.
    fn orthogonal(&mut self, n: usize) -> Vec<f64> {
        let mut q = self.normals(n * n, 1.0);
        for i in 0..n {
            let (done, rest) = q.split_at_mut(i * n);
            let row = &mut rest[..n];
            for _ in 0..2 {
                for other in done.chunks_exact(n) {
                    let overlap: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                    row.iter_mut().zip(other).for_each(|(a, b)| *a -= overlap * b);
                }
                let norm = row.iter().map(|a| a * a).sum::<f64>().sqrt();
                row.iter_mut().for_each(|a| *a /= norm);
            }
        }
        q
    }

    /// A random orthogonal matrix with `R·1 = 1`: `H·diag(1, Q)·H`, `H` the reflection that exchanges `e₁` and `1/√n`.
    fn orthogonal_keeping_mean(&mut self, n: usize) -> Vec<f64> {
        if n < 2 {
            return vec![1.0; n];
        }
        let inner = self.orthogonal(n - 1);
        let mut r = vec![0.0; n * n];
        r[0] = 1.0;
        for (i, row) in inner.chunks_exact(n - 1).enumerate() {
            r[(i + 1) * n + 1..(i + 2) * n].copy_from_slice(row);
        }
        let mut u = vec![-1.0 / (n as f64).sqrt(); n];
        u[0] += 1.0;
        let square: f64 = u.iter().map(|u| u * u).sum();
        for row in r.chunks_exact_mut(n) {
            let along: f64 = 2.0 * row.iter().zip(&u).map(|(r, u)| r * u).sum::<f64>() / square;
            row.iter_mut().zip(&u).for_each(|(r, u)| *r -= along * u);
        }
        let along: Vec<f64> = (0..n).map(|j| 2.0 * (0..n).map(|i| u[i] * r[i * n + j]).sum::<f64>() / square).collect();
        for (row, u) in r.chunks_exact_mut(n).zip(&u) {
            row.iter_mut().zip(&along).for_each(|(r, along)| *r -= u * along);
        }
        r
    }

    /// A random rotation of `n` channels as a tensor `[n, n]`.
    pub(super) fn rotation(&mut self, n: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.orthogonal(n), (n, n), &Device::Cpu)?)
    }

    /// A symmetry of that kind as `tie` allows; `None` where it allows none.
    pub(super) fn symmetry(&mut self, kind: Kind, tie: Tie, region: &Region) -> Result<Option<Symmetry>> {
        let n = region.width;
        Ok(Some(match (kind, tie) {
            (_, Tie::Never) | (Kind::Permutation | Kind::Orthogonal, Tie::PerRopePair { .. }) => return Ok(None),
            (Kind::Diagonal, Tie::PerRopePair { width, rotated, .. }) => {
                let mut s: Vec<f64> = (0..n).map(|_| self.factor()).collect();
                for head in s.chunks_exact_mut(width) {
                    let (first, second) = head[..rotated / 2 * 2].split_at_mut(rotated / 2);
                    second.copy_from_slice(first);
                }
                Symmetry::Diagonal(s)
            }
            (Kind::Diagonal, _) => Symmetry::Diagonal((0..n).map(|_| self.factor()).collect()),
            (Kind::Permutation, Tie::PerKvHead { width, .. }) => Symmetry::Permutation(self.permutation(n, width)),
            (Kind::Permutation, _) => Symmetry::Permutation(self.permutation(n, n)),
            (Kind::Orthogonal, Tie::PerKvHead { width, .. }) => {
                let blocks: Vec<f64> = (0..n / width).flat_map(|_| self.orthogonal(width)).collect();
                Symmetry::Orthogonal(Tensor::from_vec(blocks, (n / width, width, width), &Device::Cpu)?)
            }
            (Kind::Orthogonal, Tie::KeepsMean) => {
                Symmetry::Orthogonal(Tensor::from_vec(self.orthogonal_keeping_mean(n), (n, n), &Device::Cpu)?)
            }
            (Kind::Orthogonal, _) => Symmetry::Orthogonal(self.rotation(n)?),
        }))
    }

    /// A permutation of `n` channels that keeps each stretch of `width` to itself.
    fn permutation(&mut self, n: usize, width: usize) -> Vec<u32> {
        let mut p: Vec<u32> = (0..n as u32).collect();
        p.chunks_exact_mut(width).for_each(|head| self.shuffle(head));
        p
    }
}

/// Weights for every parameter, f64: matrices that keep the size of what they multiply, norm weights and multipliers between 0.5 and 1.5, biases that
/// matter. Trained or freshly initialized weights would not do: norms that are all one, or blocks that add next to nothing, hide
/// mistakes.
///
/// # Errors
/// If there is no memory for them.
pub fn random_weights(topology: &Topology, seed: u64) -> Result<MapWeights> {
    let mut weights = MapWeights::default();
    for p in &topology.params {
        let mut draws = Draws::new(seed, &format!("{} {:?}", p.site, p.part));
        let n = p.shape.iter().product();
        let data = match (p.part, &p.shape[..]) {
            (Part::Bias, _) => draws.normals(n, 0.3),
            (Part::Weight, [_]) | (Part::Multiplier, _) => (0..n).map(|_| 0.5 + draws.uniform()).collect(),
            (Part::Weight, _) if matches!(p.site.role, Role::Embed | Role::PositionEmbed) => draws.normals(n, 1.0),
            (Part::Weight, shape) => draws.normals(n, (*shape.last().unwrap_or(&1) as f64).powf(-0.5)),
        };
        weights.insert(p.site, p.part, Tensor::from_vec(data, &p.shape[..], &Device::Cpu)?);
    }
    if topology.tied_head
        && let Some(table) = weights.find(SiteId::global(Role::Embed), Part::Weight).cloned()
    {
        weights.insert(SiteId::global(Role::Head), Part::Weight, table);
    }
    Ok(weights)
}
