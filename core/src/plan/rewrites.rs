//! What passes do to the whole model before its first block is read.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::passes::pass_linears;
use super::raw::{RawPass, RawRun};
use super::resolve::ModelFacts;
use crate::algorithm::{ModelContext, ModelTransform, Objective, Stage, Transform};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::topology::{Linear, OnlineStep, Place, Region, Rewrite, Role, Space, Topology};

/// The steps of one pass; `touched` linears are going to be rounded.
pub(super) fn of_pass(
    raw: &RawRun,
    pass: &RawPass,
    transform: &dyn ModelTransform,
    model: &ModelFacts<'_>,
    touched: &dyn Fn(&Linear) -> bool,
) -> Result<Vec<Rewrite>> {
    if model.tensorwise {
        let message = format!("`{}` changes the whole model, but nothing is known of a `{}` model", pass.algo, model.model_type);
        return Err(Error::plan("plan::unknown-architecture", message)
            .hint("a model that computes as one of the known types does can be read as one with `model.type`"));
    }
    // A head that is the embedding's tensor cannot be touched alone.
    let touched = |l: &Linear| touched(l) && !(model.topology.tied_head && l.site.role == Role::Head);
    let steps = |linears: &[&Linear]| {
        let cx = ModelContext { topology: model.topology, linears, head_dim: model.head_dim, seed: raw.calibration.seed };
        transform.rewrites(&cx).map_err(|e| e.within(format!("`{}`", pass.algo)))
    };
    let all: Vec<&Linear> = model.topology.linears.iter().filter(|l| touched(l)).collect();
    let chosen = pass_linears(pass, model.topology, &touched)?;
    let found = steps(&chosen)?;
    if chosen.len() < all.len() && found == steps(&all)? {
        let message = format!("`match` and `skip` of pass `{}` change nothing: what it does reaches the whole model", pass.algo);
        return Err(Error::config("config::invalid", message).hint("leave them out; they choose layers for what is done layer by layer"));
    }
    Ok(found)
}

/// Refuses to learn rotations where all of them are equally good.
pub(super) fn worth_learning(algo: &str, objective: Objective, weights: bool, activations: bool) -> Result<()> {
    let (rounds, what) = match objective {
        Objective::Network { weights: true } => (weights || activations, "nothing is rounded"),
        Objective::Network { weights: false } => (activations, "no activations are rounded, and weights are left out"),
        Objective::Reconstruction => (weights, "no weights are rounded"),
    };
    if rounds {
        return Ok(());
    }
    Err(Error::plan("plan::nothing-to-learn", format!("`{algo}` has nothing to learn rotations for: {what}"))
        .hint("round weights or inputs (`scheme.weights`, `scheme.inputs`), or leave `optimize` out"))
}

/// The steps in the order in which they are done, with those that others need: norms are folded before the residual stream is rotated.
pub(super) fn completed(mut steps: Vec<Rewrite>, topology: &Topology, notes: &mut Vec<String>) -> Vec<Rewrite> {
    let rotates = steps.iter().any(|s| matches!(s, Rewrite::Rotate { region, .. } if is_residual(topology, region)));
    if rotates && !steps.contains(&Rewrite::FoldNorms) {
        notes.push("norms are folded into the layers that read them: the residual stream is rotated".to_owned());
        steps.push(Rewrite::FoldNorms);
    }
    // The same canonical form twice is one.
    let rank = |s: &Rewrite| match s {
        Rewrite::CenterResidual => 0,
        Rewrite::FoldNorms => 1,
        Rewrite::Rotate { .. } | Rewrite::Online(_) => 2,
        Rewrite::Multiply(_) => 3,
    };
    steps.sort_by_key(rank);
    steps.dedup_by(|a, b| rank(a) < 2 && a == b);
    // Two passes that want a multiplier at one place share it.
    let mut multiplied = BTreeSet::new();
    steps.retain(|s| !matches!(s, Rewrite::Multiply(place) if !multiplied.insert(*place)));
    steps
}

