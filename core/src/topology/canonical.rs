//! Canonical forms of a model whose weights all lie in memory: other weights, the same function.
//!
//! The first two are [`Rewriting`]s; the third gives the head a tensor of its own, equal to the embedding.

use candle_core::{Device, Tensor};

use super::symmetry::host;
use super::{Part, Rewrite, Rewriting, Role, SiteId, Space, Tie, Topology};
use crate::error::{Error, Result};
use crate::model::MapWeights;

/// What [`fold_norms`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// The norms whose weight is now one.
    pub norms: Vec<SiteId>,
    /// Those of them that keep a bias, `β/γ`, because a reader has no bias that could take it.
    pub kept_biases: Vec<SiteId>,
}

/// Moves the weight and bias of every norm in `weights` into the linears that read it.
///
/// Where a reader has no bias (the head), the norm keeps `β/γ` as its bias, and the result says so; a rotation of the residual stream
/// turns such a bias along.
///
/// # Errors
/// If the head is tied to the embedding ([`untie`] it first), if a norm that is read is not in `weights`, or if a bias must be kept where
/// `γ` is zero. `weights` is unchanged then.
pub fn fold_norms(topology: &Topology, weights: &mut MapWeights) -> Result<Folded> {
    rewrite(topology, &[Rewrite::FoldNorms], weights)?;
    let mut folded = Folded::default();
    for region in topology.norm_regions() {
        let Some(norm) = region.producers.iter().find(|s| s.part == Part::Weight).map(|s| s.site) else { continue };
        if weights.find(norm, Part::Weight).is_none() {
            continue;
        }
        let absorbed = region.consumers.iter().all(|s| topology.param(s.site, Part::Bias).is_some());
        if topology.param(norm, Part::Bias).is_some() && !absorbed {
            folded.kept_biases.push(norm);
        }
        folded.norms.push(norm);
    }
    Ok(folded)
}

/// Subtracts from everything that writes to the residual stream (embeddings, output projections, their biases) its mean over the
/// channels. A LayerNorm that reads the stream sees no difference, and is then the RMSNorm of the same ε.
///
/// # Errors
/// If the topology has no residual stream, or no LayerNorm.
pub fn center_writers(topology: &Topology, weights: &mut MapWeights) -> Result<()> {
    rewrite(topology, &[Rewrite::CenterResidual], weights)
}

/// Rewrites every parameter in `weights`, each in the type it has.
///
/// # Errors
/// As [`Rewriting::new`] and [`Rewriting::apply`]; `weights` is unchanged then.
pub fn rewrite(topology: &Topology, steps: &[Rewrite], weights: &mut MapWeights) -> Result<()> {
    let rewriting = Rewriting::new(topology, steps)?;
    let stored = |site: SiteId, part: Part| -> Result<Vec<f64>> {
        let found = weights.find(site, part);
        host(found.ok_or_else(|| Error::internal(format!("{part:?} of `{site}` is not loaded").to_lowercase()))?)
    };
    let mut result = weights.clone();
    for ((site, part), old) in weights.iter().filter(|((site, part), _)| rewriting.touches(*site, *part)) {
        let mut values = host(old)?;
        rewriting.apply(*site, *part, &mut values, &stored)?;
        let mut shape = old.dims().to_vec();
        if let [rows, columns] = &mut shape[..] {
            *columns = values.len() / *rows;
        }
        let new = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(old.dtype())?.to_device(old.device())?;
        result.insert(*site, *part, new);
    }
    *weights = result;
    Ok(())
}

/// States that RMSNorm runs where the model has LayerNorm, which is the same once its writers are centred ([`center_writers`]): any
/// rotation of the residual stream is then allowed. Whoever runs or writes such a model has to put RMSNorm there.
pub fn assume_rms_norms(topology: &mut Topology) {
    topology.layer_norm = false;
    for region in topology.regions.iter_mut().filter(|r| r.allows.orthogonal == Tie::KeepsMean) {
        region.allows.orthogonal = Tie::Free;
    }
}

