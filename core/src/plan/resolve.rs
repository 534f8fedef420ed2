//! From raw configuration to the resolved plan: every site's scheme, the passes in order, and refusals before any weight is read.

use std::collections::{BTreeMap, BTreeSet};

use super::activation::{activations, any_static};
use super::passes::{one_round_per_site, pass_order, pass_regions, pass_sites, region_sites};
use super::raw::{RawOnFailure, RawProducts, RawPropagate, RawRun};
use super::resolved::{CalibrationPlan, Failure, HarnessPlan, OutputPlan, Plan, PlannedPass, PlannedSite, Products, input_of};
use super::sites::{embedding, site_specs};
use super::{branches, online, rewrites, streams};
use crate::algorithm::{Needs, Phase, PlanContext, PtqAlgorithm, Stage};
use crate::checkpoint::formats::{BranchPlace, Verdict};
use crate::error::{Error, Result};
use crate::model::CPU;
use crate::numeric::Bf16Unit;
use crate::registry::Registry;
use crate::scheme::{FloatKind, QuantSpec};
use crate::statistic::Stream;
use crate::target::{self, Judgement};
use crate::topology::{Linear, Port, Rewriting, Role, SiteId, Topology};

/// What the planner has to know of the model.
pub struct ModelFacts<'a> {
    /// `model_type`.
    pub model_type: &'a str,
    /// What it is made of.
    pub topology: &'a Topology,
    /// Its architecture is unknown, and its matrices are taken one by one.
    pub tensorwise: bool,
    /// Hash of configuration and headers.
    pub hash: String,
    /// The float type in which a module's weight is stored; scales are stored in it too.
    pub stored: &'a dyn Fn(&str) -> FloatKind,
    /// Channels of an attention head.
    pub head_dim: usize,
}

/// The plan and the algorithms it names, ready to run.
pub struct Resolved {
    /// The plan.
    pub plan: Plan,
    /// One per pass of the plan.
    pub algorithms: Vec<Box<dyn PtqAlgorithm>>,
    /// What each of them needs.
    pub needs: Vec<Needs>,
    /// Things worth telling, such as passes that were reordered.
    pub notes: Vec<String>,
    /// Roles of linears that a pass needs to have a bias, but that have none.
    pub biases: BTreeSet<Role>,
    /// The rewrites of the plan, ready to be done.
    pub rewriting: Rewriting,
    /// What the engine that has to load the result will do with it, where one is named.
    pub judgement: Option<Judgement>,
}

