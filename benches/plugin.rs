//! What the border to loaded plugins costs on a 4096×11008 layer, int4 in groups of 128: rounding to nearest by core (`linked`) and by a
//! plugin in C that asks core to (`loaded`); a call of a plugin that does nothing (`handover`); and the look at what a plugin returned
//! (`validation`).
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use qfw_core::algorithm::{PtqAlgorithm, Stage};
use qfw_core::registry::Registry;
use qfw_core::scheme::Granularity;
use qfw_loader::conformance::{Kind, Sample, may_be_used};
use qfw_loader::{Catalog, Host, InFlight, Places, Policy, hash_file, target};

static CANCEL: AtomicBool = AtomicBool::new(false);

const DECLINES: &str = "id = \"org.qfw.declines\"\nversion = \"1.0.0\"\nabi = { major = 1, minor = 0 }\n\
    [[algo]]\nid = \"declines\"\nphase = \"round\"\nsummary = \"does nothing\"\nweight-only = true\n";

/// An algorithm of a C plugin of the tests; `None` where there is no compiler.
fn loaded(dir: &Path, source: &str, manifest: &str, id: &str) -> Option<Box<dyn PtqAlgorithm>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (dir, library) = (dir.join(id), dir.join(id).join("lib.so"));
    std::fs::create_dir(&dir).ok()?;
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-fPIC", "-shared", "-I"]).arg(root.join("core/abi/include"));
    let built = cc.arg(root.join("tests/plugins/c").join(source)).arg("-o").arg(&library).status().ok()?;
    let hash = hash_file(&library).ok().filter(|_| built.success())?;
    let text = format!("{manifest}[target.{}]\nfile = \"lib.so\"\nblake3 = \"{hash}\"\n", target());
    std::fs::write(dir.join("plugin.toml"), text).ok()?;
    let mut registry = Registry::builtin().ok()?;
    let host = Host { cancel: &CANCEL, in_flight: InFlight::default(), log: |_, _| (), progress: |_| () };
    let policy = Policy { allow_unpinned: true, ..Policy::default() };
    Catalog::scan(&Places { added: None, search: vec![dir] }).register(&mut registry, &policy, &host).ok()?;
    registry.build_algorithm(id, &serde_json::json!({})).ok().map(|(algorithm, _)| algorithm)
}

fn bench(c: &mut Criterion) {
    let Ok(site) = Sample::new(0, Kind::Plain, (4096, 11008), "int4", Granularity::group(128)) else { return };
    let Ok(dir) = tempfile::tempdir() else { return };
    let cx = site.context(&site.weight);
    let Ok(rounded) = cx.nearest() else { return };
    let mut group = c.benchmark_group("plugin-4096x11008");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(6));
    group.bench_function("linked", |b| b.iter(|| cx.nearest()));
    group.bench_function("validation", |b| b.iter(|| may_be_used(&cx, &rounded)));
    let plugins = [
        ("loaded", "nearest.c", include_str!("../tests/plugins/c/nearest.toml"), "c.nearest"),
        ("handover", "declines.c", DECLINES, "declines"),
    ];
    for (name, source, manifest, id) in plugins {
        let Some(algorithm) = loaded(dir.path(), source, manifest, id) else { continue };
        let Stage::Round(round) = algorithm.stage() else { continue };
        group.bench_function(name, |b| b.iter(|| round.round(&cx)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
