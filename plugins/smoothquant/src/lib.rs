//! SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): activations with outlier channels are hard to round, weights are not, so part of the
//! range moves from one to the other. For the channels `c` that some linears read,
//!
//! ```text
//! x'_c = x_c / s_c,   W'_{·c} = W_{·c}·s_c,   s_c = a_c^α / w_c^(1−α)
//! ```
//!
//! with `a_c` the range of the activations on the calibration data and `w_c` that of all readers' weights. Core fuses `1/s` into what
//! writes the channels; where nothing there can take it, and `stand-alone` is set, into a multiplication that is added before the readers.
//! What `a`, `w` and `s` are exactly differs between systems:
//!
//! * `reference` (the paper's code): `a = max|x|`, `w = max|W|` not under `1e-5`, `s` not under `1e-5`;
//! * `llm-compressor`: `a = max x − min x`, `w = 2·max|W|`, and optionally `s = a / log₂(2 + a)`;
//! * `brevitas`: as `reference`, but channels with `a` or `w` not above `1e-9` are left alone instead.

mod options;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Event, Needs, Phase, PlanContext, PtqAlgorithm, RegionContext, Solved, Stage, Transform, built,
};
use qfw_core::statistic::StatKind;
use qfw_core::topology::{Region, Space, Symmetry};

pub use options::{Options, Variant};

struct SmoothQuant {
    options: Options,
}

impl PtqAlgorithm for SmoothQuant {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs { inputs: vec![(StatKind::Least, cx.stream), (StatKind::Greatest, cx.stream)], ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Transform(self)
    }
}

impl Transform for SmoothQuant {
    fn suits(&self, region: &Region) -> bool {
        region.may_be_scaled()
    }

    /// Behind norms, as in the paper, and where a multiplication was asked for.
    fn by_default(&self, region: &Region) -> bool {
        self.options.everywhere || matches!(region.space, Space::AttnIn | Space::MlpIn | Space::Multiplied)
    }

    fn stands_alone(&self) -> bool {
        self.options.stand_alone
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        let (least, greatest) = (cx.channels(StatKind::Least)?, cx.channels(StatKind::Greatest)?);
        let range: Vec<f64> = match self.options.variant {
            Variant::LlmCompressor => least.iter().zip(greatest).map(|(l, g)| g - l).collect(),
            Variant::Reference | Variant::Brevitas => least.iter().zip(greatest).map(|(l, g)| l.abs().max(g.abs())).collect(),
        };
        // One factor for each channel of the region, and so for all query heads that share it.
        let a = cx.region.gather(&range, f64::max)?;
        let w = cx.region.gather(&weight_range(cx), f64::max)?;
        let s: Vec<f64> = a.iter().zip(&w).map(|(a, w)| self.options.factor(*a, *w)).collect();
        let events = vec![Event::scaled(RECORD.id, &s, None)];
        Ok(Some(Solved { symmetry: Symmetry::Diagonal(s.iter().map(|s| 1.0 / s).collect()), events }))
    }
}

/// The largest magnitude of each input channel over the rows of all readers.
fn weight_range(cx: &RegionContext<'_>) -> Vec<f64> {
    let n = cx.readers.first().map_or(0, |r| r.linear.shape.1);
    let mut w = vec![0.0f64; n];
    for row in cx.readers.iter().flat_map(|r| r.weight.chunks_exact(n)) {
        w.iter_mut().zip(row).for_each(|(w, x)| *w = w.max(f64::from(x.abs())));
    }
    w
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "smoothquant",
    aliases: &["smooth-quant", "act-equalization"],
    phase: Phase::Transform,
    summary: "moves the range of activations into the weights that read them (calibrated)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| SmoothQuant { options }),
};

qfw_core::register_algorithm!(RECORD);
