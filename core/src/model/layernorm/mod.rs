//! The pre-norm decoder block with LayerNorm, learned positions and a plain feed-forward layer, shared by GPT-2 and OPT.
//!
//! ```text
//! x ← x + O·attention(Q·n₁ + b_q, K·n₁ + b_k, V·n₁ + b_v) + b_o     n₁ = norm₁(x)
//! x ← x + D·f(U·n₂ + b_u) + b_d                                    n₂ = norm₂(x)
//! ```
//!
//! Norms have biases; the biases of linears may be missing. Q, K and V may be one matrix.

mod topology;

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::decoder::{Projection, Stops, attend, gather_rows, join};
use super::tap::{Tap, pass};
use super::weights::WeightSource;
use super::{Block, Dims, Edges, Flow, Span};
use crate::error::{Error, Result};
use crate::numeric::{Activation, AttentionShape, Bf16Unit, activate, add, layer_norm, linears};
use crate::topology::{Part, PortName as P, Role, SiteId};

pub(super) use topology::topology;

/// What a member of the family calls its modules, and how it stores them.
pub(super) struct Family {
    /// Token embedding.
    pub(super) embed: &'static str,
    /// Position embedding.
    pub(super) positions: &'static str,
    /// The list of blocks.
    pub(super) blocks: &'static str,
    /// In a block: norm before attention.
    pub(super) attn_norm: &'static str,
    /// In a block: norm before the feed-forward layer.
    pub(super) mlp_norm: &'static str,
    /// In a block: the linears, in order of execution.
    pub(super) linears: &'static [(Role, &'static str)],
    /// Norm before the head.
    pub(super) final_norm: &'static str,
    /// Matrices in blocks are stored transposed.
    pub(super) transposed: bool,
}

impl Family {
    /// Whether q, k and v are one matrix.
    fn fused(&self) -> bool {
        self.linears.iter().any(|(role, _)| *role == Role::AttnQkv)
    }

    /// Who reads the attention norm.
    fn attn_roles(&self) -> &'static [Role] {
        if self.fused() { &[Role::AttnQkv] } else { &[Role::AttnQ, Role::AttnK, Role::AttnV] }
    }
}

/// Whether the layers of a role have biases. Norms always do.
fn has_bias(d: &Dims, role: Role) -> bool {
    match role {
        Role::AttnQ | Role::AttnK | Role::AttnV | Role::AttnQkv => d.qkv_bias,
        Role::AttnO => d.o_bias,
        Role::MlpUp | Role::MlpDown => d.mlp_bias,
        Role::AttnNorm | Role::MlpNorm | Role::FinalNorm => true,
        _ => false,
    }
}

/// Weight and bias of a norm.
struct Norm(Tensor, Tensor);

impl Norm {
    fn load(weights: &dyn WeightSource, site: SiteId) -> Result<Self> {
        Ok(Self(weights.get(site, Part::Weight)?, weights.get(site, Part::Bias)?))
    }

    fn apply(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        layer_norm(x, &self.0, &self.1, eps)
    }
}

enum Heads {
    /// One matrix; its rows are q, k and v in this order.
    Fused(Projection),
    Separate([Projection; 3]),
}

impl Heads {
    /// q, k and v.
    fn apply(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        match self {
            Self::Fused(qkv) => {
                let qkv = qkv.apply(x)?;
                let width = qkv.dim(1)? / 3;
                let part = |i: usize| -> Result<Tensor> { Ok(qkv.narrow(1, i * width, width)?.contiguous()?) };
                Ok([part(0)?, part(1)?, part(2)?])
            }
            Self::Separate(heads) => linears(x, heads.each_ref().map(Projection::layer)),
        }
    }
}

pub(super) struct LayerNormBlock {
    shape: AttentionShape,
    bf16: Option<Bf16Unit>,
    eps: f64,
    activation: Activation,
    attn_norm: Norm,
    mlp_norm: Norm,
    heads: Heads,
    o: Projection,
    up: Projection,
    down: Projection,
}

