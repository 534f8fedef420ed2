//! The two networks: their sizes, initial weights and forward passes, under Hugging Face's tensor names and layouts.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use qfw_core::{Error, Result};

use super::operation::{CausalSoftmax, CrossEntropy, GatedSilu, Gelu, LayerNorm, RmsNorm, Rotate};
use super::random::Random;
use super::{CONTEXT, VOCABULARY};

/// Channels of the hidden state.
pub(super) const HIDDEN: usize = 128;
/// Blocks.
pub(super) const LAYERS: usize = 6;
/// Query heads.
pub(super) const HEADS: usize = 4;
/// Key and value heads of the LLaMA.
pub(super) const KV_HEADS: usize = 2;
/// Channels of a head.
pub(super) const HEAD_DIM: usize = HIDDEN / HEADS;
/// Channels inside the LLaMA's gated MLP.
pub(super) const LLAMA_INNER: usize = 384;
/// Channels inside the GPT-2's MLP.
pub(super) const GPT2_INNER: usize = 4 * HIDDEN;
/// ε of every normalisation.
pub(super) const EPS: f64 = 1e-5;
/// θ of the rotary embedding.
pub(super) const ROPE_THETA: f64 = 10000.0;

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Rotary positions, RMSNorm, gated MLP, grouped keys and values.
    Llama,
    /// Learned positions, LayerNorm, biases, fused and transposed projections.
    Gpt2,
}

impl Family {
    /// Its folder under the assets.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Llama => "tiny-llama",
            Self::Gpt2 => "tiny-gpt2",
        }
    }

    /// Its special tokens; their ids are their places.
    pub(super) fn special_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Llama => &["<s>", "</s>"],
            Self::Gpt2 => &["<|endoftext|>"],
        }
    }

    /// Id of the token that starts a document.
    pub(super) fn start_token(self) -> u32 {
        0
    }

    /// Id of the token that ends a document.
    pub(super) fn end_token(self) -> u32 {
        self.special_tokens().len() as u32 - 1
    }
}

/// A network: its trainable tensors by name.
pub(super) struct Network {
    pub(super) family: Family,
    pub(super) weights: BTreeMap<String, Var>,
    /// cos and sin of the rotary embedding, `[CONTEXT, HEAD_DIM/2]`.
    angles: Arc<(Vec<f32>, Vec<f32>)>,
}

impl Network {
    /// A network of `family` with weights drawn from `seed`.
    ///
    /// # Errors
    /// None on the CPU.
    pub(super) fn new(family: Family, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let mut weights = BTreeMap::new();
        for (name, shape, init) in tensors(family) {
            let count = shape.iter().product();
            let values: Vec<f32> = match init {
                Init::Constant(value) => vec![value; count],
                Init::Normal(deviation) => (0..count).map(|_| (random.normal() * deviation) as f32).collect(),
            };
            weights.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(Self { family, weights, angles: Arc::new((angles(f64::cos), angles(f64::sin))) })
    }

    /// How many numbers are trained.
    pub(super) fn parameters(&self) -> usize {
        self.weights.values().map(|w| w.elem_count()).sum()
    }

    /// Logits `[B·T, V]` of token ids `[B, T]`.
    ///
    /// # Errors
    /// If the ids do not fit.
    pub(super) fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        match self.family {
            Family::Llama => self.llama(ids),
            Family::Gpt2 => self.gpt2(ids),
        }
    }

    fn llama(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let embedding = self.weight("model.embed_tokens.weight")?;
        let mut x = embedding.index_select(&ids.flatten_all()?, 0)?;
        for layer in 0..LAYERS {
            let weight = |name: &str| self.weight(&format!("model.layers.{layer}.{name}.weight"));
            let linear = |x: &Tensor, name: &str| Ok::<_, Error>(x.matmul(&weight(name)?.t()?)?);
            let h = rms_norm(&x, weight("input_layernorm")?)?;
            let q = self.rotate(&linear(&h, "self_attn.q_proj")?, t)?;
            let k = self.rotate(&linear(&h, "self_attn.k_proj")?, t)?;
            let context = attention(&q, &k, &linear(&h, "self_attn.v_proj")?, (b, t), KV_HEADS)?;
            x = (x + linear(&context, "self_attn.o_proj")?)?;
            let h = rms_norm(&x, weight("post_attention_layernorm")?)?;
            let h = linear(&h, "mlp.gate_proj")?.apply_op2(&linear(&h, "mlp.up_proj")?, GatedSilu)?;
            x = (x + linear(&h, "mlp.down_proj")?)?;
        }
        Ok(rms_norm(&x, self.weight("model.norm.weight")?)?.matmul(&embedding.t()?)?)
    }

