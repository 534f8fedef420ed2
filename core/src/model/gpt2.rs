//! GPT-2: fused q/k/v, `Conv1D` weights stored transposed.

use std::sync::Arc;

use serde_json::Value;

use super::config::{Keys, divides};
use super::layernorm::{self, Family, LayerNormBlock, LayerNormEdges};
use super::weights::WeightSource;
use super::{Architecture, Block, Dims, Edges};
use crate::error::Result;
use crate::numeric::Activation;
use crate::topology::{Role, Topology};

const FAMILY: Family = Family {
    embed: "wte",
    positions: "wpe",
    blocks: "h",
    attn_norm: "ln_1",
    mlp_norm: "ln_2",
    linears: &[(Role::AttnQkv, "attn.c_attn"), (Role::AttnO, "attn.c_proj"), (Role::MlpUp, "mlp.c_fc"), (Role::MlpDown, "mlp.c_proj")],
    final_norm: "ln_f",
    transposed: true,
};

pub(super) struct Gpt2;

impl Architecture for Gpt2 {
    fn id(&self) -> &'static str {
        "gpt2"
    }

    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        let keys = Keys::new(config)?;
        let (hidden, heads, blocks) = (keys.size("n_embd")?, keys.size("n_head")?, keys.blocks("n_layer")?);
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
            position_offset: 0,
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
        layernorm::topology(&FAMILY, d)
    }

    fn body(&self) -> &'static str {
        "transformer"
    }

    fn block(&self, d: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Ok(Box::new(LayerNormBlock::load(&FAMILY, d, b, weights)?))
    }

    fn edges(&self, d: &Dims, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        Ok(Box::new(LayerNormEdges::load(d, weights)?))
    }
}
