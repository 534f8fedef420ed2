//! Runs with plugins that are interrupted, and gone on with.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::errors::refused_with;
use super::plugins::{Home, compiled, library};
use super::plugins_refused::{BROKEN, MISBEHAVING, unfinished};
use super::{apply_args, finish};

/// A plugin that does not return when it is asked to: after the grace period it is named, and the program ends. What was finished stays.
#[test]
#[cfg(unix)]
fn a_plugin_that_hangs_is_named_and_left() {
    let home = Home::new();
    home.add(&home.package("misbehaving", &library("qfw_test_misbehaving"), MISBEHAVING));
    let out = home.path("out");
    // The first block is done by another.
    let toml = home.path("run.toml");
    std::fs::write(
        &toml,
        "schema = 1\n[model]\npath = \"none\"\n[[pass]]\nalgo = \"rtn\"\nmatch = 'blocks\\.0\\..*'\n[[pass]]\nalgo = \"bad.hang\"\nskip = ['blocks\\.0\\..*']\n",
    )
    .unwrap();
    let mut command = home.command(&apply_args("tiny-llama", &out, &format!("--config {}", toml.display())));
    let mut child = command.env("QFW_PLUGIN_GRACE", "0.3").stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap());
    let before: Vec<String> = lines.by_ref().take_while(|l| !l.ends_with("hanging")).collect();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let after = lines.collect::<Vec<_>>().join("\n");
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(3), "{before:?} {after}");
    for part in [
        "error[qfw::plugin::hangs]",
        "plugin `org.qfw.misbehaving` 0.1.0 in `blocks.1.",
        "has not returned 0.3 s after it was asked to stop",
    ] {
        assert!(after.contains(part), "`{part}` is not in {after}");
    }
    unfinished(&out);
    let journal = std::fs::read_to_string(out.join(".qfw/journal.json")).unwrap();
    let journal: serde_json::Value = serde_json::from_str(&journal).unwrap();
    assert_eq!(journal["blocks"].as_array().unwrap().len(), 1, "the first block is kept");
    // Once it works, the run goes on from there, to the bytes of one that was never stopped.
    let go = |out: &Path, more: &str| {
        let mut command = home.command(&apply_args("tiny-llama", out, &format!("--config {} {more}", toml.display())));
        finish(command.env("QFW_TEST_CURED", "1"))
    };
    let resumed = go(&out, "--resume").ok();
    assert!(resumed.stderr.contains("resuming: 1 of "), "{}", resumed.stderr);
    let whole = home.path("whole");
    go(&whole, "").ok();
    super::same_tree(&super::tree(&out), &super::tree(&whole), "resumed after a plugin that hung");
}

/// Code of a library runs while it is opened, too, and when the program ends: what hangs there is named, or does not matter.
#[test]
#[cfg(unix)]
fn a_library_that_hangs_when_it_is_opened_is_named() {
    let home = Home::new();
    for (fault, interrupts, code, says) in [
        ("HANGS_OPENING", 1, 3, "opening plugin `org.qfw.broken` 1.0.0 has not returned 0.3 s after it was asked to stop"),
        // Whoever does not wait for that is told too, and the library's exit handler, which hangs, is not run.
        ("HANGS_ENDING", 2, 130, "at work: plugin `org.qfw.broken` 1.0.0 in `blocks.0."),
    ] {
        let built = home.path(&format!("{fault}.so"));
        if !compiled("broken.c", &[&format!("-DFAULT={fault}")], &built) {
            return;
        }
        home.add(&home.package(fault, &built, BROKEN));
        let out = home.path(&format!("{fault}-out"));
        let mut command = home.command(&apply_args("tiny-llama", &out, "--algo broken"));
        let grace = if interrupts == 1 { "0.3" } else { "60" };
        let mut child = command.env("QFW_PLUGIN_GRACE", grace).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap());
        assert!(lines.by_ref().any(|l| l == "hanging"));
        let interrupt = || assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        interrupt();
        // Other sites may say in between that they hang.
        let mut told = lines.by_ref().filter(|l| l != "hanging");
        let first = [told.next().unwrap(), told.next().unwrap()];
        assert!(first[0].starts_with("at work: ") && first[1].starts_with("stopping after the current step"), "{first:?}");
        if interrupts == 2 {
            interrupt();
        }
        let rest = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(child.wait().unwrap().code(), Some(code), "{rest}");
        assert!(rest.contains(says), "{rest}");
        unfinished(&out);
    }
}

/// A run does not go on with other code than it began with.
#[test]
fn a_run_is_not_resumed_with_another_library() {
    let home = Home::new();
    let package = home.package("misbehaving", &library("qfw_test_misbehaving"), MISBEHAVING);
    home.add(&package);
    let out = home.path("out");
    let ran = home.apply(&out, "--algo bad.fails");
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    // Another build: the same but for its hash.
    let mut bytes = std::fs::read(package.join("lib.so")).unwrap();
    bytes.push(0);
    std::fs::write(home.path("rebuilt"), bytes).unwrap();
    home.add(&home.package("misbehaving", &home.path("rebuilt"), MISBEHAVING));
    let ran = home.apply(&out, "--algo bad.fails --resume");
    refused_with(&ran, 2, "resume::different-plan", &["org.qfw.misbehaving 0.1.0 blake3:"]);
    // Without the plugin there is nothing to go on with either, and the way out is to begin anew.
    home.qfw(&["plugin", "remove", "org.qfw.misbehaving"]).ok();
    home.apply(&out, "--algo rtn --overwrite").ok();
}
