//! Passes of different phases on one site: what a condition returns is what is rounded, in the order of the passes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qfw_core::algorithm::{
    AlgorithmRecord, BranchNeed, Branches, Condition, Conditioned, Correct, Corrected, Frozen, Needs, Phase, PlanContext, PtqAlgorithm,
    RegionContext, Round, Rounded, SiteContext, Solved, Split, SplitContext, Stage, Transform,
};
use qfw_core::checkpoint::{Checkpoint, TensorSource};
use qfw_core::harness::{Control, Mode};
use qfw_core::model::WeightSource;
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::scheme::FloatKind;
use qfw_core::session::Session;
use qfw_core::statistic::StatKind;
use qfw_core::topology::{Region, Role, SiteId, Symmetry};
use qfw_core::{Error, Result};

/// Adds, then the next one doubles: not the same in the other order.
struct Add;
struct Double;
struct Broken;
struct Nearest;
struct Later;
struct Twice;
struct Stuck;
/// Takes the same off every weight: ½ as 1·½, in one branch for those that read the same.
struct Half;
/// Sees what the others leave of a weight, and what of the original one.
struct Watching;
/// Comes after rounding.
struct Behind;

/// Every weight less `x`, for all sites.
fn less(cx: &SplitContext<'_>, x: f32) -> Branches {
    let (cols, sites) = (cx.sites[0].linear.shape.1, cx.sites);
    assert!(sites.iter().all(|s| s.linear.input == sites[0].linear.input && s.weight.len() == s.linear.shape.0 * cols));
    let mut a = vec![0.0; cx.rank * cols];
    a[..cols].fill(1.0);
    let b = |s: &SiteContext<'_>| (0..s.linear.shape.0 * cx.rank).map(|i| if i % cx.rank == 0 { x } else { 0.0 }).collect();
    Branches { a, b: sites.iter().map(b).collect(), events: vec![Vec::new(); sites.len()] }
}

impl Split for Half {
    fn split(&self, cx: &SplitContext<'_>) -> Result<Branches> {
        assert_eq!((cx.rank, cx.stored), (2, FloatKind::Bf16));
        match cx.sites[0].linear.site.to_string().as_str() {
            "blocks.1.mlp.gate" => Err(Error::numeric("test::half", "no solution")),
            "blocks.4.mlp.down" => Ok(Branches { b: vec![vec![f32::NAN; 128 * 2]], ..less(cx, 0.5) }),
            // Not a number of the stored type: what is subtracted is the nearest one, which is ½.
            _ => Ok(less(cx, 0.5001)),
        }
    }
}

impl Round for Watching {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        // What a condition has added is all that sets them apart: the branch is taken off both.
        assert!(cx.weight.iter().zip(cx.original).all(|(w, o)| (w - o - 0.25).abs() < 1e-6));
        cx.nearest()
    }
}

impl Split for Behind {
    fn after_rounding(&self) -> bool {
        true
    }

    fn split(&self, cx: &SplitContext<'_>) -> Result<Branches> {
        // 8 bits leave less than a hundredth of a weight.
        for s in cx.sites {
            let largest = |x: &[f32]| x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(largest(s.weight) > 0.0 && largest(s.weight) < 0.01 * largest(s.original));
        }
        Ok(less(cx, 0.125))
    }
}

macro_rules! split {
    ($type:ident, $id:literal, $shared:literal) => {
        impl PtqAlgorithm for $type {
            fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
                let branch = BranchNeed { rank: 2, stored: Some(FloatKind::Bf16), shared: $shared };
                Ok(Needs { branch: Some(branch), ..Needs::default() })
            }
            fn stage(&self) -> Stage<'_> {
                Stage::Split(self)
            }
        }
        impl $type {
            const RECORD: AlgorithmRecord = AlgorithmRecord {
                id: $id,
                aliases: &[],
                phase: Phase::Split,
                summary: "for a test",
                version: "0",
                source: "test",
                weight_only: true,
                schema: || serde_json::json!({}),
                build: |_| Ok((Box::new($type), serde_json::json!({}))),
            };
        }
    };
}

split!(Half, "half", true);
split!(Behind, "behind", false);