    fn gpt2(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let embedding = self.weight("transformer.wte.weight")?;
        let x = embedding.index_select(&ids.flatten_all()?, 0)?.reshape((b, t, HIDDEN))?;
        let positions = self.weight("transformer.wpe.weight")?.narrow(0, 0, t)?;
        let mut x = x.broadcast_add(&positions)?.reshape((b * t, HIDDEN))?;
        let ones = Tensor::ones((b * t, 1), x.dtype(), x.device())?;
        for layer in 0..LAYERS {
            let tensor = |name: &str| self.weight(&format!("transformer.h.{layer}.{name}"));
            let linear = |x: &Tensor, name: &str| {
                let product = x.matmul(tensor(&format!("{name}.weight"))?)?;
                // As a matrix product: the gradient of a broadcast sums over rows, which candle does slowly.
                let bias = ones.matmul(&tensor(&format!("{name}.bias"))?.unsqueeze(0)?)?;
                Ok::<_, Error>((product + bias)?)
            };
            let h = layer_norm(&x, tensor("ln_1.weight")?, tensor("ln_1.bias")?)?;
            let qkv = linear(&h, "attn.c_attn")?;
            let part = |i: usize| qkv.narrow(1, i * HIDDEN, HIDDEN)?.contiguous();
            let context = attention(&part(0)?, &part(1)?, &part(2)?, (b, t), HEADS)?;
            x = (x + linear(&context, "attn.c_proj")?)?;
            let h = layer_norm(&x, tensor("ln_2.weight")?, tensor("ln_2.bias")?)?;
            x = (x + linear(&linear(&h, "mlp.c_fc")?.apply_op1(Gelu)?, "mlp.c_proj")?)?;
        }
        let h = layer_norm(&x, self.weight("transformer.ln_f.weight")?, self.weight("transformer.ln_f.bias")?)?;
        Ok(h.matmul(&embedding.t()?)?)
    }

    /// Turns the heads of `x` `[B·T, heads·HEAD_DIM]` by their positions.
    fn rotate(&self, x: &Tensor, t: usize) -> Result<Tensor> {
        let heads = x.dim(1)? / HEAD_DIM;
        Ok(x.apply_op1(Rotate { table: Arc::clone(&self.angles), head_dim: HEAD_DIM, heads, context: t })?)
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.weights.get(name).map(|var| var.as_tensor()).ok_or_else(|| Error::internal(format!("the network has no `{name}`")))
    }
}

/// How a tensor starts.
enum Init {
    Constant(f32),
    /// Standard deviation of a normal distribution.
    Normal(f64),
}

