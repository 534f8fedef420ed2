//! The pre-norm decoder block with rotary positions and a gated feed-forward layer, shared by LLaMA and its relatives.
//!
//! ```text
//! x ← x + O·attention(rope(Q·n₁), rope(K·n₁), V·n₁)      n₁ = norm₁(x)
//! x ← x + D·(f(G·n₂) ⊙ U·n₂)                              n₂ = norm₂(x)
//! ```

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::config::{Keys, divides};
use super::tap::{Tap, pass};
use super::weights::WeightSource;
use super::{Block, Dims, Edges, Flow, KvCache, Rope, Span};
use crate::error::{Error, Result};
use crate::numeric::{
    Activation, AttentionShape, activate, activate_gated, add, attention, attention_mix, attention_probs, attention_scores, linear,
    rms_norm, rotate,
};
use crate::topology::{Allows, Axis, Linear, ParamDecl, Part, Port, PortName as P, Region, Role, SiteId, Slot, Space, Tie, Topology};

/// What transformers assumes where a configuration says nothing; it differs between members of the family.
pub(super) struct Defaults {
    /// Key and value heads; `None`: as many as query heads, which is also what an explicit `null` means.
    pub(super) kv_heads: Option<usize>,
    /// Channels per head; `None`: hidden size over heads.
    pub(super) head_dim: Option<usize>,
    /// Longest sequence.
    pub(super) max_positions: usize,
}

/// Reads the keys all members of the family share. The caller sets what differs.
pub(super) fn parse(keys: &Keys<'_>, defaults: &Defaults, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
    let hidden = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let unsaid = defaults.kv_heads.filter(|_| !keys.mentions("num_key_value_heads")).unwrap_or(heads);
    let kv_heads = keys.size_or("num_key_value_heads", unsaid)?;
    let head_dim = match (keys.value("head_dim"), defaults.head_dim) {
        (Some(_), _) => keys.size("head_dim")?,
        (None, Some(default)) => default,
        (None, None) => {
            divides(("num_attention_heads", heads), ("hidden_size", hidden))?;
            hidden / heads
        }
    };
    divides(("num_key_value_heads", kv_heads), ("num_attention_heads", heads))?;
    let blocks = keys.size("num_hidden_layers")?;
    let max_positions = keys.size_or("max_position_embeddings", defaults.max_positions)?;
    let prefix = if has_tensor("model.embed_tokens.weight") || !has_tensor("embed_tokens.weight") { "model." } else { "" };
    Ok(Dims {
        blocks,
        hidden,
        ffn: keys.size("intermediate_size")?,
        heads,
        kv_heads,
        head_dim,
        vocab: keys.size("vocab_size")?,
        max_positions,
        norm_eps: keys.f64_or("rms_norm_eps", 1e-6)?,
        activation: Activation::parse(keys.str_or_none("hidden_act")?.unwrap_or("silu"))?,
        rope: Some(Rope::parse(keys, head_dim, max_positions)?),
        windows: vec![None; blocks],
        score_scale: vec![(head_dim as f64).powf(-0.5); blocks],
        tied_head: keys.bool_or("tie_word_embeddings", false)?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        prefix: prefix.to_owned(),
    })
}

/// `sliding_window`: 4096 where the key is absent, none where it is `null`.
pub(super) fn sliding_window(keys: &Keys<'_>) -> Result<Option<usize>> {
    const DEFAULT: usize = 4096;
    match keys.value("sliding_window") {
        Some(_) => keys.size("sliding_window").map(Some),
        None => Ok((!keys.mentions("sliding_window")).then_some(DEFAULT)),
    }
}

/// The sliding window of each block of a Qwen model, from `layer_types` or from `use_sliding_window` and `max_window_layers`.
pub(super) fn qwen_windows(keys: &Keys<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
    let window = if keys.bool_or("use_sliding_window", false)? { sliding_window(keys)? } else { None };
    if let Some(types) = keys.array("layer_types")? {
        return layer_types(types, window, blocks);
    }
    let first = keys.usize_or_none("max_window_layers")?.unwrap_or(28);
    Ok((0..blocks).map(|b| window.filter(|_| b >= first)).collect())
}

