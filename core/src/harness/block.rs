//! The passes over one block.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::collect::{Forward, Wanted, collect};
use super::correct::{correct, rounded_means};
use super::report::SiteReport;
use super::run::{Control, Run};
use super::site_error::{output_error, weight_error};
use super::split::{self, Group, SplitOff};
use super::stream::Stream;
use super::sweep::stop_after;
use super::together::round_together;
use super::transform::{Transformed, transform};
use crate::algorithm::{Conditioned, Event, Rounded, SiteContext, Stage};
use crate::checkpoint::TensorDecl;
use crate::checkpoint::native::{NativeSite, encode_site};
use crate::error::{Error, Result};
use crate::harness::report::Progress;
use crate::model::{Activations, Block, Flow, MapWeights, Span, WeightSource};
use crate::numeric::{decode, with_slice};
use crate::observer::Observer;
use crate::plan::{Failure, Sequence};
use crate::scheme::{QuantSpec, ScaleForm};
use crate::statistic::{RangeCollector, StatKey, Stats, Stream as StreamKind};
use crate::topology::{Linear, Part, Port, SiteId};

/// A site to be rounded: the linear, its spec, its observer, the passes that condition it, the one that splits it, the one that rounds it,
/// and those that correct what remains, in order.
pub(super) struct Job<'a> {
    pub(super) linear: &'a Linear,
    pub(super) spec: &'a QuantSpec,
    pub(super) native: &'a NativeSite,
    pub(super) observer: &'a dyn Observer,
    pub(super) conditions: Vec<usize>,
    pub(super) split: Option<usize>,
    pub(super) pass: usize,
    pub(super) corrections: Vec<usize>,
}

impl Job<'_> {
    /// Every pass that works on the site.
    pub(super) fn passes(&self) -> impl Iterator<Item = usize> + '_ {
        self.conditions.iter().copied().chain(self.split).chain([self.pass]).chain(self.corrections.iter().copied())
    }

    /// Statistics that its passes need.
    pub(super) fn keys<'r>(&'r self, run: &'r Run<'_>) -> impl Iterator<Item = StatKey> + 'r {
        let needs = self.passes().flat_map(|p| &run.needs(p).inputs);
        needs.map(|(kind, stream)| StatKey { port: self.linear.input, kind: *kind, stream: *stream })
    }

    /// Whether any of them is of rounded activations.
    pub(super) fn wants_rounded(&self, run: &Run<'_>) -> bool {
        self.keys(run).any(|k| k.stream == StreamKind::Rounded)
    }
}

/// Names of the streams, in files and in the journal.
const REFERENCE: &str = "reference";
/// See [`REFERENCE`].
pub(super) const QUANTIZED: &str = "quantized";

/// The streams a run keeps.
pub(super) struct Streams {
    /// Where what does not fit in memory lies.
    pub(super) dir: PathBuf,
    pub(super) reference: Option<Stream>,
    pub(super) quantized: Option<Stream>,
}

impl Streams {
    pub(super) fn get(&self, kind: StreamKind) -> Option<&Stream> {
        if kind.fed_by() == StreamKind::Reference { self.reference.as_ref() } else { self.quantized.as_ref() }
    }

    /// As [`Self::get`].
    ///
    /// # Errors
    /// If the run does not keep it.
    pub(super) fn kept(&self, kind: StreamKind) -> Result<&Stream> {
        self.get(kind).ok_or_else(|| Error::internal("a pass needs a stream that the run does not keep"))
    }

    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &Stream)> {
        [(REFERENCE, &self.reference), (QUANTIZED, &self.quantized)].into_iter().filter_map(|(n, s)| Some((n, s.as_ref()?)))
    }
}

/// What rounding a block yields.
pub(super) struct BlockResult {
    /// The block's weights as rounded.
    pub(super) weights: MapWeights,
    /// Native tensors to be stored.
    pub(super) tensors: Vec<(TensorDecl, Vec<u8>)>,
    /// Reports, in order.
    pub(super) sites: Vec<SiteReport>,
    /// How the block rounds its activations from now on.
    pub(super) activations: Activations,
    /// What the original block puts out on the reference stream, or on the only one that there is, if something learned from that.
    pub(super) targets: Option<Stream>,
}

impl BlockResult {
    /// A block whose weights are these, before anything happened to it.
    pub(super) fn new(weights: MapWeights) -> Self {
        Self { weights, tensors: Vec::new(), sites: Vec::new(), activations: Activations::default(), targets: None }
    }
}

