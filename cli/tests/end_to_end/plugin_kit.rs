//! `qfw plugin new` and `qfw plugin check`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::errors::refused_with;
use super::plugins::{Home, LOADABLE, compiled, library, loadable};
use super::plugins_refused::MISBEHAVING;
use super::{args, asset, tensors};

/// Builds a new plugin the way its own README says; `None` where there is nothing to build it with.
fn build(dir: &Path, lang: &str) -> Option<PathBuf> {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let (program, args, built): (_, &[&str], _) = match lang {
        "rust" => (
            option_env!("CARGO").unwrap_or("cargo"),
            &["build", "--release", "--offline"],
            format!("target/release/{}{}{}", std::env::consts::DLL_PREFIX, name.replace('-', "_"), std::env::consts::DLL_SUFFIX),
        ),
        _ => ("make", &[], format!("{name}.so")),
    };
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env_remove("CARGO_TARGET_DIR").env("CFLAGS", "-O2 -Werror").stdin(Stdio::null());
    let output = command.output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no `{program}` here");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
    Some(dir.join(built))
}

/// The crates that the library is made of become others than those of the program: nothing of Rust crosses, so nothing may depend on it.
fn of_another_version(dir: &Path) {
    let manifest = dir.join("vendor/qfw-abi/Cargo.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let ours = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&ours), "{text}");
    std::fs::write(manifest, text.replace(&ours, "version = \"7.3.1\"")).unwrap();
    let manifest = dir.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    // Laid out and optimized otherwise, too.
    std::fs::write(manifest, text.replace("panic = \"unwind\"", "panic = \"unwind\"\nopt-level = 1\noverflow-checks = true")).unwrap();
}

/// A new plugin builds without a network, passes the kit and quantizes the tiny model, as it is.
#[test]
fn a_new_plugin_builds_passes_the_kit_and_works() {
    let home = Home::new();
    let phases = ["round", "condition", "split", "transform"];
    for (lang, phase) in ["rust", "c"].into_iter().flat_map(|lang| phases.map(|phase| (lang, phase))) {
        let name = format!("my-{lang}-{phase}");
        // A directory with a blank in its name.
        let dir = home.path("my plugins").join(&name);
        let path = dir.display().to_string();
        home.qfw(&["plugin", "new", &path, "--lang", lang, "--phase", phase]).ok();
        if (lang, phase) == ("rust", "round") {
            of_another_version(&dir);
        }
        let Some(built) = build(&dir, lang) else { continue };
        home.qfw(&["plugin", "pack", &path, "--library", &built.display().to_string()]).ok();
        let said = home.qfw(&["plugin", "check", &path]).ok().stdout;
        assert!(said.contains(&format!("cases of `com.example.{name}` are fine")), "{said}");
        home.add(&dir);
        let algo = if phase == "round" { name.clone() } else { format!("{name},rtn") };
        let out = home.path(&format!("{name}-out"));
        // Its example of a configuration is one.
        let example = dir.join("run.example.toml").display().to_string();
        let data = ["--data", &asset("text/calibration.txt"), "--config", &example, &asset("tiny-llama")];
        let plan = home.qfw(&args("plan --set calibration.samples=8 --set calibration.seq-len=64", &data)).ok();
        assert!(plan.stdout.contains(&format!("{name} ({phase}) on ")), "{}", plan.stdout);
        // Branches are held by the native form.
        home.apply(&out, &format!("--algo {algo} --format qfw")).ok();
        if phase == "round" {
            let plain = home.path(&format!("{lang}-plain"));
            home.apply(&plain, "--algo rtn --format qfw").ok();
            assert!(tensors(&out) == tensors(&plain), "it rounds to nearest");
            // Beside a linked one.
            let (mine, theirs) = (home.path(&format!("{lang}-smooth")), home.path(&format!("{lang}-smooth-plain")));
            home.apply(&mine, &format!("--algo smoothquant,{name}")).ok();
            home.apply(&theirs, "--algo smoothquant,rtn").ok();
            assert!(tensors(&mine) == tensors(&theirs), "the same beside another pass");
        }
    }
    // What it would offer is there already, under its id or another name.
    let ran = home.qfw(&["plugin", "new", &home.path("gptq").display().to_string()]);
    refused_with(&ran, 2, "config::exists", &["`gptq` is an algorithm of this program, by `qfw-gptq`", "such as `my-gptq`"]);
    let ran = home.qfw(&["plugin", "new", &home.path("svd-quant").display().to_string()]);
    refused_with(&ran, 2, "config::exists", &["`svd-quant` is an algorithm of this program, by `qfw-svdquant`"]);
    refused_with(&home.qfw(&["plugin", "new", "My Plugin"]), 2, "config::invalid", &["`My Plugin` is no name for a plugin"]);
    let taken = home.path("my plugins/my-c-round").display().to_string();
    refused_with(&home.qfw(&["plugin", "new", &taken]), 2, "config::exists", &["is there already"]);
    let other = home.path("x").display().to_string();
    refused_with(&home.qfw(&["plugin", "new", &other, "--lang", "zig"]), 2, "config::invalid", &["languages: c, rust"]);
    refused_with(
        &home.qfw(&["plugin", "new", &other, "--phase", "correct"]),
        2,
        "config::invalid",
        &["phases: condition, round, split, transform"],
    );
}

/// The number format of the guide is one: as it stands there, with what `new` writes around it.
#[test]
fn the_format_of_the_guide_builds_and_works() {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md")).unwrap();
    let (_, section) = guide.split_once("## Number formats\n").unwrap();
    let source = section.split_once("```rust\n").unwrap().1.split_once("```").unwrap().0;
    let home = Home::new();
    let dir = home.path("seven");
    let path = dir.display().to_string();
    home.qfw(&["plugin", "new", &path, "--lang", "rust"]).ok();
    std::fs::write(dir.join("src/lib.rs"), source).unwrap();
    let manifest = std::fs::read_to_string(dir.join("plugin.toml")).unwrap();
    let head = manifest.split_once("[[algo]]").unwrap().0;
    std::fs::write(dir.join("plugin.toml"), format!("{head}[[format]]\nid = \"seven\"\nsummary = \"denser around zero\"\n")).unwrap();
    let Some(built) = build(&dir, "rust") else { return };
    home.qfw(&["plugin", "pack", &path, "--library", &built.display().to_string()]).ok();
    let said = home.qfw(&["plugin", "check", &path]).ok().stdout;
    assert!(said.ends_with("cases of `com.example.seven` are fine\n"), "{said}");
    home.add(&dir);
    // The same seven values, by the plugin in C.
    let ours = home.path("ours");
    home.apply(&ours, "--algo rtn --set scheme.weights.format=seven --format qfw").ok();
    if compiled("nearest.c", &[], &home.path("nearest.so")) {
        home.qfw(&["plugin", "remove", "com.example.seven"]).ok();
        home.add(&home.package("in-c", &home.path("nearest.so"), super::plugins::IN_C));
        let theirs = home.path("theirs");
        home.apply(&theirs, "--algo rtn --set scheme.weights.format=seven --format qfw").ok();
        assert!(tensors(&ours) == tensors(&theirs), "a table is a table");
    }
}

/// Every algorithm of this workspace that can be loaded passes.
#[test]
fn algorithms_of_the_workspace_pass_the_kit() {
    let home = Home::new();
    let package = home.package("loadable", &loadable(), LOADABLE).display().to_string();
    let found = home.qfw(&["plugin", "check", &package, "--json"]).json();
    let cases = found["cases"].as_array().unwrap();
    assert!(cases.len() > 80, "{} cases", cases.len());
    for case in cases {
        assert!(["success", "warning", "skipped"].contains(&case["outcome"]["status"].as_str().unwrap()), "{case}");
    }
}

/// What breaks is one case, with the line that repeats it.
#[test]
fn the_kit_tells_a_plugin_that_breaks_from_one_that_does_not() {
    let home = Home::new();
    let package = home.package("misbehaving", &library("qfw_test_misbehaving"), MISBEHAVING).display().to_string();
    let check = |case: &str| home.qfw(&["plugin", "check", &package, "--case", case]);
    for (case, says) in [
        ("bad.panic.round.one-by-one", "failed: plugin `org.qfw.misbehaving` 0.1.0: it panicked: a bug in mlp.down"),
        ("bad.range.round.fuzz", "failed: with seed 0, "),
        ("bad.range.round.groups", "it returned the code "),
        ("bad.abort.round.one-by-one", "and without an answer; its last words: this is the end"),
        ("bad.default.options.defaults-given", "it refuses its own default {\"strength\":2}"),
        ("bad.schema.options.schema", "has `multipleOf`, which the host does not check"),
        ("bad.order.round.order", "failed: the same site gives other bytes"),
        ("bad.zero-factor.transform.behind-a-norm", "the factor of channel 0 is 0, not finite and positive"),
        ("bad.zero-factor.transform.fuzz", "with seed 0, "),
        ("bad.suits.transform.threads", "it panicked: a bug in blocks.0."),
        ("bad.reads.options.reads", "it says that it reads no activations, and asks for statistics of them"),
        ("bad.idle.options.reads", "it says that it reads activations, and asks for no statistics of them"),
        ("bad.silent.split.groups", "it splits, and its needs have no `branch`"),
    ] {
        let ran = check(case);
        assert_eq!(ran.code, Some(3), "{case}: {} {}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains(says), "{case}: {}", ran.stdout);
        let again = format!("again: qfw plugin check '{package}' --case {case} --seed 0 --in-process");
        assert!(ran.stdout.contains(&again), "{case}: {}", ran.stdout);
    }
    // Allowed, and worth a word.
    for (case, says) in [
        ("bad.leak.round.memory", "warning: after 64 sites more it holds "),
        ("bad.loud.round.one-by-one", "warning: it prints to the standard error: rounding blocks.0.mlp.down"),
    ] {
        assert!(check(case).ok().stdout.contains(says), "{case}");
    }
    // What means nothing for a phase is in the report, with the reason.
    for (case, says) in [
        ("bad.zero-factor.transform.one-by-one", "skipped: it works on the channels between the layers of a model"),
        ("bad.nothing.round.no-strength", "skipped: it moves no weights in high precision"),
        ("bad.nothing.round.values", "skipped: it works on single layers"),
    ] {
        assert!(check(case).ok().stdout.contains(says), "{case}");
    }
    let ran = home.qfw(&["plugin", "check", &package, "--case", r"^bad\.nothing\.", "--skip", "fuzz|wide"]).ok();
    assert!(ran.stdout.contains("bad.nothing.options.range") && !ran.stdout.contains("fuzz"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("warning: "), "{}", ran.stdout);
    // The same seed draws the same sites; another draws others, and fails elsewhere.
    let drawn = |seed: &str| {
        let ran = home.qfw(&["plugin", "check", &package, "--case", "bad.range.round.fuzz", "--seed", seed, "--in-process"]);
        ran.stdout.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(drawn("5"), drawn("5"));
    assert_ne!(drawn("5").replace("seed 5", ""), drawn("6").replace("seed 6", ""));
    refused_with(&check("*"), 2, "config::invalid", &["`*` is no pattern of cases"]);
    refused_with(&home.qfw(&["plugin", "check", &package, "--case", "nosuch"]), 2, "registry::unknown", &["no case has `nosuch`"]);
}

/// What a plugin is lent it must not write to.
#[test]
fn the_kit_sees_what_writes_to_its_inputs() {
    let home = Home::new();
    if !compiled("broken.c", &["-DFAULT=WRITES"], &home.path("writes.so")) {
        return;
    }
    let manifest = "id = \"org.qfw.broken\"\nversion = \"1.0.0\"\nabi = { major = 1, minor = 0 }\n\
        [[algo]]\nid = \"broken\"\nphase = \"round\"\nsummary = \"breaks\"\nweight-only = true\n";
    let package = home.package("writes", &home.path("writes.so"), manifest).display().to_string();
    let ran = home.qfw(&["plugin", "check", &package, "--case", "broken.round.groups"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(ran.stdout.contains("failed: it wrote to the weight that it was lent"), "{}", ran.stdout);
}
