//! ZeroQuant (Yao et al. 2022, arXiv:2206.01861): groups of weights, tokens of activations, and block by block the quantized model as the
//! student of the original one.
//!
//! Which groups, tokens and widths is the scheme's business (presets `zeroquant-w8a8` and `zeroquant-mixed`); what is left of the method is
//! rounding to nearest and its layer-by-layer knowledge distillation, LKD:
//!
//! ```text
//! min over W of  mean (block(h; Q(W)) − block(h; W₀))²        h: what the original blocks before put out
//! ```
//!
//! The student starts from `W₀`. Scales are fitted anew in each step, and gradients pass straight through rounding. Core runs the block and
//! its gradients, draws the batches, and keeps the best over all calibration windows, which is never worse than rounding to nearest on
//! them. Only weights that are rounded learn; norms and biases stay the original model's.

mod options;
mod student;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Batches, BlockContext, Event, Learning, Needs, Phase, PlanContext, PtqAlgorithm, Round, RoundBlock, Rounded,
    SiteContext, Stage, built, minimize,
};
use qfw_core::statistic::Stream;

pub use options::{Lkd, Options};

use student::Student;

struct ZeroQuant {
    lkd: Option<Lkd>,
}

impl PtqAlgorithm for ZeroQuant {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        if self.lkd.is_none() {
            return Ok(Needs::default());
        }
        let of_a_block = cx.sites.iter().map(|s| (s.shape.0 * s.shape.1) as u64).sum::<u64>() / u64::from(cx.topology.blocks.max(1));
        // Weights, the start and the best of them, two moments each, gradients, and what runs, laid out both ways: f32 each.
        Ok(Needs { training: Some(Stream::Reference), scratch_bytes: of_a_block * 4 * 13, ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        if self.lkd.is_some() { Stage::RoundBlock(self) } else { Stage::Round(self) }
    }

    fn reads_activations(&self) -> bool {
        self.lkd.is_some()
    }
}

impl Round for ZeroQuant {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        cx.nearest()
    }
}

impl RoundBlock for ZeroQuant {
    fn round(&self, cx: &BlockContext<'_>) -> Result<Vec<Rounded>> {
        let lkd = self.lkd.clone().unwrap_or_default();
        let batches = Batches { steps: lkd.iters, size: lkd.batch_size, key: [cx.seed, u64::from(cx.block)] };
        let mut student = Student::new(cx.sites, &lkd);
        let Learning { initial, reached, steps, curve } = minimize(cx.training, &mut student, &batches)?;
        let mut curve = Some(curve);
        student
            .rounded()
            .map(|rounded| {
                let mut rounded = rounded?;
                rounded.events.push(Event::Learned { initial, reached, steps, curve: curve.take().unwrap_or_default() });
                Ok(rounded)
            })
            .collect()
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "zeroquant",
    aliases: &[],
    phase: Phase::Round,
    summary: "rounds to nearest; with `lkd`, blocks first learn from the original ones",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| ZeroQuant { lkd: options.distillation() }),
};

qfw_core::register_algorithm!(RECORD);
