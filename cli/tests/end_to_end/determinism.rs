//! The same bytes whatever the threads and the memory; and the methods stand in the order in which they should.

use std::path::{Path, PathBuf};

use qfw_core::numeric::Bf16Unit;

use super::{apply, apply_args, args, asset, perplexity, qfw, same_tree, tensors, tree};

/// Bytes that the plan says a run of `words` needs on one thread, all in memory, and those of the streams among them.
fn memory(words: &str) -> (u64, u64) {
    let mut all = args("plan --json", &[&asset("tiny-llama"), "--data", &asset("text/calibration.txt")]);
    all.extend(args(&format!("--set calibration.samples=8 --set calibration.seq-len=64 --set scheme.weights.format=int4 {words}"), &[]));
    let memory = qfw(&all).json()["memory"].clone();
    let term = |name: &str| memory[name].as_u64().unwrap();
    assert_eq!(memory["spill"], false);
    let streams = term("streams");
    (term("base") + term("blocks") + streams + term("statistics") + term("scratch") + term("windows"), streams)
}

fn same_on_all(dir: &Path, model: &str, words: &str) -> PathBuf {
    let first = dir.join("1");
    apply(model, &first, &format!("{words} --threads 1"));
    let expected = tree(&first);
    for threads in [2, 3] {
        let out = dir.join(threads.to_string());
        apply(model, &out, &format!("{words} --threads {threads}"));
        same_tree(&expected, &tree(&out), &format!("{model} {words}: {threads} threads"));
    }
    first
}

#[test]
fn threads_do_not_change_a_byte() {
    for words in [
        "--algo rtn",
        "--algo gptq",
        "--algo gptq --set harness.sequence=layer",
        "--algo gptq --set harness.propagate=reference",
        "--algo gptq --set harness.propagate=both --set gptq.act-order=off --set scheme.weights.granularity.group=32",
        "--algo gptq --format qfw --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --set scheme.keys.format=fp8",
        "--algo gpfq",
        "--algo qronos --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --format qfw",
        "--algo gptq --set scheme.weights.range=mse --set scheme.weights.symmetric=false --format qfw --set gptq.act-order=group",
    ] {
        let dir = tempfile::tempdir().unwrap();
        same_on_all(dir.path(), "tiny-llama", words);
    }
    let dir = tempfile::tempdir().unwrap();
    same_on_all(dir.path(), "tiny-gpt2", "--algo gptq --format qfw");
}

#[test]
fn threads_do_not_change_a_byte_whatever_products_round_to() {
    if Bf16Unit::detect().is_none() {
        return;
    }
    for (model, words) in [
        ("tiny-llama", "--algo gptq --set harness.propagate=both"),
        ("tiny-llama", "--algo gptq --set harness.sequence=layer"),
        ("tiny-gpt2", "--algo gptq --format qfw"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rounded = same_on_all(dir.path(), model, &format!("{words} --set harness.products=bf16"));
        let f32_dir = tempfile::tempdir().unwrap();
        let exact = same_on_all(f32_dir.path(), model, &format!("{words} --set harness.products=f32"));
        assert!(tensors(&rounded) != tensors(&exact), "{model} {words}: nothing was rounded");
        // Close enough that a file says nothing about it: perplexities of the two.
        let (a, b) = (perplexity(&rounded), perplexity(&exact));
        assert!((a / b - 1.0).abs() < 0.01, "{model} {words}: {a} with bf16, {b} with f32");
    }
}

#[test]
fn the_budget_does_not_change_a_byte() {
    for words in [
        "--algo gptq --set harness.propagate=both --set calibration.samples=96 --threads 1",
        "--algo qronos --set calibration.samples=96 --threads 1",
        "--algo gptq --set harness.sequence=layer --set calibration.samples=96 --threads 2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (ample, tight) = (dir.path().join("ample"), dir.path().join("tight"));
        apply("tiny-llama", &ample, words);
        let (all, streams) = memory(words);
        assert!(streams > 1 << 20);
        let ran = apply("tiny-llama", &tight, &format!("{words} --budget {}", all - 1));
        assert!(ran.stderr.contains("streams on disk"), "the streams were not spilled: {}", ran.stderr);
        same_tree(&tree(&ample), &tree(&tight), words);
        // Less than what is left without the streams is refused.
        let refused = qfw(&apply_args("tiny-llama", &dir.path().join("none"), &format!("{words} --budget {}", all - streams - 1)));
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(!dir.path().join("none").exists(), "a refused run wrote something");
    }
}

#[test]
fn gptq_beats_rounding_to_nearest_and_the_choices_of_the_loop_matter() {
    for (model, format) in [("tiny-llama", "compressed-tensors"), ("tiny-gpt2", "qfw")] {
        let dir = tempfile::tempdir().unwrap();
        let run = |name: &str, words: &str| {
            let out = dir.path().join(name);
            let fixed =
                format!("--format {format} --set calibration.samples=24 --set calibration.seq-len=128 --set scheme.weights.format=int2");
            apply(model, &out, &format!("{fixed} --set scheme.weights.granularity.group=64 {words}"));
            out
        };
        let (rtn, gptq) = (run("rtn", "--algo rtn"), run("gptq", "--algo gptq"));
        let float = perplexity(Path::new(&asset(model)));
        let (rtn, gptq_perplexity) = (perplexity(&rtn), perplexity(&gptq));
        assert!(float < gptq_perplexity && gptq_perplexity < rtn, "{model}: float {float}, gptq {gptq_perplexity}, rtn {rtn}");
        for words in ["--set harness.sequence=layer", "--set harness.propagate=reference"] {
            let other = run(words, &format!("--algo gptq {words}"));
            assert!(tensors(&gptq) != tensors(&other), "{model}: `{words}` changes nothing");
        }
    }
}

#[test]
fn the_seed_chooses_the_windows() {
    let dir = tempfile::tempdir().unwrap();
    let hash = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply("tiny-llama", &out, &format!("--algo gptq {words}"));
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
        record["plan"]["calibration"]["hash"].as_str().unwrap().to_owned()
    };
    let zero = hash("0", "--seed 0");
    assert_eq!(zero, hash("default", ""));
    assert_ne!(zero, hash("1", "--seed 1"));
}
