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
use crate::numeric::{Onto, Transpose, gemm};

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

/// `M` or `M⁻ᵀ`, ready to act on vectors over the channels of a region, or over the query heads that share its key/value heads.
struct Change<'a> {
    kind: Matrix,
    region: &'a Region,
}

enum Matrix {
    Factors(Vec<f64>),
    Sources(Vec<u32>),
    /// Square blocks of `size` channels, one after the other.
    Blocks {
        size: usize,
        data: Vec<f64>,
    },
}

/// A change of as many channels as a tensor has.
enum Spread<'a> {
    Factors(Vec<f64>),
    Sources(Vec<usize>),
    Blocks { size: usize, blocks: Vec<&'a [f64]> },
}

impl<'a> Change<'a> {
    fn new(symmetry: &Symmetry, region: &'a Region, inverse_transpose: bool) -> Result<Self> {
        let kind = match symmetry {
            Symmetry::Diagonal(s) if inverse_transpose => Matrix::Factors(s.iter().map(|s| 1.0 / s).collect()),
            Symmetry::Diagonal(s) => Matrix::Factors(s.clone()),
            Symmetry::Permutation(p) => Matrix::Sources(p.clone()),
            Symmetry::Orthogonal(r) => Matrix::Blocks { size: r.dims().last().copied().unwrap_or(0), data: host(r)? },
        };
        Ok(Self { kind, region })
    }

    /// The change for a tensor with `n` channels: as it is, or spread over the query heads.
    fn spread(&self, n: usize) -> Result<Spread<'_>> {
        Ok(match &self.kind {
            Matrix::Factors(s) => Spread::Factors(self.region.spread(s, n)?),
            Matrix::Sources(p) => Spread::Sources(self.region.spread_sources(p, n)?),
            Matrix::Blocks { size, data } => {
                let repeat = self.region.homes(n)?.len() / self.region.width;
                let blocks = data.chunks_exact(size * size).flat_map(|b| std::iter::repeat_n(b, repeat));
                Spread::Blocks { size: *size, blocks: blocks.collect() }
            }
        })
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
}

impl Spread<'_> {
    /// `new = Mᵀ·old`, both `[channels, columns]`.
    fn rows(&self, old: &[f64], new: &mut [f64], columns: usize) {
        match self {
            Self::Factors(s) => new.chunks_exact_mut(columns).zip(s).for_each(|(row, s)| row.iter_mut().for_each(|x| *x *= s)),
            Self::Sources(p) => {
                for (row, from) in new.chunks_exact_mut(columns).zip(p) {
                    row.copy_from_slice(&old[from * columns..][..columns]);
                }
            }
            Self::Blocks { size, blocks } => {
                let n = *size;
                let heads = new.chunks_exact_mut(n * columns).zip(old.chunks_exact(n * columns)).zip(blocks);
                for ((new, old), r) in heads {
                    new.par_chunks_mut(STRIPE * columns).enumerate().for_each(|(i, new)| {
                        let (first, m) = (i * STRIPE, new.len() / columns);
                        gemm((m, columns, n), Onto::Replace, new, columns, &r[first..], Transpose::Yes, n, old, Transpose::No, columns);
                    });
                }
            }
        }
    }

    /// `new = old·M` on the columns from `first` on, both `[rows, columns]`.
    fn columns(&self, old: &[f64], new: &mut [f64], columns: usize, first: usize) {
        match self {
            Self::Factors(s) => {
                new.chunks_exact_mut(columns).for_each(|row| row[first..].iter_mut().zip(s).for_each(|(x, s)| *x *= s));
            }
            Self::Sources(p) => {
                for (new, old) in new.chunks_exact_mut(columns).zip(old.chunks_exact(columns)) {
                    new[first..].iter_mut().zip(p).for_each(|(x, from)| *x = old[first + from]);
                }
            }
            Self::Blocks { size, blocks } => {
                let n = *size;
                let stripes = new.par_chunks_mut(STRIPE * columns).zip(old.par_chunks(STRIPE * columns));
                stripes.for_each(|(new, old)| {
                    for (i, r) in blocks.iter().enumerate() {
                        let (at, m) = (first + i * n, old.len() / columns);
                        gemm((m, n, n), Onto::Replace, &mut new[at..], columns, &old[at..], Transpose::No, columns, r, Transpose::No, n);
                    }
                });
            }
        }
    }
}

