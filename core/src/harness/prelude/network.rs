//! The model's loss under rotations, block by block.
//!
//! ```text
//! x₀ = E[ids]·R,   x_{b+1} = block_b(x_b; Q(V_b)),   L = −Σ log p(next token | x_n·Rᵀ)
//! ```
//!
//! `V_b` are the rotated weights of block `b`, made anew from disk for each pass, as a model is too large to be kept; what is kept are the
//! activations between blocks. Backwards, each block runs again with a graph of its own. The embedding and the head stay as they are: the
//! stream is turned behind the one and turned back before the other, which is the same function.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::super::block::values;
use super::super::run::{Control, Run};
use super::super::stream::Stream;
use super::super::sweep::for_each_window;
use super::super::traced_block::TracedBlock;
use super::turned::{Turned, Values};
use super::{rounded, turned_block};
use crate::algorithm::Training;
use crate::error::{Error, Result};
use crate::model::{Activations, Edges, Flow, MapWeights, Nothing, Span};
use crate::numeric::{Factor, Onto, Record, Transpose, gemm, inner_product, next_token_loss, walk_back, with_slice};
use crate::topology::{Part, SiteId};

/// Rows of the head that are made ready at a time.
const ROWS: usize = 4096;

/// The model under rotations.
pub(super) struct Network<'a> {
    run: &'a Run<'a>,
    turned: Turned,
    /// The rotation of the residual stream, if it is learned.
    stream: Option<usize>,
    sizes: Vec<usize>,
    edges: Box<dyn Edges>,
    /// Some rows after the other.
    head: Vec<Factor>,
    activations: Activations,
    rounds_weights: bool,
    dir: PathBuf,
    control: &'a Control<'a>,
}

/// What a forward pass leaves for the way back.
struct Passed {
    loss: f64,
    /// The activations before each block.
    boundaries: Vec<Stream>,
    /// The gradient of the loss with respect to what the last block put out.
    gradient: Arc<Stream>,
    /// What the head says of the rotation of the stream.
    of_stream: Vec<f64>,
}

impl<'a> Network<'a> {
    pub(super) fn new(
        run: &'a Run<'a>,
        (turned, sizes, stream): (Turned, Vec<usize>, Option<usize>),
        rounds_weights: bool,
        dir: PathBuf,
        control: &'a Control<'a>,
    ) -> Result<Self> {
        let edges = run.model().edges()?;
        let parts = (0..edges.vocab()).step_by(ROWS).map(|first| first..edges.vocab().min(first + ROWS));
        let head = parts.map(|rows| Factor::new(edges.head_rows(rows)?, run.bf16())).collect::<Result<_>>()?;
        let activations = run.dynamic_activations()?;
        Ok(Self { run, turned, stream, sizes, edges, head, activations, rounds_weights, dir, control })
    }

    /// `x·R` or `x·Rᵀ`, row by row.
    fn turn(&self, x: &Tensor, rotations: &[Vec<f32>], how: Transpose) -> Result<Tensor> {
        let Some(nth) = self.stream else { return Ok(x.clone()) };
        let (tokens, n) = x.dims2()?;
        let mut out = vec![0.0f32; tokens * n];
        with_slice::<f32, _>(x, |x| {
            gemm((tokens, n, n), Onto::Replace, &mut out, n, x, Transpose::No, n, &rotations[nth], how, n);
            Ok(())
        })?;
        Ok(Tensor::from_vec(out, (tokens, n), &Device::Cpu)?)
    }

    /// `aᵀ·b`
    fn outer(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
        let (tokens, n) = a.dims2()?;
        let mut out = vec![0.0f32; n * n];
        with_slice::<f32, _>(a, |a| {
            with_slice::<f32, _>(b, |b| {
                gemm((n, n, tokens), Onto::Replace, &mut out, n, a, Transpose::Yes, n, b, Transpose::No, n);
                Ok(())
            })
        })?;
        Ok(out)
    }