/// Resolves `raw` for a model. `sorted` says the passes came from a plain list of names, which is sorted by phase; passes written out in
/// a file keep their order, and an inversion is an error.
///
/// # Errors
/// Everything that cannot work: unknown names, selectors that match nothing, combinations that no container holds.
pub fn resolve(
    raw: &RawRun,
    registry: &Registry,
    model: &ModelFacts<'_>,
    calibration: Option<CalibrationPlan>,
    sorted: bool,
) -> Result<Resolved> {
    if let Some(target) = &raw.output.target {
        target::check(target)?;
    }
    let (narrow, widened) = (model, rewrites::widened(raw, registry, model)?);
    let model = &ModelFacts { topology: &widened, hash: model.hash.clone(), ..*model };
    let linears: Vec<&Linear> = model.topology.linears.iter().collect();
    same_blocks(raw, &linears)?;
    let mut specs = if raw.harness.no_quantize { vec![None; linears.len()] } else { site_specs(raw, registry, model, &linears)? };
    let embedding = if raw.harness.no_quantize { None } else { embedding(raw, registry, model)? };
    let activations = if raw.harness.no_quantize { Vec::new() } else { activations(raw, registry, model, &linears)? };
    let mut notes = Vec::new();
    let order = pass_order(raw, registry, sorted, &mut notes)?;
    // Without calibration there are no sweeps, and one plan for every machine.
    let elsewhere = raw.harness.device != CPU;
    let products = match raw.harness.products {
        RawProducts::Auto if calibration.is_none() || elsewhere => Products::F32,
        RawProducts::Bf16 if elsewhere => {
            let message =
                format!("`harness.products = \"bf16\"` is about the instructions of CPUs, and the blocks run on `{}`", raw.harness.device);
            return Err(Error::plan("plan::no-bf16", message).hint("leave it out"));
        }
        choice => choice.here(),
    };
    let bf16 = products.unit(Bf16Unit::detect()).map_err(|e| e.within("`harness`"))?;
    let stream = if raw.harness.propagate == Some(RawPropagate::Reference) { Stream::Reference } else { Stream::Quantized };
    let (mut biases, mut steps, mut rewrites) = (BTreeSet::new(), Vec::new(), Vec::new());
    let mut planned_branches = Vec::new();
    let (mut passes, mut algorithms, mut needs) = (Vec::new(), Vec::new(), Vec::new());
    for raw_pass in order {
        let record = registry.algorithm(&raw_pass.algo)?;
        let options = serde_json::to_value(&raw_pass.options).map_err(|e| Error::internal(e.to_string()))?;
        let (algorithm, options) = registry.build_algorithm(&raw_pass.algo, &options)?;
        let mut regions: Vec<String> = Vec::new();
        let rounded = |l: &Linear| linears.iter().zip(&specs).any(|(x, spec)| x.site == l.site && spec.is_some());
        let nothing = specs.iter().all(Option::is_none) && activations.is_empty();
        let touched = |l: &Linear| nothing || rounded(l) || input_of(&activations, l).is_some();
        let mut chosen = match algorithm.stage() {
            Stage::ModelTransform(transform) => {
                if let Some(learner) = transform.learns() {
                    let weights = specs.iter().any(Option::is_some);
                    rewrites::worth_learning(record.id, learner.objective(), weights, !activations.is_empty())?;
                    notes.push(format!("`{}` learns rotations before the first block, in time that `--measure` does not see", record.id));
                }
                rewrites.extend(rewrites::of_pass(raw, raw_pass, transform, narrow, &touched)?);
                linears.iter().zip(&specs).filter_map(|(l, spec)| Some((*l, spec.as_ref()?))).collect()
            }
            Stage::Transform(transform) => {
                let topology = rewrites::multiplied(model.topology, transform)?;
                let found = pass_regions(raw_pass, transform, &topology, &touched)?;
                if found.is_empty() {
                    notes.push(format!("`{}` finds nothing to work on: nothing that reads a region it suits is rounded", record.id));
                }
                rewrites.extend(found.iter().filter_map(|region| rewrites::multiplier(region, &topology)));
                regions = found.iter().map(|region| region.id.clone()).collect();
                region_sites(&found, &linears, &specs)
            }
            _ => pass_sites(raw_pass, &linears, &specs)?,
        };
        if matches!(record.phase, Phase::Split | Phase::Correct) && chosen.iter().any(|(l, _)| l.site.block.is_none()) {
            chosen.retain(|(l, _)| l.site.block.is_some());
            notes.push(format!("`{}` leaves the head as it is", record.id));
        }
        if let (Stage::RoundBlock(_), Some((l, _))) = (algorithm.stage(), chosen.iter().find(|(l, _)| l.site.block.is_none())) {
            let message = format!("`{}` rounds the layers of a block together, and `{}` is in none", record.id, l.site);
            return Err(Error::plan("plan::not-in-a-block", message)
                .hint(format!("name it in the pass's `skip`, and add a pass for it: `algo = \"rtn\"` with `match = \"{}\"`", l.site)));
        }
        let (chosen, weights): (Vec<&Linear>, Vec<&QuantSpec>) = chosen.into_iter().unzip();
        let inputs: Vec<Option<&QuantSpec>> = chosen.iter().map(|l| input_of(&activations, l)).collect();
        let cx = PlanContext { topology: model.topology, sites: &chosen, weights: &weights, inputs: &inputs, stream };
        let need = algorithm.needs(&cx)?;
        if elsewhere && (need.training.is_some() || need.network > 0) {
            let message = format!("`{}` learns, and gradients are computed on the CPU alone, not on `{}`", record.id, raw.harness.device);
            return Err(Error::plan("device::gradients", message).hint("use `--device cpu`"));
        }
        if record.phase == Phase::Split {
            let branch = need.branch.as_ref().ok_or_else(|| Error::internal(format!("`{}` splits, and asks for no branch", record.id)))?;
            branches::add(&mut planned_branches, record.id, branch, &chosen, model.stored)?;
        }
        if need.bias {
            let lacking = chosen.iter().filter(|l| !l.bias).map(|l| l.site.role);
            biases.extend(lacking);
        }
        if need.rescale != 0.0 && need.rescale != 1.0 {
            steps.push((record.id, need.rescale, chosen.iter().map(|l| l.site).collect::<Vec<_>>()));
        }
        passes.push(PlannedPass {
            group_index: need.group_index,
            algo: record.id.to_owned(),
            phase: record.phase,
            version: record.version.to_owned(),
            plugin: registry.origin(record.id),
            options,
            sites: chosen.iter().map(|l| l.site.to_string()).collect(),
            regions,
        });
        algorithms.push(algorithm);
        needs.push(need);
    }
    for (pass, _) in passes.iter().zip(&algorithms).filter(|(_, a)| matches!(a.stage(), Stage::RoundBlock(_))) {
        branches::rounded_together(&planned_branches, pass)?;
    }
    for (algo, share, sites) in steps {
        shrink_steps(&mut specs, algo, share, &linears, &sites)?;
    }
    let of_linear = |(l, spec): (&&Linear, &Option<QuantSpec>)| PlannedSite {
        site: l.site.to_string(),
        module: l.module.clone(),
        shape: l.shape,
        transposed: l.transposed,
        weights: spec.clone(),
    };
    let sites: Vec<PlannedSite> = embedding.into_iter().chain(linears.iter().zip(&specs).map(of_linear)).collect();
    fused_sites_agree(raw, &linears, &specs)?;
    one_round_per_site(&sites, &passes, !activations.is_empty())?;
    let rewrites = rewrites::completed(rewrites, narrow.topology, &mut notes);
    let rewriting = Rewriting::new(narrow.topology, &rewrites)?;
    let propagate = streams::propagate(raw.harness.propagate, &passes, &needs, &mut notes)?;
    let sequence = streams::sequence(raw.harness.sequence, &passes, &needs, &mut notes);
    let plan = Plan {
        version: 1,
        qfw: env!("CARGO_PKG_VERSION").to_owned(),
        model_type: model.model_type.to_owned(),
        tensorwise: model.tensorwise,
        model_hash: model.hash.clone(),
        blocks: model.topology.blocks,
        sites,
        activations,
        origin: None,
        passes,
        rewrites,
        branches: planned_branches,
        calibration,
        harness: HarnessPlan {
            sequence,
            propagate,
            products,
            on_failure: if raw.harness.on_failure == RawOnFailure::Error { Failure::Error } else { Failure::Rtn },
            seed: raw.calibration.seed,
            device: raw.harness.device.clone(),
            instructions: crate::numeric::instructions(bf16),
        },
        output: OutputPlan {
            formats: raw.output.format.clone(),
            max_shard: raw.output.max_shard.bytes(),
            keep_native: raw.output.keep_native,
        },
    };
    let turned = branches::turned(&plan.branches, &plan.online(), &model.topology.linears).cloned();
    for format in &plan.output.formats {
        let container = registry.container(format)?.container;
        let fits = online::fit(&plan, container).and_then(|()| branches::fit(&plan, turned.as_ref(), container));
        fits.map_err(|e| e.within(format!("output format `{format}`")))?;
        if !plan.branches.is_empty() && container.branches_lie() == BranchPlace::Beside {
            notes.push(format!("`{format}` has no room for branches: they lie beside it, in the directory `adapter`"));
        }
        match container.accepts(&plan) {
            Verdict::Exact => {}
            Verdict::Larger(why) => notes.push(format!("`{format}` is larger than the plan says: {why}")),
            Verdict::Changes(what) => notes.push(format!("`{format}` changes the result: {what}")),
            Verdict::Refused(error) => return Err(error.within(format!("output format `{format}`"))),
        }
    }
    let judge = |t: &String| target::judge(t, &plan, Some(model.head_dim).filter(|d| *d > 0));
    let judgement = raw.output.target.as_ref().map(judge).transpose()?;
    Ok(Resolved { plan, algorithms, needs, notes, biases, rewriting, judgement })
}

