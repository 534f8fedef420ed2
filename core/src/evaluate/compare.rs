//! Two models side by side: how far their weights, their hidden states and what they say lie apart.
//!
//! * weights: `‖W_B − W_A‖ / ‖W_A‖` of every matrix, with the branch beside it added;
//! * hidden states: `‖y_B − y_A‖ / ‖y_A‖` behind the embedding and every block, over all tokens, each model on its own inputs;
//! * `KL(A‖B) = Σᵢ pᵢ (aᵢ − bᵢ) − ln Σᵢ e^{aᵢ} + ln Σᵢ e^{bᵢ}` of every scored prediction, with logits `a`, `b` and `p = softmax(a)`;
//! * how often both find the same token likeliest;
//! * the difference of their losses, window by window, so that what windows have in common leaves its standard error.
//!
//! A model that was rotated or scaled has other weights and hidden states than the one it was made of, and computes the same; the last
//! three are the same for both. Both models travel together, block by block, so that memory holds a block and a stream of each.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::Serialize;

use super::forward::HEAD_ROWS;
use super::perplexity::{EvalControl, Perplexity, Protocol, Weights, per_token, scored, scores, summarize};
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::model::{Edges, Model, WeightSource};
use crate::numeric::{Kernel, Matrix, Real, subtract_low_rank, vectorize, with_slice, with_slices};
use crate::topology::{ParamDecl, Part};

/// How far a matrix of one model is from the other's.
#[derive(Clone, Debug, Serialize)]
pub struct MatrixError {
    /// `blocks.3.attn.q`; of a model whose architecture is unknown the stored tensor.
    pub site: String,
    /// `‖W_B − W_A‖ / ‖W_A‖`, Frobenius norms; 0 where both are zero, infinite where A alone is.
    pub error: f64,
}

/// Weights of two models.
#[derive(Clone, Debug, Serialize)]
pub struct WeightErrors {
    /// Every matrix that both have, in the order of the model.
    pub matrices: Vec<MatrixError>,
    /// Matrices that only one has, or that have two shapes, and which.
    pub unmatched: Vec<String>,
}

/// What two models make of the same windows. A mean comes with its standard error over windows.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The first model's loss.
    pub a: Perplexity,
    /// The second model's.
    pub b: Perplexity,
    /// Relative error of hidden states before the first block.
    pub embedding_error: f64,
    /// Relative error of what each block gives.
    pub block_errors: Vec<f64>,
    /// `KL(A‖B)`, nats a token.
    pub kl: f64,
    /// Its standard error.
    pub kl_stderr: f64,
    /// Share of predictions whose likeliest token is the same.
    pub top1: f64,
    /// Its standard error.
    pub top1_stderr: f64,
    /// B's loss less A's, nats a token.
    pub loss_difference: f64,
    /// Its standard error, of the differences of windows.
    pub loss_difference_stderr: f64,
}

/// Compares every matrix, a few rows of each at a time.
///
/// # Errors
/// If a weight cannot be read.
pub fn compare_weights(a: &Model, b: &Model, control: &EvalControl<'_>) -> Result<WeightErrors> {
    // Without an architecture a matrix is known by its tensor.
    let tensorwise = a.is_tensorwise() || b.is_tensorwise();
    let matrices = |m: &Model| -> Vec<(String, ParamDecl)> {
        let params = m.topology.params.iter().filter(|p| p.part == Part::Weight && p.shape.len() == 2);
        params.map(|p| (if tensorwise { p.tensor.clone() } else { p.site.to_string() }, p.clone())).collect()
    };
    let (of_a, of_b) = (matrices(a), matrices(b));
    let (mut both, mut unmatched) = (Vec::new(), Vec::new());
    for (name, p) in &of_a {
        match of_b.iter().find(|(n, _)| n == name) {
            Some((_, q)) if q.shape == p.shape => both.push((name, p, q)),
            Some((_, q)) => unmatched.push(format!("`{name}` is {:?} in A and {:?} in B", p.shape, q.shape)),
            None => unmatched.push(format!("`{name}` is in A only")),
        }
    }
    let only_b = of_b.iter().filter(|(n, _)| of_a.iter().all(|(name, _)| name != n));
    unmatched.extend(only_b.map(|(name, _)| format!("`{name}` is in B only")));
    let done = std::sync::atomic::AtomicUsize::new(0);
    let matrices = both
        .par_iter()
        .with_max_len(1)
        .map(|(name, p, q)| {
            control.go_on()?;
            let error = matrix_error((a, p), (b, q))?;
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            (control.progress)(done, both.len());
            Ok(MatrixError { site: (*name).clone(), error })
        })
        .collect::<Result<_>>()?;
    Ok(WeightErrors { matrices, unmatched })
}

