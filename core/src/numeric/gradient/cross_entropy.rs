//! The loss of a language model: how unlikely it finds the tokens that follow.
//!
//! ```text
//! L = Σ_t −log p_t[id_{t+1}],  p_t = softmax(h_t·Wᵀ)        ∂h_t = (p_t − e_{id_{t+1}})·W
//! ```
//!
//! Logits are there for a few tokens at a time, and their gradient is taken while they are.

use candle_core::{DType, Device, Tensor};
use pulp::Simd;

use super::super::host::{Real, for_real, tensor, with_slice};
use super::super::softmax::softmax_row;
use super::super::vectorize::{Kernel, vectorize};
use super::linear::Factor;
use super::step1;
use crate::error::{Error, Result};

/// Tokens whose logits are there at once.
const STRIPE: usize = 64;

/// `weight · L` for hidden states `h` `[T, hidden]` before the head `[vocab, hidden]`, some rows after the other, and the token ids they
/// belong to.
///
/// # Errors
/// If the shapes do not fit, or an id is beyond the vocabulary.
pub fn next_token_loss(h: &Tensor, head: &[Factor], ids: &[u32], weight: f64) -> Result<Tensor> {
    let (tokens, width) = h.dims2()?;
    let rows = head.iter().map(Factor::rows).collect::<Result<Vec<_>>>()?;
    let vocab: usize = rows.iter().sum();
    if ids.len() != tokens || ids.iter().any(|id| *id as usize >= vocab) {
        return Err(Error::internal(format!("{tokens} hidden states for {} ids of {vocab}", ids.len())));
    }
    let (plain, tracked) = (h.detach(), h.track_op());
    let (loss, gradient) = for_real!(h, R => {
        let (mut loss, mut gradient) = (0.0f64, vec![R::of(0.0); if tracked { tokens * width } else { 0 }]);
        for first in (0..tokens.saturating_sub(1)).step_by(STRIPE) {
            let next = &ids[first + 1..tokens.min(first + STRIPE + 1)];
            let h = plain.narrow(0, first, next.len())?.contiguous()?;
            let mut p = vec![R::of(0.0); next.len() * vocab];
            let mut begin = 0;
            for (part, rows) in head.iter().zip(&rows) {
                with_slice::<R, _>(&part.forward(&h)?, |z| {
                    let lines = p.chunks_exact_mut(vocab).zip(z.chunks_exact(*rows));
                    lines.for_each(|(p, z)| p[begin..begin + rows].copy_from_slice(z));
                    Ok(())
                })?;
                begin += rows;
            }
            loss += vectorize(Likelihoods { logits: &mut p, next, vocab });
            if tracked {
                let mut begin = 0;
                for (part, rows) in head.iter().zip(&rows) {
                    let of = |line: &[R]| line[begin..begin + rows].iter().map(|p| *p * R::of(weight)).collect::<Vec<R>>();
                    let g = tensor(p.chunks_exact(vocab).flat_map(of).collect(), (next.len(), *rows))?;
                    with_slice::<R, _>(&part.backward(&g)?, |g| {
                        gradient[first * width..].iter_mut().zip(g).for_each(|(sum, g)| *sum += *g);
                        Ok(())
                    })?;
                    begin += rows;
                }
            }
        }
        (loss * weight, tensor(gradient, if tracked { (tokens, width) } else { (0, width) })?)
    });
    let loss = Tensor::new(loss, &Device::Cpu)?;
    if !tracked {
        return Ok(loss);
    }
    // The graph is of one float type.
    let value = loss.to_dtype(h.dtype())?;
    step1(h, value, move |g| {
        let by = g.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        for_real!(gradient, R => with_slice::<R, _>(&gradient, |v| {
            tensor(v.iter().map(|v| *v * R::of(by)).collect::<Vec<R>>(), gradient.shape().clone())
        }))
    })
}

/// Makes logits the gradient of the loss with respect to them, and returns the loss.
struct Likelihoods<'a, R> {
    logits: &'a mut [R],
    next: &'a [u32],
    vocab: usize,
}

impl<R: Real> Kernel for Likelihoods<'_, R> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut loss = 0.0;
        for (row, id) in self.logits.chunks_exact_mut(self.vocab).zip(self.next) {
            let chosen = row[*id as usize];
            let most = row.iter().fold(R::of(f64::NEG_INFINITY), |m, z| if *z > m { *z } else { m });
            softmax_row(row, R::of(1.0));
            // The largest probability is `1/Σ exp(z − max z)`: what the loss needs of the sum.
            let largest = row.iter().fold(R::of(0.0), |m, p| if *p > m { *p } else { m });
            loss += (most - chosen).wide() - largest.wide().ln();
            row[*id as usize] -= R::of(1.0);
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::super::{Record, walk_back};
    use super::*;

    /// Against the definition, and against difference quotients, in f64.
    #[test]
    fn the_loss_and_its_gradient_are_those_of_the_definition() {
        let (tokens, width, vocab) = (70, 5, 11);
        let number = |i: usize| ((i * 7919 % 101) as f64 / 50.0 - 1.0) * 1.5;
        let h: Vec<f64> = (0..tokens * width).map(number).collect();
        let w: Vec<f64> = (0..vocab * width).map(|i| number(i + 13)).collect();
        let ids: Vec<u32> = (0..tokens).map(|t| (t * t % vocab) as u32).collect();
        let definition = |h: &[f64]| -> f64 {
            let of = |t: usize| {
                let z: Vec<f64> = w.chunks(width).map(|w| w.iter().zip(&h[t * width..]).map(|(w, h)| w * h).sum()).collect();
                z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[ids[t + 1] as usize]
            };
            (0..tokens - 1).map(of).sum::<f64>() * 0.25
        };
        let part = |rows: std::ops::Range<usize>| {
            let w = &w[rows.start * width..rows.end * width];
            Factor::new(Tensor::from_slice(w, (rows.len(), width), &Device::Cpu).unwrap(), None).unwrap()
        };
        let head = [part(0..4), part(4..vocab)];
        let plain = Tensor::from_slice(&h, (tokens, width), &Device::Cpu).unwrap();
        let loss = next_token_loss(&plain, &head, &ids, 0.25).unwrap().to_scalar::<f64>().unwrap();
        assert!((loss - definition(&h)).abs() < 1e-10 * loss, "{loss} {}", definition(&h));
        let (record, at) = (Record::new(0).unwrap(), Arc::new(Mutex::new(None)));
        let tracked = walk_back(|| {
            let at = Arc::clone(&at);
            let watched = record.watch(&plain, move |g| {
                *at.lock().unwrap() = Some(g.clone());
                Ok(())
            })?;
            next_token_loss(&watched, &head, &ids, 0.25)
        });
        let (tracked, gradient) = (tracked.unwrap(), at.lock().unwrap().clone().unwrap());
        assert!((tracked.to_scalar::<f64>().unwrap() - loss).abs() < 1e-12 * loss);
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in [0, 1, 7, 64 * width + 2, tokens * width - 1] {
            let at = |by: f64| {
                let mut moved = h.clone();
                moved[i] += by;
                definition(&moved)
            };
            let quotient = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((gradient[i] - quotient).abs() < 1e-8, "{i}: {} {quotient}", gradient[i]);
        }
    }
}
