//! A layer rounded to nearest, by core itself and by a plugin in C that asks core to: the same numbers. What that costs is in
//! `benches/plugin.rs`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use qfw_core::algorithm::{PtqAlgorithm, Stage};
use qfw_core::registry::Registry;
use qfw_core::scheme::Granularity;
use qfw_loader::conformance::{Kind, Sample};
use qfw_loader::{Catalog, Host, InFlight, Places, Policy, hash_file, target};
use serde_json::json;

static CANCEL: AtomicBool = AtomicBool::new(false);

/// A C plugin of the tests, as a package with this manifest; false where there is no compiler.
fn package(dir: &Path, source: &str, manifest: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let library = dir.join("lib.so");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-fPIC", "-shared", "-I"]).arg(root.join("core/abi/include"));
    let Ok(status) = cc.arg(root.join("tests/plugins/c").join(source)).arg("-o").arg(&library).status() else {
        eprintln!("SKIPPED: there is no `cc` here");
        return false;
    };
    assert!(status.success());
    let of_target = format!("[target.{}]\nfile = \"lib.so\"\nblake3 = \"{}\"\n", target(), hash_file(&library).unwrap());
    std::fs::write(dir.join("plugin.toml"), format!("{manifest}{of_target}")).unwrap();
    true
}

/// An algorithm of such a package.
fn loaded(dir: &Path, id: &str) -> Box<dyn PtqAlgorithm> {
    let mut registry = Registry::builtin().unwrap();
    let places = Places { added: None, search: vec![dir.to_owned()] };
    let host = Host { cancel: &CANCEL, in_flight: InFlight::default(), log: |_, _| (), progress: |_| () };
    let policy = Policy { allow_unpinned: true, ..Policy::default() };
    Catalog::scan(&places).register(&mut registry, &policy, &host).unwrap();
    registry.build_algorithm(id, &json!({})).unwrap().0
}

#[test]
fn a_plugin_in_c_gives_the_codes_of_core() {
    let dir = tempfile::tempdir().unwrap();
    if !package(dir.path(), "nearest.c", include_str!("../../../tests/plugins/c/nearest.toml")) {
        return;
    }
    let algorithm = loaded(dir.path(), "c.nearest");
    let Stage::Round(round) = algorithm.stage() else { panic!("it rounds") };
    // Small enough to be run under valgrind.
    for shape in [(1, 1), (8, 300), (37, 128)] {
        let site = Sample::new(1, Kind::Plain, shape, "int4", Granularity::group(128)).unwrap();
        let cx = site.context(&site.weight);
        let (a, b) = (cx.nearest().unwrap(), round.round(&cx).unwrap());
        assert!(a.codes == b.codes && a.params == b.params, "the same numbers");
    }
}

/// What `qfw.numeric/1` computes is compared with numbers worked out by hand in the source of the plugin, which fails where one is
/// another.
#[test]
fn the_host_s_numerics_are_what_the_header_says() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = "id = \"org.qfw.numeric\"\nversion = \"1.0.0\"\nabi = { major = 1, minor = 0 }\n\
        [[algo]]\nid = \"numeric\"\nphase = \"round\"\nsummary = \"asks\"\nweight-only = true\n";
    if !package(dir.path(), "numeric.c", manifest) {
        return;
    }
    let algorithm = loaded(dir.path(), "numeric");
    let Stage::Round(round) = algorithm.stage() else { panic!("it rounds") };
    let site = Sample::new(2, Kind::Plain, (3, 8), "int4", Granularity::channel()).unwrap();
    let told = round.round(&site.context(&site.weight)).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(told, Ok(()));
}
