//! Rotations learned before the first block, from the command line.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{apply, apply_args, perplexity, qfw, same_tree, tree};

const SCHEME: &str = "--set scheme.weights.format=int4 --set scheme.weights.granularity=channel --set scheme.inputs.format=int4 \
                      --set scheme.inputs.granularity=token";
const LEARN: &str = "--algo quarot,rtn --set quarot.optimize.steps=6 --set quarot.optimize.batch-size=2";

fn run(dir: &Path, model: &str, name: &str, words: &str) -> PathBuf {
    let out = dir.join(format!("{model}-{name}"));
    apply(model, &out, &format!("--format qfw {SCHEME} {words}"));
    out
}

fn learned(out: &Path) -> Value {
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
    record["rotations"].clone()
}

#[test]
fn rotations_get_better_at_what_they_are_for_and_leave_the_function_alone() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["tiny-llama", "tiny-gpt2"] {
        // Every step sees all windows: what fewer of them gain is less than what one rounding more or less moves.
        let all = "--algo quarot,rtn --set quarot.optimize.steps=12 --set quarot.optimize.batch-size=8";
        for (name, words, steps) in [
            ("network", all.to_owned(), 12),
            ("sgd", format!("{all} --set quarot.optimize.optimizer=cayley-sgd --set quarot.optimize.lr=0.1"), 12),
            ("weights", "--algo quarot,rtn --set quarot.variant=weight-recon --set quarot.optimize.steps=20".to_owned(), 20),
        ] {
            let out = run(dir.path(), model, name, &words);
            let record = learned(&out);
            let of = |key: &str| record[key].as_f64().unwrap();
            assert!(of("reached") < of("initial"), "{model} {name}: {record}");
            assert_eq!(record["curve"].as_array().unwrap().len(), steps, "{model} {name}");
        }
        // At 16 bits nothing is left of rounding: what was learned is a rotation, applied to everything that it turns.
        let fine = "--set scheme.weights.format=int16 --set scheme.inputs.format=int16";
        let (plain, rotated) =
            (run(dir.path(), model, "plain", &format!("{fine} --algo rtn")), run(dir.path(), model, "fine", &format!("{fine} {LEARN}")));
        let (plain, rotated) = (perplexity(&plain), perplexity(&rotated));
        assert!((plain / rotated - 1.0).abs() < 2e-3, "{model}: {plain} {rotated}");
    }
}

/// Neither threads nor streams on disk change a byte, nor does a run that stops between learning and the first block.
#[test]
fn learning_is_the_same_at_any_number_of_threads_and_after_an_interruption() {
    let dir = tempfile::tempdir().unwrap();
    let one = run(dir.path(), "tiny-llama", "1", &format!("{LEARN} --threads 1"));
    let three = dir.path().join("three");
    // Enough for all but the activations.
    let ran = apply("tiny-llama", &three, &format!("--format qfw {SCHEME} {LEARN} --threads 3 --budget 75200KiB"));
    assert!(ran.stderr.contains("streams on disk"), "{}", ran.stderr);
    same_tree(&tree(&one), &tree(&three), "threads");
    let out = dir.path().join("stopped");
    let args = apply_args("tiny-llama", &out, &format!("--format qfw {SCHEME} {LEARN}"));
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qfw")).args(&args).stderr(std::process::Stdio::null()).spawn().unwrap();
    let rotations = out.join(".qfw/rotations.safetensors");
    while !rotations.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut again = args.clone();
    again.push("--resume".to_owned());
    qfw(&again).ok();
    same_tree(&tree(&one), &tree(&out), "resumed");
}

/// A run that is killed between two steps goes on behind the last, and says so.
#[test]
fn learning_goes_on_behind_the_last_step() {
    let dir = tempfile::tempdir().unwrap();
    let words = format!("--format qfw {SCHEME} {LEARN} --set quarot.optimize.steps=12");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("stopped"));
    apply("tiny-llama", &whole, &words);
    let args = apply_args("tiny-llama", &out, &words);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qfw")).args(&args).stderr(std::process::Stdio::null()).spawn().unwrap();
    let halfway = out.join(".qfw/learning.safetensors");
    let steps = || {
        std::fs::read(&halfway).map_or(0, |bytes| {
            let text = String::from_utf8_lossy(&bytes[8..bytes.len().min(4096)]).into_owned();
            let header: Value = serde_json::Deserializer::from_str(&text).into_iter().next().unwrap().unwrap();
            header["curve"]["shape"][0].as_u64().unwrap()
        })
    };
    while steps() < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its third step");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let done = steps();
    assert!((3..12).contains(&done) && !out.join("config.json").exists(), "{done} steps");
    let again: Vec<String> = args.iter().cloned().chain(["--resume".to_owned()]).collect();
    let ran = qfw(&again).ok();
    assert!(ran.stderr.contains(&format!("resuming: {done} of 12 steps of learning rotations are done")), "{}", ran.stderr);
    same_tree(&tree(&whole), &tree(&out), "resumed");
    // What is damaged is told, and not learned over in silence.
    let spoiled = dir.path().join("spoiled");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_qfw"))
        .args(apply_args("tiny-llama", &spoiled, &words))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let halfway = spoiled.join(".qfw/learning.safetensors");
    while !halfway.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let bytes = std::fs::read(&halfway).unwrap();
    std::fs::write(&halfway, &bytes[..bytes.len() / 2]).unwrap();
    let mut again = apply_args("tiny-llama", &spoiled, &words);
    again.push("--resume".to_owned());
    let ran = qfw(&again);
    assert!(ran.code == Some(1) && ran.stderr.contains("what was learned so far cannot be read: `"), "{:?} {}", ran.code, ran.stderr);
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |words: &str, parts: &[&str]| {
        let run = qfw(&apply_args("tiny-llama", &dir.path().join("no"), &format!("--format qfw {words}")));
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "`{part}` is missing in: {}", run.stderr);
        }
    };
    refused(
        "--algo quarot,rtn --set quarot.optimize.weights=false --set scheme.weights.format=int4",
        &["plan::nothing-to-learn", "`spinquant` has nothing to learn rotations for: no activations are rounded", "leave `optimize` out"],
    );
    refused(
        "--algo quarot,rtn --set quarot.optimize=true --set quarot.mode=layerwise --set scheme.weights.format=int4",
        &["option `optimize` of `spinquant` is true", "only fused rotations"],
    );
    refused(
        "--algo quarot,spinquant,rtn --set spinquant.optimize=true --set scheme.weights.format=int4",
        &["topology::rotated-twice", "`residual` is rotated by what is learned, and rotated again"],
    );
    refused(
        "--algo quarot,rtn --set quarot.optimize.steps=-1 --set scheme.weights.format=int4",
        &["option `steps` of `spinquant`", "steps"],
    );
}
