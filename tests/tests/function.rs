//! Transforms of the whole model leave what it computes alone: every one, alone and stacked, on every fixture model.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its fixtures has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use qfw_core::algorithm::{ModelContext, Stage};
use qfw_core::checkpoint::{Rewritten, open_tensors};
use qfw_core::model::{self, Architecture, Dims, Flow, MapWeights, Model, Nothing, Online, Span};
use qfw_core::numeric::linear;
use qfw_core::registry::Registry;
use qfw_core::topology::{
    Linear, OnlineRotation, OnlineStep, Part, Place, PortName, Rewrite, Rewriting, Rotation, RotationKind, SiteId, Space, Symmetry,
    Topology, apply, rewrite, untie,
};
use qfw_core::{Error, Result};
use serde_json::{Value, json};

const IDS: [u32; 11] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5];

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    cases
}

fn opened(case: &Path, config: &Value, dtype: DType) -> Model {
    let registry = Registry::builtin().unwrap();
    let architecture = registry.architecture(model::model_type(config).unwrap()).unwrap();
    let tensors = open_tensors(&case.join("model.safetensors")).unwrap();
    Model::new(architecture, config, tensors, dtype, &Device::Cpu).unwrap()
}

/// The steps of a pass over a model of which everything is rounded.
fn steps(topology: &Topology, dims: &Dims, options: &Value) -> Vec<Rewrite> {
    let (algorithm, _) = (qfw_spinquant::RECORD.build)(options).unwrap();
    let Stage::ModelTransform(transform) = algorithm.stage() else { panic!("it transforms the model") };
    let linears: Vec<&Linear> = topology.linears.iter().collect();
    transform.rewrites(&ModelContext { topology, linears: &linears, head_dim: dims.head_dim, seed: 1 }).unwrap()
}

