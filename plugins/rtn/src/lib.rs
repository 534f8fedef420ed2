//! Round to nearest: `q = clamp(round(w/s) + z)`, with scales and zero points fitted once to the weight.
//!
//! Reads nothing but the weight, so it runs on any checkpoint with 2-D linear weights, whatever the architecture.

use qfw_core::algorithm::{AlgorithmRecord, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext, Stage};
use qfw_core::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// It has no options: everything about the result is said by the scheme.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

struct Rtn;

impl PtqAlgorithm for Rtn {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs::default())
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

impl Round for Rtn {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        cx.nearest()
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "rtn",
    aliases: &[],
    phase: Phase::Round,
    summary: "round to nearest; needs no data",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| {
        serde_json::from_value::<Options>(options.clone())
            .map_err(|e| Error::config("config::invalid", format!("options of `rtn`: {e}")).hint("`rtn` has no options"))?;
        Ok((Box::new(Rtn), serde_json::json!({})))
    },
};

qfw_core::register_algorithm!(RECORD);
