//! Perplexity, by protocols whose numbers are not comparable with each other.
//!
//! * `gptq`: consecutive windows, every prediction inside a window scored, mean per window, mean over windows.
//! * `brevitas`: the same windows, but only positions from the middle on are scored.
//! * `hf-stride`: windows that overlap; each scores only tokens no window scored before; mean over tokens.
//!
//! All windows travel through one block at a time, so that a block is read once and memory holds one block and one stream. Windows run in
//! parallel, each with single-threaded kernels; the head is read in row chunks, and the log-sum-exp of a token is accumulated over chunks
//! in order: `m ← max(m, m_c)`, `s ← s·e^{m−m'} + Σ e^{z−m'}`.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::forward::HEAD_ROWS;
use crate::error::{Error, ErrorKind, Result, did_you_mean};
use crate::model::{Edges, Flow, Model, Nothing, Span};
use crate::numeric::{Bf16Unit, Kernel, Matrix, Real, vectorize, with_slice};

/// Which tokens are scored, and how they are averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// All predictions of consecutive windows.
    #[default]
    Gptq,
    /// The second half of consecutive windows.
    Brevitas,
    /// Overlapping windows, every token scored once.
    HfStride,
}

impl Protocol {
    const NAMES: [(&'static str, Self); 3] = [("gptq", Self::Gptq), ("brevitas", Self::Brevitas), ("hf-stride", Self::HfStride)];

    /// The protocol of that name.
    ///
    /// # Errors
    /// If there is none; the message lists them.
    pub fn parse(name: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, p)| *p).ok_or_else(|| {
            let known = Self::NAMES.map(|(n, _)| n);
            Error::config("eval::protocol", format!("unknown protocol `{name}`{}", did_you_mean(name, known)))
                .hint(format!("known protocols: {}", known.join(", ")))
        })
    }

    /// The targets a window of `len` tokens scores, given the first target no window has scored before.
    fn scored(self, len: usize, first_new: usize) -> Range<usize> {
        match self {
            Self::Gptq => 1..len,
            Self::Brevitas => (len / 2).max(1)..len,
            Self::HfStride => first_new.max(1)..len,
        }
    }
}

/// The windows of [`Protocol::HfStride`] over a token stream, each with the first of its tokens that no window before it scored.
pub fn strided_windows(stream: &[u32], seq_len: usize, stride: usize) -> Vec<(Vec<u32>, usize)> {
    let mut out = Vec::new();
    let (mut start, mut scored) = (0, 0);
    while start < stream.len() {
        let end = stream.len().min(start + seq_len);
        out.push((stream[start..end].to_vec(), scored - start.min(scored)));
        scored = end;
        if end == stream.len() {
            break;
        }
        start += stride.max(1);
    }
    out
}

/// A measured perplexity.
#[derive(Clone, Debug, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error, from the spread over windows (delta method).
    pub perplexity_stderr: f64,
    /// Mean negative log-likelihood of each window, in nats per token.
    pub windows_nll: Vec<f64>,
    /// Tokens scored.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Length of the longest window.
    pub seq_len: usize,
    /// The protocol.
    pub protocol: Protocol,
    /// Hash of the ids of all windows.
    pub data_hash: String,
}

/// How an evaluation talks to whoever started it, and what it may take.
pub struct EvalControl<'a> {
    /// Called with finished and total steps.
    pub progress: &'a (dyn Fn(usize, usize) + Sync),
    /// Asked between windows.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Bytes of hidden states held at once; more windows are taken in batches.
    pub stream_bytes: u64,
    /// Rounds the operands of the model's products to bf16.
    pub bf16: Option<Bf16Unit>,
}