fn layer_types(types: &[serde_json::Value], window: Option<usize>, blocks: usize) -> Result<Vec<Option<usize>>> {
    if types.len() != blocks {
        let message = format!("`layer_types` in config.json names {} layers, `num_hidden_layers` is {blocks}", types.len());
        return Err(Error::input("model::config", message));
    }
    types
        .iter()
        .map(|t| match t.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") if window.is_some() => Ok(window),
            Some("sliding_attention") => {
                Err(Error::input("model::unsupported", "`layer_types` in config.json has sliding layers, but there is no sliding window")
                    .hint("set `use_sliding_window` to true and `sliding_window` to its width, or make the layers `full_attention`"))
            }
            _ => Err(Error::input("model::unsupported", format!("unknown entry {t} of `layer_types` in config.json"))
                .hint("known layer types: full_attention, sliding_attention")),
        })
        .collect()
}

/// The topology of the family.
pub(super) fn topology(d: &Dims) -> Topology {
    let mut t = Topology { blocks: d.blocks as u32, tied_head: d.tied_head, ..Topology::default() };
    let param = |t: &mut Topology, site, part, tensor: String, shape: &[usize]| {
        t.params.push(ParamDecl { site, part, tensor, shape: shape.to_vec(), transposed: false });
    };
    let (q_width, kv_width) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let p = &d.prefix;
    param(&mut t, SiteId::global(Role::Embed), Part::Weight, format!("{p}embed_tokens.weight"), &[d.vocab, d.hidden]);
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        let name = |s: &str| format!("{p}layers.{b}.{s}");
        param(&mut t, at(Role::AttnNorm), Part::Weight, name("input_layernorm.weight"), &[d.hidden]);
        param(&mut t, at(Role::MlpNorm), Part::Weight, name("post_attention_layernorm.weight"), &[d.hidden]);
        if d.qk_norm {
            param(&mut t, at(Role::AttnQNorm), Part::Weight, name("self_attn.q_norm.weight"), &[d.head_dim]);
            param(&mut t, at(Role::AttnKNorm), Part::Weight, name("self_attn.k_norm.weight"), &[d.head_dim]);
        }
        for (role, module, shape, input, output, bias) in [
            (Role::AttnQ, "self_attn.q_proj", (q_width, d.hidden), P::AttnIn, P::Q, d.qkv_bias),
            (Role::AttnK, "self_attn.k_proj", (kv_width, d.hidden), P::AttnIn, P::K, d.qkv_bias),
            (Role::AttnV, "self_attn.v_proj", (kv_width, d.hidden), P::AttnIn, P::V, d.qkv_bias),
            (Role::AttnO, "self_attn.o_proj", (d.hidden, q_width), P::Ctx, P::OOut, d.o_bias),
            (Role::MlpGate, "mlp.gate_proj", (d.ffn, d.hidden), P::MlpIn, P::Gate, d.mlp_bias),
            (Role::MlpUp, "mlp.up_proj", (d.ffn, d.hidden), P::MlpIn, P::Up, d.mlp_bias),
            (Role::MlpDown, "mlp.down_proj", (d.hidden, d.ffn), P::DownIn, P::DownOut, d.mlp_bias),
        ] {
            param(&mut t, at(role), Part::Weight, name(&format!("{module}.weight")), &[shape.0, shape.1]);
            if bias {
                param(&mut t, at(role), Part::Bias, name(&format!("{module}.bias")), &[shape.0]);
            }
            t.linears.push(Linear {
                site: at(role),
                shape,
                input: input.into(),
                output: output.into(),
                bias,
                module: name(module),
                transposed: false,
            });
        }
    }
    param(&mut t, SiteId::global(Role::FinalNorm), Part::Weight, format!("{p}norm.weight"), &[d.hidden]);
    let head = if d.tied_head { format!("{p}embed_tokens.weight") } else { "lm_head.weight".to_owned() };
    param(&mut t, SiteId::global(Role::Head), Part::Weight, head, &[d.vocab, d.hidden]);
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

