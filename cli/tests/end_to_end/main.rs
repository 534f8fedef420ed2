//! The binary as its users run it, on the embedded models. One program, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod activations;
mod branches;
mod compare;
mod compat;
mod conditions;
mod containers;
mod degenerate;
mod determinism;
mod errors;
mod export;
mod gguf;
mod gguf_candle;
mod gptq_awq;
mod hub;
mod learned;
mod learned_rotations;
mod multipliers;
mod onnx;
mod options;
mod pairs;
mod plugin_kit;
mod plugins;
mod plugins_found;
mod plugins_interrupted;
mod plugins_refused;
mod recipes;
mod resume;
mod rotations;
mod scheme;
mod shark;
mod targets;
mod transforms;
mod unknown_model;
mod verify;
mod verify_onnx;
mod verify_strays;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a finished process left.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The process, if it ended well.
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// Its standard output as JSON.
    #[track_caller]
    fn json(self) -> serde_json::Value {
        let ran = self.ok();
        serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.stdout))
    }
}

/// The program with these arguments. It sees no network and no cache but what a test gives it.
fn command<S: AsRef<str>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfw"));
    for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-hub-cache"));
    command.args(args.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command
}

fn qfw<S: AsRef<str>>(args: &[S]) -> Ran {
    finish(&mut command(args))
}

fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran { code: output.status.code(), stdout: String::from_utf8(output.stdout).unwrap(), stderr: String::from_utf8(output.stderr).unwrap() }
}

/// A file or directory of `cli/assets`.
fn asset(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name).display().to_string()
}

/// A command line: `words` separated by blanks, then `more` as they are.
fn args(words: &str, more: &[&str]) -> Vec<String> {
    words.split_whitespace().chain(more.iter().copied()).map(ToOwned::to_owned).collect()
}

/// `qfw apply` of a model with a few short windows of calibration text; `words` say the rest.
fn apply_args(model: &str, out: &Path, words: &str) -> Vec<String> {
    let fixed = "--set calibration.samples=8 --set calibration.seq-len=64 --set scheme.weights.format=int4";
    let mut all = args("apply", &[&asset(model), "--data", &asset("text/calibration.txt"), "-o", &out.display().to_string()]);
    all.extend(args(&format!("{fixed} {words}"), &[]));
    all
}

#[track_caller]
fn apply(model: &str, out: &Path, words: &str) -> Ran {
    qfw(&apply_args(model, out, words)).ok()
}

/// `qfw eval --json` on a few windows of text the model was not calibrated on.
#[track_caller]
fn eval(model: &Path) -> String {
    let model = model.display().to_string();
    let data = asset("text/evaluation.txt");
    qfw(&args("eval --seq-len 128 --max-windows 24 --json", &["--data", &data, &model])).ok().stdout
}

#[track_caller]
fn perplexity(model: &Path) -> f64 {
    serde_json::from_str::<serde_json::Value>(&eval(model)).unwrap()["perplexity"].as_f64().unwrap()
}

/// Copies the files of a model to a new directory.
fn copied(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Every file below `dir` by its path there, except the log that is outside the guarantee.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.insert(path.strip_prefix(root).unwrap().to_owned(), Vec::new());
                walk(root, &path, files);
            } else if !path.ends_with("qfw-run.jsonl") {
                files.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(dir, dir, &mut files);
    files
}

/// Type, shape and bytes of tensors by name.
type Tensors = BTreeMap<String, (String, serde_json::Value, Vec<u8>)>;

/// The tensors of all safetensors files in `dir`, from their headers as the format defines them. Files themselves differ wherever their
/// plans do, which they name.
#[track_caller]
fn tensors(dir: &Path) -> Tensors {
    let mut all = Tensors::new();
    let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let data = &bytes[8 + length..];
        for (name, info) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
            let at = |i: usize| info["data_offsets"][i].as_u64().unwrap() as usize;
            all.insert(name, (info["dtype"].as_str().unwrap().to_owned(), info["shape"].clone(), data[at(0)..at(1)].to_vec()));
        }
    }
    assert!(!all.is_empty(), "{} holds tensors", dir.display());
    all
}

/// Fails naming the files that differ, not their bytes.
#[track_caller]
fn same_tree(a: &BTreeMap<PathBuf, Vec<u8>>, b: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}: other files");
    let different: Vec<_> = a.iter().filter(|(name, bytes)| b[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(different.is_empty(), "{what}: {different:?} differ");
}