    /// The weights of block `b` as the rotations and rounding make them, and as they are.
    fn weights(&self, b: u32, rotations: &[Vec<f32>]) -> Result<(MapWeights, MapWeights)> {
        let base = self.run.load_block(b)?;
        let mut weights = turned_block(self.run, b, &base, &self.turned, rotations)?;
        if self.rounds_weights {
            let jobs = self.run.jobs(b);
            let rounded: Vec<(SiteId, Tensor)> = jobs
                .par_iter()
                .map(|job| {
                    let site = job.linear.site;
                    let new = rounded(job, &values(&weights, site, Part::Weight)?)?;
                    Ok((site, Tensor::from_vec(new, job.linear.shape, &Device::Cpu)?))
                })
                .collect::<Result<_>>()?;
            rounded.into_iter().for_each(|(site, new)| weights.insert(site, Part::Weight, new));
        }
        Ok((weights, base))
    }

    fn stream_of(&self, windows: &[usize], name: &str) -> Result<Stream> {
        let lengths = windows.iter().map(|w| self.run.window_tokens(*w)).collect();
        let path = self.dir.join(format!("{name}.f32"));
        Stream::new(lengths, self.run.model().dims.hidden, self.run.spills().then_some(&path))
    }

    /// Runs `windows` through all blocks, and keeps what lies between them if it is wanted.
    fn forward(&self, windows: &[usize], rotations: &[Vec<f32>], keep: bool) -> Result<Passed> {
        let device = self.run.device();
        let mut now = self.stream_of(windows, "0")?;
        for_each_window(windows.len(), self.control, |i| {
            let x = self.edges.embed(self.run.window(windows[i]), 0, &mut Nothing)?.x;
            now.set(i, &self.turn(&x, rotations, Transpose::No)?)
        })?;
        let mut boundaries = Vec::new();
        for b in 0..self.run.plan().blocks {
            let (weights, _) = self.weights(b, rotations)?;
            let block = self.activations.in_block(b, self.run.model().block(b, &weights)?);
            let next = if keep { Some(self.stream_of(windows, &(b + 1).to_string())?) } else { None };
            for_each_window(windows.len(), self.control, |i| {
                let out = block.run(Span::BLOCK, Flow::new(now.get(i, device)?), &mut Nothing)?.x;
                next.as_ref().unwrap_or(&now).set(i, &out)
            })?;
            if let Some(next) = next {
                boundaries.push(std::mem::replace(&mut now, next));
            }
        }
        let scored: usize = windows.iter().map(|w| self.run.window_tokens(*w).saturating_sub(1)).sum();
        let weight = 1.0 / scored.max(1) as f64;
        let gradient = Arc::new(self.stream_of(windows, "gradient")?);
        let losses: Vec<Mutex<(f64, Vec<f32>)>> = windows.iter().map(|_| Mutex::new((f64::NAN, Vec::new()))).collect();
        for_each_window(windows.len(), self.control, |i| {
            let (x, ids) = (now.get(i, device)?, self.run.window(windows[i]));
            let plain = self.turn(&x, rotations, Transpose::Yes)?;
            let mut found = (f64::NAN, Vec::new());
            let loss = if keep {
                let at: Arc<Mutex<Option<Tensor>>> = Arc::default();
                let record = Record::new(0)?;
                let loss = walk_back(|| {
                    let at = Arc::clone(&at);
                    let watched = record.watch(&plain, move |g| {
                        *at.lock().map_err(|_| Error::internal("a thread panicked during a backward pass"))? = Some(g.clone());
                        Ok(())
                    })?;
                    next_token_loss(&self.edges.finish(Flow::new(watched), &mut Nothing)?, &self.head, ids, weight)
                })?;
                let g =
                    at.lock().ok().and_then(|mut g| g.take()).ok_or_else(|| Error::internal("the loss does not depend on the blocks"))?;
                if self.stream.is_some() {
                    found.1 = Self::outer(&g, &x)?;
                }
                gradient.set(i, &self.turn(&g, rotations, Transpose::No)?)?;
                loss
            } else {
                next_token_loss(&self.edges.finish(Flow::new(plain), &mut Nothing)?, &self.head, ids, weight)?
            };
            found.0 = loss.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
            *losses[i].lock().map_err(|_| Error::internal("a thread panicked in training"))? = found;
            Ok(())
        })?;
        let (mut loss, mut of_stream) = (0.0, Vec::new());
        for found in losses {
            let (l, g) = found.into_inner().unwrap_or((f64::NAN, Vec::new()));
            loss += l;
            add(&mut of_stream, &g);
        }
        if !loss.is_finite() {
            return Err(Error::numeric("numeric::not-finite", format!("the loss became {loss} while rotations were learned"))
                .hint("take smaller steps"));
        }
        Ok(Passed { loss, boundaries, gradient, of_stream })
    }