/// Rows of a product one task computes: a constant, so that results do not depend on the number of threads.
const STRIPE: usize = 64;

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use serde_json::json;

    use super::*;
    use crate::topology::{Allows, Role, SiteId, Tie, of_config};

    fn llama() -> Topology {
        of_config(&json!({
            "model_type": "llama", "hidden_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2,
            "intermediate_size": 6, "num_hidden_layers": 2, "vocab_size": 150
        }))
    }

    /// Some numbers for the parameters that `keep` picks; norm weights are one.
    fn weights(topology: &Topology, dtype: DType, keep: impl Fn(SiteId) -> bool) -> MapWeights {
        let mut w = MapWeights::default();
        for p in topology.params.iter().filter(|p| keep(p.site)) {
            let n: usize = p.shape.iter().product();
            let seed = p.tensor.bytes().map(f64::from).sum::<f64>();
            let norm = p.shape.len() == 1 && p.part == Part::Weight;
            let data: Vec<f64> = (0..n).map(|i| if norm { 1.0 } else { (i as f64 * 0.37 + seed).sin() }).collect();
            w.insert(p.site, p.part, Tensor::from_vec(data, &p.shape[..], &Device::Cpu).unwrap().to_dtype(dtype).unwrap());
        }
        w
    }

    fn rows(w: &MapWeights, site: SiteId) -> Vec<Vec<f64>> {
        w.find(site, Part::Weight).unwrap().to_dtype(DType::F64).unwrap().to_vec2().unwrap()
    }

    fn region<'a>(t: &'a Topology, id: &str) -> &'a Region {
        t.regions.iter().find(|r| r.id == id).unwrap()
    }

    /// `x ↦ x − 2/n·(x·1)·1`: orthogonal and, as a formula, independent of any product.
    fn reflection(n: usize) -> Symmetry {
        let data: Vec<f64> = (0..n * n).map(|k| f64::from(k / n == k % n) - 2.0 / n as f64).collect();
        Symmetry::Orthogonal(Tensor::from_vec(data, (n, n), &Device::Cpu).unwrap())
    }

    #[test]
    fn query_heads_take_the_factors_of_the_key_value_head_they_share() {
        let t = llama();
        let before = weights(&t, DType::F64, |_| true);
        let mut after = before.clone();
        apply(&Symmetry::Diagonal(vec![2.0, 4.0, 8.0, 16.0]), region(&t, "blocks.1.values"), &t, &mut after).unwrap();
        let (v, o) = (SiteId::in_block(1, Role::AttnV), SiteId::in_block(1, Role::AttnO));
        for (i, s) in [2.0, 4.0, 8.0, 16.0].into_iter().enumerate() {
            let expected: Vec<f64> = rows(&before, v)[i].iter().map(|x| x * s).collect();
            assert_eq!(rows(&after, v)[i], expected);
        }
        for (new, old) in rows(&after, o).iter().zip(rows(&before, o)) {
            let expected: Vec<f64> = old.iter().zip([2.0, 4.0, 2.0, 4.0, 8.0, 16.0, 8.0, 16.0]).map(|(x, s)| x / s).collect();
            assert_eq!(new, &expected);
        }
        // Nothing else moved.
        for ((site, part), old) in before.iter().filter(|((site, _), _)| *site != v && *site != o) {
            assert_eq!(host(old).unwrap(), host(after.find(*site, *part).unwrap()).unwrap(), "{site}");
        }
    }

    #[test]
    fn a_permutation_takes_the_gate_along_and_a_scaling_does_not() {
        let t = llama();
        let before = weights(&t, DType::F32, |_| true);
        let (gate, up, down) = (SiteId::in_block(0, Role::MlpGate), SiteId::in_block(0, Role::MlpUp), SiteId::in_block(0, Role::MlpDown));
        let p = [5u32, 3, 0, 1, 2, 4];
        let mut after = before.clone();
        apply(&Symmetry::Permutation(p.to_vec()), region(&t, "blocks.0.mlp.hidden"), &t, &mut after).unwrap();
        for (i, from) in p.iter().enumerate() {
            assert_eq!(rows(&after, gate)[i], rows(&before, gate)[*from as usize]);
            assert_eq!(rows(&after, up)[i], rows(&before, up)[*from as usize]);
            assert_eq!(rows(&after, down)[7][i], rows(&before, down)[7][*from as usize]);
        }
        let mut after = before.clone();
        apply(&Symmetry::Diagonal(vec![2.0; 6]), region(&t, "blocks.0.mlp.hidden"), &t, &mut after).unwrap();
        assert_eq!(rows(&after, gate), rows(&before, gate));
        assert_eq!(after.find(up, Part::Weight).unwrap().dtype(), DType::F32);
    }

    #[test]
    fn fused_tensors_change_in_their_range_alone() {
        let t = of_config(&json!({"model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 1, "vocab_size": 9, "n_positions": 5}));
        let before = weights(&t, DType::F64, |_| true);
        let mut after = before.clone();
        apply(&Symmetry::Diagonal(vec![2.0; 4]), region(&t, "blocks.0.heads"), &t, &mut after).unwrap();
        let qkv = SiteId::in_block(0, Role::AttnQkv);
        let bias = |w: &MapWeights| host(w.find(qkv, Part::Bias).unwrap()).unwrap();
        for (i, (new, old)) in bias(&after).into_iter().zip(bias(&before)).enumerate() {
            let factor = [0.5, 2.0, 1.0][i / 4];
            assert_eq!(new, old * factor, "q is divided, k multiplied, v left");
            let expected: Vec<f64> = rows(&before, qkv)[i].iter().map(|x| x * factor).collect();
            assert_eq!(rows(&after, qkv)[i], expected);
        }
    }

    #[test]
    fn rotations_of_the_residual_stream_reach_rows_and_columns() {
        let t = llama();
        let before = weights(&t, DType::F64, |_| true);
        let mut after = before.clone();
        apply(&reflection(80), region(&t, "residual"), &t, &mut after).unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-13, "{a} is not {b}");
        for site in [SiteId::global(Role::Embed), SiteId::in_block(1, Role::MlpUp)] {
            for (new, old) in rows(&after, site).iter().zip(rows(&before, site)) {
                let sum: f64 = old.iter().sum();
                new.iter().zip(&old).for_each(|(n, o)| close(*n, o - sum / 40.0));
            }
        }
        let down = SiteId::in_block(1, Role::MlpDown);
        let (new, old) = (rows(&after, down), rows(&before, down));
        for c in 0..6 {
            let sum: f64 = old.iter().map(|row| row[c]).sum();
            new.iter().zip(&old).for_each(|(n, o)| close(n[c], o[c] - sum / 40.0));
        }
    }

    #[test]
    fn one_block_alone_changes_as_it_does_within_the_model() {
        let t = llama();
        let (mut whole, mut block) = (weights(&t, DType::F64, |_| true), weights(&t, DType::F64, |s| s.block == Some(1)));
        apply(&reflection(80), region(&t, "residual"), &t, &mut whole).unwrap();
        apply(&reflection(80), region(&t, "residual"), &t, &mut block).unwrap();
        assert_eq!(block.iter().count(), t.block_params(1).count());
        for ((site, part), tensor) in block.iter() {
            assert_eq!(host(tensor).unwrap(), host(whole.find(*site, *part).unwrap()).unwrap(), "{site}");
        }
    }

    #[test]
    fn a_refused_symmetry_changes_nothing() {
        let t = llama();
        let mut w = weights(&t, DType::F64, |_| true);
        let norm = SiteId::in_block(1, Role::MlpNorm);
        let mut gamma = vec![1.0; 80];
        gamma[3] = 1.5;
        w.insert(norm, Part::Weight, Tensor::new(gamma, &Device::Cpu).unwrap());
        let embed = rows(&w, SiteId::global(Role::Embed));
        let error = apply(&reflection(80), region(&t, "residual"), &t, &mut w).unwrap_err();
        assert_eq!(error.to_string(), "the residual stream cannot be rotated: the weight of `blocks.1.mlp.norm` is 1.5 at channel 3");
        assert_eq!(error.hint_text(), Some("fold the norms into their readers first"));
        // A region that does not fit its tensors.
        let wrong = Region {
            width: 3,
            allows: Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never },
            ..region(&t, "residual").clone()
        };
        let error = apply(&Symmetry::Diagonal(vec![2.0; 3]), &wrong, &t, &mut w).unwrap_err();
        assert_eq!(error.to_string(), "`embed` in `residual`: a change of 3 channels, repeated 1 times, cannot act on 80");
        assert_eq!(rows(&w, SiteId::global(Role::Embed)), embed);
    }
}
