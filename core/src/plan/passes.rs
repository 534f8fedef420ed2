//! Which passes run in which order, and what each of them works on.

use std::collections::BTreeSet;

use super::raw::{RawPass, RawRun};
use super::resolve::left_out;
use super::resolved::{PlannedPass, PlannedSite};
use super::select::Selector;
use crate::algorithm::{Phase, Stage, Transform};
use crate::error::{Error, Result, did_you_mean};
use crate::registry::Registry;
use crate::scheme::QuantSpec;
use crate::topology::{Axis, Linear, Region, Topology};

/// When a pass runs: its phase, and within it the whole model before regions of blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    phase: Phase,
    of_blocks: bool,
}

impl Rank {
    fn of(pass: &RawPass, registry: &Registry) -> Result<Self> {
        let options = serde_json::to_value(&pass.options).map_err(|e| Error::internal(e.to_string()))?;
        let (algorithm, _) = registry.build_algorithm(&pass.algo, &options)?;
        let stage = algorithm.stage();
        Ok(Self { phase: stage.phase(), of_blocks: !matches!(stage, Stage::ModelTransform(_)) })
    }
}

impl std::fmt::Display for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.phase, if self.of_blocks { "" } else { " of the whole model" })
    }
}

/// The passes in the order of their phases.
pub(super) fn pass_order<'a>(raw: &'a RawRun, registry: &Registry, sorted: bool, notes: &mut Vec<String>) -> Result<Vec<&'a RawPass>> {
    let mut order: Vec<(Rank, &RawPass)> = raw.passes.iter().map(|p| Ok((Rank::of(p, registry)?, p))).collect::<Result<_>>()?;
    if let Some([(before, earlier), (rank, later)]) = order.windows(2).find(|pair| pair[1].0 < pair[0].0) {
        if !sorted {
            let message = format!("`{}` ({rank}) cannot follow `{}` ({before})", later.algo, earlier.algo);
            return Err(Error::plan("plan::phase-order", message)
                .hint("move its `[[pass]]` up, or use `--algo` with a list, which is sorted by phase"));
        }
        order.sort_by_key(|(rank, _)| *rank);
        notes.push(format!("passes sorted by phase: {}", order.iter().map(|(_, p)| p.algo.as_str()).collect::<Vec<_>>().join(", ")));
    }
    for (_, p) in order.iter().filter(|(rank, _)| left_out(raw, rank.phase)) {
        notes.push(format!("`harness.no-quantize` leaves out the pass `{}`", p.algo));
    }
    order.retain(|(rank, _)| !left_out(raw, rank.phase));
    Ok(order.into_iter().map(|(_, p)| p).collect())
}

/// The linears a transform of the whole model looks at: those of `touched` that the pass chooses.
pub(super) fn pass_linears<'a>(pass: &RawPass, topology: &'a Topology, touched: &dyn Fn(&Linear) -> bool) -> Result<Vec<&'a Linear>> {
    let all: Vec<&Linear> = topology.linears.iter().collect();
    let chosen = choice(pass, &all)?;
    Ok(all.into_iter().filter(|l| chosen(l) && touched(l)).collect())
}

/// Whether a pass works on a linear, as far as its `match` and `skip` say.
fn choice(pass: &RawPass, linears: &[&Linear]) -> Result<impl Fn(&Linear) -> bool + use<>> {
    if pass.regions.is_some() {
        let message = format!("pass `{}` has `regions`, but it does not work on regions", pass.algo);
        return Err(Error::config("config::invalid", message).hint("choose its sites with `match` and `skip`"));
    }
    let chosen = pass.selector.as_deref().map(Selector::new).transpose()?;
    let skipped: Vec<Selector> = pass.skip.iter().map(|s| Selector::new(s)).collect::<Result<_>>()?;
    for s in chosen.iter().chain(&skipped) {
        if !linears.iter().any(|l| s.matches(l)) {
            return Err(s.unmatched(&format!("pass `{}`: selector", pass.algo), linears));
        }
    }
    Ok(move |l: &Linear| chosen.as_ref().is_none_or(|c| c.matches(l)) && !skipped.iter().any(|s| s.matches(l)))
}

/// The sites a pass works on.
pub(super) fn pass_sites<'a>(
    pass: &RawPass,
    linears: &[&'a Linear],
    specs: &'a [Option<QuantSpec>],
) -> Result<Vec<(&'a Linear, &'a QuantSpec)>> {
    let chosen = choice(pass, linears)?;
    Ok(linears.iter().zip(specs).filter(|(l, _)| chosen(l)).filter_map(|(l, spec)| Some((*l, spec.as_ref()?))).collect())
}

