//! GPT-2: LayerNorm with bias, learned positions, fused q/k/v, `Conv1D` weights stored transposed.
//!
//! ```text
//! x ← x + O·attention(Q, K, V) + b_o     [Q K V] = W_qkv·n₁ + b,  n₁ = norm₁(x)
//! x ← x + D·f(U·n₂ + b_u) + b_d          n₂ = norm₂(x)
//! ```

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::Value;

use super::config::{Keys, divides};
use super::decoder::{Stops, attend, gather_rows, join};
use super::tap::{Tap, pass};
use super::weights::WeightSource;
use super::{Architecture, Block, Dims, Edges, Flow, Span};
use crate::error::{Error, Result};
use crate::numeric::{Activation, AttentionShape, Bf16Unit, Matrix, activate, add, layer_norm};
use crate::topology::{Allows, Axis, Linear, ParamDecl, Part, PortName as P, Region, Role, SiteId, Slot, Space, Tie, Topology};

pub(super) struct Gpt2;

impl Architecture for Gpt2 {
    fn id(&self) -> &'static str {
        "gpt2"
    }

    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        let keys = Keys::new(config)?;
        let (hidden, heads, blocks) = (keys.size("n_embd")?, keys.size("n_head")?, keys.size("n_layer")?);
        divides(("n_head", heads), ("n_embd", hidden))?;
        keys.refuse("add_cross_attention", |v| v == false, "cross attention is not a decoder-only model")?;
        let head_dim = hidden / heads;
        let scaled = keys.bool_or("scale_attn_weights", true)?;
        let by_layer = keys.bool_or("scale_attn_by_inverse_layer_idx", false)?;
        let scale = |b: usize| {
            let base = if scaled { (head_dim as f64).powf(-0.5) } else { 1.0 };
            if by_layer { base / (b + 1) as f64 } else { base }
        };
        Ok(Dims {
            blocks,
            hidden,
            ffn: keys.size_or("n_inner", 4 * hidden)?,
            heads,
            kv_heads: heads,
            head_dim,
            vocab: keys.size("vocab_size")?,
            max_positions: keys.size_or("n_positions", 1024)?,
            norm_eps: keys.f64_or("layer_norm_epsilon", 1e-5)?,
            activation: Activation::parse(keys.str_or_none("activation_function")?.unwrap_or("gelu_new"))?,
            rope: None,
            windows: vec![None; blocks],
            score_scale: (0..blocks).map(scale).collect(),
            tied_head: keys.bool_or("tie_word_embeddings", true)?,
            qkv_bias: true,
            o_bias: true,
            mlp_bias: true,
            qk_norm: false,
            prefix: if has_tensor("transformer.wte.weight") { "transformer." } else { "" }.to_owned(),
        })
    }

    fn topology(&self, d: &Dims) -> Topology {
        let mut t = Topology { blocks: d.blocks as u32, tied_head: d.tied_head, layer_norm: true, ..Topology::default() };
        let p = &d.prefix;
        let mut param = |site, part, tensor: String, shape: &[usize], transposed| {
            t.params.push(ParamDecl { site, part, tensor, shape: shape.to_vec(), transposed });
        };
        param(SiteId::global(Role::Embed), Part::Weight, format!("{p}wte.weight"), &[d.vocab, d.hidden], false);
        param(SiteId::global(Role::PositionEmbed), Part::Weight, format!("{p}wpe.weight"), &[d.max_positions, d.hidden], false);
        for b in 0..d.blocks as u32 {
            let at = |role| SiteId::in_block(b, role);
            for (role, norm) in [(Role::AttnNorm, "ln_1"), (Role::MlpNorm, "ln_2")] {
                param(at(role), Part::Weight, format!("{p}h.{b}.{norm}.weight"), &[d.hidden], false);
                param(at(role), Part::Bias, format!("{p}h.{b}.{norm}.bias"), &[d.hidden], false);
            }
            for (role, module, shape, input, output) in [
                (Role::AttnQkv, "attn.c_attn", (3 * d.hidden, d.hidden), P::AttnIn, P::Q),
                (Role::AttnO, "attn.c_proj", (d.hidden, d.hidden), P::Ctx, P::OOut),
                (Role::MlpUp, "mlp.c_fc", (d.ffn, d.hidden), P::MlpIn, P::Up),
                (Role::MlpDown, "mlp.c_proj", (d.hidden, d.ffn), P::DownIn, P::DownOut),
            ] {
                let module = format!("{p}h.{b}.{module}");
                param(at(role), Part::Weight, format!("{module}.weight"), &[shape.0, shape.1], true);
                param(at(role), Part::Bias, format!("{module}.bias"), &[shape.0], false);
                t.linears.push(Linear {
                    site: at(role),
                    shape,
                    input: input.into(),
                    output: output.into(),
                    bias: true,
                    module,
                    transposed: true,
                });
            }
        }
        let mut param = |site, part, tensor: String, shape: &[usize]| {
            t.params.push(ParamDecl { site, part, tensor, shape: shape.to_vec(), transposed: false });
        };
        param(SiteId::global(Role::FinalNorm), Part::Weight, format!("{p}ln_f.weight"), &[d.hidden]);
        param(SiteId::global(Role::FinalNorm), Part::Bias, format!("{p}ln_f.bias"), &[d.hidden]);
        let head = if d.tied_head { format!("{p}wte.weight") } else { "lm_head.weight".to_owned() };
        param(SiteId::global(Role::Head), Part::Weight, head, &[d.vocab, d.hidden]);
        t.linears.push(Linear {
            site: SiteId::global(Role::Head),
            shape: (d.vocab, d.hidden),
            input: P::FinalOut.into(),
            output: P::Logits.into(),
            bias: false,
            module: "lm_head".to_owned(),
            transposed: false,
        });
        t.regions = regions(d);
        t
    }

    fn block(&self, d: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        let at = |role| SiteId::in_block(b, role);
        let pair = |role| -> Result<(Tensor, Tensor)> { Ok((weights.get(at(role), Part::Weight)?, weights.get(at(role), Part::Bias)?)) };
        let layer = |role| -> Result<(Matrix, Tensor)> { Ok((weights.matrix(at(role))?, weights.get(at(role), Part::Bias)?)) };
        Ok(Box::new(Gpt2Block {
            shape: AttentionShape {
                heads: d.heads,
                kv_heads: d.heads,
                head_dim: d.head_dim,
                scale: d.score_scale[b as usize],
                window: None,
            },
            bf16: weights.bf16(),
            eps: d.norm_eps,
            activation: d.activation,
            attn_norm: pair(Role::AttnNorm)?,
            mlp_norm: pair(Role::MlpNorm)?,
            qkv: layer(Role::AttnQkv)?,
            o: layer(Role::AttnO)?,
            up: layer(Role::MlpUp)?,
            down: layer(Role::MlpDown)?,
        }))
    }

    fn edges(&self, d: &Dims, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        let site = SiteId::global(Role::FinalNorm);
        Ok(Box::new(Gpt2Edges {
            final_norm: (weights.get(site, Part::Weight)?, weights.get(site, Part::Bias)?),
            weights,
            eps: d.norm_eps,
            vocab: d.vocab,
            positions: d.max_positions,
        }))
    }
}

