//! The correcting passes over one block, once its codes are fixed.

use candle_core::{Device, Tensor};

use super::block::{BlockResult, Job, Streams, site_context, through, values};
use super::collect::{Wanted, collect};
use super::run::{Control, Run};
use super::split::less_branch;
use crate::algorithm::{Event, Frozen, Stage};
use crate::checkpoint::TensorDecl;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ActivationQuant, MapWeights, WeightSource};
use crate::plan::Failure;
use crate::statistic::{StatKey, Stats, Stream as StreamKind};
use crate::topology::Part;

/// What corrections need to know of inputs that are rounded: how is known only now, so that this takes a sweep of its own, over the
/// original weights, as the one before.
pub(super) fn rounded_means(
    run: &Run<'_>,
    b: u32,
    jobs: &[Job<'_>],
    (original, result): (&MapWeights, &BlockResult),
    streams: &Streams,
    control: &Control<'_>,
) -> Result<Stats> {
    let rounding: Vec<&ActivationQuant> = result.activations.iter().collect();
    let jobs = jobs.iter().filter(|j| rounding.iter().any(|a| a.place.port == j.linear.input));
    let keys = jobs.flat_map(|job| {
        let needs = job.corrections.iter().flat_map(|p| &run.needs(*p).inputs);
        needs.map(|(kind, stream)| StatKey { port: job.linear.input, kind: *kind, stream: *stream })
    });
    let open = |kind: StreamKind| Ok(through(run.model().block(b, original)?, streams.kept(kind)?, run));
    let wanted = Wanted { keys: keys.collect(), ranges: None, rounds: true, rounding: rounding.clone(), bf16: run.bf16() };
    collect(&wanted, run.windows(), open, control)
}

/// Lets the correcting passes work on the rounded sites.
pub(super) fn correct(run: &Run<'_>, jobs: &[Job<'_>], means: &Stats, original: &MapWeights, result: &mut BlockResult) -> Result<()> {
    for job in jobs.iter().filter(|j| !j.corrections.is_empty()) {
        let site = job.linear.site;
        let (was, is) = (values(original, site, Part::Weight)?, values(&result.weights, site, Part::Weight)?);
        // A branch gives its part of the output on inputs that nothing rounds.
        let was = less_branch(&was, result.weights.branch(site)?.as_ref())?;
        let mut bias = values(&result.weights, site, Part::Bias)?;
        let stored = run.stored_kind(&format!("{}.bias", job.linear.module))?;
        for pass in &job.corrections {
            let Stage::Correct(correct) = run.algorithm(*pass).stage() else {
                return Err(Error::internal("a pass of the correct phase has another stage"));
            };
            let corrected = correct.correct(&site_context(run, job, &was, means, 0.0), &Frozen { weight: &is, bias: &bias });
            let report = result.sites.iter_mut().find(|r| r.site == site.to_string());
            let events = report.map(|r| &mut r.events).ok_or_else(|| Error::internal(format!("`{site}` was not reported")))?;
            match corrected.map_err(|e| e.within(format!("`{site}`"))) {
                Ok(corrected) if corrected.bias.len() == bias.len() && corrected.bias.iter().all(|b| b.is_finite()) => {
                    bias = corrected.bias.into_iter().map(|b| stored.round(b)).collect();
                    events.extend(corrected.events);
                }
                Ok(corrected) => {
                    let algo = &run.plan().passes[*pass].algo;
                    let message = format!(
                        "`{site}`: `{algo}` returned {} biases, or some that are not finite, for {}",
                        corrected.bias.len(),
                        bias.len()
                    );
                    return Err(Error::new(ErrorKind::Plugin, "plugin::contract", message));
                }
                Err(e) if e.kind() == ErrorKind::Numeric && run.plan().harness.on_failure == Failure::Rtn => {
                    events.push(Event::Skipped { reason: format!("the bias stays as it was: {e}") });
                }
                Err(e) => return Err(e),
            }
        }
        let decl = TensorDecl { name: format!("{}.bias", job.linear.module), dtype: stored.into(), shape: vec![bias.len()] };
        // A transform may have moved it before.
        result.tensors.retain(|(d, _)| d.name != decl.name);
        result.tensors.push((decl, stored.bytes(&bias)));
        let tensor = Tensor::from_vec(bias, job.linear.shape.0, &Device::Cpu)?.to_device(run.device())?;
        result.weights.insert(site, Part::Bias, tensor);
    }
    Ok(())
}
