//! A model nobody here can run, taken matrix by matrix.
//!
//! Methods that read weights only need no forward pass. For them every 2-D float tensor called `….weight` is a linear `[out, in]` of its
//! own, `blocks.N.linear`, in the order of the tensors' names: so memory holds one of them, and a run resumes between them. Embeddings,
//! the head, routers and everything that is not a matrix stay as they are; [`Skipped`] says which and why.

use std::sync::Arc;

use candle_core::{DType, Device};
use serde_json::Value;

use super::{Activations, Architecture, Block, Dims, Edges, Model, Online, StoredWeights, WeightSource};
use crate::checkpoint::{StoredDtype, TensorSource};
use crate::error::{Error, Result};
use crate::numeric::Activation;
use crate::topology::{Linear, ParamDecl, Part, Port, PortName, Role, SiteId, Topology};

/// A tensor of two or more axes that is not taken for a linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub tensor: String,
    /// Why.
    pub reason: &'static str,
}

struct Tensorwise;

/// The error of whatever asks for a forward pass.
fn no_forward_pass() -> Error {
    Error::internal("a model of unknown architecture was asked for a forward pass")
}

impl Architecture for Tensorwise {
    fn id(&self) -> &'static str {
        ID
    }

    fn parse(&self, _: &Value, _: &dyn Fn(&str) -> bool) -> Result<Dims> {
        Err(no_forward_pass())
    }

    fn topology(&self, _: &Dims) -> Topology {
        Topology::default()
    }

    fn block(&self, _: &Dims, _: u32, _: &dyn WeightSource) -> Result<Box<dyn Block>> {
        Err(no_forward_pass())
    }

    fn edges(&self, _: &Dims, _: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        Err(no_forward_pass())
    }
}

/// What it calls itself in place of a `model_type`.
const ID: &str = "unknown";

impl Model {
    /// Whether it has no forward pass.
    pub fn is_tensorwise(&self) -> bool {
        self.architecture_id() == ID
    }

    /// The matrices of `tensors` as linears without a forward pass, and what was left out.
    ///
    /// # Errors
    /// If there is no matrix among them.
    pub fn tensorwise(tensors: Arc<dyn TensorSource>) -> Result<(Self, Vec<Skipped>)> {
        let (mut params, mut linears, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
        for name in tensors.names() {
            let Some(info) = tensors.info(&name) else { continue };
            if info.shape.len() < 2 {
                continue;
            }
            let module = match why_not(&name, &info.shape, &info.dtype) {
                Ok(module) => module.to_owned(),
                Err(reason) => {
                    skipped.push(Skipped { tensor: name, reason });
                    continue;
                }
            };
            let site = SiteId::in_block(linears.len() as u32, Role::Linear);
            let (rows, cols) = (info.shape[0], info.shape[1]);
            let (input, output) = (Port::of(PortName::BlockIn), Port::of(PortName::BlockOut));
            params.push(ParamDecl { site, part: Part::Weight, tensor: name, shape: vec![rows, cols], transposed: false });
            linears.push(Linear { site, shape: (rows, cols), input, output, bias: false, module, transposed: false });
        }
        if linears.is_empty() {
            return Err(Error::input("model::no-linears", "the checkpoint holds no 2-D tensor called `….weight` that could be rounded")
                .hint("is this a checkpoint of a language model?"));
        }
        let topology = Topology { blocks: linears.len() as u32, params, linears, ..Topology::default() };
        let weights = StoredWeights::new(tensors, &topology, DType::F32, Device::Cpu)?;
        Ok((
            Self {
                architecture: &Tensorwise,
                dims: no_dims(),
                topology: Arc::new(topology),
                weights: Arc::new(weights),
                online: Online::default(),
                activations: Activations::default(),
            },
            skipped,
        ))
    }
}

/// The module of a linear's weight, or why the tensor is not one.
fn why_not<'a>(name: &'a str, shape: &[usize], dtype: &StoredDtype) -> Result<&'a str, &'static str> {
    let Some(module) = name.strip_suffix(".weight") else { return Err("not called `….weight`") };
    let is = |words: &[&str]| module.split(['.', '_']).any(|part| words.contains(&part));
    let last = module.rsplit('.').next().unwrap_or(module);
    if shape.len() != 2 {
        Err("not 2-D")
    } else if !dtype.is_float() {
        Err("not of a float type")
    } else if module.contains("embed") || is(&["wte", "wpe", "shared", "emb"]) {
        Err("an embedding")
    } else if ["lm_head", "head", "output_layer", "embed_out", "classifier", "score"].contains(&last) {
        Err("a head")
    } else if ["gate", "router", "wg"].contains(&last) {
        Err("a router of experts")
    } else if shape.contains(&1) || module.contains("norm") {
        Err("a vector in effect")
    } else {
        Ok(module)
    }
}

/// Numbers that nothing reads, as nothing runs.
fn no_dims() -> Dims {
    Dims {
        blocks: 0,
        hidden: 0,
        ffn: 0,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        vocab: 0,
        max_positions: 0,
        position_offset: 0,
        norm_eps: 0.0,
        activation: Activation::Relu,
        rope: None,
        windows: Vec::new(),
        score_scale: Vec::new(),
        tied_head: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        prefix: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_linears_unless_their_name_or_shape_says_otherwise() {
        let (f16, ids) = (StoredDtype::F16, StoredDtype::I32);
        let why = |name: &'static str, shape: &[usize]| why_not(name, shape, &f16);
        assert_eq!(why("encoder.layer.0.attention.self.query.weight", &[8, 8]), Ok("encoder.layer.0.attention.self.query"));
        assert_eq!(why("model.layers.0.mlp.gate_proj.weight", &[8, 8]), Ok("model.layers.0.mlp.gate_proj"));
        assert_eq!(why("model.layers.0.mlp.gate.weight", &[4, 8]), Err("a router of experts"));
        assert_eq!(why("shared.weight", &[8, 8]), Err("an embedding"));
        assert_eq!(why("embeddings.word_embeddings.weight", &[8, 8]), Err("an embedding"));
        assert_eq!(why("lm_head.weight", &[8, 8]), Err("a head"));
        assert_eq!(why("conv.weight", &[8, 1, 4]), Err("not 2-D"));
        assert_eq!(why("relative_attention_bias", &[8, 8]), Err("not called `….weight`"));
        assert_eq!(why("projection.weight", &[1, 8]), Err("a vector in effect"));
        assert_eq!(why_not("ids.weight", &[8, 8], &ids), Err("not of a float type"));
    }
}
