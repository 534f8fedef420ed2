//! A whole model run from weights in memory, and the taps that stand for what cannot be fused.

use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::model::{Architecture, Dims, MapWeights, Span, Tap};
use crate::numeric::{linear, rms_norm};
use crate::topology::{Part, Port, PortName, Role, SiteId};

/// Logits `[T, vocabulary]` of the sequence `ids`, from position 0, of a model whose weights all lie in `weights`. The result has their
/// float type.
///
/// # Errors
/// If a parameter is missing, an id is out of range, or what `tap` returns.
pub fn logits(architecture: &dyn Architecture, dims: &Dims, weights: &MapWeights, ids: &[u32], tap: &mut dyn Tap) -> Result<Tensor> {
    let edges = architecture.edges(dims, Arc::new(weights.clone()))?;
    let mut flow = edges.embed(ids, 0, tap)?;
    for b in 0..dims.blocks as u32 {
        flow = architecture.block(dims, b, weights)?.run(Span::BLOCK, flow, tap)?;
    }
    let x = edges.finish(flow, tap)?;
    linear(&x, &edges.head_rows(0..edges.vocab())?, None)
}

/// Multiplies what passes at some places by a rotation, per stretch of its width: an online rotation.
pub(super) struct Online {
    pub(super) ports: Vec<PortName>,
    /// `[w, w]`
    pub(super) rotation: Tensor,
}

impl Tap for Online {
    fn wants(&self, port: Port) -> bool {
        self.ports.contains(&port.name)
    }

    fn at(&mut self, _: Port, x: Tensor) -> Result<Tensor> {
        let (t, n) = x.dims2()?;
        let w = self.rotation.dim(0)?;
        Ok(x.reshape((t * n / w, w))?.matmul(&self.rotation)?.reshape((t, n))?)
    }
}

/// Puts RMSNorm where the model has LayerNorm; the norms' weights are one, their biases stay.
pub(super) struct RmsForLayerNorm {
    eps: f64,
    weights: MapWeights,
    /// The block the flow is in.
    block: u32,
    /// The residual stream.
    stream: Option<Tensor>,
}

impl RmsForLayerNorm {
    pub(super) fn new(eps: f64, weights: &MapWeights) -> Self {
        Self { eps, weights: weights.clone(), block: 0, stream: None }
    }

    fn norm(&self, site: SiteId) -> Result<Tensor> {
        let x = self.stream.as_ref().ok_or_else(|| Error::internal("a norm without a residual stream"))?;
        let bias = self.weights.find(site, Part::Bias).ok_or_else(|| Error::internal(format!("`{site}` has no bias")))?;
        Ok(rms_norm(x, &bias.ones_like()?, self.eps)?.broadcast_add(bias)?)
    }
}

impl Tap for RmsForLayerNorm {
    fn wants(&self, port: Port) -> bool {
        use PortName as P;
        matches!(port.name, P::BlockIn | P::AttnIn | P::OOut | P::MlpIn | P::BlockOut | P::FinalOut)
    }

    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor> {
        match port.name {
            PortName::BlockIn => self.stream = Some(x.clone()),
            PortName::OOut => self.stream = self.stream.take().map(|s| s + &x).transpose()?,
            PortName::BlockOut => (self.stream, self.block) = (Some(x.clone()), self.block + 1),
            PortName::AttnIn => return self.norm(SiteId::in_block(self.block, Role::AttnNorm)),
            PortName::MlpIn => return self.norm(SiteId::in_block(self.block, Role::MlpNorm)),
            PortName::FinalOut => return self.norm(SiteId::global(Role::FinalNorm)),
            _ => {}
        }
        Ok(x)
    }
}
