//! A transform may run the module behind a region again: what it is told is what a forward pass of its own says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor};
use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Needs, Phase, PlanContext, PtqAlgorithm, RegionContext, Round, Rounded, SiteContext, Solved, Stage, Transform,
};
use qfw_core::harness::{Control, Mode};
use qfw_core::model::{Flow, Nothing, Span};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::Session;
use qfw_core::topology::{Part, PortName, Region};

/// Region and sequence → the error with the readers' weights as they are, and with all of them times 1.25.
static SEEN: Mutex<BTreeMap<String, Option<(f64, f64)>>> = Mutex::new(BTreeMap::new());

struct Listens;
struct Nearest;

impl Transform for Listens {
    fn suits(&self, region: &Region) -> bool {
        region.may_be_scaled()
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        let times = |factor: f32| cx.readers.iter().map(|r| (r.linear.site, r.weight.iter().map(|w| w * factor).collect())).collect();
        let heard = match cx.replay {
            Some(module) => {
                let all = module.errors(times(1.25), 0..module.windows())?;
                // Each window by itself says what it says among all.
                for (window, error) in all.iter().enumerate() {
                    assert_eq!(module.errors(times(1.25), window..window + 1)?, [*error]);
                }
                let unchanged: f64 = module.errors(times(1.0), 0..module.windows())?.iter().sum();
                Some((unchanged, all.iter().sum()))
            }
            None => None,
        };
        SEEN.lock().unwrap().insert(cx.region.id.clone(), heard);
        Ok(None)
    }
}

impl PtqAlgorithm for Listens {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs { replay: true, ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Transform(self)
    }
}

impl Round for Nearest {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        cx.nearest()
    }
}

impl PtqAlgorithm for Nearest {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs::default())
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

const fn record(
    id: &'static str,
    phase: Phase,
    build: fn(&serde_json::Value) -> Result<qfw_core::algorithm::BuiltAlgorithm>,
) -> AlgorithmRecord {
    AlgorithmRecord {
        id,
        aliases: &[],
        phase,
        summary: "for a test",
        version: "0",
        source: "test",
        weight_only: false,
        schema: || serde_json::json!({}),
        build,
    }
}

static RECORDS: [AlgorithmRecord; 2] = [
    record("listens", Phase::Transform, |_| Ok((Box::new(Listens), serde_json::json!({})))),
    record("nearest", Phase::Round, |_| Ok((Box::new(Nearest), serde_json::json!({})))),
];

#[test]
fn a_replay_says_what_a_forward_pass_does() {
    let mut registry = Registry::builtin().unwrap();
    RECORDS.iter().for_each(|r| registry.add_algorithm(r).unwrap());
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets");
    let text = |path: &str| assets.join(path).display().to_string();
    for model in ["tiny-llama", "tiny-gpt2"] {
        SEEN.lock().unwrap().clear();
        let layers = Layers::new()
            .algo(&["listens", "nearest"])
            .set("model.path", text(model), "test")
            .set("scheme.weights.format", "int8", "test")
            .set("calibration.source", text("text/calibration.txt"), "test")
            .set("calibration.samples", 3, "test")
            .set("calibration.seq-len", 16, "test")
            .set("harness.products", "f32", "test")
            .set("output.format", toml::Value::Array(vec!["qfw".into()]), "test");
        let session = Session::open(layers.finish().unwrap().0, &registry, true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        session.execute(&registry, &dir.path().join("out"), Mode::Fresh, &Control::new(&|_| (), &AtomicBool::new(false))).unwrap();
        // Block 0 reads the embeddings, which nothing has rounded.
        let opened = &session.opened.model;
        let before = opened.load_block(0).unwrap();
        for (region, from, to) in [("attn.in", PortName::AttnIn, PortName::OOut), ("mlp.in", PortName::MlpIn, PortName::DownOut)] {
            let id = format!("blocks.0.{region}");
            let mut after = before.clone();
            for slot in &opened.topology.regions.iter().find(|r| r.id == id).unwrap().consumers {
                let weight = before.find(slot.site, Part::Weight).unwrap();
                after.insert(slot.site, Part::Weight, (weight * 1.25).unwrap());
            }
            let mut expected = 0.0;
            for ids in &session.windows.ids {
                let x = opened.edges().unwrap().embed(ids, 0, &mut Nothing).unwrap();
                let block = opened.block(0, &before).unwrap();
                let input = block.run(Span::until(from.into()), Flow::new(x.x), &mut Nothing).unwrap().x;
                let out = |weights| -> Tensor {
                    let span = Span { from: from.into(), to: to.into() };
                    let run = opened.block(0, weights).unwrap().run(span, Flow::new(input.clone()), &mut Nothing);
                    run.unwrap().x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
                };
                let difference = (out(&after) - out(&before)).unwrap();
                expected += difference.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            }
            let (same, heard) = SEEN.lock().unwrap()[&id].unwrap();
            assert_eq!(same, 0.0, "{model}, {id}");
            assert!((heard / expected - 1.0).abs() < 1e-5, "{model}, {id}: {heard}, and {expected}");
        }
        // One layer alone reads these.
        assert!(
            SEEN.lock()
                .unwrap()
                .iter()
                .filter(|(id, _)| id.ends_with("values") || id.ends_with("hidden"))
                .all(|(_, heard)| heard.is_none())
        );
    }
}
