//! `qfw plugin new` and `qfw plugin check`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::errors::refused_with;
use super::plugins::{Home, LOADABLE, library, loadable};

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
    let output = Command::new(program).args(args).current_dir(dir).env_remove("CARGO_TARGET_DIR").stdin(Stdio::null()).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no `{program}` here");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
    Some(dir.join(built))
}

/// A new plugin builds without a network, passes the kit and quantizes the tiny model, as it is.
#[test]
fn a_new_plugin_builds_passes_the_kit_and_works() {
    let home = Home::new();
    let ways = [("rust", "round"), ("rust", "condition"), ("rust", "split"), ("rust", "transform"), ("c", "round"), ("c", "condition")];
    for (lang, phase) in ways {
        let name = format!("my-{lang}-{phase}");
        let dir = home.path(&name);
        let path = dir.display().to_string();
        home.qfw(&["plugin", "new", &path, "--lang", lang, "--phase", phase]).ok();
        let Some(built) = build(&dir, lang) else { continue };
        home.qfw(&["plugin", "pack", &path, "--library", &built.display().to_string()]).ok();
        let said = home.qfw(&["plugin", "check", &path]).ok().stdout;
        assert!(said.contains(&format!("cases of `com.example.{name}` are fine")), "{said}");
        home.add(&dir);
        let algo = if phase == "round" { name.clone() } else { format!("{name},rtn") };
        let out = home.path(&format!("{name}-out"));
        // Branches are held by the native form.
        home.apply(&out, &format!("--algo {algo} --format qfw")).ok();
        if (lang, phase) == ("rust", "round") {
            let plain = home.path("plain");
            home.apply(&plain, "--algo rtn --format qfw").ok();
            assert!(super::plugins::tensors(&out) == super::plugins::tensors(&plain), "it rounds to nearest");
        }
    }
    refused_with(&home.qfw(&["plugin", "new", "My Plugin"]), 2, "config::invalid", &["`My Plugin` is no name for a plugin"]);
    let taken = home.path("my-c-round").display().to_string();
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
    let manifest = super::plugins_refused::misbehaving();
    let package = home.package("misbehaving", &library("qfw_test_misbehaving"), &manifest).display().to_string();
    let ran = home.qfw(&["plugin", "check", &package, "--case", "bad.panic.round.one-by-one"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    assert!(ran.stdout.contains("failed: plugin `org.qfw.misbehaving` 0.1.0: it panicked: a bug in mlp.down"), "{}", ran.stdout);
    assert!(ran.stdout.contains("again: qfw plugin check ") && ran.stdout.contains("--seed 0 --in-process"), "{}", ran.stdout);
    let ran = home.qfw(&["plugin", "check", &package, "--case", "bad.range.round.fuzz"]);
    assert!(ran.stdout.contains("it returned the code "), "{}", ran.stdout);
    home.qfw(&["plugin", "check", &package, "--case", "bad.nothing.round"]).ok();
    refused_with(&home.qfw(&["plugin", "check", &package, "--case", "nosuch"]), 2, "registry::unknown", &["no case has `nosuch`"]);
}