fn matrix_error((a, p): (&Model, &ParamDecl), (b, q): (&Model, &ParamDecl)) -> Result<f64> {
    /// Elements compared at once.
    const AT_ONCE: usize = 1 << 22;
    let (a, b) = (Effective::of(a, p)?, Effective::of(b, q)?);
    // One that is stored transposed is read whole whatever is asked for.
    let step = if p.transposed || q.transposed { p.shape[0] } else { (AT_ONCE / p.shape[1]).max(1) };
    let mut apart = Apart::default();
    for start in (0..p.shape[0]).step_by(step) {
        let rows = start..p.shape[0].min(start + step);
        apart = apart.and(Apart::of(&a.rows(rows.clone())?, &b.rows(rows)?));
    }
    Ok(apart.relative())
}

/// `W + B·A`, by rows.
struct Effective<'a> {
    model: &'a Model,
    param: &'a ParamDecl,
    /// `A`, and `B` with its sign turned.
    branch: Option<(Vec<f32>, Vec<f32>)>,
}

impl<'a> Effective<'a> {
    fn of(model: &'a Model, param: &'a ParamDecl) -> Result<Self> {
        let negated = |b: Vec<f32>| b.into_iter().map(|b| -b).collect();
        let branch = model.weights.branch(param.site)?.map(|x| Ok::<_, Error>((numbers(&x.a)?, negated(numbers(&x.b)?)))).transpose()?;
        Ok(Self { model, param, branch })
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let ParamDecl { site, part, shape, .. } = self.param;
        let mut weight = numbers(&self.model.weights.rows(*site, *part, rows.clone())?)?;
        if let Some((a, b)) = &self.branch {
            let rank = b.len() / shape[0];
            subtract_low_rank(&mut weight, a, &b[rows.start * rank..rows.end * rank], (shape[1], rank));
        }
        Ok(weight)
    }
}

fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    with_slice::<f32, _>(&host(t)?, |t| Ok(t.to_vec()))
}

fn host(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Sums of squares of a difference and of what it is relative to.
#[derive(Clone, Copy, Default)]
struct Apart {
    difference: f64,
    of_a: f64,
}

impl Apart {
    fn of(a: &[f32], b: &[f32]) -> Self {
        let (difference, of_a) = vectorize(Squares { a, b });
        Self { difference, of_a }
    }

    fn and(self, more: Self) -> Self {
        Self { difference: self.difference + more.difference, of_a: self.of_a + more.of_a }
    }

    fn relative(self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { (self.difference / self.of_a).sqrt() }
    }
}

/// `Σ (b − a)²` and `Σ a²`.
struct Squares<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Squares<'_> {
    type Output = (f64, f64);
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> (f64, f64) {
        let (mut difference, mut of_a) = ([0.0f64; 8], [0.0f64; 8]);
        let ((a, rest_a), (b, rest_b)) = (self.a.as_chunks::<8>(), self.b.as_chunks::<8>());
        let tail = |x: &[f32]| std::array::from_fn::<f32, 8, _>(|i| x.get(i).copied().unwrap_or(0.0));
        let (last_a, last_b) = (tail(rest_a), tail(rest_b));
        for (a, b) in a.iter().zip(b).chain(std::iter::once((&last_a, &last_b))) {
            for i in 0..8 {
                let (x, y) = (f64::from(a[i]), f64::from(b[i]));
                difference[i] += (y - x) * (y - x);
                of_a[i] += x * x;
            }
        }
        (difference.iter().sum(), of_a.iter().sum())
    }
}