fn regions(d: &Dims) -> Vec<Region> {
    let slot = |site, part, axis, range: Option<Range<usize>>| Slot { site, part, axis, range };
    let columns = |site| slot(site, Part::Weight, Axis::Columns, None);
    let rows = |site, range: Option<Range<usize>>| [Part::Weight, Part::Bias].map(|part| slot(site, part, Axis::Rows, range.clone()));
    let mut residual = Region {
        id: "residual".to_owned(),
        space: Space::Residual,
        block: None,
        width: d.hidden,
        producers: vec![columns(SiteId::global(Role::Embed)), columns(SiteId::global(Role::PositionEmbed))],
        consumers: Vec::new(),
        companions: Vec::new(),
        allows: Allows { diagonal: Tie::Never, permutation: Tie::Never, orthogonal: Tie::KeepsMean },
    };
    // What a norm adds lies in the basis of the stream: it has to turn with it. Folding leaves zeros there, except before the head,
    // which has no bias to fold it into.
    let shift = |site| slot(site, Part::Bias, Axis::Rows, None);
    let mut out = Vec::new();
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        residual.producers.extend(rows(at(Role::AttnO), None));
        residual.producers.extend(rows(at(Role::MlpDown), None));
        residual.consumers.extend([columns(at(Role::AttnQkv)), columns(at(Role::MlpUp))]);
        residual.companions.extend([shift(at(Role::AttnNorm)), shift(at(Role::MlpNorm))]);
        for (name, space, norm, reader) in
            [("attn.in", Space::AttnIn, Role::AttnNorm, Role::AttnQkv), ("mlp.in", Space::MlpIn, Role::MlpNorm, Role::MlpUp)]
        {
            out.push(Region {
                id: format!("blocks.{b}.{name}"),
                space,
                block: Some(b),
                width: d.hidden,
                producers: rows(at(norm), None).to_vec(),
                consumers: vec![columns(at(reader))],
                companions: Vec::new(),
                allows: Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never },
            });
        }
        let h = d.hidden;
        let per_head = Tie::PerKvHead { width: d.head_dim, repeat: 1 };
        out.push(Region {
            id: format!("blocks.{b}.values"),
            space: Space::Values,
            block: Some(b),
            width: h,
            producers: rows(at(Role::AttnQkv), Some(2 * h..3 * h)).to_vec(),
            consumers: vec![columns(at(Role::AttnO))],
            companions: Vec::new(),
            allows: Allows { diagonal: per_head, permutation: per_head, orthogonal: per_head },
        });
        // Without rotation between them, q and k may be scaled against each other channel by channel.
        out.push(Region {
            id: format!("blocks.{b}.heads"),
            space: Space::Heads,
            block: Some(b),
            width: h,
            producers: rows(at(Role::AttnQkv), Some(h..2 * h)).to_vec(),
            consumers: rows(at(Role::AttnQkv), Some(0..h)).to_vec(),
            companions: Vec::new(),
            allows: Allows { diagonal: per_head, permutation: per_head, orthogonal: per_head },
        });
        // A non-linearity that is not homogeneous stands between up and down: no scaling, unless it is a ReLU.
        let diagonal = if d.activation == Activation::Relu { Tie::Free } else { Tie::Never };
        out.push(Region {
            id: format!("blocks.{b}.mlp.hidden"),
            space: Space::MlpHidden,
            block: Some(b),
            width: d.ffn,
            producers: rows(at(Role::MlpUp), None).to_vec(),
            consumers: vec![columns(at(Role::MlpDown))],
            companions: Vec::new(),
            allows: Allows { diagonal, permutation: Tie::Free, orthogonal: Tie::Never },
        });
    }
    let (final_norm, head) = (SiteId::global(Role::FinalNorm), columns(SiteId::global(Role::Head)));
    residual.consumers.push(head.clone());
    residual.companions.push(shift(final_norm));
    out.insert(0, residual);
    out.push(Region {
        id: "head.in".to_owned(),
        space: Space::HeadIn,
        block: None,
        width: d.hidden,
        producers: rows(final_norm, None).to_vec(),
        consumers: vec![head],
        companions: Vec::new(),
        // A tied head cannot absorb a scaling: the embedding would be scaled with it.
        allows: Allows { diagonal: if d.tied_head { Tie::Never } else { Tie::Free }, permutation: Tie::Never, orthogonal: Tie::Never },
    });
    out
}