/// What rounding a site yields.
pub(super) struct RoundedSite {
    pub(super) weight: Tensor,
    tensors: Vec<(TensorDecl, Vec<u8>)>,
    pub(super) report: SiteReport,
}

/// Quantizes block `b`, whose float weights are `original`.
pub(super) fn quantize(run: &Run<'_>, b: u32, original: &MapWeights, streams: &Streams, control: &Control<'_>) -> Result<BlockResult> {
    let jobs = run.jobs(b);
    let (together, apart): (Vec<&Job<'_>>, Vec<&Job<'_>>) =
        jobs.iter().partition(|j| matches!(run.algorithm(j.pass).stage(), Stage::RoundBlock(_)));
    let groups: Vec<Vec<&Job<'_>>> = match run.plan().harness.sequence {
        Sequence::Block => vec![apart],
        Sequence::Layer => {
            let mut groups: Vec<Vec<&Job<'_>>> = Vec::new();
            for job in apart {
                match groups.iter_mut().find(|g| g[0].linear.input == job.linear.input) {
                    Some(group) => group.push(job),
                    None => groups.push(vec![job]),
                }
            }
            groups
        }
    };
    let Transformed { weights, tensors, events, stats: known } = transform(run, b, original, &jobs, streams, control)?;
    // The same function in other channels: from here on, all streams run through these.
    let original = &weights;
    let mut result = BlockResult { tensors, ..BlockResult::new(original.clone()) };
    // Ranges are taken in the first sweep, before anything in the block is rounded.
    let mut ranges = run.ranges(Some(b));
    let learns = jobs.iter().any(|job| run.needs(job.pass).training.is_some());
    let rounded = run.rounds(Some(b)) && (learns || jobs.iter().any(|job| job.wants_rounded(run)));
    if rounded {
        // Statistics of rounded activations want static ranges known before: that takes a sweep of its own.
        if ranges.is_some() {
            control.report(Progress::Step { name: "collect" });
            statistics(run, b, &[], Under { original, current: &result, known: &known }, streams, ranges.as_ref(), control)?;
        }
        run.fix_activations(Some(b), ranges.take(), &mut result)?;
    }
    let mut wanted = ranges.as_ref();
    let mut means = Stats::default();
    for group in groups.iter().filter(|g| !g.is_empty()) {
        control.report(Progress::Step { name: "collect" });
        let stats = statistics(run, b, group, Under { original, current: &result, known: &known }, streams, wanted.take(), control)?;
        control.report(Progress::Step { name: "round" });
        round_group(run, group, &stats, &mut result)?;
        means.extend_channels(&stats);
    }
    for pass in together.iter().map(|job| job.pass).collect::<BTreeSet<usize>>() {
        let group: Vec<&Job<'_>> = together.iter().filter(|job| job.pass == pass).copied().collect();
        control.report(Progress::Step { name: "collect" });
        let stats = statistics(run, b, &group, Under { original, current: &result, known: &known }, streams, wanted.take(), control)?;
        control.report(Progress::Step { name: "learn" });
        round_together(run, b, (pass, &group), &stats, original, &mut result, streams, control)?;
        means.extend_channels(&stats);
    }
    if wanted.is_some() {
        control.report(Progress::Step { name: "collect" });
        statistics(run, b, &[], Under { original, current: &result, known: &known }, streams, wanted, control)?;
    }
    for (site, events) in events {
        if let Some(report) = result.sites.iter_mut().find(|r| r.site == site) {
            report.events.splice(0..0, events);
        }
    }
    if !rounded {
        run.fix_activations(Some(b), ranges, &mut result)?;
    }
    if jobs.iter().any(|j| !j.corrections.is_empty()) {
        control.report(Progress::Step { name: "correct" });
        means.extend(rounded_means(run, b, &jobs, (original, &result), streams, control)?);
        correct(run, &jobs, &means, original, &mut result)?;
    }
    Ok(result)
}

/// A block under work: what it was, what it has become so far, and what is known of its inputs.
struct Under<'a> {
    original: &'a MapWeights,
    current: &'a BlockResult,
    known: &'a Stats,
}

