//! Canonical forms: other weights, the same function. What needs them has core insert them; here they are passes of their own.
//!
//! ```text
//! fold-norms        norm(x)⊙γ + β, then W, b   =   norm(x), then W·diag(γ), b + W·β
//! center-residual   v ↦ v − mean(v) for everything written to the residual stream: LayerNorm of it is then RMSNorm
//! ```
//!
//! A model with a centred residual stream still runs with LayerNorm, which finds no mean to subtract, and so loads wherever it did.

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, ModelContext, ModelTransform, Needs, Phase, PlanContext, PtqAlgorithm, Stage, built, read_options,
};
use qfw_core::topology::Rewrite;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// There is nothing to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

struct Canonicalize(Rewrite);

impl PtqAlgorithm for Canonicalize {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs::default())
    }

    fn stage(&self) -> Stage<'_> {
        Stage::ModelTransform(self)
    }
}

impl ModelTransform for Canonicalize {
    fn rewrites(&self, _: &ModelContext<'_>) -> Result<Vec<Rewrite>> {
        Ok(vec![self.0.clone()])
    }
}

/// The record of `fold-norms`, for registries built by hand.
pub const FOLD_NORMS: AlgorithmRecord = AlgorithmRecord {
    id: "fold-norms",
    aliases: &["ln-affine-merge"],
    phase: Phase::Transform,
    summary: "folds the weights and biases of norms into the layers that read them",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(read_options("fold-norms", options, "none", &[])?, |_: Options| Canonicalize(Rewrite::FoldNorms)),
};

/// The record of `center-residual`, for registries built by hand.
pub const CENTER_RESIDUAL: AlgorithmRecord = AlgorithmRecord {
    id: "center-residual",
    aliases: &["layernorm-to-rmsnorm"],
    phase: Phase::Transform,
    summary: "takes the mean out of the residual stream, so that LayerNorm is RMSNorm",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(read_options("center-residual", options, "none", &[])?, |_: Options| Canonicalize(Rewrite::CenterResidual)),
};

qfw_core::register_algorithm!(FOLD_NORMS, CENTER_RESIDUAL);