/// Doubles every channel that may be scaled: exact in any float type.
impl Transform for Twice {
    fn suits(&self, region: &Region) -> bool {
        region.may_be_scaled()
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        assert!(cx.readers.iter().all(|r| r.weight.len() == r.linear.shape.0 * r.linear.shape.1 && r.target.is_some()));
        assert_eq!(cx.channels(StatKind::Greatest)?.len(), cx.gram()?.n);
        Ok(Some(Solved { symmetry: Symmetry::Diagonal(vec![2.0; cx.region.width]), events: Vec::new() }))
    }
}

fn with(cx: &SiteContext<'_>, f: impl Fn(f32) -> f32) -> Conditioned {
    Conditioned { weight: cx.weight.iter().map(|w| f(*w)).collect(), ranged: None, events: Vec::new() }
}

impl Condition for Add {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        // What it asked for is there, though the rounding that follows asks for nothing.
        assert_eq!(cx.gram()?.n, cx.linear.shape.1);
        Ok(with(cx, |w| w + 0.25))
    }
}

impl Condition for Double {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        Ok(with(cx, |w| w * 2.0))
    }
}

impl Condition for Broken {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        if cx.linear.site.to_string() == "blocks.1.attn.k" {
            return Err(Error::numeric("test::broken", "no solution"));
        }
        let broken = cx.linear.site.to_string() == "blocks.1.attn.v";
        Ok(with(cx, |w| if broken { f32::NAN } else { w }))
    }
}

impl Round for Nearest {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        cx.nearest()
    }
}

impl Correct for Later {
    fn correct(&self, cx: &SiteContext<'_>, frozen: &Frozen<'_>) -> Result<Corrected> {
        let site = cx.linear.site.to_string();
        if site == "blocks.2.mlp.up" {
            return Err(Error::numeric("test::later", "no solution"));
        }
        // It sees what the site was and what it has become.
        assert!(cx.weight != frozen.weight && cx.weight.len() == frozen.weight.len());
        Ok(Corrected { bias: frozen.bias.iter().map(|b| b + 0.5).collect(), events: Vec::new() })
    }
}

impl Transform for Stuck {
    fn suits(&self, region: &Region) -> bool {
        region.may_be_scaled()
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        if cx.region.id == "blocks.1.mlp.in" {
            return Err(Error::numeric("test::stuck", "no solution"));
        }
        Ok(Some(Solved { symmetry: Symmetry::Diagonal(vec![2.0; cx.region.width]), events: Vec::new() }))
    }
}

macro_rules! algorithm {
    ($type:ident, $id:literal, $phase:ident, $inputs:expr) => {
        impl PtqAlgorithm for $type {
            fn needs(&self, _cx: &PlanContext<'_>) -> Result<Needs> {
                #[allow(clippy::redundant_closure_call, reason = "the context is not used by all")]
                Ok(Needs { inputs: ($inputs)(_cx), bias: Phase::$phase == Phase::Correct, ..Needs::default() })
            }
            fn stage(&self) -> Stage<'_> {
                Stage::$phase(self)
            }
        }
        impl $type {
            const RECORD: AlgorithmRecord = AlgorithmRecord {
                id: $id,
                aliases: &[],
                phase: Phase::$phase,
                summary: "for a test",
                version: "0",
                source: "test",
                weight_only: false,
                schema: || serde_json::json!({}),
                build: |_| Ok((Box::new($type), serde_json::json!({}))),
            };
        }
    };
}

