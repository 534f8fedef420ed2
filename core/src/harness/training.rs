//! A block run forwards and backwards on the calibration data: what [`Training`] is in a run.
//!
//! Windows run side by side, each with a graph of its own; what weights were multiplied with, and the gradients of what came out, wait
//! until as many windows as there are threads are done, and become part of the weights' gradients then. Gradients are sums over windows in
//! their order, so that neither threads nor how many windows wait changes a bit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::run::{Control, Run};
use super::stream::Stream;
use super::sweep::for_each_window;
use crate::algorithm::Training;
use crate::error::{Error, Result};
use crate::model::{Activations, Block, Flow, MapWeights, Nothing, Span, WeightSource};
use crate::numeric::{Factor, Matrix, Record, Traced, squared_error, walk_back, weight_gradient};
use crate::topology::{Part, SiteId};

/// Rows of a weight's gradient that one task computes.
const STRIPE: usize = 384;

/// What sees the records of some windows; whether they are the first.
type SeeRecords<'a> = dyn FnMut(&[Arc<Record>], bool) -> Result<()> + 'a;

/// A block under training.
pub(super) struct BlockTraining<'a> {
    run: &'a Run<'a>,
    block: u32,
    /// Everything that is not trained.
    weights: &'a MapWeights,
    activations: &'a Activations,
    sites: Vec<(SiteId, (usize, usize))>,
    frozen: BTreeMap<SiteId, Arc<Factor>>,
    inputs: &'a Stream,
    targets: Stream,
    control: &'a Control<'a>,
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
        sites: Vec<SiteId>,
        (inputs, reference): (&'a Stream, &Stream),
        dir: &Path,
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let targets = run.empty_stream(&dir.join("training.f32"))?;
        let model = run.model().block(block, original)?;
        for_each_window(targets.windows(), control, |i| {
            targets.set(i, &model.run(Span::BLOCK, Flow::new(reference.get(i, run.device())?), &mut Nothing)?.x)
        })?;
        let linears = run.model().topology.linears.iter().filter(|l| l.site.block == Some(block));
        let (trained, others): (Vec<_>, Vec<_>) = linears.partition(|l| sites.contains(&l.site));
        let factor = |site| Ok((site, Arc::new(Factor::new(current.get(site, Part::Weight)?, run.bf16())?)));
        let frozen = others.into_iter().map(|l| factor(l.site)).collect::<Result<_>>()?;
        let shapes: BTreeMap<SiteId, (usize, usize)> = trained.into_iter().map(|l| (l.site, l.shape)).collect();
        let sites = sites.into_iter().filter_map(|s| Some((s, *shapes.get(&s)?))).collect();
        Ok(Self { run, block, weights: current, activations, sites, frozen, inputs, targets, control })
    }

    fn factors(&self, weights: Vec<Vec<f32>>) -> Result<Vec<Arc<Factor>>> {
        if weights.len() != self.sites.len() || weights.iter().zip(&self.sites).any(|(w, (_, (o, i)))| w.len() != o * i) {
            return Err(Error::internal("weights of other sizes than those of the sites that learn"));
        }
        let factor = |(values, (_, shape)): (Vec<f32>, &(SiteId, (usize, usize)))| {
            Ok(Arc::new(Factor::new(Tensor::from_vec(values, *shape, &Device::Cpu)?, self.run.bf16())?))
        };
        weights.into_par_iter().zip(&self.sites).map(factor).collect()
    }

    /// The block with these weights, its products recorded where somebody wants them.
    fn block(&self, factors: &[Arc<Factor>], record: &Arc<Record>, trains: bool) -> Result<Box<dyn Block>> {
        let slots = self.sites.iter().zip(factors).enumerate();
        let trained = slots.map(|(slot, ((site, _), f))| (*site, Traced::new(Arc::clone(f), Arc::clone(record), trains.then_some(slot))));
        let frozen = self.frozen.iter().map(|(site, f)| (*site, Traced::new(Arc::clone(f), Arc::clone(record), None)));
        let source = Source { weights: self.weights, traced: trained.chain(frozen).collect() };
        Ok(self.activations.in_block(self.block, self.run.model().block(self.block, &source)?))
    }

    /// Runs `windows`, as many at once as there are threads; `then` sees their records, in order.
    fn run(&self, windows: &[usize], factors: &[Arc<Factor>], mut then: Option<&mut SeeRecords<'_>>) -> Result<f64> {
        let tokens = |w: &usize| self.run.window_tokens(*w) as f64;
        let total: f64 = windows.iter().map(tokens).sum();
        let trains = then.is_some();
        let mut loss = 0.0;
        for (nth, chunk) in windows.chunks(rayon::current_num_threads().max(1)).enumerate() {
            let records = chunk.iter().map(|_| Ok(Arc::new(Record::new(self.sites.len())?))).collect::<Result<Vec<_>>>()?;
            let losses: Vec<Mutex<f64>> = chunk.iter().map(|_| Mutex::new(f64::NAN)).collect();
            for_each_window(chunk.len(), self.control, |i| {
                let (window, device) = (chunk[i], self.run.device());
                let block = self.block(factors, &records[i], trains)?;
                let error = || {
                    let out = block.run(Span::BLOCK, Flow::new(self.inputs.get(window, device)?), &mut Nothing)?.x;
                    squared_error(&out, &self.targets.get(window, device)?, tokens(&window) / total)
                };
                let error = if trains { walk_back(error)? } else { error()? };
                *losses[i].lock().map_err(|_| Error::internal("a thread panicked in training"))? =
                    error.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                Ok(())
            })?;
            // In the order of the windows, whoever was done first.
            loss = losses.into_iter().fold(loss, |sum, l| sum + l.into_inner().unwrap_or(f64::NAN));
            if let Some(then) = &mut then {
                then(&records, nth == 0)?;
            }
        }
        if loss.is_finite() {
            return Ok(loss);
        }
        Err(Error::numeric("numeric::not-finite", format!("the error of block {} became {loss} while it was learned", self.block))
            .hint("take smaller steps"))
    }
}

