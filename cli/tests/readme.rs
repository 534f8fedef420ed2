//! The README's commands, run as they stand there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn asset(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(path)
}

/// Contents of the fenced blocks of a language.
fn fenced<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    let blocks: Vec<usize> = text.match_indices(&open).map(|(at, _)| at + open.len()).collect();
    blocks.into_iter().filter_map(|at| text[at..].split("\n```").next()).collect()
}

/// A folder with what the commands name: a model, texts, and the README's own `run.toml`.
fn folder(readme: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("MODEL")).unwrap();
    for entry in std::fs::read_dir(asset("tiny-llama")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), at("MODEL").join(entry.file_name())).unwrap();
    }
    std::fs::copy(asset("text/calibration.txt"), at("text.txt")).unwrap();
    std::fs::copy(asset("text/evaluation.txt"), at("held-out.txt")).unwrap();
    std::fs::write(at("run.toml"), fenced(readme, "toml")[0]).unwrap();
    dir
}

#[test]
fn the_readme_s_commands_run() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let dir = folder(&readme);
    let program = PathBuf::from(env!("CARGO_BIN_EXE_qfw"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let lines: Vec<&str> = fenced(&readme, "sh").into_iter().flat_map(str::lines).filter(|l| l.starts_with("qfw ")).collect();
    assert!(lines.len() >= 7 && lines.contains(&"qfw apply --algo gptq,awq --config run.toml"), "{lines:?}");
    for line in lines {
        // Every recipe is one of its own.
        if line.starts_with("qfw apply") && dir.path().join("OUT").exists() {
            std::fs::remove_dir_all(dir.path().join("OUT")).unwrap();
        }
        let output = Command::new("sh").args(["-c", line]).current_dir(dir.path()).env("PATH", &path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{line}`: {said}");
        if line.starts_with("qfw apply") {
            assert!(dir.path().join("OUT/config.json").is_file(), "`{line}` wrote no model");
        }
    }
}
