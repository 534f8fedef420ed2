//! Qwen3.

use std::sync::Arc;

use serde_json::Value;

use super::config::Keys;
use super::decoder::{self, DecoderBlock, DecoderEdges, Defaults};
use super::weights::WeightSource;
use super::{Architecture, Block, Dims, Edges};
use crate::error::Result;
use crate::topology::{Role, Topology};

const DEFAULTS: Defaults = Defaults { kv_heads: Some(32), head_dim: Some(128), max_positions: 32_768 };

pub(super) struct Qwen3;

impl Architecture for Qwen3 {
    fn id(&self) -> &'static str {
        "qwen3"
    }

    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        let keys = Keys::new(config)?;
        let mut d = decoder::parse(&keys, &DEFAULTS, has_tensor)?;
        let attention = keys.bool_or("attention_bias", false)?;
        (d.qkv_bias, d.o_bias) = (attention, attention);
        d.qk_norm = true;
        d.windows = decoder::qwen_windows(&keys, d.blocks)?;
        Ok(d)
    }

    fn topology(&self, dims: &Dims) -> Topology {
        decoder::topology(dims)
    }

    fn bias_key(&self, role: Role) -> Option<&'static str> {
        matches!(role, Role::AttnQ | Role::AttnK | Role::AttnV | Role::AttnO).then_some("attention_bias")
    }

    fn block(&self, dims: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Ok(Box::new(DecoderBlock::load(dims, b, weights)?))
    }

    fn edges(&self, dims: &Dims, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        Ok(Box::new(DecoderEdges::load(dims, weights)?))
    }
}