/// Perplexity over `windows`, each with the first token that counts as new (0 but for `hf-stride`).
///
/// # Errors
/// If nothing is scored, an id is out of range, or a weight cannot be read.
pub fn perplexity(model: &Model, windows: &[(Vec<u32>, usize)], protocol: Protocol, control: &EvalControl<'_>) -> Result<Perplexity> {
    let ranges: Vec<Range<usize>> = windows.iter().map(|(ids, new)| protocol.scored(ids.len(), *new)).collect();
    if ranges.iter().all(Range::is_empty) {
        return Err(Error::input("eval::no-tokens", "no token is scored").hint("give windows of at least two tokens"));
    }
    let edges = model.edges()?;
    let per_window = windows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(1) * model.dims.hidden * 4;
    let batch = usize::try_from(control.stream_bytes).unwrap_or(usize::MAX).checked_div(per_window).unwrap_or(1).max(1);
    let chunks = edges.vocab().div_ceil(HEAD_ROWS);
    let total = windows.len().div_ceil(batch) * (model.topology.blocks as usize + chunks);
    let mut done = 0;
    let mut sums = Vec::with_capacity(windows.len());
    for (windows, ranges) in windows.chunks(batch).zip(ranges.chunks(batch)) {
        let mut step = || {
            done += 1;
            (control.progress)(done, total);
        };
        let finals = hidden_states(model, &*edges, windows, control, &mut step)?;
        sums.extend(nll(&*edges, windows, ranges, &finals, control, &mut step)?);
    }
    let mut hasher = blake3::Hasher::new();
    for (ids, _) in windows {
        hasher.update(&(ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    Ok(summarize(&sums, &ranges, protocol, windows, hasher.finalize().to_hex().to_string()))
}

/// What the head reads, for every window.
fn hidden_states(
    model: &Model,
    edges: &dyn Edges,
    windows: &[(Vec<u32>, usize)],
    control: &EvalControl<'_>,
    step: &mut dyn FnMut(),
) -> Result<Vec<Tensor>> {
    let slots: Vec<Mutex<Option<Tensor>>> = windows
        .par_iter()
        .with_max_len(1)
        .map(|(ids, _)| Ok(Mutex::new(Some(edges.embed(ids, 0, &mut Nothing)?.x))))
        .collect::<Result<_>>()?;
    let each = |f: &(dyn Fn(Tensor) -> Result<Tensor> + Sync)| -> Result<()> {
        slots.par_iter().with_max_len(1).try_for_each(|slot| {
            if (control.cancelled)() {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted", "interrupted"));
            }
            let poisoned = || Error::internal("a thread panicked in an evaluation");
            let x = slot.lock().map_err(|_| poisoned())?.take().ok_or_else(poisoned)?;
            *slot.lock().map_err(|_| poisoned())? = Some(f(x)?);
            Ok(())
        })
    };
    for b in 0..model.topology.blocks {
        let weights = model.load_block(b)?.rounding_products(control.bf16);
        let block = model.block(b, &weights)?;
        each(&|x| Ok(block.run(Span::BLOCK, Flow::new(x), &mut Nothing)?.x))?;
        step();
    }
    each(&|x| edges.finish(Flow::new(x), &mut Nothing))?;
    slots.into_iter().map(|s| s.into_inner().ok().flatten().ok_or_else(|| Error::internal("a window was lost"))).collect()
}

/// Running log-sum-exp of one token, and the logit of its target.
#[derive(Clone, Copy)]
struct Token {
    max: f32,
    sum: f64,
    target: f32,
}

/// Summed negative log-likelihood of each window.
fn nll(
    edges: &dyn Edges,
    windows: &[(Vec<u32>, usize)],
    ranges: &[Range<usize>],
    finals: &[Tensor],
    control: &EvalControl<'_>,
    step: &mut dyn FnMut(),
) -> Result<Vec<f64>> {
    let vocab = edges.vocab();
    let empty = Token { max: f32::NEG_INFINITY, sum: 0.0, target: f32::NAN };
    let mut tokens: Vec<Vec<Token>> = ranges.iter().map(|r| vec![empty; r.len()]).collect();
    for start in (0..vocab).step_by(HEAD_ROWS) {
        let end = vocab.min(start + HEAD_ROWS);
        let rows = Matrix::new(edges.head_rows(start..end)?, control.bf16)?;
        tokens.par_iter_mut().with_max_len(1).zip(windows).zip(ranges).zip(finals).try_for_each(|(((tokens, (ids, _)), range), x)| {
            if (control.cancelled)() {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted", "interrupted"));
            }
            if range.is_empty() {
                return Ok(());
            }
            // Target t is predicted at position t − 1.
            let x = x.narrow(0, range.start - 1, range.len())?.contiguous()?;
            let z = rows.apply(&x, None)?.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
            with_slice::<f32, _>(&z, |z| {
                for ((token, z), target) in tokens.iter_mut().zip(z.chunks_exact(end - start)).zip(&ids[range.clone()]) {
                    token.add(z);
                    if let Some(t) = (*target as usize).checked_sub(start).filter(|t| *t < z.len()) {
                        token.target = z[t];
                    }
                }
                Ok(())
            })
        })?;
        step();
    }
    Ok(tokens.iter().map(|ts| ts.iter().map(|t| f64::from(t.max) + t.sum.ln() - f64::from(t.target)).sum()).collect())
}

impl Token {
    fn add(&mut self, z: &[f32]) {
        let (max, sum) = vectorize(LogSumExp { max: self.max, z });
        let carried = if self.sum == 0.0 { 0.0 } else { self.sum * f64::from(self.max - max).exp() };
        (self.max, self.sum) = (max, carried + sum);
    }
}

/// The larger of `max` and the largest logit, and the sum of exponentials relative to it.
struct LogSumExp<'a> {
    max: f32,
    z: &'a [f32],
}

impl Kernel for LogSumExp<'_> {
    type Output = (f32, f64);
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> (f32, f64) {
        // Whole chunks apart from the rest: a loop of known length is one vector operation.
        let (whole, rest) = self.z.as_chunks::<16>();
        let mut top = [f32::NEG_INFINITY; 16];
        for chunk in whole {
            for (m, v) in top.iter_mut().zip(chunk) {
                *m = if *v > *m { *v } else { *m };
            }
        }
        let max = top.into_iter().chain(rest.iter().copied()).fold(self.max, f32::max);
        let mut lanes = [0.0f32; 16];
        for chunk in whole {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane += Real::exp_fast(*v - max);
            }
        }
        for (lane, v) in lanes.iter_mut().zip(rest) {
            *lane += Real::exp_fast(*v - max);
        }
        (max, lanes.iter().map(|l| f64::from(*l)).sum::<f64>())
    }
}

