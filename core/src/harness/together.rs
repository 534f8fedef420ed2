//! Rounding all sites of a block together.

use std::collections::BTreeMap;
use std::time::Instant;

use super::block::{BlockResult, Job, Moved, Streams, conditioned_or_skipped, finished, settle, site_context, split_off, values};
use super::run::{Control, Run};
use super::split;
use super::training::{BlockTraining, targets};
use crate::algorithm::{BlockContext, Event, Rounded, SiteContext, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::model::MapWeights;
use crate::plan::Failure;
use crate::statistic::{Stats, Stream as StreamKind};
use crate::topology::Part;

/// Rounds the sites of one pass in block `b`, whose other weights are as `result` has them, and puts what they became there.
#[allow(clippy::too_many_arguments, reason = "a block, what is known of it, and what becomes of it")]
pub(super) fn round_together(
    run: &Run<'_>,
    b: u32,
    (pass, group): (usize, &[&Job<'_>]),
    stats: &Stats,
    original: &MapWeights,
    result: &mut BlockResult,
    streams: &Streams,
    control: &Control<'_>,
) -> Result<()> {
    let Stage::RoundBlock(algorithm) = run.algorithm(pass).stage() else {
        return Err(Error::internal("a pass that rounds blocks has another stage"));
    };
    let start = Instant::now();
    let (amax, branches) = split_off(run, group, stats, &result.weights)?;
    let weights = group.iter().map(|job| values(&result.weights, job.linear.site, Part::Weight)).collect::<Result<Vec<_>>>()?;
    let residuals: Vec<_> = weights.iter().enumerate().map(|(i, w)| branches.get(&i).map(|b| b.residuals(w))).collect();
    let mut told: Vec<Vec<Event>> = (0..group.len()).map(|i| branches.get(&i).map_or_else(Vec::new, |b| b.events.clone())).collect();
    // The block learns with its branches.
    split::store(run, group, branches, result)?;
    let plain: Vec<SiteContext<'_>> = group
        .iter()
        .zip(&weights)
        .zip(&residuals)
        .zip(&amax)
        .map(|(((job, w), residuals), amax)| match residuals {
            Some((weight, original)) => SiteContext { weight, original, ..site_context(run, job, w, stats, *amax) },
            None => site_context(run, job, w, stats, *amax),
        })
        .collect();
    let mut moved: Vec<Moved> = Vec::new();
    for (((job, cx), residuals), told) in group.iter().zip(&plain).zip(&residuals).zip(&mut told) {
        // Where a branch was taken out, conditions came before that.
        let mut site = if residuals.is_some() { Moved::default() } else { conditioned_or_skipped(run, job, cx)? };
        told.append(&mut site.events);
        moved.push(site);
    }
    let contexts: Vec<SiteContext<'_>> = plain.iter().zip(&moved).map(|(cx, moved)| moved.seen(cx)).collect();
    let inputs = streams.kept(run.needs(pass).training.unwrap_or(run.stream()))?;
    if result.targets.is_none() {
        let reference = streams.get(StreamKind::Reference).unwrap_or(inputs);
        result.targets = Some(targets(run, b, original, reference, &streams.dir, control)?);
    }
    let targets = result.targets.as_ref().ok_or_else(|| Error::internal("a block learns without targets"))?;
    let rounded = {
        let weights = (&result.weights, &result.activations);
        let sites: Vec<_> = group.iter().map(|job| job.linear.site).collect();
        let training = BlockTraining::new(run, b, weights, &sites, (inputs, targets), control)?;
        algorithm.round(&BlockContext { sites: &contexts, training: &training, block: b, seed: run.plan().harness.seed })
    };
    let rounded = match rounded.map_err(|e| e.within(format!("block {b}"))) {
        Err(e) if e.kind() == ErrorKind::Numeric && run.plan().harness.on_failure == Failure::Rtn => {
            let nearest = |cx: &SiteContext<'_>| {
                let mut rounded = cx.nearest()?;
                rounded.events.push(Event::Fallback { reason: e.to_string() });
                Ok(rounded)
            };
            plain.iter().map(nearest).collect::<Result<Vec<Rounded>>>()?
        }
        other => other?,
    };
    if rounded.len() != group.len() {
        let message = format!("`{}` returned {} layers of {}", run.plan().passes[pass].algo, rounded.len(), group.len());
        return Err(Error::new(ErrorKind::Plugin, "plugin::contract", message));
    }
    let seconds = start.elapsed().as_secs_f64() / group.len().max(1) as f64;
    let mut finished_sites = BTreeMap::new();
    for (i, (mut rounded, told)) in rounded.into_iter().zip(told).enumerate() {
        rounded.events.splice(0..0, told);
        let left = residuals[i].as_ref().map(|(_, left)| left.as_slice());
        finished_sites.insert(i, finished(run, group[i], (&weights[i], left), rounded, stats, seconds)?);
    }
    settle(run, group, stats, &amax, finished_sites, BTreeMap::new(), result)
}
