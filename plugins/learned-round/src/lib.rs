//! Learned rounding: which way each weight is rounded is learned by gradient steps on the error of the block's output.
//!
//! ```text
//! offsets   ŵ = Quant(w + v·gap),  |v| ≤ ½       v ← v − lr·sign(∂v)              SignRound of AutoRound (Cheng et al. 2023, arXiv:2309.05516)
//! sigmoid   ŵ = lower + gap·h(p),  h = clip(1.2·σ(p) − 0.1, 0, 1)                 AdaRound (Nagel et al. 2020, arXiv:2004.10568)
//!           plus λ·Σ 1 − |2h − 1|^b, b from 20 to 2: in the end every h is 0 or 1
//! ranges    the ends of each tile's range, times β: β ← β − lr·sign(∂β)
//! ```
//!
//! `gap` is the distance between the two numbers of the grid around `w`: one step of an integer grid. Rounding itself has no derivative;
//! gradients pass straight through it, and stop where the range ends. A block learns with the inputs that the blocks before it really give,
//! and aims at what the original block puts out on original inputs. Core runs the block and its gradients, draws the batches, and keeps the
//! best over all calibration windows, which is never worse than rounding to nearest on them.

mod offsets;
mod options;
mod sigmoid;
mod site;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Batches, BlockContext, Event, Learner, Learning, Needs, Phase, PlanContext, PtqAlgorithm, RoundBlock, Rounded, Stage,
    built, minimize,
};
use qfw_core::numeric::encode;
use qfw_core::statistic::Stream;

pub use options::{Method, Options, ScaleOptimizer, Schedule};

use offsets::Offsets;
use sigmoid::Sigmoid;
use site::Site;

struct LearnedRound {
    options: Options,
}

impl PtqAlgorithm for LearnedRound {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let stream = if self.options.enable_quanted_input { Stream::Quantized } else { Stream::Reference };
        let widest = cx.sites.iter().map(|s| (s.shape.0 * s.shape.1) as u64).sum::<u64>() / (cx.topology.blocks.max(1) as u64);
        // What is learned, the start and the best of it, gradients, and the weights that run, as they are and laid out both ways: f32 each.
        Ok(Needs { training: Some(stream), scratch_bytes: widest * 4 * 7, ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::RoundBlock(self)
    }
}

impl RoundBlock for LearnedRound {
    fn round(&self, cx: &BlockContext<'_>) -> Result<Vec<Rounded>> {
        let sites = cx.sites.iter().map(Site::new).collect::<Result<Vec<_>>>()?;
        match self.options.method {
            Method::LinearRound => self.learn(cx, Offsets::new(sites, &self.options)),
            Method::Sigmoid => self.learn(cx, Sigmoid::new(sites, &self.options)),
        }
    }
}

/// A learner whose weights are those of sites, moved a little.
trait Moves<'a>: Learner {
    /// The sites, with the weights that are rounded to nearest in the end.
    fn moved(&self) -> Vec<(&Site<'a>, Vec<f32>)>;
}

impl LearnedRound {
    fn learn<'a, L: Moves<'a>>(&self, cx: &BlockContext<'a>, mut learner: L) -> Result<Vec<Rounded>> {
        let batches = Batches { steps: self.options.iters, size: self.options.batch_size, key: [cx.seed, u64::from(cx.block)] };
        let Learning { initial, reached, steps, curve } = minimize(cx.training, &mut learner, &batches)?;
        let mut curve = Some(curve);
        let rounded = learner.moved().into_iter().map(|(site, moved)| {
            let params = site.params();
            let codes = encode(site.grid(), &params, &moved);
            let events = vec![Event::Learned { initial, reached, steps, curve: curve.take().unwrap_or_default() }];
            Rounded { codes, params, group_index: None, events }
        });
        Ok(rounded.collect())
    }
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "learned-round",
    aliases: &["auto-round"],
    phase: Phase::Round,
    summary: "learns which way weights are rounded from the error of each block's output",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: false,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| LearnedRound { options }),
};

/// Soft rounding under the name it is known by.
pub const ADAROUND: AlgorithmRecord = AlgorithmRecord {
    id: "adaround",
    aliases: &[],
    summary: "learns which way weights are rounded by soft rounding that hardens: `learned-round` with `method = sigmoid`",
    schema: || {
        let mut schema = schemars::schema_for!(Options).to_value();
        schema["properties"]["method"]["default"] = "sigmoid".into();
        schema
    },
    build: |options| built(Options::adaround(options)?, |options| LearnedRound { options }),
    ..RECORD
};

qfw_core::register_algorithm!(RECORD, ADAROUND);
