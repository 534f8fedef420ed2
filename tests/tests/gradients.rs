//! Gradients of a block against finite differences in f64, on every fixture model, with rotations and without.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use qfw_core::Result;
use qfw_core::checkpoint::open_tensors;
use qfw_core::model::{self, Flow, MapWeights, Model, Nothing, Online, Span, WeightSource};
use qfw_core::numeric::{Factor, Matrix, Record, Traced, squared_error, walk_back, weight_gradient};
use qfw_core::registry::Registry;
use qfw_core::topology::{Linear, OnlineRotation, OnlineStep, Part, Place, PortName, Rotation, RotationKind, SiteId, Topology};
use serde_json::Value;

/// Long enough for two blocks of query rows.
const TOKENS: usize = 70;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.retain(|c| c.join("model.safetensors").exists());
    cases.sort();
    cases
}

fn opened(case: &Path) -> Model {
    let config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
    let registry = Registry::builtin().unwrap();
    let architecture = registry.architecture(model::model_type(&config).unwrap()).unwrap();
    let tensors = open_tensors(&case.join("model.safetensors")).unwrap();
    Model::new(architecture, &config, tensors, DType::F64, &Device::Cpu).unwrap()
}

/// Numbers without a pattern, around 0.
fn wave(shape: (usize, usize), frequency: f64, size: f64) -> Tensor {
    let values: Vec<f64> = (0..shape.0 * shape.1).map(|i| size * (i as f64 * frequency + 0.3).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// A block whose products are recorded, the products of other linears and everything else being frozen.
struct Source<'a> {
    weights: &'a MapWeights,
    traced: BTreeMap<SiteId, Traced>,
}

impl WeightSource for Source<'_> {
    fn get(&self, site: SiteId, part: Part) -> Result<Tensor> {
        self.weights.get(site, part)
    }

    fn matrix(&self, site: SiteId) -> Result<Matrix> {
        Ok(Matrix::Traced(self.traced[&site].clone()))
    }
}

struct Case<'a> {
    model: &'a Model,
    online: Online,
    linears: Vec<&'a Linear>,
    input: Tensor,
    target: Tensor,
}

impl Case<'_> {
    /// The loss of the first block, its products recorded in `record`, those of `trained` linears.
    fn loss(&self, weights: &MapWeights, record: &Arc<Record>, trained: &[usize]) -> Tensor {
        let traced = self.linears.iter().enumerate().map(|(i, l)| {
            let factor = Arc::new(Factor::new(weights.get(l.site, Part::Weight).unwrap(), None).unwrap());
            (l.site, Traced::new(factor, Arc::clone(record), trained.contains(&i).then_some(i)))
        });
        let source = Source { weights, traced: traced.collect() };
        let model = self.model;
        let block = self.online.in_block(0, model.architecture().block(&model.dims, 0, &source).unwrap(), &source).unwrap();
        let out = block.run(Span::BLOCK, Flow::new(self.input.clone()), &mut Nothing).unwrap().x;
        squared_error(&out, &self.target, 7.0).unwrap()
    }

    fn value(&self, weights: &MapWeights) -> f64 {
        let record = Arc::new(Record::new(self.linears.len()).unwrap());
        self.loss(weights, &record, &[]).to_scalar::<f64>().unwrap()
    }

    /// The largest difference between a derivative along a direction and its difference quotient, relative to the larger of both.
    fn check(&self, weights: &MapWeights, trained: &[usize]) -> f64 {
        let record = Arc::new(Record::new(self.linears.len()).unwrap());
        walk_back(|| Ok(self.loss(weights, &record, trained))).unwrap();
        let mut worst = 0.0f64;
        for i in trained {
            let (site, (o, n)) = (self.linears[*i].site, self.linears[*i].shape);
            let mut gradient = vec![0.0f64; o * n];
            weight_gradient(std::slice::from_ref(&record), *i, 0..o, &mut gradient, true).unwrap();
            let direction = wave((o, n), 0.7, 1.0);
            let slope: f64 = direction.flatten_all().unwrap().to_vec1::<f64>().unwrap().iter().zip(&gradient).map(|(d, g)| d * g).sum();
            let at = |step: f64| {
                let mut moved = weights.clone();
                let old = weights.get(site, Part::Weight).unwrap();
                moved.insert(site, Part::Weight, (old + (&direction * step).unwrap()).unwrap());
                self.value(&moved)
            };
            const STEP: f64 = 1e-5;
            let quotient = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert!(quotient.abs() > 1e-7, "{site}: nothing depends on it ({quotient})");
            worst = worst.max((slope - quotient).abs() / slope.abs().max(quotient.abs()));
        }
        worst
    }
}

