//! A block run forwards and backwards, many windows side by side.
//!
//! Each window has a graph of its own; what weights were multiplied with, and the gradients of what came out, wait until some windows are
//! done, and become part of the weights' gradients then. Gradients are sums over windows in their order, so that neither threads nor how
//! many windows wait changes a bit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::run::{Control, Run};
use super::sweep::for_each_window;
use crate::error::{Error, Result};
use crate::model::{Activations, Block, Branch, MapWeights, WeightSource};
use crate::numeric::{Factor, Matrix, Record, Traced, bias_gradient, walk_back, weight_gradient};
use crate::topology::{Part, SiteId};

/// Fewest rows of a weight's gradient that one task computes: each reads all of what the weight was multiplied with.
const STRIPE: usize = 384;
/// Tasks begin at multiples of so many rows, as rounded products ask for.
const PANEL: usize = 32;
/// Windows that wait for each thread where what they wait with is rounded, which takes half the room: a gradient is visited less often.
const WAITING: usize = 2;

/// What sees the records of some windows; whether they are the first.
type SeeRecords<'a> = dyn FnMut(&[Arc<Record>], bool) -> Result<()> + 'a;

/// What a window is worth: a single number from a run of the block.
pub(super) type Objective<'a> = dyn Fn(&dyn Block, usize, &Arc<Record>) -> Result<Tensor> + Sync + 'a;

/// Gradients of the sum of the objective over windows.
pub(super) struct Gradients {
    /// The sum.
    pub(super) loss: f64,
    /// For each site that is trained, `[out, in]`.
    pub(super) weights: Vec<Vec<f32>>,
    /// For each of them `[out]`; zero where there is no bias.
    pub(super) biases: Vec<Vec<f32>>,
}

/// A block some of whose weights are trained.
pub(super) struct TracedBlock<'a> {
    run: &'a Run<'a>,
    block: u32,
    /// Everything that is not trained.
    weights: &'a MapWeights,
    activations: &'a Activations,
    /// What is trained.
    sites: Vec<(SiteId, (usize, usize))>,
    /// Whether each of them has a bias.
    biased: Vec<bool>,
    frozen: BTreeMap<SiteId, Arc<Factor>>,
    control: &'a Control<'a>,
}

impl<'a> TracedBlock<'a> {
    /// Block `block` over `weights`, of which `sites` are trained.
    pub(super) fn new(
        run: &'a Run<'a>,
        block: u32,
        (weights, activations): (&'a MapWeights, &'a Activations),
        sites: &[SiteId],
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let linears = run.model().topology.linears.iter().filter(|l| l.site.block == Some(block));
        let (trained, others): (Vec<_>, Vec<_>) = linears.partition(|l| sites.contains(&l.site));
        let factor = |site| Ok((site, Arc::new(Factor::new(weights.get(site, Part::Weight)?, run.bf16())?)));
        let frozen = others.into_iter().map(|l| factor(l.site)).collect::<Result<_>>()?;
        let linear = |site: &SiteId| trained.iter().find(|l| l.site == *site);
        let (sites, biased) = sites.iter().filter_map(linear).map(|l| ((l.site, l.shape), l.bias)).unzip();
        Ok(Self { run, block, weights, activations, sites, biased, frozen, control })
    }

    /// The weights that are trained, ready for products.
    pub(super) fn factors(&self, weights: Vec<Vec<f32>>) -> Result<Vec<Arc<Factor>>> {
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

    /// The objective on each of `windows`.
    pub(super) fn losses(&self, windows: &[usize], factors: &[Arc<Factor>], objective: &Objective<'_>) -> Result<Vec<f64>> {
        self.sweep(windows, factors, objective, None)
    }

    /// The sum of the objective over `windows`, and its gradients.
    pub(super) fn gradients(&self, windows: &[usize], factors: &[Arc<Factor>], objective: &Objective<'_>) -> Result<Gradients> {
        let zeros = |n: fn(&(usize, usize)) -> usize| self.sites.iter().map(|(_, shape)| vec![0.0; n(shape)]).collect::<Vec<Vec<f32>>>();
        let (mut weights, mut biases) = (zeros(|(o, i)| o * i), zeros(|(o, _)| *o));
        // A few tasks for each thread, so that none waits long for the last one; how rows are split changes no bit.
        let tasks = 4 * rayon::current_num_threads().max(1);
        let enough = self.sites.iter().map(|(_, (o, _))| o).sum::<usize>().div_ceil(tasks).max(STRIPE);
        let mut add = |records: &[Arc<Record>], first: bool| {
            let parts = weights.iter_mut().zip(&self.sites).enumerate().flat_map(|(slot, (g, (_, (o, columns))))| {
                let rows = o.div_ceil(o.div_ceil(enough).max(1)).next_multiple_of(PANEL).max(1);
                g.chunks_mut(rows * columns).enumerate().map(move |(i, part)| (slot, i * rows, part))
            });
            parts.collect::<Vec<_>>().into_par_iter().try_for_each(|(slot, start, out)| {
                let rows = start..start + out.len() / self.sites[slot].1.1;
                weight_gradient(records, slot, rows, out, first)
            })?;
            let mut biased = biases.iter_mut().enumerate().filter(|(slot, _)| self.biased[*slot]);
            biased.try_for_each(|(slot, g)| bias_gradient(records, slot, g))
        };
        let loss = self.sweep(windows, factors, objective, Some(&mut add))?.into_iter().sum();
        Ok(Gradients { loss, weights, biases })
    }

    /// Runs `windows`, as many at once as there are threads; `then` sees the records of some at a time, in order.
    fn sweep(
        &self,
        windows: &[usize],
        factors: &[Arc<Factor>],
        objective: &Objective<'_>,
        mut then: Option<&mut SeeRecords<'_>>,
    ) -> Result<Vec<f64>> {
        let trains = then.is_some();
        let mut all = Vec::with_capacity(windows.len());
        let waiting = if trains && self.run.bf16().is_some() { WAITING } else { 1 };
        for (nth, chunk) in windows.chunks(waiting * rayon::current_num_threads().max(1)).enumerate() {
            let records = chunk.iter().map(|_| Ok(Arc::new(Record::new(self.sites.len())?))).collect::<Result<Vec<_>>>()?;
            let losses: Vec<Mutex<f64>> = chunk.iter().map(|_| Mutex::new(f64::NAN)).collect();
            for_each_window(chunk.len(), self.control, |i| {
                let block = self.block(factors, &records[i], trains)?;
                let objective = || objective(&*block, chunk[i], &records[i]);
                let value = if trains { walk_back(objective)? } else { objective()? };
                *losses[i].lock().map_err(|_| Error::internal("a thread panicked in training"))? =
                    value.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                Ok(())
            })?;
            // In the order of the windows, whoever was done first.
            all.extend(losses.into_iter().map(|l| l.into_inner().unwrap_or(f64::NAN)));
            if let Some(then) = &mut then {
                then(&records, nth == 0)?;
            }
        }
        let loss: f64 = all.iter().sum();
        if loss.is_finite() {
            return Ok(all);
        }
        Err(Error::numeric("numeric::not-finite", format!("the error of the block became {loss} while it was learned"))
            .hint("take smaller steps"))
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

    fn branch(&self, site: SiteId) -> Result<Option<Branch>> {
        self.weights.branch(site)
    }

    fn matrix(&self, site: SiteId) -> Result<Matrix> {
        match self.traced.get(&site) {
            Some(traced) => Ok(Matrix::Traced(traced.clone())),
            None => Matrix::new(self.get(site, Part::Weight)?, self.bf16()),
        }
    }
}
