//! The cases of transforms: every region of a small random model that they work on. What they find is applied by core, in f64, and the
//! model has to compute what it did.

use std::sync::Arc;

use qfw_core::algorithm::{Producer, PtqAlgorithm, Reader, RegionContext, Stage};
use qfw_core::candle::DType;
use qfw_core::model::{Architecture, Dims, MapWeights, Nothing};
use qfw_core::numeric::{uniform_below, uniform_u64};
use qfw_core::registry::Registry;
use qfw_core::statistic::{CrossGram, Gram, Stat, StatKey, StatKind, Stats, Stream};
use qfw_core::topology::{Linear, Part, Region, Space, Symmetry, Topology, apply, logits, random_weights, untie};
use qfw_core::{Error, Result};
use serde_json::json;

use super::{Outcome, Try};

/// Names of the cases.
pub(super) const CASES: [&str; 5] = ["behind-a-norm", "values", "hidden", "same-twice", "whole-model"];

/// How much logits may differ, relative to the largest.
const TOLERANCE: f64 = 1e-9;

/// A model of two blocks with grouped keys and values, all of it drawn from the seed.
struct Place {
    architecture: &'static dyn Architecture,
    dims: Dims,
    topology: Topology,
    weights: MapWeights,
    seed: u64,
}

impl Place {
    fn new(seed: u64) -> Result<Self> {
        let architecture = Registry::builtin()?.architecture("llama")?;
        let config = json!({
            "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 32, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
        });
        let dims = architecture.parse(&config, &|_| false)?;
        let mut topology = architecture.topology(&dims);
        let mut weights = random_weights(&topology, seed)?;
        untie(&mut topology, &mut weights);
        Ok(Self { architecture, dims, topology, weights, seed })
    }

    /// The logits of a few tokens.
    fn logits(&self, weights: &MapWeights) -> Result<Vec<f64>> {
        let ids: Vec<u32> = (0..12).map(|i| uniform_below(&[self.seed, 7, i], 32) as u32).collect();
        let found = logits(self.architecture, &self.dims, weights, &ids, &mut Nothing)?;
        Ok(found.flatten_all()?.to_vec1()?)
    }

    /// Every statistic it might ask for, of made-up inputs with channels of very different size.
    fn stats(&self, linear: &Linear, asked: &[(StatKind, Stream)]) -> Stats {
        let n = linear.shape.1;
        let size = |i: usize| 0.1 + (uniform_u64(&[self.seed, 6, i as u64]) % 1000) as f64 / 50.0;
        let diagonal = || (0..n * n).map(|i| if i / n == i % n { (64.0 * size(i / n).powi(2)) as f32 } else { 0.0 }).collect();
        let mut stats = Stats::default();
        for (kind, stream) in asked {
            let stat = match kind {
                StatKind::Gram => Stat::Gram(Arc::new(Gram::new(n, diagonal(), 64))),
                StatKind::CrossGram => Stat::CrossGram(Arc::new(CrossGram::new(n, diagonal(), 64))),
                StatKind::Least => Stat::Channels((0..n).map(|i| -size(i)).collect()),
                _ => Stat::Channels((0..n).map(size).collect()),
            };
            stats.insert(StatKey { port: linear.input, kind: *kind, stream: *stream }, stat);
        }
        stats
    }

    /// What it finds for a region as the weights stand; `None` where it leaves the region alone.
    fn solve(&self, algorithm: &dyn PtqAlgorithm, region: &Region, weights: &MapWeights) -> Result<Option<Symmetry>> {
        let Stage::Transform(stage) = algorithm.stage() else {
            return Err(Error::plan("plan::unsupported", "it rewrites the whole model: the kit has only regions"));
        };
        if !region.may_be_scaled() || !stage.suits(region) {
            return Ok(None);
        }
        let linears: Vec<&Linear> = region.consumers.iter().filter_map(|slot| self.topology.linear(slot.site)).collect();
        let Some(first) = linears.first() else { return Ok(None) };
        let cx =
            qfw_core::algorithm::PlanContext { topology: &self.topology, sites: &[], weights: &[], inputs: &[], stream: Stream::Quantized };
        let needs = algorithm.needs(&cx)?;
        if needs.replay {
            return Err(Error::plan("plan::unsupported", "it runs parts of the model again: the kit has none to run"));
        }
        let numbers = |linear: &Linear| -> Result<Vec<f32>> {
            let weight = weights.find(linear.site, Part::Weight).ok_or_else(|| Error::internal("a layer without a weight"))?;
            Ok(weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        let read = linears.iter().map(|l| numbers(l)).collect::<Result<Vec<_>>>()?;
        let readers = linears.iter().zip(&read).map(|(linear, weight)| Reader { linear, weight, target: None, input: None });
        let readers: Vec<Reader<'_>> = readers.collect();
        let producers = if stage.reads_producers() { Producer::of(region, &self.topology, weights)? } else { Vec::new() };
        let (stats, stream, seed) = (self.stats(first, &needs.inputs), Stream::Quantized, self.seed);
        let cx = RegionContext { region, readers: &readers, producers: &producers, stats: &stats, replay: None, stream, seed };
        let Some(solved) = stage.solve(&cx)? else { return Ok(None) };
        solved.symmetry.validate(region)?;
        Ok(Some(solved.symmetry))
    }
}

/// Its numbers, bit by bit.
fn bits(symmetry: &Symmetry) -> Result<Vec<u64>> {
    Ok(match symmetry {
        Symmetry::Diagonal(factors) => factors.iter().map(|f| f.to_bits()).collect(),
        Symmetry::Permutation(p) => p.iter().map(|i| u64::from(*i)).collect(),
        Symmetry::Orthogonal(r) => r.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect(),
    })
}

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    let (algorithm, place) = (on.instance()?, Place::new(on.seed)?);
    let wanted: &[Space] = match name {
        "behind-a-norm" => &[Space::AttnIn, Space::MlpIn],
        "values" => &[Space::Values],
        "hidden" => &[Space::MlpHidden],
        // A run asks for those that linears of one block read.
        _ => &[Space::AttnIn, Space::MlpIn, Space::Values, Space::MlpHidden],
    };
    let expected = place.logits(&place.weights)?;
    let (mut weights, mut found) = (place.weights.clone(), 0);
    for region in place.topology.regions.iter().filter(|r| wanted.contains(&r.space)) {
        let Some(symmetry) = place.solve(&*algorithm, region, &weights)? else { continue };
        let again = if name == "same-twice" { place.solve(&*algorithm, region, &weights)? } else { None };
        if name == "same-twice" && again.map(|again| bits(&again)).transpose()? != Some(bits(&symmetry)?) {
            return Ok(Outcome::Failed(format!("the same `{}` gives other factors", region.id)));
        }
        found += 1;
        apply(&symmetry, region, &place.topology, &mut weights)?;
    }
    if found == 0 {
        return Ok(Outcome::Skipped("it leaves such regions alone".to_owned()));
    }
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let worst = expected.iter().zip(place.logits(&weights)?).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    Ok(if worst <= TOLERANCE * largest {
        Outcome::Success
    } else {
        Outcome::Failed(format!("after it, logits are {worst:.1e} away from those of the model, of {largest:.1}"))
    })
}
