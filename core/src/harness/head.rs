//! The passes over the head, behind the last block.

use candle_core::Tensor;

use super::block::{BlockResult, Job, Streams, round_group};
use super::collect::{Forward, Wanted, collect};
use super::journal::Journal;
use super::run::{Control, Run};
use crate::error::Result;
use crate::model::{Flow, MapWeights, WeightSource};
use crate::statistic::{RangeCollector, Stats, Stream as StreamKind};
use crate::topology::Part;

/// Rounds the head, where the plan asks for it. Its entry follows the blocks'.
pub(super) fn quantize(run: &Run<'_>, journal: &mut Journal, streams: &Streams, control: &Control<'_>) -> Result<()> {
    if !run.head_work() {
        return Ok(());
    }
    let jobs = run.head_jobs();
    let mut weights = MapWeights::default();
    for job in &jobs {
        let weight: Tensor = run.model().weights.get(job.linear.site, Part::Weight)?;
        weights.insert(job.linear.site, Part::Weight, weight);
    }
    let mut result = BlockResult::new(weights);
    let mut ranges = run.ranges(None);
    let rounded = run.rounds(None) && jobs.iter().any(|job| job.wants_rounded(run));
    if rounded {
        if ranges.is_some() {
            statistics(run, &[], &result, streams, ranges.as_ref(), control)?;
        }
        run.fix_activations(None, ranges.take(), &mut result)?;
    }
    let stats = statistics(run, &jobs, &result, streams, ranges.as_ref(), control)?;
    if !rounded {
        run.fix_activations(None, ranges, &mut result)?;
    }
    round_group(run, &jobs.iter().collect::<Vec<_>>(), &stats, &mut result)?;
    run.record(run.plan().blocks, result.tensors, &result.sites, journal, streams)
}

/// What the passes over the head need. Nothing before it is left to change, so all streams run through the same edges.
fn statistics(
    run: &Run<'_>,
    jobs: &[Job<'_>],
    current: &BlockResult,
    streams: &Streams,
    ranges: Option<&RangeCollector<'_>>,
    control: &Control<'_>,
) -> Result<Stats> {
    let open = |kind: StreamKind| -> Result<Forward<'_>> {
        let (stream, edges) = (streams.kept(kind)?, run.model().edges()?);
        let edges = if kind == StreamKind::Rounded { current.activations.at_edges(edges) } else { edges };
        Ok(Box::new(move |i, _, tap| edges.finish(Flow::new(stream.get(i, run.device())?), tap).map(|_| ())))
    };
    let wanted = Wanted {
        keys: jobs.iter().flat_map(|job| job.keys(run)).collect(),
        ranges: ranges.map(|r| (run.stream(), r)),
        rounds: run.rounds(None),
        rounding: Vec::new(),
        bf16: run.bf16(),
    };
    collect(&wanted, run.windows(), open, control)
}
