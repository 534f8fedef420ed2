//! The worth of a second reader is that it shares nothing with the first.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// No dependency, of whatever kind and at whatever distance, is a crate of this project.
#[test]
fn nothing_of_this_project_is_used() {
    let cargo = |args: &[&str]| {
        let output = Command::new(env!("CARGO")).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // Of other platforms' dependencies a fresh machine has not even the manifests.
    let version = cargo(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let metadata = cargo(&["metadata", "--format-version", "1", "--offline", "--filter-platform", host, "--manifest-path", manifest]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let ours: BTreeSet<&str> = metadata["workspace_members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let edges: BTreeMap<&str, Vec<&str>> = nodes
        .iter()
        .map(|n| (n["id"].as_str().unwrap(), n["dependencies"].as_array().unwrap().iter().map(|d| d.as_str().unwrap()).collect()))
        .collect();
    let named = |name: &str| {
        let package = metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap();
        package["id"].as_str().unwrap()
    };
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![named(from)]);
        while let Some(id) = next.pop() {
            next.extend(edges[id].iter().copied().filter(|d| seen.insert(*d)));
        }
        seen
    };
    let found: Vec<&str> = reached("qfw-verify").intersection(&ours).copied().collect();
    assert!(found.is_empty(), "qfw-verify depends on {found:?}");
    // The walk finds what is there: the program uses both.
    let program = reached("qfw");
    assert!(program.contains(named("qfw-verify")) && program.contains(named("qfw-core")));
}