/// Gives the head a tensor of its own: in the topology, and in `weights` where the embedding is there. A head of its own stays.
pub fn untie(topology: &mut Topology, weights: &mut MapWeights) {
    let (head, embed) = (SiteId::global(Role::Head), SiteId::global(Role::Embed));
    if weights.find(head, Part::Weight).is_none()
        && let Some(table) = weights.find(embed, Part::Weight).cloned()
    {
        weights.insert(head, Part::Weight, table);
    }
    if !topology.tied_head {
        return;
    }
    topology.tied_head = false;
    let module = topology.linear(head).map(|l| l.module.clone());
    for p in topology.params.iter_mut().filter(|p| p.site == head) {
        if let Some(module) = &module {
            p.tensor = format!("{module}.weight");
        }
    }
    for region in topology.regions.iter_mut().filter(|r| r.space == Space::HeadIn) {
        region.allows.diagonal = Tie::Free;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::topology::{Axis, of_config};

    fn gpt2(tied: bool) -> (Topology, MapWeights) {
        let config = json!({
            "model_type": "gpt2", "n_embd": 4, "n_head": 2, "n_layer": 2, "vocab_size": 9, "n_positions": 5, "tie_word_embeddings": tied
        });
        let t = of_config(&config);
        let mut w = MapWeights::default();
        for p in &t.params {
            let n: usize = p.shape.iter().product();
            let data: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7 + p.shape.len() as f64).sin() + 1.5).collect();
            w.insert(p.site, p.part, Tensor::from_vec(data, &p.shape[..], &Device::Cpu).unwrap());
        }
        (t, w)
    }

    const FINAL: SiteId = SiteId::global(Role::FinalNorm);

    #[test]
    fn folding_says_which_norms_keep_a_bias() {
        let (t, mut w) = gpt2(false);
        let before = w.clone();
        let folded = fold_norms(&t, &mut w).unwrap();
        assert_eq!(folded.norms.len(), 5);
        // The head has no bias.
        assert_eq!(folded.kept_biases, [FINAL]);
        let values = |w: &MapWeights, site, part| host(w.find(site, part).unwrap()).unwrap();
        for norm in &folded.norms {
            assert_eq!(values(&w, *norm, Part::Weight), [1.0; 4]);
        }
        assert_eq!(values(&w, SiteId::in_block(1, Role::MlpNorm), Part::Bias), [0.0; 4]);
        let (gamma, beta) = (values(&before, FINAL, Part::Weight), values(&before, FINAL, Part::Bias));
        let ratio: Vec<f64> = beta.iter().zip(&gamma).map(|(b, g)| b / g).collect();
        assert_eq!(values(&w, FINAL, Part::Bias), ratio);
        // Once more changes nothing.
        let once = w.clone();
        fold_norms(&t, &mut w).unwrap();
        for ((site, part), tensor) in once.iter() {
            assert_eq!(values(&w, *site, *part), host(tensor).unwrap());
        }
    }

    #[test]
    fn a_tied_head_is_untied_first() {
        let (mut t, mut w) = gpt2(true);
        let error = fold_norms(&t, &mut w).unwrap_err();
        assert_eq!(error.to_string(), "`final-norm` cannot be folded into `head`: it is the embedding's own tensor");
        assert_eq!(error.hint_text(), Some("untie the head first"));
        untie(&mut t, &mut w);
        fold_norms(&t, &mut w).unwrap();
        assert!(!t.tied_head);
        assert_eq!(t.param(SiteId::global(Role::Head), Part::Weight).unwrap().tensor, "lm_head.weight");
        assert_eq!(t.regions.iter().find(|r| r.space == Space::HeadIn).unwrap().allows.diagonal, Tie::Free);
    }

    #[test]
    fn a_bias_cannot_be_kept_behind_a_zero() {
        let (t, mut w) = gpt2(false);
        w.insert(FINAL, Part::Weight, Tensor::new(vec![1.0, 0.0, 2.0, 1.0], &Device::Cpu).unwrap());
        let error = fold_norms(&t, &mut w).unwrap_err();
        let expected = "`final-norm` cannot be folded: its weight is zero at channel 1, and its readers have no bias to take its own";
        assert_eq!(error.to_string(), expected);
        // The blocks' norms were not folded either.
        assert_ne!(host(w.find(SiteId::in_block(0, Role::AttnNorm), Part::Weight).unwrap()).unwrap(), [1.0; 4]);
    }

    #[test]
    fn centred_writers_add_up_to_nothing() {
        let (t, mut w) = gpt2(false);
        center_writers(&t, &mut w).unwrap();
        for slot in &t.regions[0].producers {
            let tensor = w.find(slot.site, slot.part).unwrap();
            let sums = tensor.sum(if slot.axis == Axis::Rows { 0 } else { 1 }).unwrap();
            assert!(host(&sums).unwrap().iter().all(|s| s.abs() < 1e-14), "{}", slot.site);
        }
    }
}
