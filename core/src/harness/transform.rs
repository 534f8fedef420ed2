//! The transforming passes over one block, before anything in it is rounded.
//!
//! A pass finds a symmetry of a region; core fuses it into everything that writes or reads the region's channels, carries the statistics
//! that are known over to the new channels, and puts what changed and is not to become codes (norms, biases, layers that are kept) into
//! the block's shard, in the type of the source.
//!
//! Where a norm's weight `γ` alone writes the channels, factors are moved to the nearest ones for which `γ·s` is a number of its stored
//! type: the fused model is then the original one exactly, not up to that type's rounding.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::block::{Job, Streams, through, values};
use super::collect::{Wanted, collect};
use super::replay::Module;
use super::report::Progress;
use super::run::{Control, Run};
use crate::algorithm::{Event, Producer, Reader, RegionContext, Replay, Solved, Stage};
use crate::checkpoint::TensorDecl;
use crate::error::{Error, ErrorKind, Result};
use crate::model::MapWeights;
use crate::numeric::transpose;
use crate::plan::{Failure, Sequence};
use crate::statistic::{StatKey, Stats, Stream as StreamKind};
use crate::topology::{Linear, Part, Region, Symmetry, apply};

/// A block after its transforms.
pub(super) struct Transformed {
    /// Its weights in high precision: the same function as before.
    pub(super) weights: MapWeights,
    /// What is stored of them.
    pub(super) tensors: Vec<(TensorDecl, Vec<u8>)>,
    /// What to report, by the first site that reads the region.
    pub(super) events: BTreeMap<String, Vec<Event>>,
    /// Statistics that hold for the block as it is now.
    pub(super) stats: Stats,
}

/// Runs the transforming passes. Where rounding takes the block at once, what that needs is collected in the same sweep.
pub(super) fn transform(
    run: &Run<'_>,
    b: u32,
    original: &MapWeights,
    jobs: &[Job<'_>],
    streams: &Streams,
    control: &Control<'_>,
) -> Result<Transformed> {
    let mut done = Transformed { weights: original.clone(), tensors: Vec::new(), events: BTreeMap::new(), stats: Stats::default() };
    let passes: Vec<(usize, Vec<&Region>)> =
        run.transforms().map(|pass| (pass, run.regions(pass, b))).filter(|(_, regions)| !regions.is_empty()).collect();
    if passes.is_empty() {
        return Ok(done);
    }
    for (nth, (pass, regions)) in passes.iter().enumerate() {
        let Stage::Transform(solver) = run.algorithm(*pass).stage() else {
            return Err(Error::internal("a pass of the transform phase has another stage"));
        };
        // Later passes find theirs among what was collected, unless a symmetry could not carry it over.
        let wanted = if nth == 0 { &passes[..] } else { &passes[nth..=nth] };
        let mut keys: Vec<StatKey> = wanted.iter().flat_map(|(pass, regions)| keys(run, *pass, regions)).collect();
        if nth == 0 && run.plan().harness.sequence == Sequence::Block {
            keys.extend(jobs.iter().flat_map(|j| j.keys(run)).filter(|k| k.stream != StreamKind::Rounded));
        }
        keys.retain(|k| !done.stats.holds(k));
        if !keys.is_empty() {
            control.report(Progress::Step { name: "collect" });
            let open = |kind: StreamKind| Ok(through(run.model().block(b, &done.weights)?, streams.kept(kind)?, run));
            let wanted = Wanted { keys: keys.into_iter().collect(), ranges: None, rounds: false, rounding: Vec::new(), bf16: run.bf16() };
            done.stats.extend(collect(&wanted, run.windows(), open, control)?);
        }
        control.report(Progress::Step { name: "transform" });
        for region in regions {
            let algo = &run.plan().passes[*pass].algo;
            let readers = readers(run, region, &done.weights)?;
            let solved = {
                let readers: Vec<Reader<'_>> = readers.iter().map(|(linear, weight)| reader(run, jobs, linear, weight)).collect();
                let producers = match solver.reads_producers() {
                    true => Producer::of(region, &run.model().topology, &done.weights)?,
                    false => Vec::new(),
                };
                let (stats, stream, seed) = (&done.stats, run.stream(), run.plan().harness.seed);
                let module = match run.needs(*pass).replay {
                    true => Module::of(run, b, region, &done.weights, streams.kept(stream)?, &streams.dir, control)?,
                    false => None,
                };
                let replay = module.as_ref().map(|m| m as &dyn Replay);
                solver.solve(&RegionContext { region, readers: &readers, producers: &producers, stats, replay, stream, seed })
            };
            // What there is to say goes into the report of a reader, or of any site of the block: those that are kept have none.
            let reader_job = jobs.iter().find(|j| readers.iter().any(|(l, _)| l.site == j.linear.site));
            let reported = reader_job.or(jobs.first()).map(|j| j.linear.site.to_string());
            match solved.and_then(usable).map_err(|e| e.within(format!("`{algo}` in `{}`", region.id))) {
                Ok(None) => {}
                Ok(Some(Solved { symmetry, events })) => {
                    fuse(run, region, symmetry, &mut done)?;
                    if let Some(site) = reported {
                        done.events.entry(site).or_default().extend(events);
                    }
                }
                Err(e) => match reported {
                    Some(site) if e.kind() == ErrorKind::Numeric && run.plan().harness.on_failure == Failure::Rtn => {
                        done.events.entry(site).or_default().push(Event::Skipped { reason: e.to_string() });
                    }
                    _ => return Err(e),
                },
            }
        }
    }
    store(run, b, original, &mut done)?;
    if run.plan().harness.sequence == Sequence::Layer {
        // Groups of layers see what rounding made of those before them.
        done.stats = Stats::default();
    }
    Ok(done)
}

/// What was solved, if it can be applied: statistics that are not finite make factors that are not.
fn usable(solved: Option<Solved>) -> Result<Option<Solved>> {
    if let Some(Solved { symmetry: Symmetry::Diagonal(factors), .. }) = &solved
        && let Some(factor) = factors.iter().find(|s| !(s.is_finite() && **s > 0.0))
    {
        let message = format!("a channel would be scaled by {factor}");
        return Err(Error::numeric("numeric::not-finite", message).hint("if the activations of the calibration data are not finite here, the model overflows on them; else leave the region out of the pass"));
    }
    Ok(solved)
}

fn keys(run: &Run<'_>, pass: usize, regions: &[&Region]) -> Vec<StatKey> {
    let readers = regions.iter().flat_map(|r| &r.consumers).filter_map(|slot| run.model().topology.linear(slot.site));
    readers
        .flat_map(|linear| run.needs(pass).inputs.iter().map(|(kind, stream)| StatKey { port: linear.input, kind: *kind, stream: *stream }))
        .collect()
}

/// The linears that read the region, with their weights as they stand.
fn readers<'a>(run: &'a Run<'_>, region: &Region, weights: &MapWeights) -> Result<Vec<(&'a Linear, Vec<f32>)>> {
    let linears = region.consumers.iter().filter_map(|slot| run.model().topology.linear(slot.site));
    linears.map(|l| Ok((l, values(weights, l.site, Part::Weight)?))).collect()
}