fn regions(d: &Dims) -> Vec<Region> {
    let slot = |site, part, axis| Slot { site, part, axis, range: None };
    let columns = |site| slot(site, Part::Weight, Axis::Columns);
    let rows = |site, bias: bool| {
        let mut slots = vec![slot(site, Part::Weight, Axis::Rows)];
        if bias {
            slots.push(slot(site, Part::Bias, Axis::Rows));
        }
        slots
    };
    let mut residual = Region {
        id: "residual".to_owned(),
        space: Space::Residual,
        block: None,
        width: d.hidden,
        producers: vec![columns(SiteId::global(Role::Embed))],
        consumers: Vec::new(),
        companions: Vec::new(),
        allows: Allows { diagonal: Tie::Never, permutation: Tie::Never, orthogonal: Tie::Free },
    };
    let mut out = Vec::new();
    let repeat = d.heads / d.kv_heads;
    for b in 0..d.blocks as u32 {
        let at = |role| SiteId::in_block(b, role);
        residual.producers.extend(rows(at(Role::AttnO), d.o_bias));
        residual.producers.extend(rows(at(Role::MlpDown), d.mlp_bias));
        let attn_readers = [Role::AttnQ, Role::AttnK, Role::AttnV].map(|r| columns(at(r)));
        let mlp_readers = [Role::MlpGate, Role::MlpUp].map(|r| columns(at(r)));
        residual.consumers.extend(attn_readers.iter().chain(&mlp_readers).cloned());
        let behind_norm = Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never };
        for (name, space, norm, readers) in [
            ("attn.in", Space::AttnIn, Role::AttnNorm, attn_readers.to_vec()),
            ("mlp.in", Space::MlpIn, Role::MlpNorm, mlp_readers.to_vec()),
        ] {
            out.push(Region {
                id: format!("blocks.{b}.{name}"),
                space,
                block: Some(b),
                width: d.hidden,
                producers: vec![slot(at(norm), Part::Weight, Axis::Rows)],
                consumers: readers,
                companions: Vec::new(),
                allows: behind_norm,
            });
        }
        let per_head = Tie::PerKvHead { width: d.head_dim, repeat };
        out.push(Region {
            id: format!("blocks.{b}.values"),
            space: Space::Values,
            block: Some(b),
            width: d.kv_heads * d.head_dim,
            producers: rows(at(Role::AttnV), d.qkv_bias),
            consumers: vec![columns(at(Role::AttnO))],
            companions: Vec::new(),
            allows: Allows { diagonal: per_head, permutation: per_head, orthogonal: per_head },
        });
        out.push(heads(d, b, rows(at(Role::AttnK), d.qkv_bias), rows(at(Role::AttnQ), d.qkv_bias)));
        out.push(Region {
            id: format!("blocks.{b}.mlp.hidden"),
            space: Space::MlpHidden,
            block: Some(b),
            width: d.ffn,
            producers: rows(at(Role::MlpUp), d.mlp_bias),
            consumers: vec![columns(at(Role::MlpDown))],
            companions: rows(at(Role::MlpGate), d.mlp_bias),
            allows: Allows { diagonal: Tie::Free, permutation: Tie::Free, orthogonal: Tie::Never },
        });
    }
    let head = columns(SiteId::global(Role::Head));
    residual.consumers.push(head.clone());
    out.insert(0, residual);
    out.push(Region {
        id: "head.in".to_owned(),
        space: Space::HeadIn,
        block: None,
        width: d.hidden,
        producers: vec![slot(SiteId::global(Role::FinalNorm), Part::Weight, Axis::Rows)],
        consumers: vec![head],
        companions: Vec::new(),
        // A tied head cannot absorb a scaling: the embedding would be scaled with it.
        allows: Allows { diagonal: if d.tied_head { Tie::Never } else { Tie::Free }, permutation: Tie::Never, orthogonal: Tie::Never },
    });
    out
}

/// Queries and keys of block `b`. Where norms stand on the heads of q and k, a scaling of the projections' rows would be undone by
/// them; the last to write are then the norms' own weights, which all heads share: one head of channels.
fn heads(d: &Dims, b: u32, keys: Vec<Slot>, queries: Vec<Slot>) -> Region {
    let norm = |role| vec![Slot { site: SiteId::in_block(b, role), part: Part::Weight, axis: Axis::Rows, range: None }];
    let (kv_heads, repeat, producers, consumers) =
        if d.qk_norm { (1, 1, norm(Role::AttnKNorm), norm(Role::AttnQNorm)) } else { (d.kv_heads, d.heads / d.kv_heads, keys, queries) };
    let rotated = d.rope.as_ref().map_or(0, |rope| rope.dim);
    let diagonal = Tie::PerRopePair { width: d.head_dim, repeat, rotated };
    Region {
        id: format!("blocks.{b}.heads"),
        space: Space::Heads,
        block: Some(b),
        width: kv_heads * d.head_dim,
        producers,
        consumers,
        companions: Vec::new(),
        allows: Allows { diagonal, permutation: Tie::Never, orthogonal: Tie::Never },
    }
}

struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Projection {
    fn load(weights: &dyn WeightSource, site: SiteId, bias: bool) -> Result<Self> {
        let bias = if bias { Some(weights.get(site, Part::Bias)?) } else { None };
        Ok(Self { weight: weights.get(site, Part::Weight)?, bias })
    }

    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

pub(super) struct DecoderBlock {
    shape: AttentionShape,
    rope: Rope,
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
    pub(super) fn load(d: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Self> {
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
            rope: d.rope.clone().ok_or_else(|| Error::internal("a rotary block without a rotary embedding"))?,
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

    /// RMSNorm of each head.
    fn norm_heads(&self, x: Tensor, weight: &Tensor) -> Result<Tensor> {
        let (t, width) = x.dims2()?;
        let d = self.shape.head_dim;
        Ok(rms_norm(&x.reshape((t * width / d, d))?, weight, self.eps)?.reshape((t, width))?)
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
            let mut q = pass(tap, P::Q, self.q.apply(&flow.x)?)?;
            let mut k = pass(tap, P::K, self.k.apply(&flow.x)?)?;
            let v = pass(tap, P::V, self.v.apply(&flow.x)?)?;
            if let Some((q_norm, k_norm)) = &self.head_norms {
                q = self.norm_heads(q, q_norm)?;
                k = self.norm_heads(k, k_norm)?;
            }
            let (cos, sin) = self.rope.angles(flow.position, q.dim(0)?, q.dtype(), q.device())?;
            let q = pass(tap, P::QRope, rotate(&q, &cos, &sin, self.shape.head_dim)?)?;
            let k = pass(tap, P::KRope, rotate(&k, &cos, &sin, self.shape.head_dim)?)?;
            flow.x = attend(&self.shape, &q, k, v, &mut flow.cache, tap)?;
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
        let gate = pass(tap, P::Gate, self.gate.apply(&flow.x)?)?;
        let up = pass(tap, P::Up, self.up.apply(&flow.x)?)?;
        flow.x = if tap.wants(P::Act.into()) {
            (pass(tap, P::Act, activate(self.activation, &gate)?)? * up)?
        } else {
            activate_gated(self.activation, &gate, &up)?
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
pub(super) struct Stops {
    from: P,
    to: P,
}

impl Stops {
    pub(super) fn new(span: Span) -> Result<Self> {
        const STARTS: [P; 3] = [P::BlockIn, P::AttnIn, P::MlpIn];
        const ENDS: [P; 8] = [P::BlockIn, P::AttnIn, P::Ctx, P::OOut, P::MlpIn, P::DownIn, P::DownOut, P::BlockOut];
        let (from, to) = (span.from.name, span.to.name);
        if !STARTS.contains(&from) || !ENDS.contains(&to) || to < from {
            return Err(Error::internal(format!("a block cannot run from `{}` to `{}`", span.from, span.to)));
        }
        Ok(Self { from, to })
    }

    /// Whether the run has begun by `port`.
    pub(super) fn begins(&self, port: P) -> bool {
        self.from <= port
    }

    pub(super) fn ends(&self, port: P) -> bool {
        self.to == port
    }
}

/// `residual + x`.
pub(super) fn join(flow: &mut Flow) -> Result<Tensor> {
    let residual = flow.residual.take().ok_or_else(|| Error::internal("a flow inside a block lost its residual stream"))?;
    add(&residual, &flow.x)
}

/// Appends `k`, `v` to the cache where one is kept, and attends. The explicit path runs only where somebody taps scores or weights.
pub(super) fn attend(
    shape: &AttentionShape,
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
        return attention(q, &k, &v, shape);
    }
    let scores = pass(tap, P::Scores, attention_scores(q, &k, shape)?)?;
    let probs = pass(tap, P::Probs, attention_probs(&scores)?)?;
    attention_mix(&probs, &v, shape)
}

pub(super) struct DecoderEdges {
    weights: Arc<dyn WeightSource>,
    final_norm: Tensor,
    eps: f64,
    vocab: usize,
}

impl DecoderEdges {
    pub(super) fn load(d: &Dims, weights: Arc<dyn WeightSource>) -> Result<Self> {
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
pub(super) fn gather_rows(weights: &dyn WeightSource, role: Role, ids: &[u32], rows: usize) -> Result<Tensor> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(Error::input("model::token-range", format!("token id {id} is outside the vocabulary of {rows}"))
            .hint("were the token ids made with this model's own tokenizer?"));
    }
    weights.gather(SiteId::global(role), Part::Weight, ids)
}
