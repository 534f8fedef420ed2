//! The pre-norm decoder block with rotary positions and a gated feed-forward layer, shared by LLaMA and its relatives.
//!
//! ```text
//! x ← x + O·attention(rope(Q·n₁), rope(K·n₁), V·n₁)      n₁ = norm₁(x)
//! x ← x + D·(f(G·n₂) ⊙ U·n₂)                              n₂ = norm₂(x)
//! ```

mod config;
mod topology;

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::rope::Angles;
use super::tap::{Tap, pass};
use super::weights::WeightSource;
use super::{Block, Dims, Edges, Flow, KvCache, Span};
use crate::error::{Error, Result};
use crate::numeric::{
    Activation, AttentionShape, Bf16Unit, Matrix, activate, activate_gated, add, attention, attention_mix, attention_probs,
    attention_scores, gated_linears, linears, rms_norm, rotate,
};
use crate::topology::{Part, Port, PortName as P, Role, SiteId};

pub(super) use config::{Defaults, parse, qwen_windows, sliding_window};
pub(super) use topology::topology;

pub(in crate::model) struct Projection {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Projection {
    pub(in crate::model) fn load(weights: &dyn WeightSource, site: SiteId, bias: bool) -> Result<Self> {
        let bias = if bias { Some(weights.get(site, Part::Bias)?) } else { None };
        Ok(Self { weight: weights.matrix(site)?, bias })
    }

    pub(in crate::model) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.apply(x, self.bias.as_ref())
    }

    pub(in crate::model) fn layer(&self) -> (&Matrix, Option<&Tensor>) {
        (&self.weight, self.bias.as_ref())
    }
}

