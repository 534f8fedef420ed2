//! `--target`: what an engine will do with a plan, said before the run and after it.

use serde_json::Value;

use super::{Ran, apply_args, args, asset, qfw};

/// `qfw VERB --json` of a tiny model; `words` say the rest. A plan writes nothing.
fn run(verb: &str, model: &str, out: &std::path::Path, words: &str) -> Ran {
    let mut all = apply_args(model, out, words);
    all[0] = verb.to_owned();
    all.push("--json".to_owned());
    qfw(&all)
}

#[track_caller]
fn planned(model: &str, words: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    run("plan", model, &dir.path().join("out"), words).json()["target"].clone()
}

/// Of each engine one scheme that loads and one that does not, whose recipe, pasted, loads.
#[test]
fn recipes_that_are_given_load() {
    const GROUPS: &str = "--set scheme.weights.granularity.group=32";
    for (target, algo, good, bad, outcome, rule) in [
        ("vllm", "rtn", "--format compressed-tensors", "--format gptq-v2 --set scheme.weights.symmetric=false", "refused", "gptq-affine"),
        ("vllm", "rtn", "--format awq", "--format compressed-tensors --set scheme.weights.granularity=tensor", "refused", "int-tensor"),
        ("vllm", "gptq", "--format gptq", "--format gptq --set gptq.act-order=group", "refused", "gptq-act-order"),
        ("vllm-cpu", "rtn", "--format gptq", "--format compressed-tensors --set scheme.weights.format=int8", "refused", "packed-width"),
        (
            "transformers",
            "spinquant,rtn",
            "--format gptq",
            "--format compressed-tensors-online --set spinquant.rotations=[\"r1\",\"r4\"] --set spinquant.online-block=128",
            "wrong",
            "rotations",
        ),
        (
            "gptqmodel",
            "rtn",
            "--format gptq --set scheme.weights.format=int3",
            "--format gptq --set scheme.weights.granularity.group=8",
            "refused",
            "gptq-group",
        ),
        ("llama.cpp", "rtn", "--format gguf", "--format gptq", "refused", "not-gguf"),
        ("mistral.rs", "rtn", "--format gguf", "--format compressed-tensors", "refused", "integers"),
    ] {
        let base = format!("--algo {algo} {GROUPS} --target {target}");
        let judged = planned("tiny-llama", &format!("{base} {good}"));
        assert_eq!(judged["formats"][0]["outcome"], "loads", "{target} {good}: {judged}");
        let judged = planned("tiny-llama", &format!("{base} {bad}"));
        let because = &judged["formats"][0]["because"][0];
        assert_eq!((&because["outcome"], &because["rule"]), (&outcome.into(), &rule.into()), "{target} {bad}: {judged}");
        assert!(because["source"].as_str().is_some_and(|s| s.len() > 10), "{judged}");

        let recipe = because["recipe"].as_str().unwrap().replace('\'', "");
        let kept = if recipe.contains("--format") {
            bad.split_once(" --set").map_or(String::new(), |(_, set)| format!("--set{set}"))
        } else {
            bad.to_owned()
        };
        let judged = planned("tiny-llama", &format!("{base} {kept} {recipe}"));
        assert_eq!(judged["formats"][0]["outcome"], "loads", "{target} {kept} {recipe}: {judged}");
    }
}

