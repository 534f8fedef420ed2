//! Training: AdamW (Loshchilov and Hutter 2019) with a warm-up and a cosine, and the perplexity that judges it.
//!
//! `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `w ← w − η(m̂/(√v̂ + ε) + λw)`; `g` is first scaled so that all gradients together have
//! norm 1 at most, and `λ` is zero for norms and biases.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use qfw_core::{Error, Result};

use super::CONTEXT;
use super::network::{Network, loss};
use super::random::Random;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.98;
const EPS: f64 = 1e-8;
pub(super) const WEIGHT_DECAY: f64 = 0.1;
const LARGEST_NORM: f64 = 1.0;
const WARM_UP: usize = 100;
/// The learning rate ends at this share of its peak.
const LAST_SHARE: f64 = 0.02;

/// How long and how fast.
pub(super) struct Schedule {
    pub(super) steps: usize,
    /// Windows in a step.
    pub(super) batch: usize,
    /// Highest learning rate.
    pub(super) peak: f64,
    pub(super) seed: u64,
}

/// What the training showed.
pub(super) struct Outcome {
    pub(super) parameters: usize,
    /// Tokens of the training text, and tokens seen in training.
    pub(super) stream: usize,
    pub(super) seen: usize,
    /// Mean loss (nats a token) over the last hundredth of the steps.
    pub(super) training_loss: f64,
    /// Mean loss over the excerpts after rounding to float16, as stored.
    pub(super) calibration_loss: f64,
    pub(super) evaluation_loss: f64,
    /// Tokens of the evaluation excerpt.
    pub(super) evaluated: usize,
}

impl Schedule {
    fn rate(&self, step: usize) -> f64 {
        if step < WARM_UP {
            return self.peak * (step + 1) as f64 / WARM_UP as f64;
        }
        let done = (step - WARM_UP) as f64 / self.steps.saturating_sub(WARM_UP).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.peak * (LAST_SHARE + (1.0 - LAST_SHARE) * cosine)
    }
}

/// Trains `network` on random windows of `stream`, rounds it to float16 and measures it.
///
/// # Errors
/// If the loss is not finite, or a tensor gets no gradient.
pub(super) fn train(network: &Network, stream: &[u32], calibration: &[u32], evaluation: &[u32], schedule: &Schedule) -> Result<Outcome> {
    let name = network.family.folder();
    let mut random = Random::new(schedule.seed ^ 0x77_696e_646f_7773);
    let mut moments = BTreeMap::new();
    let mut recent = Vec::new();
    let started = Instant::now();
    for step in 0..schedule.steps {
        let (inputs, targets) = windows(stream, schedule.batch, network.family.start_token(), &mut random)?;
        let loss = loss(&network.logits(&inputs)?, targets)?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::numeric("train-tiny::diverged", format!("{name}: the loss of step {step} is {value}"))
                .hint("lower the learning rate"));
        }
        recent.push(value);
        update(network, &loss, &mut moments, schedule.rate(step), step)?;
        if step % 100 == 99 || step + 1 == schedule.steps {
            let mean = recent[recent.len().saturating_sub(100)..].iter().sum::<f64>() / recent.len().min(100) as f64;
            let seconds = started.elapsed().as_secs_f64();
            eprintln!("{name}: step {} of {}, loss {mean:.4}, {seconds:.0} s", step + 1, schedule.steps);
        }
        if step % 1000 == 999 {
            eprintln!("{name}: evaluation perplexity {:.3}", measure(network, evaluation)?.exp());
        }
    }
    round(network)?;
    let last = &recent[recent.len() - (schedule.steps / 100).clamp(1, recent.len())..];
    Ok(Outcome {
        parameters: network.parameters(),
        stream: stream.len(),
        seen: schedule.steps * schedule.batch * CONTEXT,
        training_loss: last.iter().sum::<f64>() / last.len() as f64,
        calibration_loss: measure(network, calibration)?,
        evaluation_loss: measure(network, evaluation)?,
        evaluated: evaluation.len(),
    })
}

/// Inputs and targets `[batch, CONTEXT]`, `[batch·CONTEXT]` from random places. Half of the windows start with the start token in
/// place of their first, so that a text may or may not begin with it.
fn windows(stream: &[u32], batch: usize, start_token: u32, random: &mut Random) -> Result<(Tensor, Vec<u32>)> {
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for _ in 0..batch {
        let at = random.below(stream.len() - CONTEXT);
        inputs.extend_from_slice(&stream[at..at + CONTEXT]);
        targets.extend_from_slice(&stream[at + 1..=at + CONTEXT]);
        if random.below(2) == 0 {
            let first = inputs.len() - CONTEXT;
            inputs[first] = start_token;
        }
    }
    Ok((Tensor::from_vec(inputs, (batch, CONTEXT), &Device::Cpu)?, targets))
}

/// One AdamW step.
fn update(network: &Network, loss: &Tensor, moments: &mut BTreeMap<String, (Vec<f32>, Vec<f32>)>, rate: f64, step: usize) -> Result<()> {
    let store = loss.backward()?;
    let mut gradients = Vec::with_capacity(network.weights.len());
    for (name, var) in &network.weights {
        let gradient = store.get(var).ok_or_else(|| Error::internal(format!("`{name}` got no gradient")))?;
        gradients.push(gradient.flatten_all()?.to_vec1::<f32>()?);
    }
    let norm = gradients.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let clip = (LARGEST_NORM / norm.max(LARGEST_NORM)) as f32;
    let (correct1, correct2) = (1.0 - BETA1.powi(step as i32 + 1), 1.0 - BETA2.powi(step as i32 + 1));
    let (b1, b2, eps, size) = (BETA1 as f32, BETA2 as f32, EPS as f32, (rate / correct1) as f32);
    let root = (1.0 / correct2) as f32;
    for ((name, var), gradient) in network.weights.iter().zip(gradients) {
        let decay = if var.rank() == 2 { (rate * WEIGHT_DECAY) as f32 } else { 0.0 };
        let mut w = var.flatten_all()?.to_vec1::<f32>()?;
        let (m, v) = moments.entry(name.clone()).or_insert_with(|| (vec![0.0; w.len()], vec![0.0; w.len()]));
        for (((w, g), m), v) in w.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * clip;
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *w -= decay * *w + size * *m / ((*v * root).sqrt() + eps);
        }
        var.set(&Tensor::from_vec(w, var.shape(), &Device::Cpu)?)?;
    }
    Ok(())
}

/// Rounds every tensor to float16, as it will be stored.
fn round(network: &Network) -> Result<()> {
    for var in network.weights.values() {
        var.set(&var.to_dtype(DType::F16)?.to_dtype(DType::F32)?)?;
    }
    Ok(())
}

/// Mean loss (nats a token) over whole consecutive windows of `CONTEXT` tokens; each predicts all its tokens but the first.
fn measure(network: &Network, ids: &[u32]) -> Result<f64> {
    let (mut total, mut count) = (0.0, 0);
    for window in ids.chunks_exact(CONTEXT) {
        let inputs = Tensor::new(window, &Device::Cpu)?.unsqueeze(0)?;
        let logits = network.logits(&inputs)?.detach().narrow(0, 0, CONTEXT - 1)?;
        total += f64::from(loss(&logits, window[1..].to_vec())?.to_scalar::<f32>()?);
        count += 1;
    }
    Ok(total / f64::from(count.max(1)))
}