    /// Takes the gradient through block `b`, and adds what it says of the rotations.
    fn back(&self, b: u32, windows: &[usize], rotations: &[Vec<f32>], passed: &Passed, found: &mut [Vec<f64>]) -> Result<()> {
        let (weights, base) = self.weights(b, rotations)?;
        let linears = self.run.model().topology.linears.iter().filter(|l| l.site.block == Some(b));
        let turns = |site| [Part::Weight, Part::Bias].into_iter().any(|part| self.turned.touches(site, part));
        let sites: Vec<SiteId> = linears.map(|l| l.site).filter(|site| turns(*site)).collect();
        let traced = TracedBlock::new(self.run, b, (&weights, &self.activations), &sites, self.control)?;
        let trained = sites.iter().map(|site| values(&weights, *site, Part::Weight)).collect::<Result<Vec<_>>>()?;
        let factors = traced.factors(trained)?;
        let (device, before) = (self.run.device(), &passed.boundaries[b as usize]);
        let positions: Vec<usize> = (0..windows.len()).collect();
        let gradients = traced.gradients(&positions, &factors, &|block, i, record| {
            let (behind, gradient) = (passed.gradient.get(i, device)?, Arc::clone(&passed.gradient));
            let x = record.watch(&before.get(i, device)?, move |g| gradient.set(i, g))?;
            inner_product(&block.run(Span::BLOCK, Flow::new(x), &mut Nothing)?.x, &behind)
        })?;
        let parts = sites.par_iter().zip(gradients.weights).zip(gradients.biases).map(|((site, of_weight), of_bias)| {
            let mut all = Vec::new();
            for (part, gradient) in [(Part::Weight, of_weight), (Part::Bias, of_bias)] {
                if self.turned.touches(*site, part) && base.find(*site, part).is_some() {
                    let v = Values::of(&base, *site, part)?;
                    all.extend(self.turned.back((*site, part), v, gradient, rotations));
                }
            }
            Ok(all)
        });
        for (nth, g) in parts.collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            add(&mut found[nth], &g);
        }
        Ok(())
    }
}

/// Adds to what may be nothing yet.
fn add(sum: &mut Vec<f64>, more: &[f32]) {
    if sum.is_empty() {
        sum.resize(more.len(), 0.0);
    }
    sum.iter_mut().zip(more).for_each(|(s, m)| *s += f64::from(*m));
}

impl Training for Network<'_> {
    fn windows(&self) -> usize {
        self.run.windows()
    }

    fn loss(&self, windows: &[usize], rotations: Vec<Vec<f32>>) -> Result<f64> {
        Ok(self.forward(windows, &rotations, false)?.loss)
    }

    fn gradients(&self, windows: &[usize], rotations: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        let passed = self.forward(windows, &rotations, true)?;
        let mut found: Vec<Vec<f64>> = self.sizes.iter().map(|n| vec![0.0; n * n]).collect();
        for b in (0..self.run.plan().blocks).rev() {
            self.back(b, windows, &rotations, &passed, &mut found)?;
        }
        if let Some(nth) = self.stream {
            found[nth].iter_mut().zip(&passed.of_stream).for_each(|(s, g)| *s += g);
            for (i, w) in windows.iter().enumerate() {
                let x = self.edges.embed(self.run.window(*w), 0, &mut Nothing)?.x;
                add(&mut found[nth], &Self::outer(&x, &passed.gradient.get(i, self.run.device())?)?);
            }
        }
        Ok((passed.loss, found.into_iter().map(|g| g.into_iter().map(|x| x as f32).collect()).collect()))
    }
}
