//! LLaMA 1 to 3.

use std::sync::Arc;

use serde_json::Value;

use super::config::Keys;
use super::decoder::{self, DecoderBlock, DecoderEdges, Defaults};
use super::weights::WeightSource;
use super::{Architecture, Block, Dims, Edges};
use crate::error::Result;
use crate::topology::{Role, Topology};

const DEFAULTS: Defaults = Defaults { kv_heads: None, head_dim: None, max_positions: 2048 };

pub(super) struct Llama;

impl Architecture for Llama {
    fn id(&self) -> &'static str {
        "llama"
    }

    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        let keys = Keys::new(config)?;
        let mut d = decoder::parse(&keys, &DEFAULTS, has_tensor)?;
        let attention = keys.bool_or("attention_bias", false)?;
        (d.qkv_bias, d.o_bias) = (attention, attention);
        d.mlp_bias = keys.bool_or("mlp_bias", false)?;
        Ok(d)
    }

    fn topology(&self, dims: &Dims) -> Topology {
        decoder::topology(dims)
    }

    fn bias_key(&self, role: Role) -> Option<&'static str> {
        match role {
            Role::AttnQ | Role::AttnK | Role::AttnV | Role::AttnO => Some("attention_bias"),
            Role::MlpGate | Role::MlpUp | Role::MlpDown => Some("mlp_bias"),
            _ => None,
        }
    }

    fn block(&self, dims: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Ok(Box::new(DecoderBlock::load(dims, b, weights)?))
    }

    fn edges(&self, dims: &Dims, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        Ok(Box::new(DecoderEdges::load(dims, weights)?))
    }
}
