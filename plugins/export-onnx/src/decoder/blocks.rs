//! The two kinds of decoder block, place by place as core runs them (`qfw_core::model`).

use qfw_core::numeric::Activation;
use qfw_core::topology::{Part, PortName as P, Role, SiteId};
use qfw_core::{Error, Result};

use super::attention::{Heads, Shared};
use super::{Decoder, Passed};
use crate::graph::Value;
use crate::message::Attribute;

impl Decoder<'_> {
    /// Block `b` of hidden states `[batch, sequence, hidden]`.
    pub(super) fn block(&mut self, b: u32, x: Value, shared: &Shared) -> Result<Value> {
        let at = |role| SiteId::in_block(b, role);
        let x = self.at(Some(b), P::BlockIn, x)?;
        let normed = self.norm(at(Role::AttnNorm), &x)?;
        let normed = self.pass(Some(b), P::AttnIn, normed)?;
        let heads = self.heads(b, &normed, shared)?;
        let mixed = self.attention(b, &heads, shared)?;
        let mixed = self.pass(Some(b), P::Ctx, mixed)?;
        let out = self.linear(at(Role::AttnO), &mixed)?;
        let out = self.at(Some(b), P::OOut, out)?;
        let x = self.graph.op(&at(Role::AttnO).to_string(), "Add", &[&x, &out], Vec::new());
        let normed = self.norm(at(Role::MlpNorm), &x)?;
        let normed = self.pass(Some(b), P::MlpIn, normed)?;
        let inner = self.feed_forward(b, &normed)?;
        let inner = self.pass(Some(b), P::DownIn, inner)?;
        let out = self.linear(at(Role::MlpDown), &inner)?;
        let out = self.at(Some(b), P::DownOut, out)?;
        let x = self.graph.op(&at(Role::MlpDown).to_string(), "Add", &[&x, &out], Vec::new());
        self.at(Some(b), P::BlockOut, x)
    }

    /// Queries, keys and values, with their positions.
    fn heads(&mut self, b: u32, x: &Passed, shared: &Shared) -> Result<Heads> {
        let at = |role| SiteId::in_block(b, role);
        let fused = at(Role::AttnQkv);
        let [q, k, v] = if self.model.topology.linear(fused).is_some() {
            let all = self.linear(fused, x)?;
            let thirds = vec![Attribute::int("axis", -1), Attribute::int("num_outputs", 3)];
            let parts = self.graph.ops(&fused.to_string(), "Split", &[&all], 3, thirds);
            parts.try_into().map_err(|_| Error::internal("three parts"))?
        } else {
            [self.linear(at(Role::AttnQ), x)?, self.linear(at(Role::AttnK), x)?, self.linear(at(Role::AttnV), x)?]
        };
        let mut placed = |x: Value, (before, after): (P, P), norm: Role| -> Result<Value> {
            let x = self.at(Some(b), before, x)?;
            let weight = match self.model.dims.qk_norm {
                true => {
                    let name = self.tensor(at(norm), Part::Weight)?;
                    Some(self.float(&name)?)
                }
                false => None,
            };
            let x = self.positioned(&format!("blocks.{b}.{after}", after = after.as_str()), &x, weight.as_deref(), shared)?;
            self.at(Some(b), after, x)
        };
        let q = placed(q, (P::Q, P::QRope), Role::AttnQNorm)?;
        let k = placed(k, (P::K, P::KRope), Role::AttnKNorm)?;
        Ok(Heads { q, k, v: self.at(Some(b), P::V, v)? })
    }

    /// What the down projection reads, before anything happens to it there.
    fn feed_forward(&mut self, b: u32, x: &Passed) -> Result<Value> {
        let at = |role| SiteId::in_block(b, role);
        let gated = self.model.topology.linear(at(Role::MlpGate)).is_some();
        let up = self.linear(at(Role::MlpUp), x);
        if !gated {
            let up = self.at(Some(b), P::Up, up?)?;
            let act = self.activation(&format!("blocks.{b}.act"), &up);
            return self.at(Some(b), P::Act, act);
        }
        let gate = self.linear(at(Role::MlpGate), x)?;
        let gate = self.at(Some(b), P::Gate, gate)?;
        let up = self.at(Some(b), P::Up, up?)?;
        let act = self.activation(&format!("blocks.{b}.act"), &gate);
        let act = self.at(Some(b), P::Act, act)?;
        Ok(self.graph.op(&format!("blocks.{b}.act"), "Mul", &[&act, &up], Vec::new()))
    }

    fn activation(&mut self, at: &str, x: &str) -> Value {
        match self.model.dims.activation {
            Activation::Silu => {
                let sigma = self.graph.op(at, "Sigmoid", &[x], Vec::new());
                self.graph.op(at, "Mul", &[x, &sigma], Vec::new())
            }
            Activation::Gelu => self.graph.op(at, "Gelu", &[x], vec![Attribute::text("approximate", "none")]),
            Activation::GeluTanh => self.graph.op(at, "Gelu", &[x], vec![Attribute::text("approximate", "tanh")]),
            Activation::Relu => self.graph.op(at, "Relu", &[x], Vec::new()),
        }
    }

    /// The norm of a site.
    pub(super) fn norm(&mut self, site: SiteId, x: &str) -> Result<Value> {
        let weight = self.tensor(site, Part::Weight)?;
        let weight = self.float(&weight)?;
        let at = site.to_string();
        if !self.model.topology.layer_norm {
            return Ok(self.rms_norm(&at, x, &weight));
        }
        let bias = self.tensor(site, Part::Bias)?;
        let bias = self.float(&bias)?;
        let attributes = vec![Attribute::int("axis", -1), Attribute::float("epsilon", self.model.dims.norm_eps as f32)];
        Ok(self.graph.op(&at, "LayerNormalization", &[x, &weight, &bias], attributes))
    }

    /// `x / √(mean(x²) + ε) · w` over the last axis.
    pub(super) fn rms_norm(&mut self, at: &str, x: &str, weight: &str) -> Value {
        let (two, eps, last) = (self.graph.float(2.0), self.graph.float(self.model.dims.norm_eps as f32), self.graph.ints(&[-1]));
        let squares = self.graph.op(at, "Pow", &[x, &two], Vec::new());
        let mean = self.graph.op(at, "ReduceMean", &[&squares, &last], vec![Attribute::int("keepdims", 1)]);
        let mean = self.graph.op(at, "Add", &[&mean, &eps], Vec::new());
        let root = self.graph.op(at, "Sqrt", &[&mean], Vec::new());
        let unit = self.graph.op(at, "Div", &[x, &root], Vec::new());
        self.graph.op(at, "Mul", &[&unit, weight], Vec::new())
    }
}