algorithm!(Add, "add", Condition, |cx: &PlanContext<'_>| vec![(StatKind::Gram, cx.stream)]);
algorithm!(Double, "double", Condition, |_: &PlanContext<'_>| Vec::new());
algorithm!(Broken, "broken", Condition, |_: &PlanContext<'_>| Vec::new());
algorithm!(Nearest, "nearest", Round, |_: &PlanContext<'_>| Vec::new());
algorithm!(Later, "later", Correct, |_: &PlanContext<'_>| Vec::new());
algorithm!(Twice, "twice", Transform, |cx: &PlanContext<'_>| vec![(StatKind::Gram, cx.stream), (StatKind::Greatest, cx.stream)]);
algorithm!(Watching, "watching", Round, |_: &PlanContext<'_>| Vec::new());
algorithm!(Stuck, "stuck", Transform, |_: &PlanContext<'_>| Vec::new());

static RECORDS: [AlgorithmRecord; 11] = [
    Half::RECORD,
    Behind::RECORD,
    Watching::RECORD,
    Stuck::RECORD,
    Add::RECORD,
    Double::RECORD,
    Broken::RECORD,
    Nearest::RECORD,
    Later::RECORD,
    Twice::RECORD,
    qfw_gptq::RECORD,
];

fn registry() -> Registry {
    let mut registry = Registry::builtin().unwrap();
    RECORDS.iter().for_each(|r| registry.add_algorithm(r).unwrap());
    registry
}

fn assets() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets")
}

/// Runs the passes on the tiny LLaMA in int8 and returns the result as floats, with the run's events.
fn run(algo: &[&str], out: &Path) -> Result<(Arc<dyn TensorSource>, Vec<String>)> {
    run_with(algo, out, |layers| layers)
}

fn run_with(algo: &[&str], out: &Path, more: impl FnOnce(Layers) -> Layers) -> Result<(Arc<dyn TensorSource>, Vec<String>)> {
    let registry = registry();
    let text = |path: &str| assets().join(path).display().to_string();
    let layers = Layers::new()
        .algo(algo)
        .set("model.path", text("tiny-llama"), "test")
        .set("scheme.weights.format", "int8", "test")
        .set("calibration.source", text("text/calibration.txt"), "test")
        .set("calibration.samples", 2, "test")
        .set("calibration.seq-len", 16, "test")
        .set("output.format", toml::Value::Array(vec!["qfw".into()]), "test");
    let (raw, _) = more(layers).finish()?;
    let session = Session::open(raw, &registry, true)?;
    let never = AtomicBool::new(false);
    let summary = session.execute(&registry, out, Mode::Fresh, &Control::new(&|_| (), &never))?;
    let events = summary.sites.iter().flat_map(|s| s.events.iter().map(move |e| format!("{} {e:?}", s.site))).collect();
    Ok((Checkpoint::open(out)?.float_tensors(&registry)?, events))
}

fn values(tensors: &dyn TensorSource, name: &str) -> Vec<f32> {
    let mut out = Vec::new();
    tensors.read_f32(name, 0..tensors.info(name).unwrap().shape[0], &mut out).unwrap();
    out
}

#[test]
fn conditions_move_the_weight_in_order_before_it_is_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&assets().join("tiny-llama")).unwrap().tensors;
    let name = "model.layers.3.mlp.up_proj.weight";
    let before = values(&*original, name);
    for (order, expected) in [(["nearest", "add", "double"], 2.0 * 0.25), (["double", "add", "nearest"], 0.25)] {
        let (rounded, events) = run(&order, &dir.path().join(order[0])).unwrap();
        assert!(events.is_empty(), "{events:?}");
        let after = values(&*rounded, name);
        // The rows' steps: 8 bits over at most twice the largest weight and the shift.
        let largest = before.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        let step = (2.0 * largest + 0.5) / 127.0;
        for (a, b) in after.iter().zip(&before) {
            assert!((a - (2.0 * b + expected)).abs() <= step, "{order:?}: {a} from {b}");
        }
    }
}

/// A failure of a condition costs the site its rounding only, and says so; what is not finite is the plugin's fault and stops the run.
#[test]
fn what_a_condition_returns_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let error = run(&["broken", "nearest"], &dir.path().join("out")).err().unwrap();
    assert_eq!(error.code(), "plugin::contract");
    let text = error.to_string();
    assert!(text.contains("blocks.1.attn.v") && text.contains("`broken` returned") && text.contains("not finite"), "{text}");
}

/// A scaling by two changes no code of a method that sees its statistics scaled along, and every scale and norm by a power of two.
/// `block` carries the statistics over, `layer` collects them anew.
#[test]
fn a_transform_moves_all_that_writes_and_reads_and_the_statistics_with_them() {
    let dir = tempfile::tempdir().unwrap();
    for sequence in ["block", "layer"] {
        let sequenced = |layers: Layers| layers.set("harness.sequence", sequence, "test");
        let out = |name: &str| dir.path().join(format!("{name}-{sequence}"));
        let (plain, _) = run_with(&["gptq"], &out("plain"), sequenced).unwrap();
        let (twice, events) = run_with(&["gptq", "twice"], &out("twice"), sequenced).unwrap();
        assert!(events.is_empty(), "{events:?}");
        for (name, factor) in [
            ("input_layernorm", 2.0),
            ("self_attn.q_proj", 0.5),
            ("self_attn.k_proj", 0.5),
            // Half of what it reads, twice what it writes.
            ("self_attn.v_proj", 1.0),
            ("self_attn.o_proj", 0.5),
            ("post_attention_layernorm", 2.0),
            ("mlp.gate_proj", 0.5),
            ("mlp.up_proj", 1.0),
            ("mlp.down_proj", 0.5),
        ] {
            for block in [0, 5] {
                let name = format!("model.layers.{block}.{name}.weight");
                let expected: Vec<f32> = values(&*plain, &name).iter().map(|x| x * factor).collect();
                assert!(values(&*twice, &name) == expected, "{sequence}: {name}");
            }
        }
        let (a, b) = (values(&*plain, "model.norm.weight"), values(&*twice, "model.norm.weight"));
        assert_eq!(a, b);
    }
}

/// What nothing is to become of, is stored as it is after the change, in the type of the source.
#[test]
fn a_transform_of_what_is_kept_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let skip = |layers: Layers| layers.set("scheme.skip", toml::Value::Array(vec!["head".into(), "embed".into(), "attn.o".into()]), "test");
    let (plain, _) = run_with(&["nearest"], &dir.path().join("plain"), skip).unwrap();
    let (twice, _) = run_with(&["nearest", "twice"], &dir.path().join("twice"), |layers| {
        skip(layers).set("pass.1.regions", toml::Value::Array(vec!["mlp.in".into(), "mlp.hidden".into()]), "test")
    })
    .unwrap();
    let name = "model.layers.2.self_attn.o_proj.weight";
    assert_eq!(values(&*plain, name), values(&*twice, name), "its region was not asked for");
    let name = "model.layers.2.mlp.down_proj.weight";
    let half: Vec<f32> = values(&*plain, name).iter().map(|x| x * 0.5).collect();
    assert_eq!(half, values(&*twice, name));
}

/// A region that has no solution stays as it was, and is named in the report of a layer that reads it.
#[test]
fn a_transform_that_fails_leaves_its_region() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, _) = run(&["nearest"], &dir.path().join("plain")).unwrap();
    let (moved, events) = run(&["nearest", "stuck"], &dir.path().join("moved")).unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(
        events[0].starts_with("blocks.1.mlp.gate Skipped") && events[0].contains("`stuck` in `blocks.1.mlp.in`: no solution"),
        "{events:?}"
    );
    for (block, factor) in [(0, 2.0), (1, 1.0)] {
        let name = format!("model.layers.{block}.post_attention_layernorm.weight");
        let expected: Vec<f32> = values(&*plain, &name).iter().map(|x| x * factor).collect();
        assert_eq!(values(&*moved, &name), expected);
    }
}

#[test]
fn regions_are_chosen_by_name_and_refused_by_reason() {
    let dir = tempfile::tempdir().unwrap();
    let failed = |key: &str, value: &str| {
        let set = |layers: Layers| layers.set(key, toml::Value::Array(vec![value.into()]), "test");
        run_with(&["nearest", "twice"], &dir.path().join("out"), set).err().unwrap()
    };
    let unknown = failed("pass.1.regions", "attn.inn");
    assert_eq!(unknown.to_string(), "pass `twice`: `attn.inn` matches no region of this model (did you mean `attn.in`?)");
    assert_eq!(unknown.hint_text(), Some("regions of this model: attn.in, mlp.hidden, mlp.in, values"));
    let sites = failed("pass.1.skip", "attn.q");
    assert_eq!(sites.to_string(), "pass `twice` has `match` or `skip`, but it works on regions, not on sites");
    let none = failed("pass.0.regions", "attn.in");
    assert_eq!(none.to_string(), "pass `nearest` has `regions`, but it does not work on regions");
}

/// The branch as stored is subtracted, from what conditions left and from the original alike; those who share it are split together.
#[test]
fn a_split_takes_off_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let without = |layers: Layers| layers.set("pass.1.skip", toml::Value::Array(vec!["blocks.1.mlp.*".into(), "mlp.down".into()]), "test");
    let original = Checkpoint::open(&assets().join("tiny-llama")).unwrap().tensors;
    let (rounded, events) = run_with(&["add", "half", "watching"], &dir.path().join("out"), without).unwrap();
    assert!(events.is_empty(), "{events:?}");
    let name = "model.layers.3.mlp.up_proj.weight";
    for (r, w) in values(&*rounded, name).iter().zip(values(&*original, name)) {
        assert!((r - (w + 0.25 - 0.5)).abs() < 0.02, "{r} from {w}");
    }
    // `A` is kept once for those that read the same.
    let shared = |module: &str| rounded.info(&format!("model.layers.3.{module}.branch_a")).is_some();
    assert_eq!(["mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj"].map(shared), [true, false, true]);
    let b = values(&*rounded, "model.layers.3.mlp.up_proj.branch_b");
    assert!(b.iter().enumerate().all(|(i, b)| *b == if i % 2 == 0 { 0.5 } else { 0.0 }), "{b:?}");
}