fn with_case(path: &Path, steps: &[OnlineStep], check: impl Fn(&Case<'_>, &MapWeights)) {
    let model = opened(path);
    let mut weights = MapWeights::default();
    let mut topology = Topology::clone(&model.topology);
    topology.doing(steps, model.dims.head_dim).unwrap();
    let online = Online::new(steps, &topology).unwrap();
    for p in topology.block_params(0).filter(|p| p.part == Part::Multiplier) {
        weights.insert(p.site, p.part, (wave((1, p.shape[0]), 1.1, 0.5).squeeze(0).unwrap() + 1.5).unwrap());
    }
    for p in model.topology.block_params(0) {
        weights.insert(p.site, p.part, model.weights.get(p.site, p.part).unwrap());
    }
    let linears: Vec<&Linear> = model.topology.linears.iter().filter(|l| l.site.block == Some(0)).collect();
    let tokens = TOKENS.min(model.dims.max_positions);
    let shape = (tokens, model.dims.hidden);
    check(&Case { model: &model, online, linears, input: wave(shape, 1.3, 1.0), target: wave(shape, 0.9, 2.0) }, &weights);
}

#[test]
fn every_weight_of_every_architecture() {
    for path in cases() {
        with_case(&path, &[], |case, weights| {
            let all: Vec<usize> = (0..case.linears.len()).collect();
            let worst = case.check(weights, &all);
            assert!(worst < 1e-6, "{}: {worst}", path.display());
            // Alone, the first and the last: what is frozen still passes gradients on.
            for one in [0, all.len() - 1] {
                let worst = case.check(weights, &[one]);
                assert!(worst < 1e-6, "{}, {} alone: {worst}", path.display(), case.linears[one].site);
            }
        });
    }
}

#[test]
fn through_rotations_and_multipliers_on_the_way() {
    for path in cases().into_iter().filter(|p| p.ends_with("llama-base") || p.ends_with("gpt2-base")) {
        let dims = opened(&path).dims;
        for kind in [RotationKind::Hadamard, RotationKind::Orthogonal] {
            let place = |port: PortName| Place { block: Some(0), port: port.into() };
            let at = |port: PortName, size| {
                let rotation = Rotation { kind, size, seed: 3, keeps_mean: false };
                OnlineStep::Rotation(OnlineRotation { place: place(port), rotation, padded_from: None })
            };
            let multiplied = [PortName::MlpIn, PortName::DownIn].map(|port| OnlineStep::Multiplier(place(port)));
            let rotated = [at(PortName::DownIn, 4), at(PortName::QRope, dims.head_dim), at(PortName::KRope, dims.head_dim)];
            with_case(&path, &[&rotated[..], &multiplied[..]].concat(), |case, weights| {
                let worst = case.check(weights, &(0..case.linears.len()).collect::<Vec<_>>());
                assert!(worst < 1e-6, "{}, {kind:?}: {worst}", path.display());
            });
        }
    }
}

#[test]
fn a_weight_that_takes_no_part_is_an_error() {
    let record = Arc::new(Record::new(1).unwrap());
    let nothing = weight_gradient(&[record], 0, 0..1, &mut [0.0f64], true);
    assert!(nothing.unwrap_err().to_string().contains("takes part in nothing that the loss depends on"));
}