/// The regions that a transform works on: those it was given, or by default all it wants that `touched` linears read.
pub(super) fn pass_regions<'a>(
    pass: &RawPass,
    transform: &dyn Transform,
    topology: &'a Topology,
    touched: &dyn Fn(&Linear) -> bool,
) -> Result<Vec<&'a Region>> {
    if pass.selector.is_some() || !pass.skip.is_empty() {
        let message = format!("pass `{}` has `match` or `skip`, but it works on regions, not on sites", pass.algo);
        return Err(
            Error::config("config::invalid", message).hint("choose its regions with `regions`, such as `[\"attn.in\", \"mlp.in\"]`")
        );
    }
    let linears = |r: &Region| r.consumers.iter().filter_map(|s| topology.linear(s.site)).collect::<Vec<_>>();
    let of_blocks: Vec<&Region> =
        topology.regions.iter().filter(|r| r.block.is_some() && r.consumers.iter().all(|s| s.axis == Axis::Columns)).collect();
    let wanted = |r: &&&Region| linears(r).into_iter().any(touched);
    let Some(selectors) = &pass.regions else {
        return Ok(of_blocks.iter().filter(|r| transform.suits(r) && transform.by_default(r)).filter(wanted).copied().collect());
    };
    let name = |r: &Region| r.id.splitn(3, '.').nth(2).unwrap_or(&r.id).to_owned();
    let names = |keep: &dyn Fn(&Region) -> bool| -> Vec<String> {
        let names: BTreeSet<String> = of_blocks.iter().filter(|r| keep(r)).map(|r| name(r)).collect();
        names.into_iter().collect()
    };
    let mut chosen = Vec::new();
    for text in selectors {
        let selector = Selector::new(text)?;
        let hits: Vec<&Region> = of_blocks.iter().filter(|r| selector.is(&r.id) || selector.is(&name(r))).copied().collect();
        if hits.is_empty() {
            let names = names(&|_| true);
            let nearest = did_you_mean(text, names.iter().map(String::as_str));
            let message = format!("pass `{}`: `{text}` matches no region of this model{nearest}", pass.algo);
            return Err(Error::config("config::unmatched-selector", message).hint(format!("regions of this model: {}", names.join(", "))));
        }
        if let Some(region) = hits.iter().find(|r| !transform.suits(r)) {
            let message = format!("`{}` cannot work on `{}`: it would change what the model computes", pass.algo, region.id);
            let names = names(&|r| transform.suits(r)).join(", ");
            return Err(Error::plan("plan::region", message).hint(format!("of this model it can work on: {names}")));
        }
        chosen.extend(hits);
    }
    // In the model's order, each once.
    Ok(of_blocks.into_iter().filter(|r| chosen.iter().any(|c| c.id == r.id)).collect())
}

/// The linears that read regions and are to be quantized.
pub(super) fn region_sites<'a>(
    regions: &[&Region],
    linears: &[&'a Linear],
    specs: &'a [Option<QuantSpec>],
) -> Vec<(&'a Linear, &'a QuantSpec)> {
    let read = |l: &Linear| regions.iter().any(|r| r.consumers.iter().any(|s| s.site == l.site));
    linears.iter().zip(specs).filter(|(l, _)| read(l)).filter_map(|(l, spec)| Some((*l, spec.as_ref()?))).collect()
}

/// What is to be quantized is rounded by one pass.
pub(super) fn one_round_per_site(sites: &[PlannedSite], passes: &[PlannedPass], activations: bool) -> Result<()> {
    let rounds: Vec<&PlannedPass> = passes.iter().filter(|p| p.phase == Phase::Round).collect();
    for s in sites.iter().filter(|s| s.weights.is_some() && !s.is_embedding()) {
        let names: Vec<&str> = rounds.iter().filter(|p| p.sites.contains(&s.site)).map(|p| p.algo.as_str()).collect();
        match names.len() {
            1 => {}
            0 => {
                return Err(Error::plan("plan::no-round", format!("`{}` is to be quantized, but no pass rounds it", s.site))
                    .hint("add a pass such as `--algo rtn` or `--algo gptq`"));
            }
            _ => {
                return Err(Error::plan("plan::two-rounds", format!("`{}` would be rounded by {}", s.site, names.join(" and ")))
                    .hint("keep one of them, or give each its own sites with `match`"));
            }
        }
    }
    if sites.iter().all(|s| s.weights.is_none()) && !rounds.is_empty() && !activations {
        return Err(Error::plan("plan::nothing-selected", "no site is selected to be quantized")
            .hint("set `scheme.weights`, for example with `--preset w4a16`, and look at `scheme.skip`"));
    }
    Ok(())
}