/// Takes the finer step that a pass wants for its sites into their schemes.
fn shrink_steps(specs: &mut [Option<QuantSpec>], algo: &str, share: f64, linears: &[&Linear], sites: &[SiteId]) -> Result<()> {
    for (spec, l) in specs.iter_mut().zip(linears).filter(|(_, l)| sites.contains(&l.site)) {
        let Some(spec) = spec else { continue };
        if spec.rescale != 1.0 {
            let message = format!("`{algo}` and `scheme.weights.rescale` both change the step of `{}`", l.site);
            return Err(Error::plan("plan::conflict", message).hint("leave one of them out"));
        }
        spec.rescale = share as f32;
    }
    Ok(())
}

/// Engines run layers that read the same input (q, k and v; gate and up) as one matrix, and so in one scheme. The native form is for no
/// engine.
fn fused_sites_agree(raw: &RawRun, linears: &[&Linear], specs: &[Option<QuantSpec>]) -> Result<()> {
    if raw.output.format.iter().all(|f| f == "qfw") {
        return Ok(());
    }
    type Said<'a> = (&'a Linear, &'a Option<QuantSpec>);
    let mut first: BTreeMap<(Option<u32>, Port), Said<'_>> = BTreeMap::new();
    for (l, spec) in linears.iter().zip(specs).filter(|(l, _)| l.site.role != Role::Linear) {
        let (other, said) = *first.entry((l.site.block, l.input)).or_insert((l, spec));
        if said != spec {
            let show = |s: &Option<QuantSpec>| s.as_ref().map_or_else(|| "kept".to_owned(), |s| format!("`{s}`"));
            let message =
                format!("`{}` is {} and `{}` is {}, but engines run them as one matrix", other.site, show(said), l.site, show(spec));
            return Err(Error::plan("plan::fused-sites", message)
                .hint("give them the same scheme, in one override that matches both; or use `--format qfw`"));
        }
    }
    Ok(())
}