/// What the group's passes need: what is `known`, and the rest from a sweep. The reference stream runs through the original weights, the
/// others through what the block has become so far.
fn statistics(
    run: &Run<'_>,
    b: u32,
    group: &[&Job<'_>],
    Under { original, current, known }: Under<'_>,
    streams: &Streams,
    ranges: Option<&RangeCollector<'_>>,
    control: &Control<'_>,
) -> Result<Stats> {
    let open = |kind: StreamKind| {
        let block = match kind {
            StreamKind::Reference => run.model().block(b, original)?,
            StreamKind::Quantized => run.model().block(b, &current.weights)?,
            StreamKind::Rounded => current.activations.in_block(b, run.model().block(b, &current.weights)?),
        };
        Ok(through(block, streams.kept(kind)?, run))
    };
    let wanted = Wanted {
        keys: group.iter().flat_map(|job| job.keys(run)).filter(|k| !known.holds(k)).collect(),
        ranges: ranges.map(|r| (run.stream(), r)),
        rounds: run.rounds(Some(b)),
        rounding: Vec::new(),
        bf16: run.bf16(),
    };
    let mut stats = known.clone();
    stats.extend(collect(&wanted, run.windows(), open, control)?);
    Ok(stats)
}

/// What a pass sees of a site whose weight is `weight`.
pub(super) fn site_context<'a>(run: &'a Run<'_>, job: &'a Job<'_>, weight: &'a [f32], stats: &'a Stats, amax: f32) -> SiteContext<'a> {
    SiteContext {
        linear: job.linear,
        weight,
        original: weight,
        ranged: None,
        spec: job.spec,
        input: run.input_of(job.linear),
        observer: job.observer,
        stats,
        stream: run.stream(),
        seed: run.plan().harness.seed,
        amax,
    }
}

/// A parameter in f32.
pub(super) fn values(weights: &MapWeights, site: SiteId, part: Part) -> Result<Vec<f32>> {
    let tensor = weights.get(site, part)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    with_slice::<f32, _>(&tensor, |w| Ok(w.to_vec()))
}

/// A forward pass of a stream through a block.
pub(super) fn through<'a>(block: Box<dyn Block + 'a>, stream: &'a Stream, run: &'a Run<'_>) -> Forward<'a> {
    Box::new(move |i, last, tap| block.run(Span::until(stop_after(last)), Flow::new(stream.get(i, run.device())?), tap).map(|_| ()))
}

/// Rounds the sites of a group, all at once, and puts what they became into the block.
pub(super) fn round_group(run: &Run<'_>, group: &[&Job<'_>], stats: &Stats, result: &mut BlockResult) -> Result<()> {
    let (amax, branches) = split_off(run, group, stats, &result.weights)?;
    // The largest start first, so that none is left to run alone at the end.
    let mut order: Vec<usize> = (0..group.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(group[*i].linear.shape.1));
    let rounded: Vec<(usize, RoundedSite)> = order
        .into_par_iter()
        .map(|i| Ok((i, round_site(run, group[i], amax[i], branches.get(&i), stats, &result.weights)?)))
        .collect::<Result<_>>()?;
    settle(run, group, stats, &amax, rounded.into_iter().collect(), branches, result)
}

/// The branches that are taken out of weights before these are rounded, by position in the group, and for each weight the magnitude that
/// its ranges refer to.
pub(super) fn split_off<'a>(
    run: &'a Run<'_>,
    group: &[&Job<'_>],
    stats: &Stats,
    weights: &MapWeights,
) -> Result<(Vec<f32>, BTreeMap<usize, SplitOff<'a>>)> {
    let mut amax = shared_amax(group, weights)?;
    let branches = Group { run, jobs: group, stats, weights, amax: &amax }.before()?;
    share_amax_left(group, &branches, &mut amax);
    Ok((amax, branches))
}

/// Fits branches to what rounding has left, and puts what sites became into the block, with these and the other branches.
pub(super) fn settle<'a>(
    run: &'a Run<'_>,
    group: &[&Job<'_>],
    stats: &Stats,
    amax: &[f32],
    mut rounded: BTreeMap<usize, RoundedSite>,
    mut branches: BTreeMap<usize, SplitOff<'a>>,
    result: &mut BlockResult,
) -> Result<()> {
    branches.extend(Group { run, jobs: group, stats, weights: &result.weights, amax }.after(&mut rounded)?);
    rounded.into_iter().for_each(|(i, site)| put(group[i], site, result));
    split::store(run, group, branches, result)
}

