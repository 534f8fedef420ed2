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
    targets: &'a Stream,
}

/// What a block with its original weights puts out on `inputs`; what does not fit in memory lies in `dir`.
pub(super) fn targets(
    run: &Run<'_>,
    block: u32,
    original: &MapWeights,
    inputs: &Stream,
    dir: &Path,
    control: &Control<'_>,
) -> Result<Stream> {
    let targets = run.empty_stream(&dir.join("training.f32"))?;
    let model = run.model().block(block, original)?;
    for_each_window(targets.windows(), control, |i| {
        targets.set(i, &model.run(Span::BLOCK, Flow::new(inputs.get(i, run.device())?), &mut Nothing)?.x)
    })?;
    Ok(targets)
}

impl<'a> BlockTraining<'a> {
    /// The training of `sites` in a block, whose weights are these, and which is to put out `targets` on `inputs`.
    pub(super) fn new(
        run: &'a Run<'a>,
        block: u32,
        weights: (&'a MapWeights, &'a Activations),
        sites: &[SiteId],
        (inputs, targets): (&'a Stream, &'a Stream),
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let traced = TracedBlock::new(run, block, weights, sites, control)?;
        Ok(Self { run, traced, inputs, targets })
    }

    fn tokens(&self, windows: &[usize]) -> f64 {
        windows.iter().map(|w| self.run.window_tokens(*w) as f64).sum()
    }

    /// What `with` makes of the error: each window counts by its tokens.
    fn error<T>(&self, windows: &[usize], with: impl FnOnce(&Objective<'_>) -> Result<T>) -> Result<T> {
        let (total, device) = (self.tokens(windows), self.run.device());
        with(&|block, window, _| {
            let out = block.run(Span::BLOCK, Flow::new(self.inputs.get(window, device)?), &mut Nothing)?.x;
            squared_error(&out, &self.targets.get(window, device)?, self.tokens(&[window]) / total)
        })
    }
}

impl Training for BlockTraining<'_> {
    fn windows(&self) -> usize {
        self.inputs.windows()
    }

    fn loss(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<f64> {
        Ok(self.losses(windows, &[], weights)?.0)
    }

    fn losses(&self, windows: &[usize], some: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, f64)> {
        let factors = self.traced.factors(weights)?;
        let each = self.error(windows, |error| self.traced.losses(windows, &factors, error))?;
        let of_some: f64 = windows.iter().zip(&each).filter(|(w, _)| some.contains(w)).map(|(_, loss)| loss).sum();
        Ok((each.iter().sum(), of_some * self.tokens(windows) / self.tokens(some)))
    }

    fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        let factors = self.traced.factors(weights)?;
        let found = self.error(windows, |error| self.traced.gradients(windows, &factors, error))?;
        Ok((found.loss, found.weights))
    }
}
