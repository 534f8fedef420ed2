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

/// Processor time of this process so far, in seconds: on a busy machine it says more than the clock.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// The clock's least and the processor's mean seconds.
#[derive(Default)]
struct Cost {
    least: Option<Duration>,
    processor: f64,
}

impl Cost {
    fn of(&mut self, work: impl FnOnce() -> Rounded) -> Rounded {
        let (start, before) = (Instant::now(), processor_seconds());
        let rounded = work();
        let took = start.elapsed();
        self.processor += processor_seconds() - before;
        self.least = Some(self.least.map_or(took, |l| l.min(took)));
        rounded
    }

    fn seconds(&self) -> f64 {
        self.least.unwrap_or_default().as_secs_f64()
    }
}

/// A layer of that shape, rounded to nearest by core and by the plugin in C, so many times in turn.
fn by_both((rows, cols): (usize, usize), times: usize) -> Option<[Cost; 2]> {
    let dir = tempfile::tempdir().unwrap();
    if !package(dir.path()) {
        return None;
    }
    let mut registry = Registry::builtin().unwrap();
    let places = Places { added: None, search: vec![dir.path().to_owned()] };
    let host = Host { cancel: &CANCEL, in_flight: InFlight::default(), log: |_, _| () };
    let policy = Policy { allow_unpinned: true, ..Policy::default() };
    Catalog::scan(&places).unwrap().register(&mut registry, &policy, &host).unwrap();
    let (algorithm, _): (Box<dyn PtqAlgorithm>, _) = registry.build_algorithm("c.nearest", &serde_json::json!({})).unwrap();
    let Stage::Round(round) = algorithm.stage() else { panic!("it rounds") };
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
    let (mut ours, mut theirs) = (Cost::default(), Cost::default());
    for _ in 0..times {
        let a = ours.of(|| cx.nearest().unwrap());
        let b = theirs.of(|| round.round(&cx).unwrap());
        assert!(a.codes == b.codes && a.params == b.params, "the same numbers");
    }
    Some([ours, theirs])
}

/// Small enough to be run under valgrind.
#[test]
fn a_plugin_in_c_gives_the_codes_of_core() {
    for shape in [(1, 1), (8, 300), (37, 128)] {
        by_both(shape, 1);
    }
}

#[test]
#[ignore = "a measurement"]
fn crossing_the_border() {
    let Some([ours, theirs]) = by_both((4096, 11008), 15) else { return };
    let share = |a: f64, b: f64| (b / a - 1.0) * 100.0;
    eprintln!(
        "clock: core {:.1} ms, plugin {:.1} ms, {:+.1} %",
        ours.seconds() * 1e3,
        theirs.seconds() * 1e3,
        share(ours.seconds(), theirs.seconds())
    );
    eprintln!(
        "processor: core {:.2} s, plugin {:.2} s, {:+.1} %",
        ours.processor,
        theirs.processor,
        share(ours.processor, theirs.processor)
    );
}
