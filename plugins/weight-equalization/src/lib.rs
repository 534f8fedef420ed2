//! Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721): where one layer reads what another writes, and nothing but what a
//! positive factor passes through stands between them (nothing, ReLU, a product), a channel with a large range on one side and a small
//! one on the other gets the same on both:
//!
//! ```text
//! W¹_{c·}, b¹_c ← f_c·W¹_{c·}, f_c·b¹_c      W²_{·c} ← W²_{·c}/f_c      f_c = √(r²_c / r¹_c)
//! ```
//!
//! with `r¹_c` the range of row `c` of what writes, its bias included, and `r²_c` that of column `c` of what reads; of several, the
//! largest. Channels with a range of 1e-9 or less on either side stay. No data is needed.

mod options;
mod ranges;

use qfw_core::algorithm::{
    AlgorithmRecord, Event, Needs, Phase, PlanContext, PtqAlgorithm, RegionContext, Solved, Stage, Transform, built,
};
use qfw_core::topology::{Region, Space, Symmetry};
use qfw_core::{Error, Result};

pub use options::{BiasShrinkage, Options, Scale};
use ranges::{Source, of_columns};

/// Ranges not above this are none.
const NOTHING: f64 = 1e-9;

struct WeightEqualization {
    options: Options,
}

impl PtqAlgorithm for WeightEqualization {
    /// Nothing; but the model has to have pairs of layers.
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let regions = &cx.topology.regions;
        if regions.iter().any(|r| self.suits(r)) {
            return Ok(Needs::default());
        }
        let message = format!("`{}` finds no two layers in a row with nothing between them that a factor cannot pass", RECORD.id);
        let mut names: Vec<&str> = regions.iter().map(|r| r.id.splitn(3, '.').nth(2).unwrap_or(&r.id)).collect();
        names.sort_unstable();
        names.dedup();
        Err(Error::plan("plan::region", message).hint(if names.is_empty() {
            "the architecture of this model is unknown, and with it what reads what; leave the pass out".to_owned()
        } else {
            format!("regions of this model: {}; leave the pass out, or try `smoothquant`", names.join(", "))
        }))
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Transform(self)
    }
}

impl Transform for WeightEqualization {
    /// Where linears write and linears read.
    fn suits(&self, region: &Region) -> bool {
        region.may_be_scaled() && matches!(region.space, Space::Values | Space::MlpHidden)
    }

    fn reads_producers(&self) -> bool {
        true
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        let o = &self.options;
        let sources: Vec<Source> = cx.producers.iter().map(|p| Source::new(p, cx.region.width)).collect::<Result<_>>()?;
        let mut read = vec![0.0f64; cx.region.width];
        for reader in cx.readers {
            let columns = of_columns(reader.weight, reader.linear.shape.1, o.scale_computation);
            largest(&mut read, &cx.region.gather(&columns, f64::max)?);
        }
        // What has been found so far; columns were divided by it, rows multiplied.
        let mut factors = vec![1.0f64; cx.region.width];
        for _ in 0..o.iterations {
            let mut written = vec![0.0f64; cx.region.width];
            for source in &sources {
                largest(&mut written, &source.ranges(&factors, o));
            }
            let mut furthest = 0.0f64;
            for ((total, written), read) in factors.iter_mut().zip(&written).zip(&read) {
                let read = read / *total;
                let f = if *written > NOTHING && read > NOTHING { (read / written).sqrt() } else { 1.0 };
                furthest = furthest.max((1.0 - f).abs());
                *total *= f;
            }
            if furthest < o.threshold {
                break;
            }
        }
        let events = vec![Event::scaled(RECORD.id, &factors, None)];
        Ok(Some(Solved { symmetry: Symmetry::Diagonal(factors), events }))
    }
}

fn largest(all: &mut [f64], one: &[f64]) {
    all.iter_mut().zip(one).for_each(|(a, b)| *a = a.max(*b));
}

/// The record, for registries built by hand.
pub const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "weight-equalization",
    aliases: &["cle", "cross-layer-equalization"],
    phase: Phase::Transform,
    summary: "gives layers in a row the same range, channel by channel (weights only)",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    weight_only: true,
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options| built(Options::read(options)?, |options| WeightEqualization { options }),
};

qfw_core::register_algorithm!(RECORD);