/// Whether a run needs the head to have a tensor of its own: the embedding is written to the residual stream, the head reads what a norm
/// has made of it, and no change but of both is one of either.
///
/// # Errors
/// If an algorithm is unknown, or refuses the model.
pub fn needs_untied_head(raw: &RawRun, registry: &Registry, model: &ModelFacts<'_>) -> Result<bool> {
    if !model.topology.tied_head {
        return Ok(false);
    }
    let parts_them = |step: &Rewrite| match step {
        Rewrite::FoldNorms | Rewrite::CenterResidual => true,
        Rewrite::Rotate { region, .. } => is_residual(model.topology, region),
        Rewrite::Online(online) => online.place.block.is_none(),
        Rewrite::Multiply(_) => false,
    };
    Ok(of_everything(raw, registry, model)?.iter().any(parts_them))
}

fn is_residual(topology: &Topology, id: &str) -> bool {
    topology.regions.iter().any(|r| r.space == Space::Residual && r.id == id)
}

/// The steps of all passes if every linear of the blocks was rounded.
fn of_everything(raw: &RawRun, registry: &Registry, model: &ModelFacts<'_>) -> Result<Vec<Rewrite>> {
    let mut steps = Vec::new();
    for pass in &raw.passes {
        let options = serde_json::to_value(&pass.options).map_err(|e| Error::internal(e.to_string()))?;
        if let Stage::ModelTransform(transform) = registry.build_algorithm(&pass.algo, &options)?.0.stage() {
            steps.extend(of_pass(raw, pass, transform, model, &|l| l.site.block.is_some())?);
        }
    }
    Ok(steps)
}

/// What the model is made of once layers are as wide as the rotations before them. Which layers those are does not depend on what is
/// rounded, so that this can be known before it is.
///
/// # Errors
/// If an algorithm is unknown, or refuses the model.
pub(super) fn widened(raw: &RawRun, registry: &Registry, model: &ModelFacts<'_>) -> Result<Topology> {
    let mut topology = model.topology.clone();
    for step in online(&of_everything(raw, registry, model)?) {
        step.rotation().map_or(Ok(()), |rotation| topology.widen(rotation))?;
    }
    Ok(topology)
}

/// What a transform may look for regions in: with multipliers wherever nothing else could be scaled, if it wants any.
///
/// # Errors
/// None that a sound topology has.
pub(super) fn multiplied<'a>(topology: &'a Topology, transform: &dyn Transform) -> Result<Cow<'a, Topology>> {
    if !transform.stands_alone() {
        return Ok(Cow::Borrowed(topology));
    }
    let mut all = topology.clone();
    topology.unscaled_places().into_iter().try_for_each(|place| all.multiply(place))?;
    Ok(Cow::Owned(all))
}

/// The multiplier that a region is written by, if it is by one.
pub(super) fn multiplier(region: &Region, topology: &Topology) -> Option<Rewrite> {
    let reader = topology.linear(region.consumers.first()?.site)?;
    (region.space == Space::Multiplied).then_some(Rewrite::Multiply(Place { block: region.block, port: reader.input }))
}

/// What is done to activations while the model runs.
pub(super) fn online(steps: &[Rewrite]) -> Vec<OnlineStep> {
    let of = |s: &Rewrite| match s {
        Rewrite::Online(rotation) => Some(OnlineStep::Rotation(rotation.clone())),
        Rewrite::Multiply(place) => Some(OnlineStep::Multiplier(*place)),
        Rewrite::FoldNorms | Rewrite::CenterResidual | Rewrite::Rotate { .. } => None,
    };
    steps.iter().filter_map(of).collect()
}

/// The steps in words, those of all blocks in one, with how many there are.
pub(super) fn in_words(steps: &[Rewrite]) -> Vec<(String, usize)> {
    let mut rows: Vec<(String, usize)> = Vec::new();
    for step in steps {
        let text = step.to_string();
        let text = match text.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
            Some((_, rest)) => format!("blocks.*.{rest}"),
            None => text,
        };
        match rows.iter_mut().find(|(t, _)| *t == text) {
            Some((_, count)) => *count += 1,
            None => rows.push((text, 1)),
        }
    }
    rows
}