/// What has no solution gets a branch of zeros, and says so; what is not finite is the plugin's fault and stops the run.
#[test]
fn what_a_split_returns_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let error = run(&["half", "nearest"], &dir.path().join("out")).err().unwrap();
    assert_eq!(error.code(), "plugin::contract");
    assert_eq!(error.to_string(), "`blocks.4.mlp.down`: the branch that `half` returned is not finite, or not of rank 2");
    let skip = |layers: Layers| layers.set("pass.0.skip", toml::Value::Array(vec!["mlp.down".into()]), "test");
    let (rounded, events) = run_with(&["half", "nearest"], &dir.path().join("skipped"), skip).unwrap();
    assert_eq!(events.len(), 2, "gate and up share a branch: {events:?}");
    for (event, site) in events.iter().zip(["gate", "up"]) {
        assert!(event.starts_with(&format!("blocks.1.mlp.{site} Skipped")) && event.contains("its branch is zero: "), "{event}");
    }
    let zeros = values(&*rounded, "model.layers.1.mlp.gate_proj.branch_a");
    assert!(zeros.iter().all(|x| *x == 0.0));
}

/// The codes are those of the run without it, and it sees what they leave.
#[test]
fn a_split_after_rounding_leaves_the_codes() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, _) = run(&["nearest"], &dir.path().join("plain")).unwrap();
    let (with, events) = run(&["behind", "nearest"], &dir.path().join("with")).unwrap();
    assert!(events.is_empty(), "{events:?}");
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.5.mlp.down_proj.weight"] {
        assert!(values(&*plain, name) == values(&*with, name), "{name}");
    }
    let opened = qfw_core::session::Opened::open(&dir.path().join("with"), &registry()).unwrap();
    let block = opened.model.load_block(5).unwrap();
    let branch = block.branch(SiteId::in_block(5, Role::MlpDown)).unwrap().unwrap();
    assert_eq!((branch.a.dims(), branch.b.dims()), (&[2, 384][..], &[128, 2][..]));
}

/// The tiny LLaMA has no biases: it gets some, and is a LLaMA with biases from then on.
#[test]
fn corrections_change_biases_that_are_added_where_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (rounded, events) = run(&["nearest", "later"], &out).unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(events[0].contains("blocks.2.mlp.up") && events[0].contains("the bias stays as it was: `blocks.2.mlp.up`: no solution"));
    for (block, role, value) in [(0, "self_attn.q_proj", 0.5), (3, "mlp.down_proj", 0.5), (2, "mlp.up_proj", 0.0)] {
        let bias = values(&*rounded, &format!("model.layers.{block}.{role}.bias"));
        assert!(bias.iter().all(|b| *b == value), "{role}: {bias:?}");
    }
    let config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&true.into(), &true.into()));
    // What comes out runs, with the biases in it.
    let opened = qfw_core::session::Opened::open(&out, &registry()).unwrap();
    assert!(opened.model.topology.linears.iter().filter(|l| l.site.block.is_some()).all(|l| l.bias));
}