pub(in crate::model) struct DecoderBlock {
    shape: AttentionShape,
    bf16: Option<Bf16Unit>,
    angles: Angles,
    eps: f64,
    activation: Activation,
    attn_norm: Tensor,
    mlp_norm: Tensor,
    head_norms: Option<(Tensor, Tensor)>,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl DecoderBlock {
    pub(in crate::model) fn load(d: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Self> {
        let at = |role| SiteId::in_block(b, role);
        let norm = |role| weights.get(at(role), Part::Weight);
        let load = |role, bias| Projection::load(weights, at(role), bias);
        Ok(Self {
            shape: AttentionShape {
                heads: d.heads,
                kv_heads: d.kv_heads,
                head_dim: d.head_dim,
                scale: d.score_scale[b as usize],
                window: d.windows[b as usize],
            },
            bf16: weights.bf16(),
            angles: Angles::new(d.rope.clone().ok_or_else(|| Error::internal("a rotary block without a rotary embedding"))?),
            eps: d.norm_eps,
            activation: d.activation,
            attn_norm: norm(Role::AttnNorm)?,
            mlp_norm: norm(Role::MlpNorm)?,
            head_norms: if d.qk_norm { Some((norm(Role::AttnQNorm)?, norm(Role::AttnKNorm)?)) } else { None },
            q: load(Role::AttnQ, d.qkv_bias)?,
            k: load(Role::AttnK, d.qkv_bias)?,
            v: load(Role::AttnV, d.qkv_bias)?,
            o: load(Role::AttnO, d.o_bias)?,
            gate: load(Role::MlpGate, d.mlp_bias)?,
            up: load(Role::MlpUp, d.mlp_bias)?,
            down: load(Role::MlpDown, d.mlp_bias)?,
        })
    }
}

impl Block for DecoderBlock {
    fn run(&self, span: Span, mut flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        let at = Stops::new(span)?;
        if at.begins(P::BlockIn) {
            flow.x = pass(tap, P::BlockIn, flow.x)?;
            if at.ends(P::BlockIn) {
                return Ok(flow);
            }
            let normed = rms_norm(&flow.x, &self.attn_norm, self.eps)?;
            flow.residual = Some(std::mem::replace(&mut flow.x, normed));
        }
        if at.begins(P::AttnIn) {
            flow.x = pass(tap, P::AttnIn, flow.x)?;
            if at.ends(P::AttnIn) {
                return Ok(flow);
            }
            let [q, k, v] = linears(&flow.x, [self.q.layer(), self.k.layer(), self.v.layer()])?;
            let (mut q, mut k, v) = (pass(tap, P::Q, q)?, pass(tap, P::K, k)?, pass(tap, P::V, v)?);
            if let Some((q_norm, k_norm)) = &self.head_norms {
                q = rms_norm(&q, q_norm, self.eps)?;
                k = rms_norm(&k, k_norm, self.eps)?;
            }
            let (cos, sin) = self.angles.at(flow.position, &q)?;
            let q = pass(tap, P::QRope, rotate(&q, &cos, &sin, self.shape.head_dim)?)?;
            let k = pass(tap, P::KRope, rotate(&k, &cos, &sin, self.shape.head_dim)?)?;
            flow.x = attend((&self.shape, self.bf16), &q, k, v, &mut flow.cache, tap)?;
            flow.x = pass(tap, P::Ctx, flow.x)?;
            if at.ends(P::Ctx) {
                return Ok(flow);
            }
            flow.x = pass(tap, P::OOut, self.o.apply(&flow.x)?)?;
            if at.ends(P::OOut) {
                return Ok(flow);
            }
            let x = join(&mut flow)?;
            let normed = rms_norm(&x, &self.mlp_norm, self.eps)?;
            (flow.x, flow.residual) = (normed, Some(x));
        }
        flow.x = pass(tap, P::MlpIn, flow.x)?;
        if at.ends(P::MlpIn) {
            return Ok(flow);
        }
        let layers = [self.gate.layer(), self.up.layer()];
        flow.x = if [P::Gate, P::Up, P::Act].iter().any(|port| tap.wants((*port).into())) {
            let [gate, up] = linears(&flow.x, layers)?;
            let (gate, up) = (pass(tap, P::Gate, gate)?, pass(tap, P::Up, up)?);
            if tap.wants(P::Act.into()) {
                (pass(tap, P::Act, activate(self.activation, &gate)?)? * up)?
            } else {
                activate_gated(self.activation, &gate, &up)?
            }
        } else {
            gated_linears(self.activation, &flow.x, layers)?
        };
        flow.x = pass(tap, P::DownIn, flow.x)?;
        if at.ends(P::DownIn) {
            return Ok(flow);
        }
        flow.x = pass(tap, P::DownOut, self.down.apply(&flow.x)?)?;
        if at.ends(P::DownOut) {
            return Ok(flow);
        }
        flow.x = pass(tap, P::BlockOut, join(&mut flow)?)?;
        flow.residual = None;
        Ok(flow)
    }
}

/// Where a run starts and stops, checked.
pub(in crate::model) struct Stops {
    from: P,
    to: P,
}

impl Stops {
    pub(in crate::model) fn new(span: Span) -> Result<Self> {
        const STARTS: [P; 3] = [P::BlockIn, P::AttnIn, P::MlpIn];
        const ENDS: [P; 8] = [P::BlockIn, P::AttnIn, P::Ctx, P::OOut, P::MlpIn, P::DownIn, P::DownOut, P::BlockOut];
        let (from, to) = (span.from.name, span.to.name);
        if !STARTS.contains(&from) || !ENDS.contains(&to) || to < from {
            return Err(Error::internal(format!("a block cannot run from `{}` to `{}`", span.from, span.to)));
        }
        Ok(Self { from, to })
    }

    /// Whether the run has begun by `port`.
    pub(in crate::model) fn begins(&self, port: P) -> bool {
        self.from <= port
    }

    pub(in crate::model) fn ends(&self, port: P) -> bool {
        self.to == port
    }
}

/// `residual + x`.
pub(in crate::model) fn join(flow: &mut Flow) -> Result<Tensor> {
    let residual = flow.residual.take().ok_or_else(|| Error::internal("a flow inside a block lost its residual stream"))?;
    add(&residual, &flow.x)
}

/// Appends `k`, `v` to the cache where one is kept, and attends. The explicit path runs only where somebody taps scores or weights.
pub(in crate::model) fn attend(
    (shape, bf16): (&AttentionShape, Option<Bf16Unit>),
    q: &Tensor,
    k: Tensor,
    v: Tensor,
    cache: &mut Option<Option<KvCache>>,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let (k, v) = match cache {
        None => (k, v),
        Some(slot) => {
            let (keys, values) = match slot.take() {
                Some(old) => (Tensor::cat(&[old.keys, k], 0)?, Tensor::cat(&[old.values, v], 0)?),
                None => (k, v),
            };
            *slot = Some(KvCache { keys: keys.clone(), values: values.clone() });
            (keys, values)
        }
    };
    if !tap.wants(P::Scores.into()) && !tap.wants(P::Probs.into()) {
        return attention(q, &k, &v, shape, bf16);
    }
    let scores = pass(tap, P::Scores, attention_scores(q, &k, shape)?)?;
    let probs = pass(tap, P::Probs, attention_probs(&scores)?)?;
    attention_mix(&probs, &v, shape)
}

pub(in crate::model) struct DecoderEdges {
    weights: Arc<dyn WeightSource>,
    final_norm: Tensor,
    eps: f64,
    vocab: usize,
}

impl DecoderEdges {
    pub(in crate::model) fn load(d: &Dims, weights: Arc<dyn WeightSource>) -> Result<Self> {
        let final_norm = weights.get(SiteId::global(Role::FinalNorm), Part::Weight)?;
        Ok(Self { weights, final_norm, eps: d.norm_eps, vocab: d.vocab })
    }
}

impl Edges for DecoderEdges {
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow> {
        let x = gather_rows(&*self.weights, Role::Embed, ids, self.vocab)?;
        let x = pass(tap, P::EmbedOut, x)?;
        Ok(Flow { position, ..Flow::new(x) })
    }

    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor> {
        pass(tap, Port::of(P::FinalOut), rms_norm(&flow.x, &self.final_norm, self.eps)?)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Tensor> {
        self.weights.rows(SiteId::global(Role::Head), Part::Weight, range)
    }

    fn vocab(&self) -> usize {
        self.vocab
    }
}

/// Rows `ids` of a table over the vocabulary.
pub(in crate::model) fn gather_rows(weights: &dyn WeightSource, role: Role, ids: &[u32], rows: usize) -> Result<Tensor> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(Error::input("model::token-range", format!("token id {id} is outside the vocabulary of {rows}"))
            .hint("were the token ids made with this model's own tokenizer?"));
    }
    weights.gather(SiteId::global(role), Part::Weight, ids)
}
