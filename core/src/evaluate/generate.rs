//! Sampling with a cache of keys and values.
//!
//! The weights of all blocks are held in memory in f32 while sampling: reading the model anew for every token would be slower than any
//! memory saved is worth.

use candle_core::{Device, Tensor};

use super::forward::HEAD_ROWS;
use crate::error::{Error, Result};
use crate::model::{Block, Edges, Flow, KvCache, Model, Nothing, Span};
use crate::numeric::{linear, uniform_u64};

/// How to sample.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens made.
    pub max_new_tokens: usize,
    /// 0 takes the likeliest token; otherwise logits are divided by it.
    pub temperature: f64,
    /// Only the likeliest `k` tokens, if given.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach this sum.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that end the text.
    pub stop: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 64, temperature: 0.0, top_k: None, top_p: 1.0, seed: 0, stop: Vec::new() }
    }
}

/// Continues `prompt`; `on_token` sees each new token and ends the text by returning `false`. Returns the new tokens.
///
/// # Errors
/// If the prompt is empty, an id is out of range, or the model's positions run out.
pub fn generate(model: &Model, prompt: &[u32], options: &GenerateOptions, on_token: &mut dyn FnMut(u32) -> bool) -> Result<Vec<u32>> {
    if prompt.is_empty() {
        return Err(Error::input("generate::empty", "the prompt holds no token").hint("give some text"));
    }
    let edges = model.edges()?;
    let blocks: Vec<Box<dyn Block>> = (0..model.topology.blocks).map(|b| model.block(b, &model.load_block(b)?)).collect::<Result<_>>()?;
    let mut caches: Vec<Option<KvCache>> = vec![None; blocks.len()];
    let mut made = Vec::new();
    let (mut next, mut position) = (prompt.to_vec(), 0);
    while made.len() < options.max_new_tokens {
        let mut flow = edges.embed(&next, position, &mut Nothing)?;
        for (block, cache) in blocks.iter().zip(&mut caches) {
            flow.cache = Some(cache.take());
            flow = block.run(Span::BLOCK, flow, &mut Nothing)?;
            *cache = flow.cache.take().flatten();
        }
        position += next.len();
        flow.x = flow.x.narrow(0, next.len() - 1, 1)?.contiguous()?;
        let logits = last_logits(&*edges, flow)?;
        let token = pick(&logits, options, made.len());
        if options.stop.contains(&token) {
            break;
        }
        made.push(token);
        if !on_token(token) || position + 1 >= model.dims.max_positions {
            break;
        }
        next = vec![token];
    }
    Ok(made)
}

fn last_logits(edges: &dyn Edges, flow: Flow) -> Result<Vec<f32>> {
    let x: Tensor = edges.finish(flow, &mut Nothing)?;
    let mut out = Vec::with_capacity(edges.vocab());
    for start in (0..edges.vocab()).step_by(HEAD_ROWS) {
        let rows = edges.head_rows(start..edges.vocab().min(start + HEAD_ROWS))?;
        let z = linear(&x, &rows, None)?.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?;
        out.extend(z.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(out)
}

/// The next token: the likeliest, or a draw that depends on nothing but seed and step. Ties go to the smaller id.
fn pick(logits: &[f32], options: &GenerateOptions, step: usize) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    if options.temperature <= 0.0 {
        return order[0];
    }
    order.truncate(options.top_k.unwrap_or(order.len()).max(1));
    let top = f64::from(logits[order[0] as usize]);
    let weights: Vec<f64> = order.iter().map(|i| ((f64::from(logits[*i as usize]) - top) / options.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let n = weights
        .iter()
        .take_while(|w| {
            let go = kept < options.top_p * total;
            kept += **w;
            go
        })
        .count()
        .max(1);
    let mass: f64 = weights[..n].iter().sum();
    let mut draw = uniform_u64(&[options.seed, step as u64]) as f64 / 2f64.powi(64) * mass;
    for (id, w) in order.iter().zip(&weights[..n]) {
        draw -= w;
        if draw < 0.0 {
            return *id;
        }
    }
    order[n - 1]
}