/// Whether anything that `raw` runs reads activations.
///
/// # Errors
/// If an algorithm is unknown.
pub fn needs_calibration(raw: &RawRun, registry: &Registry) -> Result<bool> {
    raw.passes.iter().try_fold(any_static(raw) && !raw.harness.no_quantize, |any, p| {
        let record = registry.algorithm(&p.algo)?;
        let options = serde_json::to_value(&p.options).map_err(|e| Error::internal(e.to_string()))?;
        let reads = !record.weight_only || registry.build_algorithm(&p.algo, &options)?.0.reads_activations();
        Ok(any || reads && !left_out(raw, record.phase))
    })
}

/// Without quantization there is nothing to round.
pub(super) fn left_out(raw: &RawRun, phase: Phase) -> bool {
    raw.harness.no_quantize && phase == Phase::Round
}

/// The list of blocks that a run may name is a check, not a choice: what is run one at a time is what the architecture says.
fn same_blocks(raw: &RawRun, linears: &[&Linear]) -> Result<()> {
    let first = linears.iter().find(|l| l.site.block == Some(0));
    let list = first.and_then(|l| l.module.split_once(".0.")).map_or("", |(list, _)| list);
    match &raw.harness.block_name {
        Some(name) if name != list => Err(Error::config(
            "config::block-name",
            format!("`harness.block-name` is `{name}`, but this model stores its blocks under `{list}`"),
        )
        .hint(format!("write `{list}`, or leave the key out"))),
        _ => Ok(()),
    }
}
