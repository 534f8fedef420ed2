//! Qronos (Zhang et al. 2025, arXiv:2505.11695): error feedback that also corrects for inputs that are quantized already.
//!
//! Minimizes `‖XWᵀ − X̃Qᵀ‖²` per output row, with `X` the inputs of the original model and `X̃` those of the model quantized so far,
//! activations included. With `H = X̃ᵀX̃`, `G = XᵀX̃`, `λ = α·σ_max(H)`: the first column is the best one given all others as they are,
//! the others are then reset to the best there is given the first, and from there on it is GPTQ.
//!
//! ```text
//! q₀ = Quant((w·G_{:,0} − Σ_{j>0} v_j·H_0j) / H_00);   v_{1:} ← (w·(G + λI)_{:,1:} − q₀·H_{0,1:})·(H + λI)_{1:,1:}⁻¹
//! ```
//!
//! `H` is `gram` and `Gᵀ` is `cross_gram` of the site's input. Written out, the first two steps are one change of the weight before a sweep
//! with the factor of `(H + λI)⁻¹` (see `core`'s alignment): that is how it is done here, for all rows at once. Where the streams agree
//! the change is none, and the result is GPTQ's with the same `λ`. Multiplying both streams by a number changes nothing.
//!
//! Traps the code guards: dead columns are zeroed and counted; if no column fired, or a sum is not finite, it is an error (the caller
//! keeps round-to-nearest of the original weight). There is one factorization, before anything is changed; where it fails `α` grows
//! tenfold up to 1, and what was used is reported. Scales are those of the weight as it stands before the method.

mod options;

use qfw_core::algorithm::{
    AlgorithmRecord, ColumnOrder, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext, Stage, built, input_events,
};
use qfw_core::numeric::{AlignmentOptions, ColumnSweep, Feedback, SweepParams};
use qfw_core::statistic::{StatKind, Stream};
use qfw_core::{Error, Result};

pub use options::Options;

struct Qronos {
    options: Options,
}

impl PtqAlgorithm for Qronos {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let n = cx.widest_input() as u64;
        // The factor and its inverse in f64; what is kept of them, with a matrix of differences, takes as much.
        Ok(Needs {
            inputs: vec![(StatKind::Gram, Stream::Rounded), (StatKind::CrossGram, Stream::Rounded)],
            scratch_bytes: 2 * n * n * 8,
            ..Needs::default()
        })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

impl Round for Qronos {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let o = &self.options;
        let gram = cx.stats.gram(cx.linear.input, Stream::Rounded)?;
        let cross = cx.stats.cross_gram(cx.linear.input, Stream::Rounded)?;
        let options = AlignmentOptions { alpha: o.alpha, by_diagonal: o.act_order == ColumnOrder::Static };
        let alignment = cross.alignment(gram, &options)?;
        let params = cx.ranges()?;
        let start = alignment.start(cx.original, cx.weight);
        if start.iter().any(|w| !w.is_finite()) {
            return Err(Error::numeric("numeric::not-finite", "the weight that corrects for quantized inputs is not finite")
                .hint("raise the pass option `alpha`, or calibrate on more samples"));
        }
        let sweep = ColumnSweep {
            grid: &cx.spec.grid,
            params: SweepParams::Fixed(&params),
            feedback: Feedback::Inverse(&alignment.factor),
            limit: None,
            block: o.block_size,
        };
        let swept = sweep.run(&start);
        let events = input_events(alignment.factor.dead.len(), o.alpha, alignment.factor.damp);
        Ok(Rounded { codes: swept.codes, params: swept.params, group_index: None, events })
    }

    fn feeds_back(&self) -> bool {
        true
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "qronos",
    aliases: &[],
    phase: Phase::Round,
    summary: "error feedback that corrects for quantized inputs (second-order, calibrated, two streams)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| Qronos { options }),
};

qfw_core::register_algorithm!(RECORD);
