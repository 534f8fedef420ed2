//! AWQ's scale search (Lin et al. 2023, arXiv:2306.00978): rounding hurts most where activations are large, so those channels of the
//! weights are scaled up, and what writes them down.
//!
//! For the channels that some linears read, with `m_c` the mean magnitude of the activations and `r` from a grid over `[0, 1)`,
//!
//! ```text
//! s = m^r                       (plain)
//! s = m^r / (w̄^(1−r) + 1e-4)    (duo;  w̄_c: mean over the rows of |w_c| / max |w| of its range)
//! s ← s / √(max s · min s)
//! ```
//!
//! the `s` is taken for which the readers err least once rounded by their own scheme, whatever that is:
//!
//! ```text
//! min_s  Σ_readers tr(Δ·H·Δᵀ),   Δ = Quant(W·diag(s))·diag(1/s) − W,   H = XᵀX
//! ```
//!
//! which is the squared error of what the readers return, summed over all calibration tokens, from one matrix that they share. `s = 1` is
//! among the candidates. With `loss = "module"` it is the squared error of what the module behind the readers returns, which is run again
//! on window after window for every candidate that could still be the best (`race.rs`). Clipping, AWQ's second half, is the pass `clip`.
//!
//! Where the rounding that follows feeds the error of each channel into those after it, most of that sum is made up for. What remains is
//! each channel's error by itself, which is counted instead of layers that are rounded so (`loss = "auto"`) or of all (`"compensated"`):
//!
//! ```text
//! min_s  Σ_readers Σ_j ‖Δ_j‖² / U_jj²,   H⁻¹ = UᵀU,  U upper triangular, channels by falling H_jj
//! ```
//!
//! the squared errors that such rounding itself minimizes, with those of rounding to nearest for `Δ`. (This is not in the paper.)

mod options;
mod race;
mod search;

use qfw_core::algorithm::{
    AlgorithmRecord, Event, Needs, Phase, PlanContext, PtqAlgorithm, RegionContext, Solved, Stage, Transform, built,
};
use qfw_core::statistic::StatKind;
use qfw_core::topology::{Region, Symmetry};
use qfw_core::{Error, Result};

pub use options::{Duo, Loss, Options};

struct Awq {
    options: Options,
}

impl PtqAlgorithm for Awq {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        if cx.sites.is_empty() {
            let message = "`awq` looks at how weights are rounded, and none that reads a region of its is";
            return Err(Error::plan("plan::nothing-selected", message)
                .hint("set `scheme.weights`, look at `regions` of the pass, or leave the pass (or `harness.no-quantize`) out"));
        }
        let inputs = vec![(StatKind::AbsMean, cx.stream), (StatKind::Gram, cx.stream)];
        Ok(Needs { inputs, replay: self.options.loss == Loss::Module, ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Transform(self)
    }
}

impl Transform for Awq {
    fn suits(&self, region: &Region) -> bool {
        region.may_be_scaled()
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        let Some(found) = search::search(cx, &self.options)? else { return Ok(None) };
        let events = vec![Event::scaled(RECORD.id, &found.factors, Some(found.error))];
        Ok(Some(Solved { symmetry: Symmetry::Diagonal(found.factors.iter().map(|s| 1.0 / s).collect()), events }))
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "awq",
    aliases: &[],
    phase: Phase::Transform,
    summary: "scales input channels so that the important ones lose least in rounding (calibrated)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| Awq { options }),
};

qfw_core::register_algorithm!(RECORD);
