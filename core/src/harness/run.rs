//! A whole run: from a plan and a model to a finished checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use candle_core::Device;

use super::block::{BlockResult, Job, QUANTIZED, Streams, quantize};
use super::embedding::Embedding;
use super::export;
use super::head;
use super::journal::{BlockEntry, Journal, different, hash_file};
use super::output::weight_bytes;
use super::prelude;
use super::report::{Progress, SiteReport, Summary};
use super::stream::Stream;
use super::sweep::{for_each_window, propagate};
use crate::algorithm::{Needs, Phase, PtqAlgorithm, Stage};
use crate::checkpoint::native::{NativeSite, encode_activation, write_shard};
use crate::checkpoint::{Checkpoint, StoredDtype, TensorDecl};
use crate::error::{Error, Result};
use crate::model::{ActivationQuant, Activations, MapWeights, Model, Nothing};
use crate::numeric::Bf16Unit;
use crate::observer::Observer;
use crate::plan::{Plan, PlannedActivation, Propagate, Resolved};
use crate::registry::Registry;
use crate::scheme::{FloatKind, QuantSpec, Timing};
use crate::statistic::{Gram, RangeCollector, RangeSite, StatKind, Stats, Stream as StreamKind};
use crate::target::Judgement;
use crate::topology::{Linear, Region, Turn};

/// What to do with what is in the output directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It has to be empty or missing.
    Fresh,
    /// Go on with unfinished work; a finished result under the same plan is fine as it is.
    Resume,
    /// Replace it.
    Overwrite,
}

/// How a run talks to whoever started it.
pub struct Control<'a> {
    progress: &'a (dyn Fn(Progress) + Sync),
    cancel: &'a AtomicBool,
}

impl<'a> Control<'a> {
    /// Progress goes to `progress`; setting `cancel` stops the run in a resumable state.
    pub fn new(progress: &'a (dyn Fn(Progress) + Sync), cancel: &'a AtomicBool) -> Self {
        Self { progress, cancel }
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn report(&self, p: Progress) {
        (self.progress)(p);
    }
}

/// A run, ready to go.
pub struct Run<'a> {
    registry: &'a Registry,
    checkpoint: &'a Checkpoint,
    model: &'a Model,
    resolved: &'a Resolved,
    windows: &'a [Vec<u32>],
    spill: bool,
    observers: BTreeMap<String, Box<dyn Observer>>,
    /// One for each rounded activation of the plan.
    activation_observers: Vec<Box<dyn Observer>>,
    natives: Vec<NativeSite>,
    /// Rounds the operands of the sweeps' products, if the plan says so.
    bf16: Option<Bf16Unit>,
    site_seconds: Mutex<BTreeMap<String, f64>>,
}

impl<'a> Run<'a> {
    /// Prepares a run. `windows` are the calibration ids (empty if no pass needs any); `spill` keeps the streams on disk.
    ///
    /// # Errors
    /// If an observer of the plan is unknown, or this CPU cannot compute as the plan says.
    pub fn new(
        registry: &'a Registry,
        checkpoint: &'a Checkpoint,
        model: &'a Model,
        resolved: &'a Resolved,
        windows: &'a [Vec<u32>],
        spill: bool,
    ) -> Result<Self> {
        let natives = resolved.plan.native_sites();
        let mut observers = BTreeMap::new();
        for site in &natives {
            let (observer, _) = registry.build_observer(&site.spec.observer.id, &site.spec.observer.options)?;
            observers.insert(site.site.clone(), observer);
        }
        let build = |spec: &QuantSpec| Ok(registry.build_observer(&spec.observer.id, &spec.observer.options)?.0);
        let activation_observers = resolved.plan.activations.iter().map(|a| build(&a.spec)).collect::<Result<_>>()?;
        let bf16 = resolved.plan.harness.products.unit(Bf16Unit::detect())?;
        let site_seconds = Mutex::default();
        Ok(Self { registry, checkpoint, model, resolved, windows, spill, observers, activation_observers, natives, bf16, site_seconds })
    }

    /// Runs it.
    ///
    /// # Errors
    /// Whatever stops it; what was finished stays, and [`Mode::Resume`] goes on from there.
    pub fn execute(&self, out: &Path, mode: Mode, control: &Control<'_>) -> Result<Summary> {
        let start = Instant::now();
        match self.begin(out, mode)? {
            Begun::Done(summary) => Ok(summary),
            Begun::Work(mut journal) => self.finish(out, &mut journal, start, control),
        }
    }