/// Runs both models over `windows`, each with the first token that counts as new (0 but for `hf-stride`).
///
/// # Errors
/// If their vocabularies, blocks or widths differ, nothing is scored, an id is out of range, a weight cannot be read, or a loss is not finite.
pub fn compare(a: &Model, b: &Model, windows: &[(Vec<u32>, usize)], protocol: Protocol, control: &EvalControl<'_>) -> Result<Comparison> {
    for (what, of_a, of_b) in [
        ("tokens in its vocabulary", a.dims.vocab, b.dims.vocab),
        ("blocks", a.dims.blocks, b.dims.blocks),
        ("channels", a.dims.hidden, b.dims.hidden),
    ] {
        if of_a != of_b {
            return Err(Error::config("compare::other-model", format!("A has {of_a} {what}, and B has {of_b}"))
                .hint("compare a model with one that was made of it"));
        }
    }
    let ranges = scored(windows, protocol)?;
    let (edges_a, edges_b) = (a.edges()?, b.edges()?);
    let batch = control.windows_at_once(windows, 2 * a.dims.hidden * 4);
    let (blocks, chunks) = (a.topology.blocks, edges_a.vocab().div_ceil(HEAD_ROWS));
    let total = windows.len().div_ceil(batch) * (blocks as usize + chunks);
    let mut done = 0;
    let mut apart = vec![Apart::default(); 1 + blocks as usize];
    let mut pairs = Vec::with_capacity(windows.len());
    for (windows, ranges) in windows.chunks(batch).zip(ranges.chunks(batch)) {
        let mut step = || {
            done += 1;
            (control.progress)(done, total);
        };
        let (stream_a, stream_b) = (Stream::embed(&*edges_a, windows, control)?, Stream::embed(&*edges_b, windows, control)?);
        apart[0] = apart[0].and(states_apart(&stream_a, &stream_b)?);
        for block in 0..blocks {
            stream_a.pass(a, block)?;
            stream_b.pass(b, block)?;
            let behind = &mut apart[1 + block as usize];
            *behind = behind.and(states_apart(&stream_a, &stream_b)?);
            step();
        }
        let finals = [stream_a.finish(&*edges_a)?, stream_b.finish(&*edges_b)?];
        pairs.extend(predictions([&*edges_a, &*edges_b], windows, ranges, &finals, control, &mut step)?);
    }
    let sums = |f: &dyn Fn(&Prediction) -> f64| -> Vec<f64> { pairs.iter().map(|w: &Vec<Prediction>| w.iter().map(f).sum()).collect() };
    let model = |name: &str, f: &dyn Fn(&Prediction) -> f64| summarize(&sums(f), &ranges, protocol, windows).map_err(|e| e.within(name));
    let (a, b) = (model("A", &|p| p.a.loss())?, model("B", &|p| p.b.loss())?);
    let weights = Weights::new(&ranges, protocol);
    let mean = |f: &dyn Fn(&Prediction) -> f64| weights.mean(&per_token(&sums(f), &ranges));
    let (kl, kl_stderr) = mean(&Prediction::kl);
    let (top1, top1_stderr) = mean(&|p| f64::from(u8::from(p.a.top == p.b.top)));
    let (loss_difference, loss_difference_stderr) = mean(&|p| p.b.loss() - p.a.loss());
    Ok(Comparison {
        a,
        b,
        embedding_error: apart[0].relative(),
        block_errors: apart[1..].iter().map(|s| s.relative()).collect(),
        kl,
        kl_stderr,
        top1,
        top1_stderr,
        loss_difference,
        loss_difference_stderr,
    })
}

/// What the windows differ by where both streams stand, added in their order.
fn states_apart(a: &Stream<'_>, b: &Stream<'_>) -> Result<Apart> {
    let (a, b) = (a.states()?, b.states()?);
    let one = |(a, b): (&Tensor, &Tensor)| with_slices::<f32, 2, _>([&host(a)?, &host(b)?], |[a, b]| Ok(Apart::of(a, b)));
    let each: Vec<Apart> = a.par_iter().with_max_len(1).zip(&b).map(one).collect::<Result<_>>()?;
    Ok(each.into_iter().fold(Apart::default(), Apart::and))
}

/// What one model says of one token, over the part of the vocabulary that was seen.
#[derive(Clone, Copy)]
struct Said {
    max: f32,
    /// `Σ e^{z − max}`
    sum: f64,
    target: f32,
    /// The likeliest token; of several the first.
    top: usize,
}

/// What both say of one token.
#[derive(Clone, Copy)]
struct Prediction {
    a: Said,
    b: Said,
    /// `Σ e^{a − max} (a − b)`
    crossed: f64,
}

