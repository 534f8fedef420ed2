//! A run that is stopped anywhere and resumed writes what it would have written.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use qfw_core::numeric::Bf16Unit;

use super::{apply, apply_args, command, qfw, same_tree, tree};

const RUN: &str = "--algo gptq --set calibration.samples=24 --set harness.propagate=both --keep-native";

fn start(model: &str, out: &Path, words: &str) -> Child {
    command(&apply_args(model, out, words)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Starts a run and returns it when it has said `line`.
fn start_until(model: &str, out: &Path, words: &str, line: &str) -> Child {
    let mut child = start(model, out, words);
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while said.read_line(&mut text).unwrap() > 0 {
        if text.lines().last().is_some_and(|l| l.contains(line)) {
            // Kept open, so that the run never writes into a closed pipe.
            std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
            return child;
        }
    }
    let status = child.wait().unwrap();
    panic!("the run ended ({status}) before it said `{line}`: {text}");
}

/// A run that is killed when it says `line`.
pub(super) fn stopped_at(model: &str, out: &Path, words: &str, line: &str) {
    kill(start_until(model, out, words, line));
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn interrupt(child: &Child) {
    let done = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(done.success());
}

/// The next of a seeded sequence of numbers below 1.
fn next(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 53) as f64
}

#[test]
fn killed_at_any_moment_and_resumed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let begun = Instant::now();
    apply("tiny-llama", &whole, RUN);
    let (length, expected) = (begun.elapsed().as_secs_f64(), tree(&whole));
    let mut seed = 2;
    let mut stopped = 0;
    for run in 0..12 {
        let out = dir.path().join(format!("{run}"));
        // Most are killed twice: the resumed run is killed as well.
        for _ in 0..2 {
            let child = start("tiny-llama", &out, &format!("{RUN} --resume"));
            std::thread::sleep(Duration::from_secs_f64(next(&mut seed) * length * 1.05));
            stopped += usize::from(out.join(".qfw").exists());
            kill(child);
        }
        apply("tiny-llama", &out, &format!("{RUN} --resume"));
        same_tree(&expected, &tree(&out), &format!("run {run}"));
    }
    assert!(stopped >= 6, "only {stopped} of the kills met a run at work");
}

#[test]
fn killed_at_its_borders_and_resumed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    apply("tiny-llama", &whole, RUN);
    let expected = tree(&whole);
    for (i, line) in ["memory ", "block 1/6", "block 6/6", "writing compressed-tensors"].into_iter().enumerate() {
        let out = dir.path().join(format!("{i}"));
        kill(start_until("tiny-llama", &out, RUN, line));
        apply("tiny-llama", &out, &format!("{RUN} --resume"));
        same_tree(&expected, &tree(&out), line);
    }
}

#[test]
fn products_in_bf16_resume_as_such_and_not_as_f32() {
    if Bf16Unit::detect().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let words = format!("{RUN} --set harness.products=bf16");
    apply("tiny-llama", &whole, &words);
    kill(start_until("tiny-llama", &out, &words, "block 4/6"));
    let other = qfw(&apply_args("tiny-llama", &out, &format!("{RUN} --set harness.products=f32 --resume")));
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(other.stderr.contains("harness.products: \"bf16\" there, \"f32\" here"), "{}", other.stderr);
    // `auto`, the default, is bf16 here.
    apply("tiny-llama", &out, &format!("{RUN} --resume"));
    same_tree(&tree(&whole), &tree(&out), "bf16");
}

#[test]
fn killed_while_it_tidies_up_it_is_finished_and_before_that_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    apply("tiny-llama", &whole, RUN);
    let expected = tree(&whole);
    // The container stands whole under its final name, and the work directory as well.
    kill(start_until("tiny-llama", &out, RUN, "writing compressed-tensors"));
    for name in ["model.safetensors", "config.json", "qfw.json"] {
        std::fs::copy(whole.join(name), out.join(name)).unwrap();
    }
    let resumed = apply("tiny-llama", &out, &format!("{RUN} --resume"));
    assert!(resumed.stderr.contains("resuming: 6 of 6 blocks are done"), "{}", resumed.stderr);
    same_tree(&expected, &tree(&out), "killed before it tidied up");
    // The work directory is half removed.
    std::fs::create_dir(out.join(".qfw-used")).unwrap();
    std::fs::write(out.join(".qfw-used/block-00003.safetensors"), "").unwrap();
    let again = apply("tiny-llama", &out, &format!("{RUN} --resume"));
    assert!(again.stdout.contains("is finished already"), "{}", again.stdout);
    same_tree(&expected, &tree(&out), "killed while it tidied up");
}