fn summarize(sums: &[f64], ranges: &[Range<usize>], protocol: Protocol, windows: &[(Vec<u32>, usize)], data_hash: String) -> Perplexity {
    let counts: Vec<f64> = ranges.iter().map(|r| r.len() as f64).collect();
    let windows_nll: Vec<f64> = sums.iter().zip(&counts).map(|(s, n)| if *n > 0.0 { s / n } else { 0.0 }).collect();
    let weights: Vec<f64> = if protocol == Protocol::HfStride { counts.clone() } else { vec![1.0; counts.len()] };
    let total: f64 = weights.iter().sum();
    let mean = windows_nll.iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>() / total;
    let n = windows_nll.len() as f64;
    let variance = windows_nll.iter().zip(&weights).map(|(x, w)| (w / total * (x - mean)).powi(2)).sum::<f64>();
    let stderr = if n > 1.0 { (variance * n / (n - 1.0)).sqrt() } else { f64::NAN };
    Perplexity {
        perplexity: mean.exp(),
        perplexity_stderr: if stderr.is_nan() { 0.0 } else { mean.exp() * stderr },
        windows_nll,
        tokens: ranges.iter().map(Range::len).sum(),
        windows: windows.len(),
        seq_len: windows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0),
        protocol,
        data_hash,
    }
}
