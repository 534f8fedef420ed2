//! Plugins that are loaded at run time, as their users meet them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::errors::refused_with;
use super::{Ran, apply_args, args, asset, command, finish, tensors};

/// A home directory with plugins of its own.
pub(super) struct Home {
    dir: tempfile::TempDir,
}

/// A library that was built beside this test.
pub(super) fn library(name: &str) -> PathBuf {
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    [deps.join(&file), deps.parent().unwrap().join(&file)].into_iter().find(|p| p.is_file()).unwrap_or_else(|| panic!("no {file}"))
}

pub(super) fn loadable() -> PathBuf {
    library("qfw_test_loadable")
}

/// What the manifest of the library of in-tree algorithms says.
pub(super) const LOADABLE: &str = include_str!("../../../tests/plugins/loadable/plugin.toml");

/// The target entry of a manifest.
pub(super) fn target(file: &str, hash: &str) -> String {
    format!("[target.{}]\nfile = \"{file}\"\nblake3 = \"{hash}\"\n", qfw_loader::target())
}

impl Home {
    pub(super) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A package with this library.
    pub(super) fn package(&self, name: &str, library: &Path, manifest: &str) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::copy(library, dir.join("lib.so")).unwrap();
        let hash = qfw_loader::hash_file(&dir.join("lib.so")).unwrap();
        std::fs::write(dir.join("plugin.toml"), format!("{manifest}{}", target("lib.so", &hash))).unwrap();
        dir
    }

    /// The program with these arguments, in this home.
    pub(super) fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = command(args);
        command.env("HOME", self.dir.path()).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME").env_remove("QFW_PLUGIN_PATH");
        command
    }

    pub(super) fn qfw<S: AsRef<str>>(&self, args: &[S]) -> Ran {
        finish(&mut self.command(args))
    }

    #[track_caller]
    pub(super) fn add(&self, package: &Path) {
        self.qfw(&["plugin", "add", &package.display().to_string()]).ok();
    }

    /// `qfw apply` of the tiny LLaMA.
    pub(super) fn apply(&self, out: &Path, words: &str) -> Ran {
        self.qfw(&apply_args("tiny-llama", out, words))
    }
}

/// The C compiler's library of a source beside this test, or a line that says why there is none.
pub(super) fn compiled(source: &str, flags: &[&str], to: &Path) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]).args(flags);
    cc.arg("-I").arg(root.join("core/abi/include")).arg(root.join("tests/plugins/c").join(source)).arg("-o").arg(to);
    match cc.stdin(Stdio::null()).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => {
            eprintln!("SKIPPED: there is no `cc` here");
            false
        }
    }
}

