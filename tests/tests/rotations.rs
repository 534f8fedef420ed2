//! What the prelude tells methods that learn rotations: gradients against difference quotients, through whole models of every architecture.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, BuiltAlgorithm, LearnRotations, Learning, ModelContext, ModelTransform, Needs, Objective, Phase, PlanContext,
    PtqAlgorithm, RotationsContext, Stage,
};
use qfw_core::harness::{Control, Mode};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::Session;
use qfw_core::topology::{Rewrite, RotationKind};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// The rotations of `spinquant`, and instead of learning a look at the gradients.
struct Probe {
    inner: Box<dyn PtqAlgorithm>,
    objective: Objective,
}

impl PtqAlgorithm for Probe {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs { network: 4, ..Needs::default() })
    }
    fn stage(&self) -> Stage<'_> {
        Stage::ModelTransform(self)
    }
}

impl ModelTransform for Probe {
    fn rewrites(&self, cx: &ModelContext<'_>) -> Result<Vec<Rewrite>> {
        let Stage::ModelTransform(inner) = self.inner.stage() else { panic!("rotations change the whole model") };
        let steps = inner.rewrites(cx)?;
        // Of no particular size, and with nothing in it that a mistake could leave alone.
        let orthogonal = |step| match step {
            Rewrite::Rotate { region, mut rotation, .. } => {
                rotation.kind = RotationKind::Orthogonal;
                Rewrite::Rotate { region, rotation, learned: true }
            }
            other => other,
        };
        Ok(steps.into_iter().map(orthogonal).collect())
    }
    fn learns(&self) -> Option<&dyn LearnRotations> {
        Some(self)
    }
}

/// Numbers without a pattern, around 0.
fn wave(n: usize, frequency: f64) -> Vec<f64> {
    (0..n).map(|i| (i as f64 * frequency + 0.3).sin()).collect()
}

impl LearnRotations for Probe {
    fn objective(&self) -> Objective {
        self.objective
    }
    fn steps(&self) -> usize {
        1
    }
    fn learn(&self, cx: &RotationsContext<'_>) -> Result<(Vec<Vec<f64>>, Learning)> {
        let starts: Vec<Vec<f64>> = cx.starts.iter().map(|s| s.matrix.clone()).collect();
        let plain = |m: &[Vec<f64>]| m.iter().map(|m| m.iter().map(|x| *x as f32).collect()).collect::<Vec<Vec<f32>>>();
        let all: Vec<usize> = (0..cx.training.windows()).collect();
        let (loss, gradients) = cx.training.gradients(&all, plain(&starts))?;
        assert!((loss - cx.training.loss(&all, plain(&starts))?).abs() < 1e-5 * loss);
        for (nth, start) in cx.starts.iter().enumerate() {
            for frequency in [0.7, 1.9] {
                let direction = wave(start.size * start.size, frequency);
                let slope: f64 = direction.iter().zip(&gradients[nth]).map(|(d, g)| d * f64::from(*g)).sum();
                // What a direction without relation to the gradient has for a slope, give or take: ‖G‖·‖D‖/n.
                let norm = |x: f64| x.sqrt() / (start.size as f64).sqrt();
                let size = norm(gradients[nth].iter().map(|g| f64::from(*g).powi(2)).sum()) * norm(direction.iter().map(|d| d * d).sum());
                let at = |step: f64| {
                    let mut moved = starts.clone();
                    moved[nth].iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                    cx.training.loss(&all, plain(&moved))
                };
                // Narrower, and the rounding of f32 shows; wider, and kinks and curvature do.
                const STEP: f64 = 1e-3;
                let quotient = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
                let region = &start.region;
                assert!((slope - quotient).abs() < 0.04 * size, "{region} along {frequency}: {slope} for {quotient}, of {size}");
            }
        }
        Ok((starts, Learning { initial: loss, reached: loss, steps: 0, curve: vec![loss] }))
    }
}

fn build(objective: Objective) -> Result<BuiltAlgorithm> {
    let (inner, options) = (qfw_spinquant::RECORD.build)(&json!({ "matrix": "orthogonal" }))?;
    Ok((Box::new(Probe { inner, objective }), options))
}

const NETWORK: AlgorithmRecord = AlgorithmRecord {
    id: "probe",
    aliases: &[],
    phase: Phase::Transform,
    summary: "for a test",
    version: "0",
    source: "test",
    weight_only: false,
    schema: || json!({}),
    build: |_| build(Objective::Network { weights: false }),
};

/// Runs a model with 16-bit inputs, whose rounding no difference quotient here sees.
fn probe(model: &Path, dir: &Path) -> Value {
    static RECORDS: [AlgorithmRecord; 1] = [NETWORK];
    let mut registry = Registry::builtin().unwrap();
    registry.add_algorithm(&RECORDS[0]).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap();
    let ids: Vec<u8> = (0..3 * 20u64).flat_map(|i| ((i * i * 31 + 7 * i) % vocab).to_le_bytes()).collect();
    let file = dir.join("ids.safetensors");
    let view = TensorView::new(Dtype::I64, vec![3, 20], &ids).unwrap();
    safetensors::serialize_to_file(BTreeMap::from([("input_ids", view)]), None, &file).unwrap();
    let inputs: toml::Value = toml::from_str("format = 'int16'\ngranularity = 'token'").unwrap();
    let (raw, _) = Layers::new()
        .algo(&["probe"])
        .set("model.path", model.display().to_string(), "test")
        .set("scheme.weights", "keep", "test")
        .set("scheme.inputs", inputs, "test")
        .set("calibration.source", file.display().to_string(), "test")
        .set("harness.products", "f32", "test")
        .set("output.format", toml::Value::Array(vec!["qfw".into()]), "test")
        .finish()
        .unwrap();
    let session = Session::open(raw, &registry, true).unwrap();
    let never = AtomicBool::new(false);
    let out = dir.join("out");
    session.execute(&registry, &out, Mode::Fresh, &Control::new(&|_| (), &never)).unwrap();
    serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap()
}

#[test]
fn gradients_of_rotations_are_those_of_the_loss_in_every_architecture() {
    for case in [
        "llama-base",
        "llama-biases",
        "llama-mqa",
        "llama-head-dim",
        "llama-tied",
        "mistral-sliding",
        "qwen2-base",
        "qwen3-base",
        "gpt2-base",
        "gpt2-untied",
        "opt-base",
        "opt-no-bias",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(case);
        let record = probe(&model, dir.path());
        assert_eq!(record["rotations"]["algo"], "probe", "{case}");
    }
}
