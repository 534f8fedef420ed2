//! A block that is to put out what it did: what [`Training`] is where blocks learn.

use std::path::Path;

use super::run::{Control, Run};
use super::stream::Stream;
use super::sweep::for_each_window;
use super::traced_block::{Objective, TracedBlock};
use crate::algorithm::Training;
use crate::error::Result;
use crate::model::{Activations, Flow, MapWeights, Nothing, Span};
use crate::numeric::squared_error;
use crate::topology::SiteId;

/// A block under training.
pub(super) struct BlockTraining<'a> {
    run: &'a Run<'a>,
    traced: TracedBlock<'a>,
    inputs: &'a Stream,
    targets: Stream,
}

/// What a block is, and what it was: see [`BlockTraining::new`].
pub(super) struct Weights<'a> {
    pub(super) original: &'a MapWeights,
    pub(super) current: &'a MapWeights,
    pub(super) activations: &'a Activations,
}

impl<'a> BlockTraining<'a> {
    /// The training of `sites` in a block, which is to put out, on `inputs`, what it puts out on `reference` with its original weights.
    pub(super) fn new(
        run: &'a Run<'a>,
        block: u32,
        Weights { original, current, activations }: Weights<'a>,
        sites: &[SiteId],
        (inputs, reference): (&'a Stream, &Stream),
        dir: &Path,
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let targets = run.empty_stream(&dir.join("training.f32"))?;
        let model = run.model().block(block, original)?;
        for_each_window(targets.windows(), control, |i| {
            targets.set(i, &model.run(Span::BLOCK, Flow::new(reference.get(i, run.device())?), &mut Nothing)?.x)
        })?;
        let traced = TracedBlock::new(run, block, (current, activations), sites, control)?;
        Ok(Self { run, traced, inputs, targets })
    }

    /// What `with` makes of the error: each window counts by its tokens.
    fn error<T>(&self, windows: &[usize], with: impl FnOnce(&Objective<'_>) -> Result<T>) -> Result<T> {
        let tokens = |w: usize| self.run.window_tokens(w) as f64;
        let total: f64 = windows.iter().map(|w| tokens(*w)).sum();
        let device = self.run.device();
        with(&|block, window, _| {
            let out = block.run(Span::BLOCK, Flow::new(self.inputs.get(window, device)?), &mut Nothing)?.x;
            squared_error(&out, &self.targets.get(window, device)?, tokens(window) / total)
        })
    }
}

impl Training for BlockTraining<'_> {
    fn windows(&self) -> usize {
        self.inputs.windows()
    }

    fn loss(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<f64> {
        let factors = self.traced.factors(weights)?;
        self.error(windows, |error| self.traced.loss(windows, &factors, error))
    }

    fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        let factors = self.traced.factors(weights)?;
        let found = self.error(windows, |error| self.traced.gradients(windows, &factors, error))?;
        Ok((found.loss, found.weights))
    }
}
