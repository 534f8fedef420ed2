//! GPFQ (Lybrand and Saab 2021, arXiv:2010.15703; Zhang et al. 2023, arXiv:2309.01592): greedy path following.
//!
//! Minimizes `‖XWᵀ − X̃Qᵀ‖²` per output row, column by column, with `X` the inputs of the original model and `X̃` those of the model
//! quantized so far, activations included. The running error `u_t = u_{t−1} + w_t·x_t − q_t·x̃_t` is followed greedily:
//!
//! ```text
//! q_t = Quant(⟨x̃_t, u_{t−1} + w_t·x_t⟩ / ‖x̃_t‖²)
//! ```
//!
//! Inner products are all it needs: `H = X̃ᵀX̃` is `gram`, `C = X̃ᵀX` is `cross_gram` of the site's input. In this form the method is the
//! column sweep of `core` from another start (see `core`'s greedy path), blocked and parallel over rows. Nothing is factored, so nothing
//! can fail to factor; multiplying both streams by a number changes nothing.
//!
//! Traps the code guards: a column that never fired on the quantized stream is zeroed and counted; if none fired, or a sum is not finite,
//! it is an error (the caller keeps round-to-nearest). `w` in the sum is the weight of the original model, also where a pass before this
//! one moved the weight; the column's own term is the weight as it stands.

mod options;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, ColumnOrder, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext, Stage, built, input_events,
};
use qfw_core::numeric::{ColumnSweep, Feedback, SweepParams};
use qfw_core::statistic::{StatKind, Stream};

pub use options::Options;

struct Gpfq {
    options: Options,
}

impl PtqAlgorithm for Gpfq {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        if let Some(accumulator) = self.options.accumulator()? {
            accumulator.check(cx)?;
        }
        let n = cx.widest_input() as u64;
        // Two matrices in f32, made of the statistics.
        Ok(Needs {
            inputs: vec![(StatKind::Gram, Stream::Rounded), (StatKind::CrossGram, Stream::Rounded)],
            scratch_bytes: 2 * n * n * 4,
            ..Needs::default()
        })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

impl Round for Gpfq {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let o = &self.options;
        let gram = cx.stats.gram(cx.linear.input, Stream::Rounded)?;
        let cross = cx.stats.cross_gram(cx.linear.input, Stream::Rounded)?;
        let path = cross.greedy_path(gram, o.act_order == ColumnOrder::Static)?;
        let limit = o.accumulator()?.map(|a| a.limit(cx)).transpose()?;
        let params = cx.ranges()?;
        let sweep = ColumnSweep {
            grid: &cx.spec.grid,
            params: SweepParams::Fixed(&params),
            feedback: Feedback::Path { path: &path, original: cx.original },
            limit: limit.as_ref(),
            block: o.block_size,
        };
        let swept = sweep.run(cx.weight);
        Ok(Rounded { codes: swept.codes, params: swept.params, group_index: None, events: input_events(path.dead.len(), 0.0, 0.0) })
    }

    fn feeds_back(&self) -> bool {
        true
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "gpfq",
    aliases: &[],
    phase: Phase::Round,
    summary: "greedy path following towards the original activations (calibrated, two streams)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| Gpfq { options }),
};

qfw_core::register_algorithm!(RECORD);
