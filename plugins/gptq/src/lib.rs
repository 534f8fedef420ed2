//! GPTQ (Frantar et al. 2022, arXiv:2210.17323): rounding column by column, each error fed into the columns still open.
//!
//! Minimizes `‖X(W − Ŵ)ᵀ‖²` per output row, greedily. With `H = XᵀX` over the calibration tokens, `λ = damp · mean(diag H)` and upper
//! `U` such that `(H + λI)⁻¹ = UᵀU`, for columns `j` in order:
//!
//! ```text
//! q_j = Quant(w_j);   e = (w_j − ŵ_j) / U_jj;   w_k ← w_k − e·U_jk  for k > j
//! ```
//!
//! `H` is `gram` of the site's input, `U` is `core`'s inverse factor (shared by layers that read the same input), the loop is its column
//! sweep. Scaling `H` changes nothing, as the damping is relative.
//!
//! With `use-quant-activations` the statistics are those of the inputs as the scheme rounds them; only then `accumulator-bits` can hold sums
//! of codes to an accumulator.
//!
//! Traps the code guards: a column that never fired is zeroed and counted; an `H` that is all zero is an error (the caller keeps
//! round-to-nearest) instead of a zeroed layer; a failed factorization raises the damping and says so.

mod options;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext, Stage, built, input_events,
};
use qfw_core::numeric::{ColumnSweep, FactorOptions, Feedback, SweepParams};
use qfw_core::statistic::{StatKind, Stream};

pub use options::{ActOrder, Options};

struct Gptq {
    options: Options,
}

impl Gptq {
    /// The stream whose inputs count, where the run's is `stream`.
    fn stream(&self, stream: Stream) -> Stream {
        if self.options.use_quant_activations { Stream::Rounded } else { stream }
    }
}

impl PtqAlgorithm for Gptq {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        if let Some(accumulator) = self.options.accumulator()? {
            accumulator.check(cx)?;
        }
        let n = cx.widest_input() as u64;
        // The factor and its inverse in f64; the factor kept in f32 is smaller than the one of the two that is freed.
        Ok(Needs {
            inputs: vec![(StatKind::Gram, self.stream(cx.stream))],
            group_index: self.options.act_order == ActOrder::Group,
            scratch_bytes: 2 * n * n * 8,
            ..Needs::default()
        })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

impl Round for Gptq {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let o = &self.options;
        let refit = o.refits(cx);
        // Ranges that are made on the way have to see what they were to be fitted to in the weights themselves.
        let cx = &if refit { cx.settled() } else { *cx };
        let cols = cx.linear.shape.1;
        let gram = cx.stats.gram(cx.linear.input, self.stream(cx.stream))?;
        let factor = gram.inverse_factor(&FactorOptions { damp: o.damp, by_diagonal: o.act_order != ActOrder::Off })?;
        let limit = o.accumulator()?.map(|a| a.limit(cx)).transpose()?;
        let params = cx.ranges()?;
        let rule = cx.scale_rule();
        let source =
            if refit { SweepParams::Refit { params: &params, observer: cx.observer, rule: &rule } } else { SweepParams::Fixed(&params) };
        let feedback = Feedback::Inverse(&factor);
        let sweep = ColumnSweep { grid: &cx.spec.grid, params: source, feedback, limit: limit.as_ref(), block: o.block(cols) };
        let swept = sweep.run(cx.weight);
        let events = input_events(factor.dead.len(), o.damp, factor.damp);
        // Groups are runs of the permuted columns only here; then every input channel has to say which group it is in.
        let group_index = match (&factor.order, refit) {
            (Some(order), true) => {
                let mut index = vec![0; order.len()];
                for (i, column) in order.iter().enumerate() {
                    index[*column as usize] = (i / cx.layout().tile_cols) as u32;
                }
                Some(index)
            }
            _ => None,
        };
        Ok(Rounded { codes: swept.codes, params: swept.params, group_index, events })
    }

    fn feeds_back(&self) -> bool {
        true
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "gptq",
    aliases: &["optq"],
    phase: Phase::Round,
    summary: "rounding column by column with error feedback (second-order, calibrated)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| Gptq { options }),
};

qfw_core::register_algorithm!(RECORD);
