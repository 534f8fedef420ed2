//! Clipping before rounding, as AWQ (Lin et al. 2023, arXiv:2306.00978) and brevitas do after their scales.
//!
//! For each range of a weight (what shares a scale), the limit `c` among `1, 1 − 1/grid, …` of its largest magnitude that gives the
//! smallest error of its part of the output on the calibration tokens:
//!
//! ```text
//! min_c  Σ_tokens (x·(ŵ(c) − w))² = Σ_rows δᵀHδ        δ = Quant_c(w) − w,   H = XᵀX over the range's channels
//! ```
//!
//! where `Quant` has the scale and zero point of `clamp(w, ±c)`; the numbers beyond become the ends of the grid. The sources sum over a
//! sample of tokens; the Gram matrix holds all of them. `Quant` is the layer's own scheme, so any format clips. The clamp is symmetric also
//! for affine formats, as in the sources.
//!
//! There the clamp is permanent, and rounding with error feedback would aim at the clamped weight: what the clamp took away is not seen as
//! an error. Here it chooses ranges alone, and the weight that rounding measures its error from stays what it was.

mod options;
mod search;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Condition, Conditioned, Event, Needs, Phase, PlanContext, PtqAlgorithm, SiteContext, Stage, built,
};
use qfw_core::statistic::StatKind;
use qfw_core::topology::Role;

pub use options::Options;

struct Clip {
    options: Options,
}

impl Clip {
    fn leaves_alone(&self, role: Role) -> bool {
        !self.options.queries_keys && matches!(role, Role::AttnQ | Role::AttnK | Role::AttnQkv)
    }
}

impl PtqAlgorithm for Clip {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let n = cx.widest_input() as u64;
        Ok(Needs { inputs: vec![(StatKind::Gram, cx.stream)], scratch_bytes: n * n * 4, ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Condition(self)
    }
}

impl Condition for Clip {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        if self.leaves_alone(cx.linear.site.role) {
            return Ok(Conditioned { weight: cx.weight.to_vec(), ranged: None, events: Vec::new() });
        }
        let searched = search::search(cx, &cx.gram()?.full(), &self.options.shares())?;
        let error = if searched.unclipped > 0.0 { (searched.clipped / searched.unclipped).sqrt() } else { 1.0 };
        let events = vec![Event::Clipped { ranges: searched.ranges, error }];
        Ok(Conditioned { weight: cx.weight.to_vec(), ranged: Some(searched.clamped), events })
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "clip",
    aliases: &["awq-clip"],
    phase: Phase::Condition,
    summary: "clips each range where that makes its output error smallest (calibrated)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| Clip { options }),
};

qfw_core::register_algorithm!(RECORD);
