//! On models with random weights in f64: the function stays, the ranges become equal, and what cannot be is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use candle_core::{DType, Device, Tensor};
use qfw_core::algorithm::{Event, PlanContext, Producer, PtqAlgorithm, Reader, RegionContext, Solved, Stage};
use qfw_core::model::{Architecture, Dims, MapWeights, Nothing};
use qfw_core::registry::Registry;
use qfw_core::statistic::{Stats, Stream};
use qfw_core::topology::{Axis, Part, Region, Role, Symmetry, Topology, apply, logits};
use qfw_weight_equalization::RECORD;
use serde_json::{Value, json};

struct Tiny {
    architecture: &'static dyn Architecture,
    dims: Dims,
    topology: Topology,
    weights: MapWeights,
}

/// A model with rows and columns of very different size.
fn tiny(config: &Value) -> Tiny {
    let registry = Registry::builtin().unwrap();
    let architecture = registry.architecture(config["model_type"].as_str().unwrap()).unwrap();
    let dims = architecture.parse(config, &|_| false).unwrap();
    let topology = architecture.topology(&dims);
    let mut weights = MapWeights::default();
    let mut uniform = layer::numbers(3);
    for p in &topology.params {
        let n = p.shape.iter().product::<usize>();
        let cols = if p.shape.len() == 2 { p.shape[1] } else { 1 };
        let factor = |k: usize| if p.site.block.is_some() { (1 + k / cols % 5) as f64 / (cols as f64).sqrt() } else { 1.0 };
        let norm = matches!(p.site.role, Role::AttnNorm | Role::MlpNorm | Role::FinalNorm) && p.part == Part::Weight;
        let data: Vec<f64> = (0..n).map(|k| if norm { 1.0 + uniform() / 2.0 } else { 2.0 * uniform() * factor(k) }).collect();
        weights.insert(p.site, p.part, Tensor::from_vec(data, &p.shape[..], &Device::Cpu).unwrap());
    }
    Tiny { architecture, dims, topology, weights }
}

fn opt() -> Value {
    json!({
        "model_type": "opt", "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 24, "vocab_size": 31,
        "max_position_embeddings": 12, "tie_word_embeddings": false
    })
}

fn gpt2(activation: &str) -> Value {
    json!({
        "model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": 2, "vocab_size": 31, "n_positions": 12,
        "activation_function": activation, "tie_word_embeddings": false
    })
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 24, "vocab_size": 31, "max_position_embeddings": 12
    })
}

fn built(options: &Value) -> Box<dyn PtqAlgorithm> {
    (RECORD.build)(options).unwrap().0
}

