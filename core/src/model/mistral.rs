//! Mistral.

use std::sync::Arc;

use serde_json::Value;

use super::config::Keys;
use super::decoder::{self, DecoderBlock, DecoderEdges, Defaults};
use super::weights::WeightSource;
use super::{Architecture, Block, Dims, Edges};
use crate::error::Result;
use crate::topology::Topology;

const DEFAULTS: Defaults = Defaults { kv_heads: Some(8), head_dim: None, max_positions: 131_072 };

pub(super) struct Mistral;

impl Architecture for Mistral {
    fn id(&self) -> &'static str {
        "mistral"
    }

    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        let keys = Keys::new(config)?;
        let mut d = decoder::parse(&keys, &DEFAULTS, has_tensor)?;
        keys.refuse(
            "layer_types",
            |_| false,
            "in a Mistral model every block slides, or none; models that mix them have another model_type",
        )?;
        d.windows = vec![decoder::sliding_window(&keys)?; d.blocks];
        Ok(d)
    }

    fn topology(&self, dims: &Dims) -> Topology {
        decoder::topology(dims)
    }

    fn block(&self, dims: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Ok(Box::new(DecoderBlock::load(dims, b, weights)?))
    }

    fn edges(&self, dims: &Dims, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        Ok(Box::new(DecoderEdges::load(dims, weights)?))
    }
}
