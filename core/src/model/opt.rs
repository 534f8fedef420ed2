//! OPT: q, k and v apart, positions behind two unused rows of their table, ReLU.

use std::sync::Arc;

use serde_json::Value;

use super::config::{Keys, divides};
use super::layernorm::{self, Family, LayerNormBlock, LayerNormEdges};
use super::weights::WeightSource;
use super::{Architecture, Block, Dims, Edges};
use crate::error::{Error, Result};
use crate::numeric::Activation;
use crate::topology::{Role, Topology};

const FAMILY: Family = Family {
    embed: "embed_tokens",
    positions: "embed_positions",
    blocks: "layers",
    attn_norm: "self_attn_layer_norm",
    // In a block this is the second norm; the model's last has the same name outside the blocks.
    mlp_norm: "final_layer_norm",
    linears: &[
        (Role::AttnQ, "self_attn.q_proj"),
        (Role::AttnK, "self_attn.k_proj"),
        (Role::AttnV, "self_attn.v_proj"),
        (Role::AttnO, "self_attn.out_proj"),
        (Role::MlpUp, "fc1"),
        (Role::MlpDown, "fc2"),
    ],
    final_norm: "final_layer_norm",
    transposed: false,
};

/// Rows of the table of positions that no position has.
const OFFSET: usize = 2;

/// ε of every norm: the configuration has no key for it.
const EPS: f64 = 1e-5;

pub(super) struct Opt;

impl Architecture for Opt {
    fn id(&self) -> &'static str {
        "opt"
    }

    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        let keys = Keys::new(config)?;
        let (hidden, heads, blocks) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?, keys.blocks("num_hidden_layers")?);
        divides(("num_attention_heads", heads), ("hidden_size", hidden))?;
        refuse_variants(&keys, hidden)?;
        let head_dim = hidden / heads;
        let bias = keys.bool_or("enable_bias", true)?;
        let bare = has_tensor("decoder.embed_tokens.weight") && !has_tensor("model.decoder.embed_tokens.weight");
        Ok(Dims {
            blocks,
            hidden,
            ffn: keys.size("ffn_dim")?,
            heads,
            kv_heads: heads,
            head_dim,
            vocab: keys.size("vocab_size")?,
            max_positions: keys.size_or("max_position_embeddings", 2048)?,
            position_offset: OFFSET,
            norm_eps: EPS,
            activation: Activation::parse(keys.str_or_none("activation_function")?.unwrap_or("relu"))?,
            rope: None,
            windows: vec![None; blocks],
            score_scale: vec![(head_dim as f64).powf(-0.5); blocks],
            tied_head: keys.bool_or("tie_word_embeddings", true)?,
            qkv_bias: bias,
            o_bias: bias,
            mlp_bias: bias,
            qk_norm: false,
            prefix: if bare { "decoder." } else { "model.decoder." }.to_owned(),
        })
    }

    fn topology(&self, d: &Dims) -> Topology {
        layernorm::topology(&FAMILY, d)
    }

    fn bias_key(&self, role: Role) -> Option<&'static str> {
        FAMILY.linears.iter().any(|(linear, _)| *linear == role).then_some("enable_bias")
    }

    fn block(&self, d: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Ok(Box::new(LayerNormBlock::load(&FAMILY, d, b, weights)?))
    }

    fn edges(&self, d: &Dims, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        Ok(Box::new(LayerNormEdges::load(d, weights)?))
    }
}

/// Members of the family whose blocks or edges are others.
fn refuse_variants(keys: &Keys<'_>, hidden: usize) -> Result<()> {
    let (yes, no) = (|v: &Value| v == true, |v: &Value| v == false);
    keys.refuse("do_layer_norm_before", yes, "norms behind attention and the feed-forward layer, as in OPT-350m, are not supported")?;
    let width = keys.size_or("word_embed_proj_dim", hidden)?;
    if width != hidden {
        let message = format!(
            "`word_embed_proj_dim` ({width}) in config.json is not `hidden_size` ({hidden}): embeddings with projections around the \
             blocks, as in OPT-350m, are not supported"
        );
        return Err(Error::input("model::unsupported", message));
    }
    keys.refuse("layer_norm_elementwise_affine", yes, "norms without weights and biases are not supported")?;
    keys.refuse("_remove_final_layer_norm", no, "a head without a norm before it is not supported")
}