    /// Learns the rotations that the plan wants learned, on this run's model, and runs the plan on the one that `rotated` makes of them.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn execute_learning(
        &self,
        out: &Path,
        mode: Mode,
        control: &Control<'_>,
        rotated: impl FnOnce(&BTreeMap<String, Arc<Turn>>) -> Result<(Checkpoint, Model)>,
    ) -> Result<Summary> {
        let start = Instant::now();
        match self.begin(out, mode)? {
            Begun::Done(summary) => Ok(summary),
            Begun::Work(mut journal) => {
                let (checkpoint, model) = rotated(&prelude::rotations(self, &mut journal, control)?)?;
                let Self { registry, resolved, windows, spill, .. } = *self;
                let run = Run::new(registry, &checkpoint, &model, resolved, windows, spill)?;
                run.finish(out, &mut journal, start, control)
            }
        }
    }

    fn begin(&self, out: &Path, mode: Mode) -> Result<Begun> {
        if let Some(sites) = export::prepare(out, mode, self.plan(), self.registry)? {
            return Ok(Begun::Done(self.summary(out, sites, None)?));
        }
        Ok(Begun::Work(Box::new(Journal::open(out, self.plan(), mode == Mode::Resume)?)))
    }

    fn finish(&self, out: &Path, journal: &mut Journal, start: Instant, control: &Control<'_>) -> Result<Summary> {
        self.blocks(journal, control)?;
        let sites = journal.blocks().iter().flat_map(|b| b.sites.iter().cloned()).collect();
        export::finish(out, journal, self, start, &sites, control)?;
        self.summary(out, sites, Some(start))
    }

    /// What there is to say of a finished run; `start` is when this process began, if it had anything to do.
    fn summary(&self, out: &Path, sites: Vec<SiteReport>, start: Option<Instant>) -> Result<Summary> {
        let site_seconds = self.site_seconds.lock().map(|s| s.clone()).unwrap_or_default();
        let format_bytes = weight_bytes(out, &self.plan().output.formats)?;
        let seconds = start.map_or(0.0, |s| s.elapsed().as_secs_f64());
        Ok(Summary { sites, seconds, site_seconds, bytes: format_bytes.values().sum(), format_bytes, already_done: start.is_none() })
    }

    fn blocks(&self, journal: &mut Journal, control: &Control<'_>) -> Result<()> {
        let total = self.plan().blocks;
        let done = journal.blocks().len() as u32;
        for entry in journal.blocks() {
            if let Some(hash) = &entry.shard
                && hash_file(&journal.shard(entry.block))? != *hash
            {
                let path = journal.shard(entry.block);
                return Err(Error::input("resume::damaged", format!("`{}` is not what the journal says was written", path.display()))
                    .hint("start over with `--overwrite`"));
            }
        }
        if done > 0 {
            control.report(Progress::Resumed { done: done.min(total), total });
        }
        if done > total || (done == total && !self.head_work()) {
            return Ok(());
        }
        // It is stored with the first block; what comes later finds it in the streams.
        let mut embedding = if done == 0 { Embedding::rounded(self)?.map(Arc::new) } else { None };
        let streams = self.streams(journal, done, embedding.as_ref(), control)?;
        std::thread::scope(|scope| {
            let mut writer = Writer::Idle(&mut *journal);
            for b in done..total {
                if control.cancelled() {
                    return Err(Error::interrupted());
                }
                control.report(Progress::Block { block: b, total });
                let start = Instant::now();
                let original = self.load_block(b)?;
                let result = quantize(self, b, &original, &streams, control)?;
                // Until here the streams were only read, which the writer of the previous block does too.
                let journal = writer.wait()?;
                self.propagate(b, &original, &result, &streams, control)?;
                let BlockResult { mut tensors, mut sites, .. } = result;
                if let Some(embedding) = embedding.take() {
                    tensors.extend(embedding.tensors());
                    sites.insert(0, embedding.report().clone());
                }
                let (streams, seconds) = (&streams, start.elapsed().as_secs_f64());
                writer = Writer::Busy(scope.spawn(move || {
                    self.record(b, tensors, &sites, journal, streams)?;
                    control.report(Progress::BlockDone { done: b + 1, total, seconds, sites });
                    Ok(journal)
                }));
            }
            writer.wait().map(|_| ())
        })?;
        head::quantize(self, journal, &streams, control)
    }

    /// Moves the streams behind block `b`. Nobody reads them behind the last one unless the head is rounded too.
    pub(super) fn propagate(
        &self,
        b: u32,
        original: &MapWeights,
        result: &BlockResult,
        streams: &Streams,
        control: &Control<'_>,
    ) -> Result<()> {
        if !self.streams_wanted(b + 1) {
            return Ok(());
        }
        control.report(Progress::Step { name: "propagate" });
        if let Some(stream) = streams.get(StreamKind::Reference) {
            match &result.targets {
                Some(targets) => for_each_window(stream.windows(), control, |i| stream.set(i, &targets.get(i, self.device())?))?,
                None => propagate(&*self.model.block(b, original)?, stream, self.device(), control)?,
            }
        }
        if let Some(stream) = streams.get(StreamKind::Quantized) {
            let block = result.activations.in_block(b, self.model.block(b, &result.weights)?);
            propagate(&*block, stream, self.device(), control)?;
        }
        Ok(())
    }

    /// Whether anything reads the streams behind `blocks` blocks.
    fn streams_wanted(&self, blocks: u32) -> bool {
        blocks < self.plan().blocks || (blocks == self.plan().blocks && self.head_work())
    }

    /// Shard, streams, journal, in this order, each durable before the next; then what they replace is removed.
    pub(super) fn record(
        &self,
        b: u32,
        tensors: Vec<(TensorDecl, Vec<u8>)>,
        sites: &[SiteReport],
        journal: &mut Journal,
        streams: &Streams,
    ) -> Result<()> {
        let shard = if tensors.is_empty() {
            None
        } else {
            let path = journal.shard(b);
            write_shard(&path, tensors)?;
            Some(hash_file(&path)?)
        };
        let mut hashes = BTreeMap::new();
        if self.streams_wanted(b + 1) {
            for (name, stream) in streams.named() {
                hashes.insert(name.to_owned(), stream.save(&journal.stream(name, b + 1))?);
            }
        }
        journal.finish_block(BlockEntry { block: b, shard, streams: hashes, sites: sites.to_vec() })?;
        for (name, _) in streams.named() {
            let old = journal.stream(name, b);
            if old.exists() {
                std::fs::remove_file(&old).map_err(|e| Error::io(&old, "remove", e))?;
            }
        }
        Ok(())
    }

    /// The streams behind `done` blocks: embedded anew at the start, read back otherwise.
    fn streams(&self, journal: &Journal, done: u32, embedding: Option<&Arc<Embedding>>, control: &Control<'_>) -> Result<Streams> {
        let streams = self.empty_streams(journal.dir())?;
        for (name, stream) in streams.named() {
            match journal.blocks().last() {
                None => self.embed(stream, embedding.filter(|_| name == QUANTIZED), control)?,
                Some(entry) => {
                    let hash = entry.streams.get(name).ok_or_else(|| Error::internal("the journal lacks a stream"))?;
                    stream.load(&journal.stream(name, done), hash)?;
                }
            }
        }
        Ok(streams)
    }

    /// The streams the plan propagates, without values; what does not fit in memory lies in `dir`.
    pub(super) fn empty_streams(&self, dir: &Path) -> Result<Streams> {
        let make = |name: &str, kept: bool| -> Result<Option<Stream>> {
            if !kept || self.windows.is_empty() {
                return Ok(None);
            }
            self.empty_stream(&dir.join(format!("spill-{name}.f32"))).map(Some)
        };
        let propagate = self.plan().harness.propagate;
        Ok(Streams {
            dir: dir.to_owned(),
            reference: make("reference", propagate != Propagate::Quantized)?,
            quantized: make("quantized", propagate != Propagate::Reference)?,
        })
    }

    /// A stream without values, in memory, or at `spill` where streams lie on disk.
    pub(super) fn empty_stream(&self, spill: &Path) -> Result<Stream> {
        Stream::new(self.windows.iter().map(Vec::len).collect(), self.model.dims.hidden, self.spill.then_some(spill))
    }

    /// Fills a stream with the embedded tokens, looked up in `rounded` where there is one.
    pub(super) fn embed(&self, stream: &Stream, rounded: Option<&Arc<Embedding>>, control: &Control<'_>) -> Result<()> {
        let edges = match rounded {
            Some(embedding) => self.model.edges_over(embedding.over(self.model))?,
            None => self.model.edges()?,
        };
        for_each_window(stream.windows(), control, |i| stream.set(i, &edges.embed(&self.windows[i], 0, &mut Nothing)?.x))
    }

    /// Whether activations of a block (`None`: around the blocks) are rounded.
    pub(super) fn rounds(&self, block: Option<u32>) -> bool {
        self.plan().activations.iter().any(|a| a.place.block == block)
    }

    /// How the input of a linear is rounded, if it is.
    pub(super) fn input_of(&self, linear: &Linear) -> Option<&QuantSpec> {
        self.plan().input_of(linear)
    }

    /// The rounding of all activations, with ranges of each call's own: none have been calibrated yet.
    pub(super) fn dynamic_activations(&self) -> Result<Activations> {
        let of = |a: &PlannedActivation| ActivationQuant::new(a.place, QuantSpec { timing: Timing::Dynamic, ..a.spec.clone() }, None);
        Ok(Activations::new(self.plan().activations.iter().map(of).collect::<Result<Vec<_>>>()?))
    }

    /// The ids of a calibration window.
    pub(super) fn window(&self, window: usize) -> &[u32] {
        &self.windows[window]
    }

    /// Calibration windows.
    pub(super) fn windows(&self) -> usize {
        self.windows.len()
    }

    /// Tokens of a calibration window.
    pub(super) fn window_tokens(&self, window: usize) -> usize {
        self.windows[window].len()
    }

    /// Whether anything is left to do behind the last block.
    pub(super) fn head_work(&self) -> bool {
        !self.head_jobs().is_empty() || self.plan().activations.iter().any(|a| a.place.block.is_none() && a.spec.timing == Timing::Static)
    }

    /// A collector for the static activations of a block (`None`: around the blocks), if it has any.
    pub(super) fn ranges(&self, block: Option<u32>) -> Option<RangeCollector<'_>> {
        let sites: Vec<RangeSite<'_>> = self
            .plan()
            .activations
            .iter()
            .zip(&self.activation_observers)
            .filter(|(a, _)| a.place.block == block && a.spec.timing == Timing::Static)
            .map(|(a, observer)| RangeSite { place: a.place, spec: &a.spec, observer: &**observer })
            .collect();
        (!sites.is_empty()).then(|| RangeCollector::new(sites))
    }

    /// Puts the block's rounding of activations into its result, with what `ranges` has collected.
    pub(super) fn fix_activations(&self, block: Option<u32>, ranges: Option<RangeCollector<'_>>, result: &mut BlockResult) -> Result<()> {
        // Where nothing was calibrated there is no static activation, and no range.
        let mut fixed = ranges.map_or(Ok(Vec::new()), |r| r.finish(self.windows.len()))?.into_iter();
        let mut all = Vec::new();
        for a in self.plan().activations.iter().filter(|a| a.place.block == block) {
            let params = if a.spec.timing == Timing::Static { fixed.next().map(|(_, params)| params) } else { None };
            if let Some(params) = &params {
                result.tensors.extend(encode_activation(a, params));
            }
            all.push(ActivationQuant::new(a.place, a.spec.clone(), params)?);
        }
        result.activations = Activations::new(all);
        Ok(())
    }

    pub(super) fn head_jobs(&self) -> Vec<Job<'_>> {
        self.jobs_where(|l| l.site.block.is_none())
    }

    /// The sites of block `b` that are to be rounded, in order of execution.
    pub(super) fn jobs(&self, b: u32) -> Vec<Job<'_>> {
        self.jobs_where(|l| l.site.block == Some(b))
    }

    fn jobs_where(&self, keep: impl Fn(&Linear) -> bool) -> Vec<Job<'_>> {
        let mut jobs = Vec::new();
        for linear in self.model.topology.linears.iter().filter(|l| keep(l)) {
            let name = linear.site.to_string();
            let (Some(native), Some(observer)) = (self.natives.iter().find(|n| n.site == name), self.observers.get(&name)) else {
                continue;
            };
            let spec: &QuantSpec = &native.spec;
            let of = |phase| {
                let passes = self.plan().passes.iter().enumerate();
                passes.filter(move |(_, p)| p.phase == phase).filter(|(_, p)| p.sites.contains(&name)).map(|(i, _)| i)
            };
            if let Some(pass) = of(Phase::Round).next() {
                let (conditions, corrections) = (of(Phase::Condition).collect(), of(Phase::Correct).collect());
                jobs.push(Job {
                    linear,
                    spec,
                    native,
                    observer: &**observer,
                    conditions,
                    split: of(Phase::Split).next(),
                    pass,
                    corrections,
                });
            }
        }
        jobs
    }

    /// The float type in which a parameter is stored, and what replaces it.
    pub(super) fn stored_kind(&self, tensor: &str) -> Result<FloatKind> {
        let info = self.model.weights.tensors().require(tensor)?;
        match info.dtype {
            StoredDtype::F16 => Ok(FloatKind::F16),
            StoredDtype::BF16 => Ok(FloatKind::Bf16),
            StoredDtype::F32 => Ok(FloatKind::F32),
            _ => Err(Error::input("checkpoint::dtype", format!("tensor `{tensor}` changes, and cannot be stored again in its type"))
                .hint("set `model.dtype = \"float32\"`")),
        }
    }

    /// The passes that transform regions of blocks, in order.
    pub(super) fn transforms(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.plan().passes.len()).filter(|pass| matches!(self.algorithm(*pass).stage(), Stage::Transform(_)))
    }

    /// The regions of block `b` that a pass works on, in order of execution.
    pub(super) fn regions(&self, pass: usize, b: u32) -> Vec<&Region> {
        let planned = &self.plan().passes[pass].regions;
        self.model.topology.regions.iter().filter(|r| r.block == Some(b) && planned.contains(&r.id)).collect()
    }

    /// Notes how long a site took; the deterministic record of the run does not hold it.
    pub(super) fn took(&self, site: String, seconds: f64) {
        if let Ok(mut all) = self.site_seconds.lock() {
            all.insert(site, seconds);
        }
    }

    /// The float parameters of block `b`, for products as the plan says.
    pub(super) fn load_block(&self, b: u32) -> Result<MapWeights> {
        Ok(self.model.load_block(b)?.rounding_products(self.bf16))
    }

    /// What rounds the operands of the sweeps' products to bf16.
    pub(super) fn bf16(&self) -> Option<Bf16Unit> {
        self.bf16
    }

    /// Whether the streams lie on disk.
    pub(super) fn spills(&self) -> bool {
        self.spill
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.resolved.plan
    }

    pub(super) fn judgement(&self) -> Option<&Judgement> {
        self.resolved.judgement.as_ref()
    }

    pub(super) fn model(&self) -> &Model {
        self.model
    }

    pub(super) fn device(&self) -> &Device {
        self.model.weights.device()
    }

    pub(super) fn registry(&self) -> &Registry {
        self.registry
    }

    pub(super) fn checkpoint(&self) -> &Checkpoint {
        self.checkpoint
    }

    pub(super) fn natives(&self) -> &[NativeSite] {
        &self.natives
    }

    pub(super) fn needs(&self, pass: usize) -> &Needs {
        &self.resolved.needs[pass]
    }

    pub(super) fn algorithm(&self, pass: usize) -> &dyn PtqAlgorithm {
        &*self.resolved.algorithms[pass]
    }

    /// Whether a branch is taken out of the site before it is rounded.
    pub(super) fn splits_before(&self, job: &Job<'_>) -> bool {
        job.split.is_some_and(|pass| matches!(self.algorithm(pass).stage(), Stage::Split(s) if !s.after_rounding()))
    }

    /// The Gram matrix that the rounding of a site asked for, if it did.
    pub(super) fn gram<'s>(&self, job: &Job<'_>, stats: &'s Stats) -> Option<&'s Gram> {
        let stream = self.needs(job.pass).inputs.iter().find(|(kind, _)| *kind == StatKind::Gram).map(|(_, stream)| *stream)?;
        stats.gram(job.linear.input, stream).ok().map(|gram| &**gram)
    }

    /// The stream statistics are taken on by default.
    pub(super) fn stream(&self) -> StreamKind {
        if self.plan().harness.propagate == Propagate::Reference { StreamKind::Reference } else { StreamKind::Quantized }
    }
}

/// A run that has its output directory.
enum Begun {
    /// It was finished before.
    Done(Summary),
    Work(Box<Journal>),
}

/// Puts finished blocks on disk while the next one is under work; holds the journal meanwhile.
enum Writer<'scope, 'a> {
    Idle(&'a mut Journal),
    Busy(ScopedJoinHandle<'scope, Result<&'a mut Journal>>),
}

impl<'a> Writer<'_, 'a> {
    /// The journal, once what was given to write is on disk.
    fn wait(self) -> Result<&'a mut Journal> {
        match self {
            Self::Idle(journal) => Ok(journal),
            Self::Busy(thread) => thread.join().map_err(|_| Error::internal("the thread that writes blocks panicked"))?,
        }
    }
}

/// Refuses a plan other than the one a finished OUT was made under.
pub(super) fn same_plan(there: &Plan, here: &Plan) -> Result<()> {
    if there.signature() == here.signature() { Ok(()) } else { Err(different(there, here)) }
}