fn reader<'a>(run: &'a Run<'_>, jobs: &'a [Job<'_>], linear: &'a Linear, weight: &'a [f32]) -> Reader<'a> {
    let job = jobs.iter().find(|j| j.linear.site == linear.site);
    let feeds_back = job.is_some_and(|j| matches!(run.algorithm(j.pass).stage(), Stage::Round(round) if round.feeds_back()));
    Reader { linear, weight, target: job.map(|j| (j.spec, j.observer)), input: run.input_of(linear), feeds_back }
}

/// Applies a symmetry to the weights and the statistics.
fn fuse(run: &Run<'_>, region: &Region, symmetry: Symmetry, done: &mut Transformed) -> Result<()> {
    let symmetry = storable(run, region, symmetry, &done.weights)?;
    apply(&symmetry, region, &run.model().topology, &mut done.weights)?;
    let mut ports: Vec<_> = region.consumers.iter().filter_map(|slot| run.model().topology.linear(slot.site)).map(|l| l.input).collect();
    ports.dedup();
    ports.into_iter().try_for_each(|port| done.stats.transform(port, &symmetry, region))
}

/// The factors nearest to those wanted with which the norm that writes the region is a number of its stored type. A channel for which
/// there is none keeps its scale.
fn storable(run: &Run<'_>, region: &Region, symmetry: Symmetry, weights: &MapWeights) -> Result<Symmetry> {
    let (Symmetry::Diagonal(factors), [slot]) = (&symmetry, region.producers.as_slice()) else { return Ok(symmetry) };
    let Some(param) = run.model().topology.param(slot.site, slot.part).filter(|p| p.shape.len() == 1) else { return Ok(symmetry) };
    let kind = run.stored_kind(&param.tensor)?;
    let norm = values(weights, slot.site, slot.part)?;
    let nearest = factors.iter().zip(&norm).map(|(s, gamma)| {
        let gamma = f64::from(*gamma);
        let factor = f64::from(kind.round((gamma * s) as f32)) / gamma;
        match gamma == 0.0 {
            true => *s,
            false if factor.is_finite() && factor > 0.0 => factor,
            false => 1.0,
        }
    });
    Ok(Symmetry::Diagonal(nearest.collect()))
}

/// Rounds what changed and is not to be quantized to the type of the source, and puts it among what is stored.
fn store(run: &Run<'_>, b: u32, original: &MapWeights, done: &mut Transformed) -> Result<()> {
    for param in run.model().topology.block_params(b) {
        let (Some(new), Some(old)) = (done.weights.find(param.site, param.part), original.find(param.site, param.part)) else { continue };
        let becomes_codes = param.part == Part::Weight && run.natives().iter().any(|n| n.site == param.site.to_string());
        if new.id() == old.id() || becomes_codes {
            continue;
        }
        let kind = run.stored_kind(&param.tensor)?;
        let mut rounded: Vec<f32> = values(&done.weights, param.site, param.part)?.into_iter().map(|x| kind.round(x)).collect();
        if let Some(x) = rounded.iter().find(|x| !x.is_finite()) {
            let message = format!("`{}` would hold {x} in the type it is stored in", param.tensor);
            return Err(Error::numeric("numeric::overflow", message).hint("set `model.dtype = \"float32\"`"));
        }
        let tensor = Tensor::from_slice(&rounded, &param.shape[..], &Device::Cpu)?.to_dtype(old.dtype())?.to_device(run.device())?;
        done.weights.insert(param.site, param.part, tensor);
        let mut shape = param.shape.clone();
        if param.transposed {
            rounded = transpose(&rounded, shape[0], shape[1]);
            shape.reverse();
        }
        let decl = TensorDecl { name: param.tensor.clone(), dtype: kind.into(), shape };
        done.tensors.push((decl, kind.bytes(&rounded)));
    }
    Ok(())
}