impl Training for BlockTraining<'_> {
    fn windows(&self) -> usize {
        self.inputs.windows()
    }

    fn loss(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<f64> {
        self.run(windows, &self.factors(weights)?, None)
    }

    fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        let factors = self.factors(weights)?;
        let mut gradients: Vec<Vec<f32>> = self.sites.iter().map(|(_, (o, i))| vec![0.0; o * i]).collect();
        let mut add = |records: &[Arc<Record>], first: bool| {
            let stripes: Vec<(usize, usize, &mut [f32])> = gradients
                .iter_mut()
                .zip(&self.sites)
                .enumerate()
                .flat_map(|(slot, (g, (_, (_, columns))))| g.chunks_mut(STRIPE * columns).enumerate().map(move |(i, c)| (slot, i, c)))
                .collect();
            stripes.into_par_iter().try_for_each(|(slot, i, out)| {
                let columns = self.sites[slot].1.1;
                let rows = i * STRIPE..i * STRIPE + out.len() / columns;
                weight_gradient(records, slot, rows, out, first, self.run.bf16())
            })
        };
        let loss = self.run(windows, &factors, Some(&mut add))?;
        Ok((loss, gradients))
    }
}

/// Weights of a block under training.
struct Source<'a> {
    weights: &'a MapWeights,
    traced: BTreeMap<SiteId, Traced>,
}

impl WeightSource for Source<'_> {
    fn get(&self, site: SiteId, part: Part) -> Result<Tensor> {
        self.weights.get(site, part)
    }

    fn bf16(&self) -> Option<crate::numeric::Bf16Unit> {
        self.weights.bf16()
    }

    fn matrix(&self, site: SiteId) -> Result<Matrix> {
        match self.traced.get(&site) {
            Some(traced) => Ok(Matrix::Traced(traced.clone())),
            None => Matrix::new(self.get(site, Part::Weight)?, self.bf16()),
        }
    }
}