#[track_caller]
fn same_tensors(a: &Path, b: &Path) {
    let (a, b) = (tensors(a), tensors(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in &a {
        assert!(*tensor == b[name], "`{name}` differs");
    }
}

/// The same source, linked and loaded, gives the same bytes: every phase that crosses the border.
#[test]
fn a_loaded_algorithm_gives_the_bytes_of_the_linked_one() {
    let home = Home::new();
    home.add(&home.package("loadable", &loadable(), LOADABLE));
    let prefer: String = ["rtn", "gptq", "qronos", "magr", "svdquant", "smoothquant", "clip", "gpfq", "awq", "zeroquant"]
        .iter()
        .map(|id| format!(" --set plugins.prefer.{id}=org.qfw.loadable"))
        .collect();
    for (n, words) in [
        "--algo rtn --set scheme.weights.symmetric=false --set scheme.weights.granularity.group=32",
        "--algo gptq --set scheme.weights.granularity.group=32 --set gptq.act-order=group --format qfw",
        "--algo magr,gptq --set scheme.weights.format=int3 --format qfw",
        "--algo smoothquant,qronos --preset w8a8 --set scheme.weights.format=int8",
        "--algo clip,gpfq --format qfw",
        "--algo clip,gptq --format qfw",
        "--algo clip,rtn --set scheme.weights.format=int3 --format qfw",
        "--algo awq,zeroquant --set scheme.weights.granularity.group=32",
        "--algo awq,gptq --set scheme.weights.granularity.group=32",
        "--algo svdquant,rtn --set svdquant.rank=4 --set svdquant.gram=true --format qfw",
        "--algo smoothquant,svdquant,gptq --set svdquant.rank=4 --set svdquant.compensate=true --format qfw",
    ]
    .into_iter()
    .enumerate()
    {
        let (linked, loaded) = (home.path(&format!("linked-{n}")), home.path(&format!("loaded-{n}")));
        home.apply(&linked, &format!("{words} --no-dynamic-plugins")).ok();
        home.apply(&loaded, &format!("{words}{prefer}")).ok();
        same_tensors(&linked, &loaded);
        let record = std::fs::read_to_string(loaded.join("qfw.json")).unwrap();
        assert!(record.contains("org.qfw.loadable 0.1.0 blake3:"), "the record of the run names the plugin");
        assert!(!std::fs::read_to_string(linked.join("qfw.json")).unwrap().contains("org.qfw.loadable"));
    }
}

/// The same for a number format: the table of `nf4`, by the name that a library gives it.
#[test]
fn a_loaded_format_gives_the_bytes_of_the_linked_one() {
    let home = Home::new();
    home.add(&home.package("loadable", &loadable(), LOADABLE));
    for (n, words) in ["--algo rtn", "--algo gptq --set plugins.prefer.gptq=qfw-gptq"].into_iter().enumerate() {
        let words = format!("{words} --set plugins.prefer.rtn=qfw-rtn --set scheme.weights.granularity.group=32 --format qfw");
        let (linked, loaded) = (home.path(&format!("linked-{n}")), home.path(&format!("loaded-{n}")));
        home.apply(&linked, &format!("{words} --set scheme.weights.format=nf4")).ok();
        home.apply(&loaded, &format!("{words} --set scheme.weights.format=loaded.nf4")).ok();
        same_tensors(&linked, &loaded);
        assert!(std::fs::read_to_string(loaded.join("qfw.json")).unwrap().contains("loaded.nf4"));
    }
}

/// What is installed twice is asked about only when it is used.
#[test]
fn an_id_that_two_offer_wants_a_choice() {
    let home = Home::new();
    home.add(&home.package("loadable", &loadable(), LOADABLE));
    let out = home.path("out");
    let says = [
        "algorithm `gptq` is offered twice: by `qfw-gptq` and by `org.qfw.loadable`",
        "hint: choose with `--set plugins.prefer.gptq=qfw-gptq` or `--set plugins.prefer.gptq=org.qfw.loadable`, \
         or run `qfw plugin remove org.qfw.loadable`",
    ];
    refused_with(&home.apply(&out, "--algo gptq"), 3, "plugin::duplicate", &says);
    assert!(!out.exists());
    let other = "plan --algo adaround --set scheme.weights.format=int4 --set calibration.samples=4 --set calibration.seq-len=32 --data";
    home.qfw(&args(other, &[&asset("text/calibration.txt"), &asset("tiny-llama")])).ok();
    home.apply(&home.path("linked"), "--algo gptq --set plugins.prefer.gptq=qfw-gptq").ok();
    let ran = home.apply(&home.path("nobody"), "--algo gptq --set plugins.prefer.gptq=org.nobody");
    refused_with(&ran, 3, "plugin::required", &["takes `gptq` from `org.nobody`, which does not offer it", "qfw-gptq, org.qfw.loadable"]);
}

pub(super) const IN_C: &str = include_str!("../../../tests/plugins/c/nearest.toml");

/// A plugin in C runs beside linked ones, and over the host's numerics gives the host's bytes.
#[test]
fn a_plugin_in_c_rounds_as_the_host_does() {
    let home = Home::new();
    if !compiled("nearest.c", &[], &home.path("nearest.so")) {
        return;
    }
    home.add(&home.package("in-c", &home.path("nearest.so"), IN_C));
    for (mine, theirs, words) in [
        ("c.nearest", "rtn", "--set scheme.weights.granularity.group=32"),
        ("c.gptq", "gptq", ""),
        // What ranges are fitted to is another weight than what is rounded.
        ("clip,c.gptq", "clip,gptq", "--set scheme.weights.format=int3 --format qfw"),
        ("smoothquant,c.gptq", "smoothquant,gptq", "--set scheme.weights.symmetric=false"),
    ] {
        let (a, b) = (home.path(&format!("{mine}-out")), home.path(&format!("{theirs}-out")));
        home.apply(&a, &format!("--algo {mine} {words}")).ok();
        home.apply(&b, &format!("--algo {theirs} {words}")).ok();
        same_tensors(&a, &b);
    }
    // Its format is a grid like any other: in every algorithm.
    let out = home.path("seven");
    let ran = home.apply(&out, "--algo gptq --set scheme.weights.format=seven --format qfw --json").ok();
    assert!(ran.stdout.contains("seven"), "{}", ran.stdout);
    let ran = home.apply(&home.path("option"), "--algo c.nearest --set \"c.nearest\".speed=2");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}

/// Adding, looking at and removing run none of a plugin's code, and listing does not either.
#[test]
fn plugins_are_added_listed_and_removed_without_running_them() {
    let home = Home::new();
    // A file that cannot be loaded at all.
    std::fs::write(home.path("garbage"), b"this is no library").unwrap();
    let package = home.package("garbage-package", &home.path("garbage"), &LOADABLE.replace("\"rtn\"", "\"other.rtn\""));
    let shown = home.qfw(&["plugin", "info", &package.display().to_string()]).ok().stdout;
    assert!(shown.contains("org.qfw.loadable 0.1.0  (not added)") && shown.contains("algorithm  gptq [round] GPTQ"), "{shown}");
    let said = home.qfw(&["plugin", "add", &package.display().to_string()]).ok().stdout;
    assert!(said.contains("may be loaded from") && said.contains("runs with your rights"), "{said}");
    let listed = home.qfw(&["list-plugins", "--json"]).json();
    let entry = listed.as_array().unwrap().iter().find(|l| l["id"] == "other.rtn").unwrap().clone();
    assert_eq!((entry["source"].as_str(), entry["version"].as_str()), (Some("org.qfw.loadable"), Some("0.1.0")));
    let without = home.qfw(&["list-plugins", "--no-dynamic-plugins"]).ok().stdout;
    assert!(!without.contains("other.rtn"));
    assert!(home.qfw(&["plugin", "info", "org.qfw.loadable"]).ok().stdout.contains("(added)"));
    let out = home.path("out");
    refused_with(&home.apply(&out, "--algo other.rtn"), 3, "plugin::load", &["plugin `org.qfw.loadable`", "no library that can be loaded"]);
    refused_with(&home.apply(&out, "--algo other.rtn --set plugins.allow-dynamic=false"), 2, "registry::unknown", &["`other.rtn`"]);
    assert!(!out.exists());
    refused_with(&home.qfw(&["plugin", "remove", "org.qfw.loadble"]), 2, "plugin::unknown", &["did you mean `org.qfw.loadable`?"]);
    home.qfw(&["plugin", "remove", "org.qfw.loadable"]).ok();
    assert!(!home.qfw(&["list-plugins"]).ok().stdout.contains("other.rtn"));
}

/// A package that merely lies about is shown, and not run.
#[test]
fn what_was_not_added_is_not_loaded() {
    let home = Home::new();
    let here = home.path("plugins");
    home.package("plugins/found", &loadable(), &LOADABLE.replace("\"rtn\"", "\"other.rtn\""));
    let run = |env: &str, words: &str| {
        let mut command = home.command(&apply_args("tiny-llama", &home.path("out"), words));
        finish(command.env("QFW_PLUGIN_PATH", env).current_dir(home.path("plugins/found")))
    };
    let absolute = here.display().to_string();
    refused_with(
        &run(&absolute, "--algo other.rtn"),
        3,
        "plugin::not-added",
        &["plugin `org.qfw.loadable` lies in", "run `qfw plugin add"],
    );
    // It offers `gptq` too, which does not disturb who has not added it.
    assert_eq!(run(&absolute, "--algo gptq").code, Some(0));
    // Neither the current directory nor a relative path is looked at.
    refused_with(&run("", "--algo other.rtn"), 2, "registry::unknown", &["`other.rtn`"]);
    let ran = run(".", "--algo other.rtn");
    refused_with(&ran, 2, "registry::unknown", &["`.` in QFW_PLUGIN_PATH is skipped: it is not absolute"]);
}

#[test]
fn a_run_can_require_a_plugin_and_its_version() {
    let home = Home::new();
    home.add(&home.package("loadable", &loadable(), LOADABLE));
    let run = |words: &str| {
        home.qfw(&args("plan", &[&asset("tiny-llama"), "--algo", "rtn", "--set", "scheme.weights.format=int4", "--set", words]))
    };
    let id = "plugins.require.\"org.qfw.loadable\"";
    let chosen = |words: &str| run(&format!("{id}={words}"));
    // `rtn` is offered twice here; that comes after.
    refused_with(&chosen(">=0.1"), 3, "plugin::duplicate", &["`rtn` is offered twice"]);
    refused_with(
        &chosen(">=0.2"),
        3,
        "plugin::required",
        &["plugin `org.qfw.loadable` is required as `>=0.2`, and version 0.1.0 is there"],
    );
    refused_with(&run("plugins.require.nobody=\"1\""), 3, "plugin::required", &["plugin `nobody` is required, and is not there"]);
    refused_with(&chosen("new"), 2, "config::invalid", &["is `new`: "]);
}