/// Facts that are of the whole plan, or of one layer among many.
#[test]
fn the_worst_layer_decides() {
    let outcome = |model: &str, words: &str| {
        let judged = planned(model, words);
        let first = &judged["formats"][0];
        let rule = first["because"][0]["rule"].as_str().unwrap_or("none").to_owned();
        (first["outcome"].as_str().unwrap().to_owned(), rule)
    };
    let is = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let head = "--set model.tie-policy=untie --set scheme.head.format=int4 --set scheme.head.granularity.group=32";
    let gptq = "--algo rtn --set scheme.weights.granularity.group=32 --format gptq";
    assert_eq!(outcome("tiny-llama", &format!("{gptq} {head} --target transformers")), is("wrong", "gptq-head"));
    assert_eq!(outcome("tiny-llama", &format!("{gptq} {head} --set scheme.head=keep --target transformers")), is("loads", "gptq"));
    assert_eq!(outcome("tiny-llama", &format!("{gptq} {head} --target gptqmodel")), is("loads", "gptq"));
    assert_eq!(outcome("tiny-gpt2", &format!("{gptq} --target transformers")), is("refused", "gptq-gpt2"));
    assert_eq!(outcome("tiny-gpt2", &format!("{gptq} --target gptqmodel")), is("loads", "gptq"));
    assert_eq!(
        outcome("tiny-gpt2", "--algo rtn --set scheme.weights.granularity.group=32 --format gguf --target mistral.rs"),
        is("refused", "gpt2")
    );
    assert_eq!(outcome("tiny-llama", "--algo rtn --format compressed-tensors --target onnxruntime"), is("refused", "not-onnx"));
    assert_eq!(outcome("tiny-llama", "--algo rtn --format onnx --target onnxruntime"), is("loads", "integers"));
    assert_eq!(outcome("tiny-llama", "--algo rtn --format onnx-qdq --target onnxruntime"), is("wrong", "weights-in-qdq"));
    assert_eq!(outcome("tiny-gpt2", "--algo rtn --format onnx --target llama.cpp"), is("refused", "not-gguf"));
    for (words, rule) in
        [("--preset w8a8 --format compressed-tensors", "int8-inputs"), ("--preset fp8-dynamic --format compressed-tensors", "fp8")]
    {
        for target in ["vllm", "vllm-cpu", "transformers"] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out").display().to_string();
            let more = ["-o", &out, "--data", &asset("text/calibration.txt"), &asset("tiny-llama")];
            let fixed = "--set calibration.samples=8 --set calibration.seq-len=64 --json";
            let judged = qfw(&args(&format!("plan {words} --target {target} {fixed}"), &more)).json()["target"].clone();
            assert_eq!(judged["formats"][0]["because"][0]["rule"], rule, "{target} {words}: {judged}");
            assert_eq!(judged["formats"][0]["outcome"], "loads", "{target} {words}: {judged}");
        }
    }
    // Nobody has looked: 2 bits in vLLM, and versions that the rules are not about.
    let two = "--algo rtn --set scheme.weights.format=int2 --set scheme.weights.granularity.group=32";
    assert_eq!(outcome("tiny-llama", &format!("{two} --target vllm")), is("unknown", "none"));
    let judged = planned("tiny-llama", "--algo rtn --target vllm@0.12 --set scheme.weights.granularity.group=32");
    assert_eq!(judged["formats"][0]["outcome"], "unknown");
    assert_eq!(
        judged["formats"][0]["because"][0]["reason"],
        "nobody has tried vllm 0.12; rules are about 0.32; in 0.32, the nearest, it loads: integers of 4 or 8 bits, symmetric or affine, in groups of 32, 64 or 128 or per channel"
    );
}

/// 4 heads, 2 of keys; 128 inputs of the output layer, 384 of down: each device needs whole groups.
#[test]
fn sizes_for_several_devices_follow_from_heads_and_groups() {
    for (group, sizes) in
        [("{group=32}", vec![1, 2, 4]), ("{group=64}", vec![1, 2]), ("{group=128}", vec![1]), ("\"channel\"", vec![1, 2, 4])]
    {
        let judged = planned("tiny-llama", &format!("--algo rtn --target vllm --set scheme.weights.granularity={group}"));
        assert_eq!(judged["tensor_parallel"], serde_json::json!(sizes), "{group}");
    }
    let judged = planned("tiny-llama", "--algo rtn --format gguf --target llama.cpp --set scheme.weights.granularity.group=32");
    assert_eq!(judged["tensor_parallel"], Value::Null);
    // Wherever a judgement is shown: to people and as JSON, before the run, in it, and of what lies there.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words = "--algo rtn --target vllm --set scheme.weights.granularity.group=64";
    let shown = "layers can be split over 1, 2\n";
    let mut plan = apply_args("tiny-llama", &out, words);
    plan[0] = "plan".to_owned();
    assert!(qfw(&plan).ok().stdout.contains(shown));
    let ran = qfw(&apply_args("tiny-llama", &out, words)).ok();
    assert!(ran.stderr.contains(shown), "{}", ran.stderr);
    let path = out.display().to_string();
    assert!(qfw(&args("inspect --target vllm", &[&path])).ok().stdout.contains(shown));
    assert!(qfw(&args("verify --target vllm", &[&path])).ok().stdout.contains(shown));
    for command in ["inspect --target vllm --json", "verify --target vllm --json"] {
        assert_eq!(qfw(&args(command, &[&path])).json()["target"]["tensor_parallel"], serde_json::json!([1, 2]), "{command}");
    }
    let again = run("apply", "tiny-llama", &out, &format!("{words} --overwrite")).json();
    assert_eq!(again["target"]["tensor_parallel"], serde_json::json!([1, 2]));
}

