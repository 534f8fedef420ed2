//! A small random model, for what works on the channels between layers.

use qfw_core::algorithm::{PlanContext, Producer, PtqAlgorithm, Reader, RegionContext, Stage};
use qfw_core::candle::DType;
use qfw_core::model::{Architecture, Dims, MapWeights, Nothing};
use qfw_core::numeric::{uniform_below, uniform_u64};
use qfw_core::registry::Registry;
use qfw_core::scheme::{Granularity, QuantSpec};
use qfw_core::statistic::{Stats, Stream};
use qfw_core::topology::{Linear, Part, Region, Space, Symmetry, Topology, logits, random_weights, untie};
use qfw_core::{Error, Result};
use serde_json::json;

use super::Kind;
use super::sample::{Target, collect, fingerprint, uniform};
use super::shapes::contained;
use crate::contract::violation;

/// What is special about the model that is made.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) seed: u64,
    /// Of the inputs.
    pub(super) kind: Kind,
    /// What the readers of regions become; groups of so many columns, 0: rows.
    pub(super) format: &'static str,
    pub(super) group: u32,
    /// Layers are so many times as wide.
    pub(super) width: usize,
}

impl Setting {
    pub(super) fn plain(seed: u64) -> Self {
        Self { seed, kind: Kind::Plain, format: "int4", group: 8, width: 1 }
    }
}

/// A model of two blocks with grouped keys and values, all of it drawn from the seed.
pub(super) struct Model {
    setting: Setting,
    architecture: &'static dyn Architecture,
    dims: Dims,
    pub(super) topology: Topology,
    pub(super) weights: MapWeights,
    target: Target,
}

impl Model {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let registry = Registry::builtin()?;
        let architecture = registry.architecture("llama")?;
        let Setting { seed, width, format, group, .. } = setting;
        let config = json!({
            "model_type": "llama", "hidden_size": 24 * width, "intermediate_size": 40 * width, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6 * width, "vocab_size": 32, "max_position_embeddings": 32,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
        });
        let dims = architecture.parse(&config, &|_| false)?;
        let mut topology = architecture.topology(&dims);
        let mut weights = random_weights(&topology, seed)?;
        untie(&mut topology, &mut weights);
        let granularity = if group == 0 { Granularity::channel() } else { Granularity::group(group) };
        let target = Target::of(&registry, format, granularity)?;
        Ok(Self { setting, architecture, dims, topology, weights, target })
    }

    /// The logits of a few tokens.
    pub(super) fn logits(&self, weights: &MapWeights) -> Result<Vec<f64>> {
        let ids: Vec<u32> = (0..12).map(|i| uniform_below(&[self.setting.seed, 7, i], 32) as u32).collect();
        let found = logits(self.architecture, &self.dims, weights, &ids, &mut Nothing)?;
        Ok(found.flatten_all()?.to_vec1()?)
    }

    /// The regions of some spaces.
    pub(super) fn regions<'a>(&'a self, spaces: &'a [Space]) -> impl Iterator<Item = &'a Region> {
        self.topology.regions.iter().filter(|r| spaces.contains(&r.space))
    }

    /// Made-up inputs of `n` channels of very different size, row-major `[tokens, n]`.
    fn inputs(&self, n: usize) -> Vec<f64> {
        let Setting { seed, kind, .. } = self.setting;
        let tokens = if kind == Kind::RankDeficient { n.div_ceil(4) } else { 64 };
        let size = |i: usize| match kind {
            Kind::ZeroColumn if i == 0 => 0.0,
            Kind::Outlier if i == n / 2 => 20_000.0,
            _ => 0.1 + (uniform_u64(&[seed, 6, i as u64]) % 1000) as f64 / 50.0,
        };
        (0..tokens * n).map(|i| size(i % n) * uniform(&[seed, 8, i as u64])).collect()
    }

    /// What it finds for a region as the weights stand; `None` where it leaves the region alone. With `poison`, inputs and weights hold
    /// what is no number.
    ///
    /// # Errors
    /// The algorithm's own, and how it breaks the contract.
    pub(super) fn solve(
        &self,
        algorithm: &dyn PtqAlgorithm,
        region: &Region,
        weights: &MapWeights,
        poison: bool,
    ) -> Result<Option<Symmetry>> {
        contained(|| self.solved(algorithm, region, weights, poison))
    }

    fn solved(&self, algorithm: &dyn PtqAlgorithm, region: &Region, weights: &MapWeights, poison: bool) -> Result<Option<Symmetry>> {
        let Stage::Transform(stage) = algorithm.stage() else {
            return Err(Error::plan("plan::unsupported", "it rewrites the whole model: the kit has only regions"));
        };
        if !region.may_be_scaled() || !stage.suits(region) {
            return Ok(None);
        }
        let linears: Vec<&Linear> = region.consumers.iter().filter_map(|slot| self.topology.linear(slot.site)).collect();
        let Some(first) = linears.first() else { return Ok(None) };
        let specs: Vec<&QuantSpec> = linears.iter().map(|_| &self.target.spec).collect();
        let inputs: Vec<Option<&QuantSpec>> = linears.iter().map(|_| None).collect();
        let stream = Stream::Quantized;
        let cx = PlanContext { topology: &self.topology, sites: &linears, weights: &specs, inputs: &inputs, stream };
        let needs = algorithm.needs(&cx)?;
        if needs.replay {
            return Err(Error::plan("plan::unsupported", "it runs parts of the model again: the kit has none to run"));
        }
        let numbers = |linear: &Linear| -> Result<Vec<f32>> {
            let weight = weights.find(linear.site, Part::Weight).ok_or_else(|| Error::internal("a layer without a weight"))?;
            Ok(weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        let mut read = linears.iter().map(|l| numbers(l)).collect::<Result<Vec<_>>>()?;
        let mut inputs = self.inputs(first.shape.1);
        if poison {
            (read[0][1], inputs[1]) = (f32::NAN, f64::INFINITY);
        }
        let mut stats = Stats::default();
        collect(&mut stats, first.input, &inputs, first.shape.1, &needs.inputs);
        let lent = read.clone();
        let target = || Some((&self.target.spec, &*self.target.observer));
        let readers =
            linears.iter().zip(&lent).map(|(linear, weight)| Reader { linear, weight, target: target(), input: None, feeds_back: false });
        let readers: Vec<Reader<'_>> = readers.collect();
        let producers = if stage.reads_producers() { Producer::of(region, &self.topology, weights)? } else { Vec::new() };
        let seed = self.setting.seed;
        let cx = RegionContext { region, readers: &readers, producers: &producers, stats: &stats, replay: None, stream, seed };
        let before = fingerprint(&stats, first.input, &needs.inputs);
        let solved = stage.solve(&cx);
        unwritten(&read, &lent, before == fingerprint(&stats, first.input, &needs.inputs))?;
        let Some(solved) = solved? else { return Ok(None) };
        solved.symmetry.validate(region)?;
        Ok(Some(solved.symmetry))
    }
}

/// Refuses what has changed what it was lent.
fn unwritten(were: &[Vec<f32>], are: &[Vec<f32>], same_statistics: bool) -> Result<()> {
    let same = |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    if !were.iter().zip(are).all(same) {
        return Err(violation("it wrote to the weight that it was lent".to_owned()));
    }
    if !same_statistics {
        return Err(violation("it wrote to a statistic that it was lent".to_owned()));
    }
    Ok(())
}