impl Tiny {
    fn numbers(&self, site: qfw_core::topology::SiteId, part: Part) -> Vec<f32> {
        self.weights.find(site, part).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn solve(&self, region: &Region, options: &Value) -> Solved {
        let algorithm = built(options);
        let Stage::Transform(transform) = algorithm.stage() else { panic!("it transforms") };
        let linears: Vec<_> = region.consumers.iter().map(|s| self.topology.linear(s.site).unwrap()).collect();
        let weights: Vec<_> = linears.iter().map(|l| self.numbers(l.site, Part::Weight)).collect();
        let readers: Vec<Reader<'_>> = linears
            .iter()
            .zip(&weights)
            .map(|(linear, weight)| Reader { linear, weight, target: None, input: None, feeds_back: false })
            .collect();
        let producers = Producer::of(region, &self.topology, &self.weights).unwrap();
        let cx = RegionContext {
            region,
            readers: &readers,
            producers: &producers,
            stats: &Stats::default(),
            replay: None,
            stream: Stream::Quantized,
            seed: 0,
        };
        transform.solve(&cx).unwrap().unwrap()
    }

    /// The regions it works on, with what it finds for them fused in one after another.
    fn equalize(&mut self, options: &Value) -> Vec<Region> {
        let algorithm = built(options);
        let Stage::Transform(transform) = algorithm.stage() else { panic!("it transforms") };
        let regions: Vec<Region> =
            self.topology.regions.iter().filter(|r| transform.suits(r) && transform.by_default(r)).cloned().collect();
        for region in &regions {
            let solved = self.solve(region, options);
            assert!(matches!(&solved.events[..], [Event::Scaled { spread, error: None, .. }] if *spread > 1.0), "{}", region.id);
            apply(&solved.symmetry, region, &self.topology, &mut self.weights).unwrap();
        }
        regions
    }

    fn logits(&self) -> Vec<f64> {
        let ids: Vec<u32> = (0..12).map(|i| i * 7 % 31).collect();
        logits(self.architecture, &self.dims, &self.weights, &ids, &mut Nothing).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Largest magnitude of every channel, in what writes it (biases apart) and in what reads it.
    fn sides(&self, region: &Region) -> (Vec<f64>, Vec<f64>) {
        let (mut written, mut read) = (vec![0.0f64; region.width], vec![0.0f64; region.width]);
        for slot in region.producers.iter().chain(&region.consumers).filter(|s| s.part == Part::Weight) {
            let w = self.weights.find(slot.site, Part::Weight).unwrap();
            let w = match &slot.range {
                Some(range) => w.narrow(0, range.start, range.len()).unwrap(),
                None => w.clone(),
            };
            let w = if slot.axis == Axis::Columns { w.t().unwrap() } else { w };
            let w: Vec<Vec<f64>> = w.contiguous().unwrap().to_vec2().unwrap();
            let homes = region.homes(w.len()).unwrap();
            let side = if slot.axis == Axis::Columns { &mut read } else { &mut written };
            for (row, home) in w.iter().zip(homes) {
                side[home] = row.iter().fold(side[home], |m, x| m.max(x.abs()));
            }
        }
        (written, read)
    }
}

#[test]
fn the_function_stays_what_it_was() {
    for (config, regions) in [(opt(), 4), (gpt2("gelu_new"), 2), (gpt2("relu"), 4), (llama(), 4)] {
        for options in [json!({}), json!({ "scale-computation": "maxabs", "bias-shrinkage": "none" }), json!({ "bias-shrinkage": 0.5 })] {
            let mut model = tiny(&config);
            let before = model.logits();
            assert_eq!(model.equalize(&options).len(), regions, "{config}");
            let largest = before.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let change = model.logits().iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(change <= 1e-9 * largest, "{config}, {options}: {change:e} of {largest}");
        }
    }
}

#[test]
fn both_sides_reach_equally_far() {
    for config in [opt(), gpt2("relu"), llama()] {
        let mut model = tiny(&config);
        let regions = model.equalize(&json!({ "scale-computation": "maxabs", "bias-shrinkage": "none" }));
        for region in regions {
            let (written, read) = model.sides(&region);
            for (c, (w, r)) in written.iter().zip(&read).enumerate() {
                assert!((w / r - 1.0).abs() < 1e-6, "{} channel {c}: {w} and {r}", region.id);
            }
        }
    }
}

/// The formula with biases in it, once.
#[test]
fn a_bias_counts_to_the_range_of_its_row() {
    let model = tiny(&opt());
    let region = model.topology.regions.iter().find(|r| r.id == "blocks.0.mlp.hidden").unwrap();
    let Symmetry::Diagonal(factors) = model.solve(region, &json!({ "bias-shrinkage": 4, "iterations": 1 })).symmetry else {
        panic!("a scaling")
    };
    let up = model.numbers(region.producers[0].site, Part::Weight);
    let bias = model.numbers(region.producers[0].site, Part::Bias);
    let down = model.numbers(region.consumers[0].site, Part::Weight);
    for (c, f) in factors.iter().enumerate() {
        let span = |values: Vec<f64>| values.iter().fold(f64::MIN, |m, x| m.max(*x)) - values.iter().fold(f64::MAX, |m, x| m.min(*x));
        let mut row: Vec<f64> = up[c * 16..(c + 1) * 16].iter().map(|x| f64::from(*x)).collect();
        row.push(f64::from(bias[c]) / 4.0);
        let column = (0..16).map(|o| f64::from(down[o * 24 + c])).collect();
        let expected = span(column).sqrt() / span(row).sqrt();
        assert!((f / expected - 1.0).abs() < 1e-9, "channel {c}: {f} and {expected}");
    }
}

#[test]
fn channels_that_are_nothing_stay() {
    let mut model = tiny(&opt());
    let region = model.topology.regions.iter().find(|r| r.id == "blocks.0.mlp.hidden").unwrap().clone();
    for (slot, part) in [(&region.producers[0], Part::Weight), (&region.producers[0], Part::Bias)] {
        let old = model.weights.find(slot.site, part).unwrap();
        let keep: Vec<f64> = (0..24).map(|c| if c == 5 { 0.0 } else { 1.0 }).collect();
        let shape = if part == Part::Weight { vec![24, 1] } else { vec![24] };
        let new = old.broadcast_mul(&Tensor::from_vec(keep, shape, &Device::Cpu).unwrap()).unwrap();
        model.weights.insert(slot.site, part, new);
    }
    let Symmetry::Diagonal(factors) = model.solve(&region, &json!({})).symmetry else { panic!("a scaling") };
    assert_eq!(factors[5], 1.0);
    assert!(factors.iter().enumerate().all(|(c, f)| c == 5 || *f != 1.0));
}

#[test]
fn a_model_without_such_pairs_is_refused_with_what_it_has() {
    let needs = |topology: &Topology| {
        built(&json!({})).needs(&PlanContext { topology, sites: &[], weights: &[], inputs: &[], stream: Stream::Quantized })
    };
    let mut topology = tiny(&gpt2("gelu_new")).topology;
    assert!(needs(&topology).unwrap().inputs.is_empty());
    topology.regions.retain(|r| !r.id.ends_with("values"));
    let error = needs(&topology).unwrap_err();
    assert_eq!(error.to_string(), "`weight-equalization` finds no two layers in a row with nothing between them that a factor cannot pass");
    let hint = "regions of this model: attn.in, head.in, heads, mlp.hidden, mlp.in, residual; leave the pass out, or try `smoothquant`";
    assert_eq!(error.hint_text(), Some(hint));
    let error = needs(&Topology::default()).unwrap_err();
    assert!(error.hint_text().unwrap().starts_with("the architecture of this model is unknown"));
}
