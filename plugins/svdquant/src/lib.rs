//! SVDQuant (Li et al. 2024, arXiv:2411.05007): a branch of low rank in high precision takes what is hard to round out of the weight.
//!
//! ```text
//! T ← W;   repeat:  T ≈ U·Σ·Vᵀ  (rank r),   A = √Σ·Vᵀ,  B = U·√Σ,   R = W − B·A,   T ← W − Q(R)
//! ```
//!
//! The site computes `Q(R)·Q(x) + B·(A·x)`. Of all iterates that with the least `‖R − Q(R)‖` is kept, with `Q` rounding to nearest; the
//! start, without a branch, is one of them. How the residual is rounded in the end is the next pass's business. `gram` weighs errors by
//! the inputs: with `H + λI = L·Lᵀ`, `λ = damp · mean(diag H)`, it factors `T·L`, takes `A·L⁻¹`, and compares `tr Δ·H·Δᵀ`.
//!
//! `compensate` fits the branch to the error of the finished codes instead, `W − Ŵ ≈ B·A`: LoRC (Yao et al. 2023, arXiv:2303.08302), and
//! with `gram` EoRA (Liu et al. 2024, arXiv:2410.21271), whose eigenvectors are another root of the same matrix.
//!
//! Traps: ranges are those of the residual, not of the weight; `A` and `B` are rounded to what they are stored in before the residual is
//! taken; smoothing belongs before it and is another pass; the branch reads inputs that are not rounded.

mod options;
mod solve;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, BranchNeed, Branches, Needs, Phase, PlanContext, PtqAlgorithm, Split, SplitContext, Stage, built,
};
use qfw_core::statistic::StatKind;
use qfw_core::topology::Linear;

pub use options::{Dtype, Options};

struct SvdQuant {
    options: Options,
}

impl PtqAlgorithm for SvdQuant {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let o = &self.options;
        let n = cx.widest_input() as u64;
        // What is factored at once.
        let together = |l: &Linear| {
            let with = |x: &&&Linear| if o.shared { (x.site.block, x.input) == (l.site.block, l.input) } else { x.site == l.site };
            cx.sites.iter().filter(with).map(|x| (x.shape.0 * x.shape.1) as u64).sum::<u64>()
        };
        Ok(Needs {
            inputs: if o.gram { vec![(StatKind::Gram, cx.stream)] } else { Vec::new() },
            branch: Some(BranchNeed { rank: o.rank, stored: o.stored(), shared: o.shared }),
            // The weight, what is factored, the residual and its rounding in f32; the root of the Gram matrix in f64, then in f32.
            scratch_bytes: 4 * 4 * cx.sites.iter().map(|l| together(l)).max().unwrap_or(0) + if o.gram { 12 * n * n } else { 0 },
            ..Needs::default()
        })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Split(self)
    }

    fn reads_activations(&self) -> bool {
        self.options.gram
    }
}

impl Split for SvdQuant {
    fn after_rounding(&self) -> bool {
        self.options.compensate
    }

    fn split(&self, cx: &SplitContext<'_>) -> Result<Branches> {
        let damp = self.options.gram.then_some(self.options.damp);
        let problem = solve::Problem::new(cx, damp)?;
        if self.options.compensate { problem.compensate() } else { problem.alternate(self.options.iters) }
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "svdquant",
    aliases: &["svd-quant"],
    phase: Phase::Split,
    summary: "a low-rank branch in high precision beside the codes: of the weight (SVDQuant) or of the error (LoRC, EoRA)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| SvdQuant { options }),
};

qfw_core::register_algorithm!(RECORD);