/// Name, shape and start of every tensor of a family.
fn tensors(family: Family) -> Vec<(String, Vec<usize>, Init)> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize], init: Init| all.push((name, shape.to_vec(), init));
    // A matrix keeps the variance of its input; those that write into the residual stream are smaller, as there are 2·LAYERS.
    let wide = |inputs: usize| Init::Normal(0.6 / (inputs as f64).sqrt());
    let out = |inputs: usize| Init::Normal(0.6 / (inputs as f64 * 2.0 * LAYERS as f64).sqrt());
    let kv = KV_HEADS * HEAD_DIM;
    match family {
        Family::Llama => {
            add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN], Init::Normal(0.04));
            add("model.norm.weight".into(), &[HIDDEN], Init::Constant(1.0));
            for layer in 0..LAYERS {
                let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
                add(name("input_layernorm"), &[HIDDEN], Init::Constant(1.0));
                add(name("self_attn.q_proj"), &[HIDDEN, HIDDEN], wide(HIDDEN));
                add(name("self_attn.k_proj"), &[kv, HIDDEN], wide(HIDDEN));
                add(name("self_attn.v_proj"), &[kv, HIDDEN], wide(HIDDEN));
                add(name("self_attn.o_proj"), &[HIDDEN, HIDDEN], out(HIDDEN));
                add(name("post_attention_layernorm"), &[HIDDEN], Init::Constant(1.0));
                add(name("mlp.gate_proj"), &[LLAMA_INNER, HIDDEN], wide(HIDDEN));
                add(name("mlp.up_proj"), &[LLAMA_INNER, HIDDEN], wide(HIDDEN));
                add(name("mlp.down_proj"), &[HIDDEN, LLAMA_INNER], out(LLAMA_INNER));
            }
        }
        Family::Gpt2 => {
            add("transformer.wte.weight".into(), &[VOCABULARY, HIDDEN], Init::Normal(0.04));
            add("transformer.wpe.weight".into(), &[CONTEXT, HIDDEN], Init::Normal(0.01));
            let layers = (0..LAYERS).map(|layer| format!("transformer.h.{layer}."));
            for (prefix, norms) in
                layers.map(|p| (p, ["ln_1", "ln_2"].as_slice())).chain([("transformer.".to_owned(), ["ln_f"].as_slice())])
            {
                for norm in norms {
                    add(format!("{prefix}{norm}.weight"), &[HIDDEN], Init::Constant(1.0));
                    add(format!("{prefix}{norm}.bias"), &[HIDDEN], Init::Constant(0.0));
                }
            }
            for layer in 0..LAYERS {
                // Stored `[in, out]`.
                for (part, inputs, outputs, init) in [
                    ("attn.c_attn", HIDDEN, 3 * HIDDEN, wide(HIDDEN)),
                    ("attn.c_proj", HIDDEN, HIDDEN, out(HIDDEN)),
                    ("mlp.c_fc", HIDDEN, GPT2_INNER, wide(HIDDEN)),
                    ("mlp.c_proj", GPT2_INNER, HIDDEN, out(GPT2_INNER)),
                ] {
                    add(format!("transformer.h.{layer}.{part}.weight"), &[inputs, outputs], init);
                    add(format!("transformer.h.{layer}.{part}.bias"), &[outputs], Init::Constant(0.0));
                }
            }
        }
    }
    all
}

/// Causal attention of `q` `[B·T, H·D]` over `k`, `v` `[B·T, KV·D]`. Query head `h` reads key head `h / (H/KV)`; the queries of one
/// key head are stacked as rows, so that nothing is repeated.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, (b, t): (usize, usize), kv: usize) -> Result<Tensor> {
    let shared = HEADS / kv;
    let q = q.reshape((b, t, kv, shared, HEAD_DIM))?.permute((0, 2, 3, 1, 4))?.contiguous()?.reshape((b * kv, shared * t, HEAD_DIM))?;
    let heads = |x: &Tensor| x.reshape((b, t, kv, HEAD_DIM))?.transpose(1, 2)?.contiguous()?.reshape((b * kv, t, HEAD_DIM));
    let (k, v) = (heads(k)?, heads(v)?);
    let softmax = CausalSoftmax { scale: 1.0 / (HEAD_DIM as f32).sqrt() };
    let context = q.matmul(&k.t()?)?.apply_op1(softmax)?.matmul(&v)?;
    let context = context.reshape((b, kv, shared, t, HEAD_DIM))?.permute((0, 3, 1, 2, 4))?.contiguous()?;
    Ok(context.reshape((b * t, HEADS * HEAD_DIM))?)
}

fn rms_norm(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(x.apply_op2(weight, RmsNorm { eps: EPS as f32 })?)
}

fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    Ok(x.apply_op3(weight, bias, LayerNorm { eps: EPS as f32 })?)
}

/// `f` of every angle of the rotary embedding: position `p` and channel `i` have `p · θ^(−2i/d)`.
fn angles(f: fn(f64) -> f64) -> Vec<f32> {
    let half = HEAD_DIM / 2;
    let angle = |i: usize| (i / half) as f64 * ROPE_THETA.powf(-((i % half) as f64) / half as f64);
    (0..CONTEXT * half).map(|i| f(angle(i)) as f32).collect()
}

/// Mean negative log-likelihood (nats) of `targets` under `logits` `[N, V]`.
///
/// # Errors
/// If the logits are not contiguous.
pub(super) fn loss(logits: &Tensor, targets: Vec<u32>) -> Result<Tensor> {
    Ok(logits.apply_op1(CrossEntropy { targets })?)
}