impl LayerNormBlock {
    pub(super) fn load(family: &Family, d: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Self> {
        let at = |role| SiteId::in_block(b, role);
        let load = |role| Projection::load(weights, at(role), has_bias(d, role));
        Ok(Self {
            shape: AttentionShape {
                heads: d.heads,
                kv_heads: d.kv_heads,
                head_dim: d.head_dim,
                scale: d.score_scale[b as usize],
                window: None,
            },
            bf16: weights.bf16(),
            eps: d.norm_eps,
            activation: d.activation,
            attn_norm: Norm::load(weights, at(Role::AttnNorm))?,
            mlp_norm: Norm::load(weights, at(Role::MlpNorm))?,
            heads: if family.fused() {
                Heads::Fused(load(Role::AttnQkv)?)
            } else {
                Heads::Separate([load(Role::AttnQ)?, load(Role::AttnK)?, load(Role::AttnV)?])
            },
            o: load(Role::AttnO)?,
            up: load(Role::MlpUp)?,
            down: load(Role::MlpDown)?,
        })
    }
}

impl Block for LayerNormBlock {
    fn run(&self, span: Span, mut flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        let at = Stops::new(span)?;
        if at.begins(P::BlockIn) {
            flow.x = pass(tap, P::BlockIn, flow.x)?;
            if at.ends(P::BlockIn) {
                return Ok(flow);
            }
            let normed = self.attn_norm.apply(&flow.x, self.eps)?;
            flow.residual = Some(std::mem::replace(&mut flow.x, normed));
        }
        if at.begins(P::AttnIn) {
            flow.x = pass(tap, P::AttnIn, flow.x)?;
            if at.ends(P::AttnIn) {
                return Ok(flow);
            }
            let [q, k, v] = self.heads.apply(&flow.x)?;
            // Without rotation the two places coincide.
            let q = pass(tap, P::Q, q)?;
            let q = pass(tap, P::QRope, q)?;
            let k = pass(tap, P::K, k)?;
            let k = pass(tap, P::KRope, k)?;
            let v = pass(tap, P::V, v)?;
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
            let normed = self.mlp_norm.apply(&x, self.eps)?;
            (flow.x, flow.residual) = (normed, Some(x));
        }
        flow.x = pass(tap, P::MlpIn, flow.x)?;
        if at.ends(P::MlpIn) {
            return Ok(flow);
        }
        let up = pass(tap, P::Up, self.up.apply(&flow.x)?)?;
        let act = pass(tap, P::Act, activate(self.activation, &up)?)?;
        flow.x = pass(tap, P::DownIn, act)?;
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

pub(super) struct LayerNormEdges {
    weights: Arc<dyn WeightSource>,
    final_norm: Norm,
    eps: f64,
    vocab: usize,
    positions: usize,
    /// Rows of the table of positions before that of position 0.
    offset: usize,
}

impl LayerNormEdges {
    pub(super) fn load(d: &Dims, weights: Arc<dyn WeightSource>) -> Result<Self> {
        let final_norm = Norm::load(&*weights, SiteId::global(Role::FinalNorm))?;
        Ok(Self { weights, final_norm, eps: d.norm_eps, vocab: d.vocab, positions: d.max_positions, offset: d.position_offset })
    }
}

impl Edges for LayerNormEdges {
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow> {
        let end = position + ids.len();
        if end > self.positions {
            let message = format!("a sequence of {end} tokens, but the model has {} learned positions", self.positions);
            return Err(Error::input("model::positions", message).hint(format!("use a window of at most {} tokens", self.positions)));
        }
        let x = gather_rows(&*self.weights, Role::Embed, ids, self.vocab)?;
        let rows = position + self.offset..end + self.offset;
        let positions = self.weights.rows(SiteId::global(Role::PositionEmbed), Part::Weight, rows)?;
        let x = pass(tap, P::EmbedOut, add(&x, &positions)?)?;
        Ok(Flow { position, ..Flow::new(x) })
    }

    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor> {
        pass(tap, P::FinalOut, self.final_norm.apply(&flow.x, self.eps)?)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Tensor> {
        self.weights.rows(SiteId::global(Role::Head), Part::Weight, range)
    }

    fn vocab(&self) -> usize {
        self.vocab
    }
}
