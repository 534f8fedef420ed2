//! Bias correction (Nagel et al. 2019, arXiv:1906.04721): biases that give rounded layers the mean outputs they had.
//!
//! With `x` the input of a layer and `Q` the rounding of inputs, where the scheme has one,
//!
//! ```text
//! b ← b + E[Wx] − E[Ŵ·Q(x)] = b + W·E[x] − Ŵ·E[Q(x)]
//! ```
//!
//! The outputs are linear in what is known of the inputs, so the two mean inputs are all that has to be collected. Both sides see the
//! same input: each layer is corrected for itself, not for the errors of those before it.
//!
//! Trap: brevitas takes the inputs of the float model (`inputs = "reference"`), here the default is what the layer will really read.

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Correct, Corrected, Event, Frozen, Needs, Phase, PlanContext, PtqAlgorithm, SiteContext, Stage, built, read_options,
};
use qfw_core::statistic::{StatKind, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose inputs the means are taken of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Inputs {
    /// Of the activations that the run propagates.
    #[default]
    Propagated,
    /// Of the original model; the run has to keep that stream (`harness.propagate`).
    Reference,
}

/// Options of `bias-correction`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Whose inputs the means are taken of.
    pub inputs: Inputs,
}

struct BiasCorrection {
    options: Options,
}

impl BiasCorrection {
    fn stream(&self, run: Stream) -> Stream {
        if self.options.inputs == Inputs::Reference { Stream::Reference } else { run }
    }
}

impl PtqAlgorithm for BiasCorrection {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let stream = self.stream(cx.stream);
        Ok(Needs { inputs: vec![(StatKind::Mean, stream), (StatKind::RoundedMean, stream)], bias: true, ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Correct(self)
    }
}

impl Correct for BiasCorrection {
    fn correct(&self, cx: &SiteContext<'_>, frozen: &Frozen<'_>) -> Result<Corrected> {
        let (mean, rounded) = cx.input_means(self.stream(cx.stream))?;
        let n = mean.len();
        let dot = |row: &[f32], x: &[f64]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        let (mut error, mut norm) = (0.0, 0.0);
        let rows = cx.weight.chunks_exact(n).zip(frozen.weight.chunks_exact(n));
        let bias = rows
            .zip(frozen.bias)
            .map(|((was, is), b)| {
                let y = dot(was, mean);
                let shift = y - dot(is, rounded);
                error += shift * shift;
                norm += y * y;
                (f64::from(*b) + shift) as f32
            })
            .collect();
        let mean_error = if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
        Ok(Corrected { bias, events: vec![Event::Corrected { mean_error }] })
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "bias-correction",
    aliases: &["bias-corr"],
    phase: Phase::Correct,
    summary: "biases that give rounded layers the mean outputs they had (calibrated)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| {
        let options: Options = read_options("bias-correction", options, "inputs (propagated, reference)", &[])?;
        built(options, |options| BiasCorrection { options })
    },
};

qfw_core::register_algorithm!(RECORD);
