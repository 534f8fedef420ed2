//! Fusing a symmetry into the weights around a region.
//!
//! A tensor that touches a region is a family of vectors over its channels, along its rows or its columns. Under `x ↦ x·M`
//!
//! ```text
//! producers    v ↦ v·M        what writes the channels, weights and biases alike
//! consumers    v ↦ v·M⁻ᵀ      what is multiplied with them: v·x is then unchanged
//! companions   v ↦ v·M        unless M is diagonal, which leaves them alone
//! ```
//!
//! so a linear that writes (`[out, in]`, channels along the rows) becomes `MᵀW`, one that reads (along the columns) `W·M⁻ᵀ`. Queries
//! and keys are such a pair too: keys produce, queries consume along their rows. `M` is orthogonal or a permutation (`M⁻ᵀ = M`) or
//! diagonal (`M⁻ᵀ = 1/s`). All arithmetic is f64, whatever the weights' type.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::symmetry::host;
use super::{Axis, Part, Region, Slot, Space, Symmetry, Topology};
use crate::error::{Error, ErrorKind, Result};
use crate::model::MapWeights;
use crate::numeric::{Transpose, gemm};

/// Transforms every producer, consumer and companion of `region` that is in `weights` (a block's, or a whole model's) by `symmetry`.
///
/// # Errors
/// If the region does not allow the symmetry ([`Symmetry::validate`]), or the residual stream is to be rotated while norms in `weights`
/// still have weights other than one. Nothing is changed then.
pub fn apply(symmetry: &Symmetry, region: &Region, topology: &Topology, weights: &mut MapWeights) -> Result<()> {
    symmetry.validate(region)?;
    if region.space == Space::Residual && matches!(symmetry, Symmetry::Orthogonal(_)) {
        require_folded_norms(topology, weights)?;
    }
    apply_unchecked(symmetry, region, weights)
}

/// [`apply`] without asking whether the region allows it: how the checker shows that what is not allowed breaks the model.
pub(super) fn apply_unchecked(symmetry: &Symmetry, region: &Region, weights: &mut MapWeights) -> Result<()> {
    let forward = Change::new(symmetry, region, false)?;
    let inverse = Change::new(symmetry, region, true)?;
    let companions: &[Slot] = if matches!(symmetry, Symmetry::Diagonal(_)) { &[] } else { &region.companions };
    let changes = region.producers.iter().chain(companions).map(|s| (s, &forward)).chain(region.consumers.iter().map(|s| (s, &inverse)));
    let mut changed = weights.clone();
    for (slot, change) in changes {
        if let Some(old) = changed.find(slot.site, slot.part) {
            let new = change.along(old, slot).map_err(|e| e.within(format_args!("`{}` in `{}`", slot.site, region.id)))?;
            changed.insert(slot.site, slot.part, new);
        }
    }
    *weights = changed;
    Ok(())
}

fn require_folded_norms(topology: &Topology, weights: &MapWeights) -> Result<()> {
    for norm in topology.norm_regions().flat_map(|r| &r.producers).filter(|s| s.part == Part::Weight) {
        let Some(weight) = weights.find(norm.site, norm.part) else { continue };
        if let Some((i, w)) = host(weight)?.into_iter().enumerate().find(|(_, w)| *w != 1.0) {
            let message = format!("the residual stream cannot be rotated: the weight of `{}` is {w} at channel {i}", norm.site);
            return Err(Error::new(ErrorKind::Plan, "topology::norms-not-folded", message).hint("fold the norms into their readers first"));
        }
    }
    Ok(())
}

impl Topology {
    /// The regions that a norm writes: where norms are folded.
    pub fn norm_regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|r| matches!(r.space, Space::AttnIn | Space::MlpIn | Space::HeadIn))
    }
}

/// `M` or `M⁻ᵀ`, ready to act on vectors over the key/value heads of a region or over the query heads that share them.
struct Change {
    kind: Matrix,
    /// Channels of the region.
    channels: usize,
    /// Channels per head.
    width: usize,
    /// Query heads per key/value head.
    repeat: usize,
}

enum Matrix {
    Factors(Vec<f64>),
    Sources(Vec<usize>),
    /// Square blocks of `size` channels, one after the other.
    Blocks {
        size: usize,
        data: Vec<f64>,
    },
}

impl Change {
    fn new(symmetry: &Symmetry, region: &Region, inverse_transpose: bool) -> Result<Self> {
        let (width, repeat) = region.heads();
        let kind = match symmetry {
            Symmetry::Diagonal(s) if inverse_transpose => Matrix::Factors(s.iter().map(|s| 1.0 / s).collect()),
            Symmetry::Diagonal(s) => Matrix::Factors(s.clone()),
            Symmetry::Permutation(p) => Matrix::Sources(p.iter().map(|i| *i as usize).collect()),
            Symmetry::Orthogonal(r) => Matrix::Blocks { size: r.dims().last().copied().unwrap_or(0), data: host(r)? },
        };
        Ok(Self { kind, channels: region.width, width, repeat })
    }