#[test]
fn apply_refuses_what_would_not_load_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let affine = "--algo rtn --set scheme.weights.granularity.group=32 --set scheme.weights.symmetric=false";
    let refused = run("apply", "tiny-llama", &out, &format!("{affine} --format gptq-v2 --target vllm"));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for says in ["qfw::plan::target", "vllm 0.32 refuses what `gptq-v2` is to hold", "sym=False", "this loads: --format compressed-tensors"]
    {
        assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
    }
    assert!(!out.exists(), "nothing is written");
    for (target, says) in [("vlm", "did you mean `vllm`?"), ("vllm@", "names no version")] {
        let unknown = run("apply", "tiny-llama", &out, &format!("{affine} --target {target}"));
        assert!(unknown.code == Some(2) && unknown.stderr.contains(says), "{}", unknown.stderr);
    }

    // Before anything is read: there is no such model, and no such text.
    let nothing = ["--data", "no-text.txt", "-o", "no-out", "no-model", "--algo", "gptq", "--preset", "w4a16", "--target"];
    let unknown = qfw(&args("apply", &[&nothing[..], &["vlm"]].concat()));
    assert!(unknown.code == Some(2) && unknown.stderr.contains("did you mean `vllm`?"), "{}", unknown.stderr);
    // And before the text is looked for.
    let model = asset("tiny-llama");
    let none = ["--data", "no-text.txt", "-o", "no-out", &model, "--algo", "gptq", "--format", "gguf", "--target", "vllm"];
    let early = qfw(&args("apply --set scheme.weights.format=int4 --set scheme.weights.granularity.group=32", &none));
    assert!(early.code == Some(2) && early.stderr.contains("qfw::plan::target"), "{}", early.stderr);

    // Of several formats one has to load; what was found stands in the record.
    run("apply", "tiny-llama", &out, &format!("{affine} --format gptq-v2,awq --target vllm")).ok();
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
    assert_eq!((&record["target"]["engine"], &record["target"]["version"]), (&"vllm".into(), &"0.32".into()));
    let outcomes: Vec<&Value> = record["target"]["formats"].as_array().unwrap().iter().map(|f| &f["outcome"]).collect();
    assert_eq!(outcomes, ["refused", "loads"]);

    // The same of what lies there.
    let path = |format: &str| out.join(format).display().to_string();
    let verified = qfw(&args("verify --target vllm --json", &[&path("awq")])).json();
    assert_eq!(verified["target"]["formats"][0]["outcome"], "loads", "{verified}");
    assert_eq!(verified["target"]["tensor_parallel"], serde_json::json!([1, 2, 4]));
    let verified = qfw(&args("verify --target vllm", &[&path("gptq-v2")]));
    assert!(verified.code == Some(1) && verified.stderr.contains("qfw::verify::target"), "{}", verified.stderr);
    let inspected = qfw(&args("inspect --target llama.cpp --json", &[&path("awq")])).json();
    assert_eq!(inspected["target"]["formats"][0]["because"][0]["recipe"], "--format gguf", "{inspected}");
}

/// Of a float model: what could be made of it.
#[test]
fn inspect_lists_what_an_engine_loads() {
    let recipes = |model: &str, target: &str| -> Vec<String> {
        let found = qfw(&args(&format!("inspect --json --target {target}"), &[&asset(model)])).json();
        found["recipes"].as_array().unwrap().iter().map(|r| r["arguments"].as_str().unwrap().to_owned()).collect()
    };
    assert!(recipes("tiny-llama", "vllm").iter().any(|r| r.starts_with("--format awq")));
    assert_eq!(recipes("tiny-gpt2", "vllm"), Vec::<String>::new());
    assert_eq!(
        recipes("tiny-gpt2", "llama.cpp"),
        ["--format gguf --set scheme.weights.format=int4 --set scheme.weights.granularity.group=32", "--preset mxfp4 --format gguf"]
    );
    let text = qfw(&args("inspect --target llama.cpp", &[&asset("tiny-gpt2")])).ok();
    assert!(text.stdout.contains("known from llama-cpp-python 0.3.36"), "{}", text.stdout);
}