impl Said {
    const NOTHING: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, target: f32::NAN, top: 0 };

    fn log_sum(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }

    /// Negative log-likelihood of the target.
    fn loss(&self) -> f64 {
        self.log_sum() - f64::from(self.target)
    }

    /// Goes on to logits `z` of the tokens from `start`; gives the factor that sums of before carry.
    fn reach(&mut self, z: &[f32], start: usize, target: usize) -> f64 {
        if let Some(t) = target.checked_sub(start).filter(|t| *t < z.len()) {
            self.target = z[t];
        }
        let before = self.max;
        for (i, z) in z.iter().enumerate() {
            if *z > self.max {
                (self.max, self.top) = (*z, start + i);
            }
        }
        let carried = if self.sum == 0.0 { 0.0 } else { f64::from(before - self.max).exp() };
        self.sum *= carried;
        carried
    }
}

impl Prediction {
    fn add(&mut self, a: &[f32], b: &[f32], start: usize, target: usize) {
        self.crossed *= self.a.reach(a, start, target);
        self.b.reach(b, start, target);
        let [of_a, of_b, crossed] = vectorize(Sums { a, b, max_a: self.a.max, max_b: self.b.max });
        self.a.sum += of_a;
        self.b.sum += of_b;
        self.crossed += crossed;
    }

    /// `KL(A‖B)`. All sums are of f64: it is a small difference of large numbers, and never below zero but for their last bits.
    fn kl(&self) -> f64 {
        (self.crossed / self.a.sum - self.a.log_sum() + self.b.log_sum()).max(0.0)
    }
}

/// `Σ e^{a − max_a}`, `Σ e^{b − max_b}` and `Σ e^{a − max_a} (a − b)`.
struct Sums<'a> {
    a: &'a [f32],
    b: &'a [f32],
    max_a: f32,
    max_b: f32,
}

impl Kernel for Sums<'_> {
    type Output = [f64; 3];
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> [f64; 3] {
        let mut sums = [[0.0f64; 8]; 3];
        let (max_a, max_b) = (f64::from(self.max_a), f64::from(self.max_b));
        let ((a, rest_a), (b, rest_b)) = (self.a.as_chunks::<8>(), self.b.as_chunks::<8>());
        // What fills the last chunk is likely to the degree 0.
        let tail = |z: &[f32], max: f32| std::array::from_fn::<f32, 8, _>(|i| z.get(i).copied().unwrap_or(max - 1000.0));
        let (last_a, last_b) = (tail(rest_a, self.max_a), tail(rest_b, self.max_b));
        for (a, b) in a.iter().zip(b).chain(std::iter::once((&last_a, &last_b))) {
            for i in 0..8 {
                let (a, b) = (f64::from(a[i]), f64::from(b[i]));
                let p = Real::exp_fast(a - max_a);
                sums[0][i] += p;
                sums[1][i] += Real::exp_fast(b - max_b);
                sums[2][i] += p * (a - b);
            }
        }
        sums.map(|lanes| lanes.iter().sum())
    }
}

/// What both models say of every scored token, window by window.
fn predictions(
    edges: [&dyn Edges; 2],
    windows: &[(Vec<u32>, usize)],
    ranges: &[Range<usize>],
    finals: &[Vec<Tensor>; 2],
    control: &EvalControl<'_>,
    step: &mut dyn FnMut(),
) -> Result<Vec<Vec<Prediction>>> {
    let vocab = edges[0].vocab();
    let nothing = Prediction { a: Said::NOTHING, b: Said::NOTHING, crossed: 0.0 };
    let mut pairs: Vec<Vec<Prediction>> = ranges.iter().map(|r| vec![nothing; r.len()]).collect();
    for start in (0..vocab).step_by(HEAD_ROWS) {
        let end = vocab.min(start + HEAD_ROWS);
        let rows = |e: &dyn Edges| Matrix::new(e.head_rows(start..end)?, control.bf16);
        let (rows_a, rows_b) = (rows(edges[0])?, rows(edges[1])?);
        pairs.par_iter_mut().with_max_len(1).enumerate().try_for_each(|(w, pairs)| {
            control.go_on()?;
            let (ids, range) = (&windows[w].0, &ranges[w]);
            if range.is_empty() {
                return Ok(());
            }
            let (a, b) = (scores(&rows_a, &finals[0][w], range)?, scores(&rows_b, &finals[1][w], range)?);
            with_slices::<f32, 2, _>([&a, &b], |[a, b]| {
                let rows = a.chunks_exact(end - start).zip(b.chunks_exact(end - start));
                for ((pair, (a, b)), target) in pairs.iter_mut().zip(rows).zip(&ids[range.clone()]) {
                    pair.add(a, b, start, *target as usize);
                }
                Ok(())
            })
        })?;
        step();
    }
    Ok(pairs)
}