struct Gpt2Block {
    shape: AttentionShape,
    bf16: Option<Bf16Unit>,
    eps: f64,
    activation: Activation,
    attn_norm: (Tensor, Tensor),
    mlp_norm: (Tensor, Tensor),
    qkv: (Matrix, Tensor),
    o: (Matrix, Tensor),
    up: (Matrix, Tensor),
    down: (Matrix, Tensor),
}

fn project((weight, bias): &(Matrix, Tensor), x: &Tensor) -> Result<Tensor> {
    weight.apply(x, Some(bias))
}

impl Block for Gpt2Block {
    fn run(&self, span: Span, mut flow: Flow, tap: &mut dyn Tap) -> Result<Flow> {
        let at = Stops::new(span)?;
        let norm = |x: &Tensor, (w, b): &(Tensor, Tensor)| layer_norm(x, w, b, self.eps);
        if at.begins(P::BlockIn) {
            flow.x = pass(tap, P::BlockIn, flow.x)?;
            if at.ends(P::BlockIn) {
                return Ok(flow);
            }
            let normed = norm(&flow.x, &self.attn_norm)?;
            flow.residual = Some(std::mem::replace(&mut flow.x, normed));
        }
        if at.begins(P::AttnIn) {
            flow.x = pass(tap, P::AttnIn, flow.x)?;
            if at.ends(P::AttnIn) {
                return Ok(flow);
            }
            let qkv = project(&self.qkv, &flow.x)?;
            let width = self.shape.heads * self.shape.head_dim;
            let part = |i: usize| -> Result<Tensor> { Ok(qkv.narrow(1, i * width, width)?.contiguous()?) };
            // Without rotation the two places coincide.
            let q = pass(tap, P::Q, part(0)?)?;
            let q = pass(tap, P::QRope, q)?;
            let k = pass(tap, P::K, part(1)?)?;
            let k = pass(tap, P::KRope, k)?;
            let v = pass(tap, P::V, part(2)?)?;
            flow.x = attend((&self.shape, self.bf16), &q, k, v, &mut flow.cache, tap)?;
            flow.x = pass(tap, P::Ctx, flow.x)?;
            if at.ends(P::Ctx) {
                return Ok(flow);
            }
            flow.x = pass(tap, P::OOut, project(&self.o, &flow.x)?)?;
            if at.ends(P::OOut) {
                return Ok(flow);
            }
            let x = join(&mut flow)?;
            let normed = norm(&x, &self.mlp_norm)?;
            (flow.x, flow.residual) = (normed, Some(x));
        }
        flow.x = pass(tap, P::MlpIn, flow.x)?;
        if at.ends(P::MlpIn) {
            return Ok(flow);
        }
        let up = pass(tap, P::Up, project(&self.up, &flow.x)?)?;
        let act = pass(tap, P::Act, activate(self.activation, &up)?)?;
        flow.x = pass(tap, P::DownIn, act)?;
        if at.ends(P::DownIn) {
            return Ok(flow);
        }
        flow.x = pass(tap, P::DownOut, project(&self.down, &flow.x)?)?;
        if at.ends(P::DownOut) {
            return Ok(flow);
        }
        flow.x = pass(tap, P::BlockOut, join(&mut flow)?)?;
        flow.residual = None;
        Ok(flow)
    }
}

struct Gpt2Edges {
    weights: Arc<dyn WeightSource>,
    final_norm: (Tensor, Tensor),
    eps: f64,
    vocab: usize,
    positions: usize,
}

impl Edges for Gpt2Edges {
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow> {
        let end = position + ids.len();
        if end > self.positions {
            let message = format!("a sequence of {end} tokens, but the model has {} learned positions", self.positions);
            return Err(Error::input("model::positions", message).hint(format!("use a window of at most {} tokens", self.positions)));
        }
        let x = gather_rows(&*self.weights, Role::Embed, ids, self.vocab)?;
        let positions = self.weights.rows(SiteId::global(Role::PositionEmbed), Part::Weight, position..end)?;
        let x = pass(tap, P::EmbedOut, add(&x, &positions)?)?;
        Ok(Flow { position, ..Flow::new(x) })
    }

    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor> {
        pass(tap, P::FinalOut, layer_norm(&flow.x, &self.final_norm.0, &self.final_norm.1, self.eps)?)
    }

    fn head_rows(&self, range: Range<usize>) -> Result<Tensor> {
        self.weights.rows(SiteId::global(Role::Head), Part::Weight, range)
    }

    fn vocab(&self) -> usize {
        self.vocab
    }
}
