//! MagR (Zhang et al. 2024, arXiv:2406.00800): the same outputs with smaller largest weights, so that rounding has finer steps.
//!
//! Per output row, before any scale is chosen:
//!
//! ```text
//! min_w  ½‖X̄(w − w₀)‖² + α·Σ ‖w_range‖_∞        X̄ = X / σ_max(X)
//! ```
//!
//! Where a layer's inputs are of less than full rank, weights can move without changing any output; the penalty uses that to pull the
//! largest ones in. `H = XᵀX` is `gram` of the layer's input, so `X̄ᵀX̄ = H/σ_max(H)`. A range is what shares a scale; see [`solve`] for
//! the method.
//!
//! Traps: brevitas' `alpha` is another one, `σ_max(H)/‖H‖₁` of this (`alpha-mode`); an input that never fired leaves its weights
//! unbound, and they go to zero, as they should.

mod options;
mod solve;

use qfw_core::algorithm::{
    AlgorithmRecord, Condition, Conditioned, Event, Needs, Phase, PlanContext, PtqAlgorithm, SiteContext, Stage, built,
};
use qfw_core::numeric::largest_eigenvalue;
use qfw_core::statistic::StatKind;
use qfw_core::{Error, Result};

pub use options::{AlphaMode, Options, Per, Solver};

struct Magr {
    options: Options,
}

impl PtqAlgorithm for Magr {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let n = cx.widest_input() as u64;
        Ok(Needs {
            inputs: vec![(StatKind::Gram, cx.stream)],
            rescale: self.options.step_shrink,
            scratch_bytes: n * n * 4,
            ..Needs::default()
        })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Condition(self)
    }
}

impl Condition for Magr {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        let o = &self.options;
        let (layout, gram) = (cx.layout(), cx.gram()?);
        let n = gram.n;
        let mut h = gram.full();
        let sigma = largest_eigenvalue(&gram.lower, n);
        if !sigma.is_finite() || sigma <= 0.0 {
            return Err(Error::numeric("magr::no-input", "its input was zero, or not finite, on all calibration tokens")
                .hint("calibrate on more text, or leave the layer out with `skip`"));
        }
        let range = if o.per == Per::Channel { n } else { layout.tile_cols };
        let alpha = o.alpha(range < n);
        let t = match o.alpha_mode {
            AlphaMode::Paper => alpha,
            AlphaMode::Brevitas => alpha * sigma / solve::one_norm(&h, n),
        };
        let effective_rank = solve::effective_rank(&h, n);
        let factor = 1.0 / sigma;
        h.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
        let problem = solve::Problem {
            n,
            h: &h,
            range,
            t: t as f32,
            iterations: o.iterations,
            tolerance: o.tolerance,
            accelerated: o.solver == Solver::Accelerated,
        };
        let mut weight = cx.weight.to_vec();
        problem.solve(&mut weight);
        let magnitude = |w: &[f32]| -> f64 {
            let row = |r: &[f32]| r.chunks(range).map(|x| f64::from(x.iter().fold(0.0f32, |m, v| m.max(v.abs())))).sum::<f64>();
            w.chunks_exact(n).map(row).sum()
        };
        let before = magnitude(cx.weight);
        let magnitude = if before > 0.0 { magnitude(&weight) / before } else { 1.0 };
        Ok(Conditioned { weight, ranged: None, events: vec![Event::Shrunk { magnitude, effective_rank }] })
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "magr",
    aliases: &[],
    phase: Phase::Condition,
    summary: "smaller largest weights at the same outputs, for finer steps at 2 and 3 bits (calibrated)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| Magr { options }),
};

qfw_core::register_algorithm!(RECORD);
