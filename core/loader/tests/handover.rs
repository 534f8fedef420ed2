//! What crossing the border costs: a 4096×11008 layer rounded to nearest, by core itself and by a plugin in C that asks core to.
//!
//! A measurement, not a check: `cargo test --release -p qfw-loader --test handover -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use qfw_core::algorithm::{PtqAlgorithm, Rounded, SiteContext, Stage};
use qfw_core::format::Ask;
use qfw_core::registry::Registry;
use qfw_core::scheme::{Convention, FloatKind, Granularity, ObserverChoice, QuantSpec, Reducer, Timing};
use qfw_core::statistic::{Stats, Stream};
use qfw_core::topology::{Linear, PortName, Role, SiteId};
use qfw_loader::{Catalog, Host, InFlight, Places, Policy, hash_file, target};

static CANCEL: AtomicBool = AtomicBool::new(false);

/// The C plugin of the tests, as a package.
fn package(dir: &Path) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let library = dir.join("lib.so");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-fPIC", "-shared", "-I"]).arg(root.join("core/abi/include"));
    let Ok(status) = cc.arg(root.join("tests/plugins/c/nearest.c")).arg("-o").arg(&library).status() else {
        eprintln!("SKIPPED: there is no `cc` here");
        return false;
    };
    assert!(status.success());
    let algo = |id: &str, weights: bool| format!("[[algo]]\nid = \"{id}\"\nphase = \"round\"\nsummary = \"s\"\nweight-only = {weights}\n");
    let hash = hash_file(&library).unwrap();
    let manifest = format!(
        "id = \"org.qfw.in-c\"\nversion = \"1.2.3\"\nabi = {{ major = 1, minor = 0 }}\n{}{}[target.{}]\nfile = \"lib.so\"\nblake3 = \"{hash}\"\n",
        algo("c.nearest", true),
        algo("c.gptq", false),
        target()
    );
    std::fs::write(dir.join("plugin.toml"), manifest).unwrap();
    true
}

fn spec(registry: &Registry) -> QuantSpec {
    let ask = Ask { symmetric: true, convention: Convention::HalfRange, float_zero: false, power_of_two: None, stored: FloatKind::F16 };
    let meaning = registry.format("int4").unwrap().resolve(&ask).unwrap();
    QuantSpec {
        format: "int4".to_owned(),
        bits: 4,
        grid: meaning.grid,
        granularity: Granularity::group(128),
        symmetric: true,
        convention: meaning.convention,
        observer: ObserverChoice { id: "minmax".to_owned(), options: serde_json::json!({}) },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale: meaning.scale,
    }
}

fn best(mut of: impl FnMut() -> Rounded) -> (Duration, Rounded) {
    let mut best: Option<(Duration, Rounded)> = None;
    for _ in 0..7 {
        let start = Instant::now();
        let rounded = of();
        let took = start.elapsed();
        if best.as_ref().is_none_or(|(b, _)| took < *b) {
            best = Some((took, rounded));
        }
    }
    best.unwrap()
}

#[test]
#[ignore = "a measurement"]
fn crossing_the_border() {
    let dir = tempfile::tempdir().unwrap();
    if !package(dir.path()) {
        return;
    }
    let mut registry = Registry::builtin().unwrap();
    let places = Places { added: None, search: vec![dir.path().to_owned()] };
    let host = Host { cancel: &CANCEL, in_flight: InFlight::default(), log: |_, _| () };
    let policy = Policy { allow_unpinned: true, ..Policy::default() };
    Catalog::scan(&places).unwrap().register(&mut registry, &policy, &host).unwrap();
    let (algorithm, _): (Box<dyn PtqAlgorithm>, _) = registry.build_algorithm("c.nearest", &serde_json::json!({})).unwrap();
    let Stage::Round(round) = algorithm.stage() else { panic!("it rounds") };

    let (rows, cols) = (4096, 11008);
    let weight: Vec<f32> = (0..rows * cols).map(|i| ((i as f32) * 0.618_034).fract() - 0.5).collect();
    let spec = spec(&registry);
    let (observer, _) = registry.build_observer("minmax", &serde_json::json!({})).unwrap();
    let linear = Linear {
        site: SiteId::in_block(0, Role::MlpDown),
        shape: (rows, cols),
        input: PortName::DownIn.into(),
        output: PortName::DownOut.into(),
        bias: false,
        module: String::new(),
        transposed: false,
    };
    let stats = Stats::default();
    let cx = SiteContext {
        linear: &linear,
        weight: &weight,
        original: &weight,
        spec: &spec,
        input: None,
        observer: &*observer,
        stats: &stats,
        stream: Stream::Quantized,
        seed: 0,
        amax: 0.5,
    };
    let (ours, a) = best(|| cx.nearest().unwrap());
    let (theirs, b) = best(|| round.round(&cx).unwrap());
    assert!(a.codes == b.codes && a.params == b.params);
    let share = (theirs.as_secs_f64() / ours.as_secs_f64() - 1.0) * 100.0;
    eprintln!("core {:.1} ms, by way of a plugin {:.1} ms: {share:+.1} %", ours.as_secs_f64() * 1e3, theirs.as_secs_f64() * 1e3);
}
