//! Rounding all sites of a block together.

use std::time::Instant;

use super::block::{BlockResult, Job, Streams, conditioned, finished, put, shared_amax, site_context, values};
use super::run::{Control, Run};
use super::training::{BlockTraining, Weights};
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
    let amax = shared_amax(group, &result.weights)?;
    let weights = group.iter().map(|job| values(&result.weights, job.linear.site, Part::Weight)).collect::<Result<Vec<_>>>()?;
    let plain: Vec<SiteContext<'_>> =
        group.iter().zip(&weights).zip(&amax).map(|((job, w), amax)| site_context(run, job, w, stats, *amax)).collect();
    let moved = group.iter().zip(&plain).map(|(job, cx)| conditioned(run, job, cx)).collect::<Result<Vec<_>>>()?;
    let sites: Vec<SiteContext<'_>> =
        plain.iter().zip(&moved).map(|(cx, (moved, _))| SiteContext { weight: moved.as_deref().unwrap_or(cx.weight), ..*cx }).collect();
    let stream = run.needs(pass).training.unwrap_or(run.stream());
    let rounded = {
        let training = BlockTraining::new(
            run,
            b,
            Weights { original, current: &result.weights, activations: &result.activations },
            &group.iter().map(|job| job.linear.site).collect::<Vec<_>>(),
            (streams.kept(stream)?, streams.get(StreamKind::Reference).map_or_else(|| streams.kept(stream), Ok)?),
            &streams.dir,
            control,
        )?;
        algorithm.round(&BlockContext { sites: &sites, training: &training, block: b, seed: run.plan().harness.seed })
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
    for (((job, weight), mut rounded), (_, events)) in group.iter().zip(&weights).zip(rounded).zip(moved) {
        rounded.events.splice(0..0, events);
        put(job, finished(run, job, (weight, None), rounded, stats, seconds)?, result);
    }
    Ok(())
}