    /// The change for a tensor with `n` channels: as it is, or spread over the query heads.
    fn spread(&self, n: usize) -> Result<Self> {
        let (channels, width, repeat) = (self.channels, self.width, self.repeat);
        if n != channels && n != channels * repeat {
            return Err(Error::internal(format!("a change of {channels} channels, repeated {repeat} times, cannot act on {n}")));
        }
        let repeat = n / channels;
        // Channel c of query head h = g·repeat + r ↔ channel c of key/value head g.
        let home = |i: usize| i / (width * repeat) * width + i % width;
        let member = |i: usize| i / width % repeat;
        let kind = match &self.kind {
            Matrix::Factors(s) => Matrix::Factors((0..n).map(|i| s[home(i)]).collect()),
            Matrix::Sources(p) => Matrix::Sources(
                (0..n).map(|i| (p[home(i)], member(i))).map(|(from, r)| (from / width * repeat + r) * width + from % width).collect(),
            ),
            Matrix::Blocks { size, data } if repeat == 1 => Matrix::Blocks { size: *size, data: data.clone() },
            Matrix::Blocks { size, data } => {
                let blocks = data.chunks_exact(size * size);
                Matrix::Blocks { size: *size, data: blocks.flat_map(|b| std::iter::repeat_n(b, repeat)).flatten().copied().collect() }
            }
        };
        Ok(Self { kind, channels: n, width, repeat: 1 })
    }

    /// The tensor with its vectors along `slot` changed.
    fn along(&self, tensor: &Tensor, slot: &Slot) -> Result<Tensor> {
        let (rows, columns) = match *tensor.dims() {
            [n] => (n, 1),
            [rows, columns] => (rows, columns),
            _ => return Err(Error::internal(format!("a parameter of shape {:?}", tensor.dims()))),
        };
        let length = if slot.axis == Axis::Rows { rows } else { columns };
        let range = slot.range.clone().unwrap_or(0..length);
        let change = self.spread(range.len())?;
        let old = host(tensor)?;
        let mut new = old.clone();
        match slot.axis {
            Axis::Rows => {
                let part = range.start * columns..range.end * columns;
                change.rows(&old[part.clone()], &mut new[part], columns);
            }
            Axis::Columns => change.columns(&old, &mut new, columns, range.start),
        }
        Ok(Tensor::from_vec(new, tensor.dims(), &Device::Cpu)?.to_dtype(tensor.dtype())?.to_device(tensor.device())?)
    }

    /// `new = Mᵀ·old`, both `[channels, columns]`.
    fn rows(&self, old: &[f64], new: &mut [f64], columns: usize) {
        match &self.kind {
            Matrix::Factors(s) => new.chunks_exact_mut(columns).zip(s).for_each(|(row, s)| row.iter_mut().for_each(|x| *x *= s)),
            Matrix::Sources(p) => {
                for (row, from) in new.chunks_exact_mut(columns).zip(p) {
                    row.copy_from_slice(&old[from * columns..][..columns]);
                }
            }
            Matrix::Blocks { size, data } => {
                let n = *size;
                let heads = new.chunks_exact_mut(n * columns).zip(old.chunks_exact(n * columns)).zip(data.chunks_exact(n * n));
                for ((new, old), r) in heads {
                    new.par_chunks_mut(STRIPE * columns).enumerate().for_each(|(i, new)| {
                        let (first, m) = (i * STRIPE, new.len() / columns);
                        gemm((m, columns, n), 0.0, new, columns, &r[first..], Transpose::Yes, n, old, Transpose::No, columns);
                    });
                }
            }
        }
    }

    /// `new = old·M` on the columns from `first` on, both `[rows, columns]`.
    fn columns(&self, old: &[f64], new: &mut [f64], columns: usize, first: usize) {
        match &self.kind {
            Matrix::Factors(s) => {
                new.chunks_exact_mut(columns).for_each(|row| row[first..].iter_mut().zip(s).for_each(|(x, s)| *x *= s));
            }
            Matrix::Sources(p) => {
                for (new, old) in new.chunks_exact_mut(columns).zip(old.chunks_exact(columns)) {
                    new[first..].iter_mut().zip(p).for_each(|(x, from)| *x = old[first + from]);
                }
            }
            Matrix::Blocks { size, data } => {
                let n = *size;
                let stripes = new.par_chunks_mut(STRIPE * columns).zip(old.par_chunks(STRIPE * columns));
                stripes.for_each(|(new, old)| {
                    for (i, r) in data.chunks_exact(n * n).enumerate() {
                        let (at, m) = (first + i * n, old.len() / columns);
                        gemm((m, n, n), 0.0, &mut new[at..], columns, &old[at..], Transpose::No, columns, r, Transpose::No, n);
                    }
                });
            }
        }
    }
}

/// Rows of a product one task computes: a constant, so that results do not depend on the number of threads.
const STRIPE: usize = 64;