/// Puts what a site became into the block.
fn put(job: &Job<'_>, RoundedSite { weight, tensors, report }: RoundedSite, result: &mut BlockResult) {
    result.weights.insert(job.linear.site, Part::Weight, weight);
    result.tensors.extend(tensors);
    result.sites.push(report);
}

/// For each job the largest magnitude over the weights that share a factor with it: those that read the same input, which engines fuse.
fn shared_amax(group: &[&Job<'_>], weights: &MapWeights) -> Result<Vec<f32>> {
    let mut shared: BTreeMap<Port, f32> = BTreeMap::new();
    for job in group.iter().filter(|j| j.spec.scale == ScaleForm::TwoLevel) {
        let weight = weights.get(job.linear.site, Part::Weight)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let amax = with_slice::<f32, _>(&weight, |w| Ok(w.iter().fold(0.0f32, |m, x| m.max(x.abs()))))?;
        let slot = shared.entry(job.linear.input).or_insert(0.0);
        *slot = slot.max(amax);
    }
    Ok(group.iter().map(|j| shared.get(&j.linear.input).copied().unwrap_or(0.0)).collect())
}

/// The same where branches have taken a part of these weights.
fn share_amax_left(group: &[&Job<'_>], branches: &BTreeMap<usize, SplitOff<'_>>, amax: &mut [f32]) {
    let left = |i: usize, was: f32| branches.get(&i).map_or(was, |b| b.amax);
    for i in branches.keys().filter(|i| group[**i].spec.scale == ScaleForm::TwoLevel) {
        let port = group[*i].linear.input;
        let sharing = group.iter().enumerate().filter(|(_, j)| j.linear.input == port && j.spec.scale == ScaleForm::TwoLevel);
        amax[*i] = sharing.map(|(j, _)| left(j, amax[j])).fold(0.0, f32::max);
    }
}

fn round_site(
    run: &Run<'_>,
    job: &Job<'_>,
    amax: f32,
    branch: Option<&SplitOff<'_>>,
    stats: &Stats,
    weights: &MapWeights,
) -> Result<RoundedSite> {
    let site = job.linear.site;
    let start = Instant::now();
    let weight = weights.get(site, Part::Weight)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    with_slice::<f32, _>(&weight, |w| {
        let residuals = branch.map(|b| b.residuals(w));
        let cx = match &residuals {
            Some((weight, original)) => SiteContext { weight, original, ..site_context(run, job, w, stats, amax) },
            None => site_context(run, job, w, stats, amax),
        };
        let mut rounded = rounded_or_fallback(run, job, &cx).map_err(|e| e.within(format!("`{site}`")))?;
        if let Some(branch) = branch {
            rounded.events.splice(0..0, branch.events.iter().cloned());
        }
        // With its branch the site is as far from the weight as the codes are from what the branch leaves.
        let left = residuals.as_ref().map(|(_, left)| left.as_slice());
        finished(run, job, (w, left), rounded, stats, start.elapsed().as_secs_f64())
    })
}

/// What is stored and told of a site whose weight was `w`, and what a branch beside it leaves of that, if there is one.
pub(super) fn finished(
    run: &Run<'_>,
    job: &Job<'_>,
    (w, left): (&[f32], Option<&[f32]>),
    rounded: Rounded,
    stats: &Stats,
    seconds: f64,
) -> Result<RoundedSite> {
    check(&rounded, job)?;
    let mut decoded = Vec::new();
    decode(&job.spec.grid, &rounded.params, &rounded.codes, 0..job.linear.shape.0, rounded.group_index.as_deref(), &mut decoded);
    let close = left.map(|left| w.iter().zip(left).zip(&decoded).map(|((w, l), d)| w - (l - d)).collect::<Vec<f32>>());
    let close = close.as_deref().unwrap_or(&decoded);
    let report = SiteReport {
        site: job.linear.site.to_string(),
        algo: run.plan().passes[job.pass].algo.clone(),
        weight_error: weight_error(w, close),
        output_error: run.gram(job, stats).map(|g| output_error(w, close, g)),
        events: rounded.events.clone(),
    };
    let tensors = encode_site(job.native, &rounded).tensors;
    run.took(report.site.clone(), seconds);
    let tensor = Tensor::from_vec(decoded, job.linear.shape, &Device::Cpu)?.to_device(run.device())?;
    Ok(RoundedSite { weight: tensor, tensors, report })
}

/// Conditions and rounds, or applies the run's policy to what cannot be solved: the original weight to nearest, with the event recorded.
fn rounded_or_fallback(run: &Run<'_>, job: &Job<'_>, cx: &SiteContext<'_>) -> Result<Rounded> {
    match conditioned_and_rounded(run, job, cx) {
        Err(e) if e.kind() == crate::error::ErrorKind::Numeric && run.plan().harness.on_failure == Failure::Rtn => {
            let mut rounded = cx.nearest()?;
            rounded.events.push(Event::Fallback { reason: e.to_string() });
            Ok(rounded)
        }
        other => other,
    }
}

fn conditioned_and_rounded(run: &Run<'_>, job: &Job<'_>, cx: &SiteContext<'_>) -> Result<Rounded> {
    let Stage::Round(round) = run.algorithm(job.pass).stage() else {
        return Err(Error::internal("a pass of the round phase has another stage"));
    };
    if run.splits_before(job) {
        // Conditions came before that.
        return round.round(cx);
    }
    let moved = conditioned(run, job, cx)?;
    let mut rounded = round.round(&moved.seen(cx))?;
    rounded.events.splice(0..0, moved.events);
    Ok(rounded)
}

/// What the conditions of a site made of it.
#[derive(Default)]
pub(super) struct Moved {
    weight: Option<Vec<f32>>,
    ranged: Option<Vec<f32>>,
    pub(super) events: Vec<Event>,
}

impl Moved {
    /// The site as its rounding sees it.
    pub(super) fn seen<'a>(&'a self, cx: &SiteContext<'a>) -> SiteContext<'a> {
        SiteContext { weight: self.weight.as_deref().unwrap_or(cx.weight), ranged: self.ranged.as_deref(), ..*cx }
    }

    /// The one weight that a later condition and a branch see, if it was moved.
    pub(super) fn settled(self) -> Option<Vec<f32>> {
        self.ranged.or(self.weight)
    }
}

/// As [`conditioned`]; what conditions cannot do costs the site no more than them, unless the run is to stop.
pub(super) fn conditioned_or_skipped(run: &Run<'_>, job: &Job<'_>, cx: &SiteContext<'_>) -> Result<Moved> {
    match conditioned(run, job, cx) {
        Err(e) if e.kind() == crate::error::ErrorKind::Numeric && run.plan().harness.on_failure == Failure::Rtn => {
            Ok(Moved { events: vec![Event::Skipped { reason: e.to_string() }], ..Moved::default() })
        }
        other => other.map_err(|e| e.within(format!("`{}`", job.linear.site))),
    }
}

/// The site as its conditions leave it, if it has any.
fn conditioned(run: &Run<'_>, job: &Job<'_>, cx: &SiteContext<'_>) -> Result<Moved> {
    let mut moved = Moved::default();
    for pass in &job.conditions {
        let Stage::Condition(condition) = run.algorithm(*pass).stage() else {
            return Err(Error::internal("a pass of the condition phase has another stage"));
        };
        let Conditioned { weight, ranged, events } = condition.condition(&moved.seen(cx).settled())?;
        for weight in std::iter::once(&weight).chain(&ranged) {
            if weight.len() != cx.weight.len() || weight.iter().any(|w| !w.is_finite()) {
                let algo = &run.plan().passes[*pass].algo;
                let message = format!("`{algo}` returned {} values, or some that are not finite, for {:?}", weight.len(), job.linear.shape);
                return Err(Error::new(crate::error::ErrorKind::Plugin, "plugin::contract", message));
            }
        }
        moved.events.extend(events);
        moved = Moved { weight: Some(weight), ranged, events: moved.events };
    }
    Ok(moved)
}

/// What every rounding has to satisfy, whoever made it.
fn check(rounded: &Rounded, job: &Job<'_>) -> Result<()> {
    let grid = &job.spec.grid;
    let broken =
        |what: String| Err(Error::new(crate::error::ErrorKind::Plugin, "plugin::contract", format!("`{}`: {what}", job.linear.site)));
    if rounded.codes.len() != job.linear.shape.0 * job.linear.shape.1 {
        return broken(format!("{} codes for {:?}", rounded.codes.len(), job.linear.shape));
    }
    if !rounded.codes.stand_for(grid) {
        return broken("a code lies outside the grid".to_owned());
    }
    if let Some(s) = rounded.params.scale.iter().find(|s| !s.is_finite() || **s == 0.0) {
        return broken(format!("a scale is {s}"));
    }
    Ok(())
}
