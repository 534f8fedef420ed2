//! The keys of `config.json` that the family shares, and where its members differ.

use super::super::config::{Keys, divides};
use super::super::{Dims, Rope};
use crate::error::{Error, Result};
use crate::numeric::Activation;

/// What transformers assumes where a configuration says nothing; it differs between members of the family.
pub(in crate::model) struct Defaults {
    /// Key and value heads; `None`: as many as query heads, which is also what an explicit `null` means.
    pub(in crate::model) kv_heads: Option<usize>,
    /// Channels per head; `None`: hidden size over heads.
    pub(in crate::model) head_dim: Option<usize>,
    /// Longest sequence.
    pub(in crate::model) max_positions: usize,
}

/// Reads the keys all members of the family share. The caller sets what differs.
pub(in crate::model) fn parse(keys: &Keys<'_>, defaults: &Defaults, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
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
    let blocks = keys.blocks("num_hidden_layers")?;
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
        position_offset: 0,
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
pub(in crate::model) fn sliding_window(keys: &Keys<'_>) -> Result<Option<usize>> {
    const DEFAULT: usize = 4096;
    match keys.value("sliding_window") {
        Some(_) => keys.size("sliding_window").map(Some),
        None => Ok((!keys.mentions("sliding_window")).then_some(DEFAULT)),
    }
}

/// The sliding window of each block of a Qwen model, from `layer_types` or from `use_sliding_window` and `max_window_layers`.
pub(in crate::model) fn qwen_windows(keys: &Keys<'_>, blocks: usize) -> Result<Vec<Option<usize>>> {
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
