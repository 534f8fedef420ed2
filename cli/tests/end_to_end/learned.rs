//! Rounding learned block by block, from the command line.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{apply, apply_args, perplexity, qfw, same_tree, tree};

const COARSE: &str = "--set scheme.weights.format=int3 --set scheme.weights.granularity.group=32";
const LEARN: &str = "--set learned-round.iters=12 --set learned-round.batch-size=4";

fn run(dir: &Path, model: &str, name: &str, words: &str) -> PathBuf {
    let out = dir.join(format!("{model}-{name}"));
    apply(model, &out, &format!("--format qfw {COARSE} {words}"));
    out
}

fn record(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap()
}

/// `(initial, reached)` of every site that learned, and how long its curve is.
fn learned(out: &Path) -> Vec<(f64, f64, usize)> {
    let record = record(out);
    let events = record["sites"].as_array().unwrap().iter().flat_map(|s| s["events"].as_array().unwrap().clone());
    let of = |e: &Value| (e["initial"].as_f64().unwrap(), e["reached"].as_f64().unwrap(), e["curve"].as_array().map_or(0, Vec::len));
    events.filter(|e| e["learned"].is_object()).map(|e| of(&e["learned"])).collect()
}

#[test]
fn learning_does_better_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for (model, layers) in [("tiny-llama", 7), ("tiny-gpt2", 4)] {
        let nearest = perplexity(&run(dir.path(), model, "rtn", "--algo rtn"));
        let words = format!("--algo learned-round {LEARN} --set learned-round.iters=40");
        let out = run(dir.path(), model, "learned", &words);
        assert!(perplexity(&out) < nearest, "{model}: {} for {nearest}", perplexity(&out));
        let learned = learned(&out);
        assert!(learned.iter().all(|(initial, reached, _)| reached < initial), "{model}: {learned:?}");
        // One curve for each block, with the first of its layers.
        let curves: Vec<usize> = learned.iter().map(|l| l.2).collect();
        assert!(curves.chunks(layers).all(|block| block[0] == 40 && block[1..].iter().all(|n| *n == 0)), "{model}: {curves:?}");
    }
    // Without steps it is rounding to nearest.
    let of = |name: &str, words: &str| perplexity(&run(dir.path(), "tiny-llama", name, words));
    assert_eq!(of("none", "--algo learned-round --set learned-round.iters=0").to_bits(), of("again", "--algo rtn").to_bits());
}

/// What a branch leaves is learned while the branch runs beside it; a branch that is fitted afterwards sees what learning left.
#[test]
fn learning_goes_with_branches() {
    let dir = tempfile::tempdir().unwrap();
    for (name, compensate) in [("split", false), ("compensated", true)] {
        let words =
            |algo: &str, more: &str| format!("--algo svdquant,{algo} --set svdquant.rank=4 --set svdquant.compensate={compensate} {more}");
        let of = |kind: &str, words: &str| run(dir.path(), "tiny-gpt2", &format!("{name}-{kind}"), words);
        let nearest = perplexity(&of("rtn", &words("rtn", "")));
        let none = perplexity(&of("none", &words("learned-round", "--set learned-round.iters=0")));
        assert_eq!(none.to_bits(), nearest.to_bits(), "{name}");
        let out = of("learned", &words("learned-round", "--set learned-round.iters=40 --set learned-round.batch-size=4"));
        assert!(perplexity(&out) < nearest, "{name}: {} for {nearest}", perplexity(&out));
        let learned = learned(&out);
        assert!(learned.iter().all(|(initial, reached, _)| reached < initial), "{name}: {learned:?}");
        let three = of("three", &words("learned-round", "--set learned-round.iters=40 --set learned-round.batch-size=4 --threads 3"));
        same_tree(&tree(&out), &tree(&three), name);
    }
}

/// Blocks of the student see what the original ones before them put out, and what is rounded of activations is part of the student.
#[test]
fn distillation_does_better_than_its_scheme_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (model, layers) in [("tiny-llama", 7), ("tiny-gpt2", 4)] {
        let of = |name: &str, words: &str| run(dir.path(), model, name, words);
        let plain = perplexity(&of("zeroquant", "--algo zeroquant"));
        assert_eq!(plain.to_bits(), perplexity(&of("rtn", "--algo rtn")).to_bits(), "{model}");
        let out = of("lkd", "--algo zeroquant --set zeroquant.lkd.iters=60 --set zeroquant.lkd.batch-size=4 --set zeroquant.lkd.lr=1e-3");
        assert!(perplexity(&out) < plain, "{model}: {} for {plain}", perplexity(&out));
        let learned = learned(&out);
        assert!(learned.iter().all(|(initial, reached, _)| reached < initial), "{model}: {learned:?}");
        assert!(learned.chunks(layers).all(|block| block[0].2 == 60), "{model}: {learned:?}");
    }
    let words = |threads: usize| format!("--preset zeroquant-mixed --set zeroquant.lkd.iters=6 --threads {threads}");
    let of = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply("tiny-llama", &out, &format!("--format qfw {words}"));
        out
    };
    let (one, three) = (of("mixed-1", &words(1)), of("mixed-3", &words(3)));
    same_tree(&tree(&one), &tree(&three), "mixed");
    let sites = record(&one)["plan"]["sites"].to_string();
    assert!(sites.contains("int4") && sites.contains("int8"), "{sites}");
}

/// Neither threads nor streams on disk change a byte; rounded inputs and rotations are part of what is learned on.
#[test]
fn learning_is_the_same_at_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for (name, more) in [
        ("plain", "--algo learned-round"),
        (
            "inputs",
            r#"--algo quarot,learned-round --set quarot.rotations=["r1","r4"] --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --set scheme.inputs.granularity=tensor"#,
        ),
    ] {
        let words = |threads: usize| format!("{LEARN} {more} --threads {threads}");
        let one = run(dir.path(), "tiny-llama", &format!("{name}-1"), &words(1));
        let three = run(dir.path(), "tiny-llama", &format!("{name}-3"), &format!("{} --budget 80MiB", words(3)));
        same_tree(&tree(&one), &tree(&three), name);
        assert!(learned(&one).iter().all(|(initial, reached, _)| reached < initial), "{name}");
    }
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |words: &str, parts: &[&str]| {
        let run = qfw(&apply_args("tiny-llama", &dir.path().join("no"), &format!("--format qfw {COARSE} {words}")));
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        for part in parts {
            assert!(run.stderr.contains(part), "`{part}` is missing in: {}", run.stderr);
        }
    };
    // What they share would be split twice, and stored once.
    refused(
        r#"--set pass=[{algo="svdquant",options={shared=true}},{algo="learned-round",match="attn\\.q$"},{algo="rtn",skip=["attn\\.q$"]}]"#,
        &["plan::unsupported", "`blocks.0.attn.q` and `blocks.0.attn.k` share a part of their branches", "`shared`"],
    );
    refused("--algo learned-round --set learned-round.lr=0", &["`lr`", "it has to be above 0"]);
    refused("--algo learned-round --set learned-round.seed=3", &["set `calibration.seed`"]);
    refused(
        "--algo learned-round --set harness.propagate=reference",
        &["plan::propagate", "`learned-round` needs the activations of the quantized model"],
    );
    apply(
        "tiny-llama",
        &dir.path().join("reference"),
        &format!(
            "--format qfw {COARSE} {LEARN} --algo learned-round --set learned-round.enable-quanted-input=false --set harness.propagate=reference"
        ),
    );
}