fn rotations(steps: &[Rewrite]) -> Vec<OnlineRotation> {
    let of = |s: &Rewrite| match s {
        Rewrite::Online(online) => Some(online.clone()),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

fn online(steps: &[Rewrite], topology: &Topology) -> Online {
    Online::new(&carried_out(steps), topology).unwrap()
}

fn carried_out(steps: &[Rewrite]) -> Vec<OnlineStep> {
    rotations(steps).into_iter().map(OnlineStep::Rotation).collect()
}

/// All logits of a model whose weights lie in memory, with rotations and multipliers on the way.
fn logits(architecture: &dyn Architecture, dims: &Dims, weights: &MapWeights, online: &Online) -> Vec<f64> {
    let run = || -> Result<_> {
        let edges = online.at_edges(architecture.edges(dims, Arc::new(weights.clone()))?, weights)?;
        let mut flow = edges.embed(&IDS, 0, &mut Nothing)?;
        for b in 0..dims.blocks as u32 {
            let block = online.in_block(b, architecture.block(dims, b, weights)?, weights)?;
            flow = block.run(Span::BLOCK, Flow::new(flow.x), &mut Nothing)?;
        }
        linear(&edges.finish(flow, &mut Nothing)?, &edges.head_rows(0..edges.vocab())?, None)
    };
    run().unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

/// The weights of a model in f64, the head with a tensor of its own, and what it is made of then.
fn in_memory(model: &Model) -> (Topology, Dims, MapWeights) {
    let mut weights = MapWeights::default();
    for p in &model.topology.params {
        use qfw_core::model::WeightSource;
        weights.insert(p.site, p.part, model.weights.get(p.site, p.part).unwrap());
    }
    let (mut topology, mut dims) = ((*model.topology).clone(), model.dims.clone());
    untie(&mut topology, &mut weights);
    dims.tied_head = false;
    (topology, dims, weights)
}

/// What is done, and with what options of `spinquant`; folding comes first where there is a rotation of the residual stream.
fn stacks() -> Vec<(&'static str, Vec<Rewrite>, Value)> {
    let fold = || vec![Rewrite::FoldNorms];
    vec![
        ("r1, hadamard", fold(), json!({ "rotations": ["r1"], "matrix": "hadamard" })),
        ("r1, randomized", fold(), json!({ "rotations": ["r1"] })),
        ("r1, orthogonal", fold(), json!({ "rotations": ["r1"], "matrix": "orthogonal" })),
        ("r2", vec![], json!({ "rotations": ["r2"] })),
        ("r3", vec![], json!({ "rotations": ["r3"] })),
        ("r4", vec![], json!({ "rotations": ["r4"] })),
        ("r4 in pieces", vec![], json!({ "rotations": ["r4"], "online-block": 4 })),
        ("orphans", fold(), json!({ "rotations": ["r1"], "orphan-sink": true })),
        ("layerwise", vec![], json!({ "mode": "layerwise" })),
        ("wider", fold(), json!({ "rotations": ["r1"], "expand": ["mlp.down"], "expansion-step": 2, "orphan-sink": true })),
        ("everything", fold(), json!({ "rotations": ["r1", "r2", "r3", "r4"], "matrix": "orthogonal" })),
    ]
}

#[test]
fn logits_stay_what_they_were_in_f64() {
    let mut seen = BTreeSet::new();
    for case in cases() {
        let config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
        if !case.join("model.safetensors").exists() {
            continue;
        }
        let model = opened(&case, &config, DType::F64);
        let (topology, dims, weights) = in_memory(&model);
        let before = logits(model.architecture(), &dims, &weights, &Online::default());
        let mut canonical = vec![("norms folded", vec![Rewrite::FoldNorms])];
        if topology.layer_norm {
            canonical.push(("centred", vec![Rewrite::CenterResidual]));
            canonical.push(("centred and folded", vec![Rewrite::CenterResidual, Rewrite::FoldNorms]));
        }
        let rotated = stacks().into_iter().map(|(what, mut first, options)| {
            first.extend(steps(&topology, &dims, &options));
            (what, first)
        });
        for (what, steps) in canonical.into_iter().chain(rotated) {
            let mut after = weights.clone();
            rewrite(&topology, &steps, &mut after).unwrap();
            let error = distance(&before, &logits(model.architecture(), &dims, &after, &online(&steps, &topology)));
            assert!(error <= 1e-9, "{}: {what}: {error:.1e}", case.display());
            // It did something, and what runs online is missed where it is left out.
            let changed = |site: &(SiteId, Part)| weights.find(site.0, site.1).unwrap().id() != after.find(site.0, site.1).unwrap().id();
            assert!(what == "r3" || weights.iter().any(|(site, _)| changed(site)), "{what} changed nothing");
            if ["r4", "layerwise", "orphans"].contains(&what) {
                let error = distance(&before, &logits(model.architecture(), &dims, &after, &Online::default()));
                assert!(error >= 1e-3, "{}: without the rotations of {what}: {error:.1e}", case.display());
            }
        }
        seen.insert(model.architecture_id());
    }
    let known: BTreeSet<&str> = model::BUILTIN.iter().map(|r| r.id).collect();
    assert_eq!(seen, known, "an architecture without a fixture");
}

/// Multipliers, and a scaling fused into them and into what reads them, behind online rotations and without: at every place that linears
/// of blocks read.
#[test]
fn what_is_multiplied_is_divided_by_who_reads_it() {
    for case in cases().into_iter().filter(|c| c.join("model.safetensors").exists()) {
        let config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
        let model = opened(&case, &config, DType::F64);
        let (topology, dims, weights) = in_memory(&model);
        let before = logits(model.architecture(), &dims, &weights, &Online::default());
        for rotations in [vec![], steps(&topology, &dims, &json!({ "rotations": ["r4"] }))] {
            let (mut after, mut now) = (topology.clone(), weights.clone());
            rewrite(&topology, &rotations, &mut now).unwrap();
            let mut all = carried_out(&rotations);
            for b in 0..topology.blocks {
                let ports = [PortName::AttnIn, PortName::Ctx, PortName::MlpIn, PortName::DownIn];
                all.extend(ports.map(|p| OnlineStep::Multiplier(Place { block: Some(b), port: p.into() })));
            }
            after.doing(&all, dims.head_dim).unwrap();
            for p in after.params.iter().filter(|p| p.part == Part::Multiplier) {
                now.insert(p.site, p.part, Tensor::ones(p.shape.as_slice(), DType::F64, &Device::Cpu).unwrap());
            }
            let run = |weights: &MapWeights, steps| logits(model.architecture(), &dims, weights, &Online::new(steps, &after).unwrap());
            // Ones change nothing at all.
            let plain: Vec<OnlineStep> = all.iter().filter(|s| s.rotation().is_some()).cloned().collect();
            assert_eq!(run(&now, &plain), run(&now, &all), "{}", case.display());
            for region in after.regions.iter().filter(|r| r.space == Space::Multiplied) {
                let factors = (0..region.width).map(|i| 2f64.powf((i as f64 * 1.7).sin() * 3.0)).collect();
                apply(&Symmetry::Diagonal(factors), region, &after, &mut now).unwrap();
            }
            let error = distance(&before, &run(&now, &all));
            assert!(error <= 1e-9, "{}: {error:.1e}", case.display());
            let error = distance(&before, &run(&now, &plain));
            assert!(error >= 1e-3, "{}: without the multipliers: {error:.1e}", case.display());
        }
    }
}

/// The same through the tensors as a run reads them: rows at a time, in the layout they are stored in, and in their types.
#[test]
fn tensors_are_rewritten_as_they_are_read() {
    for case in cases().into_iter().filter(|c| c.join("model.safetensors").exists()) {
        let mut config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
        let model = opened(&case, &config, DType::F32);
        if model.dims.tied_head {
            continue;
        }
        config["tie_word_embeddings"] = json!(false);
        let topology = (*model.topology).clone();
        let mut steps_ = vec![Rewrite::FoldNorms];
        let widened = case.ends_with("llama-biases") || case.ends_with("gpt2-untied");
        let down =
            if widened { json!({ "rotations": ["r1", "r2"], "expand": ["mlp.down"] }) } else { json!({ "rotations": ["r1", "r2", "r4"] }) };
        steps_.extend(steps(&topology, &model.dims, &down));
        // As if everything was to become codes: all that changes is shown in f32.
        let codes: BTreeSet<String> = topology.params.iter().map(|p| p.tensor.clone()).collect();
        let rewriting = Rewriting::new(&topology, &steps_).unwrap();
        let rotations = rotations(&steps_);
        let mut wide = topology.clone();
        rotations.iter().for_each(|o| wide.widen(o).unwrap());
        assert_eq!(wide.linears.iter().map(|l| l.shape.1).sum::<usize>() > topology.linears.iter().map(|l| l.shape.1).sum(), widened);
        let stored = open_tensors(&case.join("model.safetensors")).unwrap();
        let tensors = Rewritten::new(stored, &topology, &wide, rewriting, &codes).unwrap();
        let after =
            Model::doing(model.architecture(), &config, Arc::new(tensors), DType::F32, &Device::Cpu, &carried_out(&steps_)).unwrap();
        let of = |m: &Model| -> Vec<f64> {
            let t = qfw_core::evaluate::logits(m, &IDS).unwrap();
            t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let error = distance(&of(&model), &of(&after));
        assert!(error <= 1e-4, "{}: {error:.1e}", case.display());
    }
}

#[test]
fn what_would_change_the_function_is_refused() {
    let case = cases().into_iter().find(|c| c.ends_with("gpt2-untied")).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
    let model = opened(&case, &config, DType::F32);
    let topology = &*model.topology;
    let message = |steps: &[Rewrite]| {
        let error: Error = Rewriting::new(topology, steps).err().unwrap();
        (error.to_string(), error.hint_text().unwrap_or_default().to_owned())
    };
    let r1 = steps(topology, &model.dims, &json!({ "rotations": ["r1"] }));
    assert_eq!(message(&r1).0, "the residual stream cannot be rotated: its norms have weights");
    let Rewrite::Rotate { region, rotation, .. } = &r1[0] else { panic!("R1 is fused") };
    let moved = Rewrite::Rotate { region: region.clone(), rotation: Rotation { keeps_mean: false, ..rotation.clone() }, learned: false };
    let (text, hint) = message(&[Rewrite::FoldNorms, moved]);
    assert_eq!(text, "`residual`: a rotation that moves the mean of the channels");
    assert_eq!(hint, "the model has LayerNorm, which subtracts the mean: choose R with R·1 = 1");
    let hidden = Rewrite::Rotate { region: "blocks.0.mlp.hidden".to_owned(), rotation: rotation.clone(), learned: false };
    assert_eq!(message(&[hidden]).0, "`blocks.0.mlp.hidden` does not allow a rotation: it would change what the model computes");
    let r4 = steps(topology, &model.dims, &json!({ "rotations": ["r4"] }));
    let twice: Vec<Rewrite> = r4.iter().chain(&r4).cloned().collect();
    assert_eq!(message(&twice).0, "`blocks.0.down.in` would be rotated twice while the model runs");
    let place = Place { block: Some(0), port: PortName::DownIn.into() };
    let seven = Rotation { size: 7, kind: RotationKind::Orthogonal, ..rotation.clone() };
    let odd = Rewrite::Online(OnlineRotation { place, rotation: seven, padded_from: None });
    assert!(message(&[odd]).0.ends_with("channels, which a rotation of 7 does not divide"));
    // A model without LayerNorm has a mean that counts.
    let case = cases().into_iter().find(|c| c.ends_with("llama-base")).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(case.join("config.json")).unwrap()).unwrap();
    let llama = opened(&case, &config, DType::F32);
    let error = Rewriting::new(&llama.topology, &[Rewrite::CenterResidual]).err().unwrap();
    assert_eq!(error.to_string(), "the residual stream cannot be centred: the model's norms do not subtract the mean");
}
