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

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::forward::HEAD_ROWS;
use super::stream::Stream;
use crate::error::{Error, ErrorKind, Result, did_you_mean};
use crate::model::{Edges, Model};
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

impl EvalControl<'_> {
    /// An error once the evaluation is to end.
    pub(super) fn go_on(&self) -> Result<()> {
        if (self.cancelled)() { Err(Error::new(ErrorKind::Interrupted, "interrupted", "interrupted")) } else { Ok(()) }
    }

    /// How many windows may be held, each with so many bytes a token.
    pub(super) fn windows_at_once(&self, windows: &[(Vec<u32>, usize)], of_token: usize) -> usize {
        let longest = windows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(1);
        usize::try_from(self.stream_bytes).unwrap_or(usize::MAX).checked_div(longest * of_token).unwrap_or(1).max(1)
    }
}

/// What of each window is scored.
///
/// # Errors
/// If that is nothing.
pub(super) fn scored(windows: &[(Vec<u32>, usize)], protocol: Protocol) -> Result<Vec<Range<usize>>> {
    let ranges: Vec<Range<usize>> = windows.iter().map(|(ids, new)| protocol.scored(ids.len(), *new)).collect();
    if ranges.iter().all(Range::is_empty) {
        return Err(Error::input("eval::no-tokens", "no token is scored").hint("give windows of at least two tokens"));
    }
    Ok(ranges)
}

/// Perplexity over `windows`, each with the first token that counts as new (0 but for `hf-stride`).
///
/// # Errors
/// If nothing is scored, an id is out of range, a weight cannot be read, or a loss is not finite.
pub fn perplexity(model: &Model, windows: &[(Vec<u32>, usize)], protocol: Protocol, control: &EvalControl<'_>) -> Result<Perplexity> {
    let ranges = scored(windows, protocol)?;
    let edges = model.edges()?;
    let batch = control.windows_at_once(windows, model.dims.hidden * 4);
    let chunks = edges.vocab().div_ceil(HEAD_ROWS);
    let total = windows.len().div_ceil(batch) * (model.topology.blocks as usize + chunks);
    let mut done = 0;
    let mut sums = Vec::with_capacity(windows.len());
    for (windows, ranges) in windows.chunks(batch).zip(ranges.chunks(batch)) {
        let mut step = || {
            done += 1;
            (control.progress)(done, total);
        };
        let stream = Stream::embed(&*edges, windows, control)?;
        for b in 0..model.topology.blocks {
            stream.pass(model, b)?;
            step();
        }
        let finals = stream.finish(&*edges)?;
        sums.extend(nll(&*edges, windows, ranges, &finals, control, &mut step)?);
    }
    summarize(&sums, &ranges, protocol, windows)
}

/// The logits of some rows of the head, of which `range` are the targets. Target t is predicted at position t − 1.
pub(super) fn scores(rows: &Matrix, finals: &Tensor, range: &Range<usize>) -> Result<Tensor> {
    let x = finals.narrow(0, range.start - 1, range.len())?.contiguous()?;
    Ok(rows.apply(&x, None)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
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
            control.go_on()?;
            if range.is_empty() {
                return Ok(());
            }
            let z = scores(&rows, x, range)?;
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

/// What windows weigh in a mean over them, and that mean with its standard error (of a weighted mean, by the spread over windows).
pub(super) struct Weights(Vec<f64>);

impl Weights {
    pub(super) fn new(ranges: &[Range<usize>], protocol: Protocol) -> Self {
        Self(ranges.iter().map(|r| if protocol == Protocol::HfStride { r.len() as f64 } else { 1.0 }).collect())
    }

    /// Mean and standard error; one window has no spread, and 0 stands for that.
    pub(super) fn mean(&self, of_windows: &[f64]) -> (f64, f64) {
        let total: f64 = self.0.iter().sum();
        let mean = of_windows.iter().zip(&self.0).map(|(x, w)| x * w).sum::<f64>() / total;
        let n = of_windows.len() as f64;
        let variance = of_windows.iter().zip(&self.0).map(|(x, w)| (w / total * (x - mean)).powi(2)).sum::<f64>();
        (mean, if n > 1.0 { (variance * n / (n - 1.0)).sqrt() } else { 0.0 })
    }
}

/// Of each window, what its tokens have on average.
pub(super) fn per_token(sums: &[f64], ranges: &[Range<usize>]) -> Vec<f64> {
    sums.iter().zip(ranges).map(|(s, r)| if r.is_empty() { 0.0 } else { s / r.len() as f64 }).collect()
}

/// The perplexity of summed negative log-likelihoods.
///
/// # Errors
/// If one is not finite.
pub(super) fn summarize(sums: &[f64], ranges: &[Range<usize>], protocol: Protocol, windows: &[(Vec<u32>, usize)]) -> Result<Perplexity> {
    if let Some(w) = sums.iter().position(|s| !s.is_finite()) {
        return Err(Error::numeric(
            "eval::not-finite",
            format!("the loss of window {w} is {}: logits of the model are not finite", sums[w]),
        )
        .hint("its weights are damaged, or rounded so coarsely that activations overflow"));
    }
    let windows_nll = per_token(sums, ranges);
    let (mean, stderr) = Weights::new(ranges, protocol).mean(&windows_nll);
    let mut hasher = blake3::Hasher::new();
    for (ids, _) in windows {
        hasher.update(&(ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    Ok(Perplexity {
        perplexity: mean.exp(),
        perplexity_stderr: mean.exp() * stderr,
        windows_nll,
        tokens: ranges.iter().map(Range::len).sum(),
        windows: windows.len(),
        seq_len: windows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0),
        protocol,
        data_hash: hasher.finalize().to_hex().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_not_finite_is_an_error() {
        let windows = vec![(vec![1, 2, 3], 0), (vec![4, 5, 6], 0)];
        let of = |sums: [f64; 2]| summarize(&sums, &[1..3, 1..3], Protocol::Gptq, &windows);
        assert_eq!(of([2.0, 4.0]).unwrap().windows_nll, [1.0, 2.0]);
        for bad in [f64::NAN, f64::INFINITY] {
            let e = of([2.0, bad]).unwrap_err();
            assert_eq!(e.code(), "eval::not-finite");
            assert!(e.to_string().contains("the loss of window 1 is"), "{e}");
        }
    }
}