#[test]
fn interrupt_leaves_a_state_that_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    apply("tiny-llama", &whole, RUN);
    let mut child = start_until("tiny-llama", &out, RUN, "block 2/6");
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!out.join("config.json").exists(), "unfinished, but loadable");
    let refused = qfw(&apply_args("tiny-llama", &out, RUN));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("is not empty") && refused.stderr.contains("`--resume` goes on"), "{}", refused.stderr);
    let resumed = apply("tiny-llama", &out, &format!("{RUN} --resume --threads 1"));
    assert!(resumed.stderr.contains("resuming: "), "{}", resumed.stderr);
    same_tree(&tree(&whole), &tree(&out), "interrupted");
}

#[test]
fn a_finished_output_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["compressed-tensors", "qfw", "qfw,compressed-tensors"] {
        let out = dir.path().join(format);
        let words = format!("--algo rtn --format {format} --resume");
        apply("tiny-llama", &out, &words);
        let before = std::fs::read(out.join("qfw-run.jsonl")).unwrap();
        let again = apply("tiny-llama", &out, &words);
        assert!(again.stdout.contains("is finished already, under this very plan"), "{format}: {}", again.stdout);
        assert_eq!(std::fs::read(out.join("qfw-run.jsonl")).unwrap(), before, "{format}: it ran again");
    }
}

#[test]
fn another_plan_is_refused_and_says_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let finished = dir.path().join("finished");
    apply("tiny-llama", &finished, "--algo rtn");
    let unfinished = dir.path().join("unfinished");
    kill(start_until("tiny-llama", &unfinished, RUN, "block 1/6"));
    for (out, words) in [(&finished, "--algo rtn"), (&unfinished, RUN)] {
        let before = tree(out);
        let ran = qfw(&apply_args("tiny-llama", out, &format!("{words} --set scheme.weights.format=int8 --resume")));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains("error[qfw::resume::different-plan]"), "{}", ran.stderr);
        assert!(ran.stderr.contains("int4") && ran.stderr.contains("int8") && ran.stderr.contains("hint: "), "{}", ran.stderr);
        same_tree(&before, &tree(out), "refused");
    }
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("thesis.txt"), "years of work").unwrap();
    let before = tree(&out);
    for (flag, says) in [("", "is not empty"), ("--overwrite", "was not written by this program"), ("--resume", "did not make")] {
        let ran = qfw(&apply_args("tiny-llama", &out, &format!("--algo rtn {flag}")));
        assert_eq!(ran.code, Some(2), "`{flag}`: {}", ran.stderr);
        assert!(ran.stderr.contains(says) && ran.stderr.contains("hint: "), "`{flag}`: {}", ran.stderr);
        same_tree(&before, &tree(&out), flag);
    }
}

#[test]
fn overwrite_replaces_all_that_an_earlier_run_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (fresh, out) = (dir.path().join("fresh"), dir.path().join("out"));
    apply("tiny-llama", &fresh, "--algo rtn");
    apply("tiny-llama", &out, "--algo rtn --format qfw,compressed-tensors --keep-native");
    apply("tiny-llama", &out, "--algo rtn --overwrite");
    same_tree(&tree(&fresh), &tree(&out), "overwritten");
}

#[test]
fn a_damaged_shard_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    kill(start_until("tiny-llama", &out, RUN, "block 3/6"));
    let shard = out.join(".qfw/block-00001.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, &bytes).unwrap();
    let ran = qfw(&apply_args("tiny-llama", &out, &format!("{RUN} --resume")));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("block-00001.safetensors` is not what the journal says was written"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: start over with `--overwrite`"), "{}", ran.stderr);
    std::fs::remove_file(&shard).unwrap();
    let ran = qfw(&apply_args("tiny-llama", &out, &format!("{RUN} --resume")));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("block-00001.safetensors"), "{}", ran.stderr);
}

#[test]
fn a_second_run_on_the_same_output_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut child = start_until("tiny-llama", &out, &format!("{RUN} --set calibration.samples=64"), "block 1/6");
    for flag in ["--resume", "--overwrite"] {
        let ran = qfw(&apply_args("tiny-llama", &out, &format!("--algo rtn {flag}")));
        assert_eq!(ran.code, Some(2), "{flag}: {}", ran.stderr);
        assert!(ran.stderr.contains("another run is working on"), "{flag}: {}", ran.stderr);
        assert!(child.try_wait().unwrap().is_none(), "the first run ended too early for this test");
    }
    assert!(child.wait().unwrap().success(), "the first run was harmed");
}
