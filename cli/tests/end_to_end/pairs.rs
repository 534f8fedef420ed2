//! Methods that compare the quantized activations with the original ones, and those that look at rounded activations.

use super::{apply, apply_args, args, asset, perplexity, qfw, tensors};

const INT8: &str = "--set scheme.inputs.format=int8 --set scheme.inputs.timing=dynamic --set scheme.inputs.granularity=token --format qfw";

#[test]
fn both_streams_are_kept_where_a_pass_compares_them() {
    for algo in ["gpfq", "qronos"] {
        let plan = |words: &str| {
            let mut all = args(&format!("plan --json --algo {algo} --set scheme.weights.format=int4"), &[&asset("tiny-llama")]);
            all.extend(args(
                &format!("--set calibration.samples=8 --set calibration.seq-len=64 {words} --data"),
                &[&asset("text/calibration.txt")],
            ));
            qfw(&all)
        };
        let planned = plan("").ok();
        let note = format!("`harness.propagate` is `both`: `{algo}` needs the activations of the original model too");
        assert!(planned.stderr.contains(&note), "{}", planned.stderr);
        let planned = planned.json();
        assert_eq!(planned["plan"]["harness"]["propagate"], "both");
        assert_eq!(planned["plan"]["harness"]["sequence"], "layer");
        // Two matrices for each input instead of one.
        let one = qfw(&args(
            "plan --json --algo gptq --set harness.sequence=layer --set scheme.weights.format=int4 --set calibration.samples=8 --set calibration.seq-len=64 --data",
            &[&asset("text/calibration.txt"), &asset("tiny-llama")],
        ));
        let bytes = |plan: &serde_json::Value| plan["memory"]["statistics"].as_u64().unwrap();
        assert_eq!(bytes(&planned), 2 * bytes(&one.json()));
        for kept in ["quantized", "reference"] {
            let refused = plan(&format!("--set harness.propagate={kept}"));
            assert_eq!(refused.code, Some(2));
            assert!(refused.stderr.contains(&format!("but `harness.propagate` is `{kept}`")), "{}", refused.stderr);
        }
    }
}

#[test]
fn both_methods_beat_rounding_to_nearest_and_alpha_matters() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        let fixed = "--set calibration.samples=24 --set calibration.seq-len=128 --set scheme.weights.format=int2";
        apply("tiny-llama", &out, &format!("{fixed} --set scheme.weights.granularity.group=64 {words}"));
        out
    };
    let rtn = perplexity(&run("rtn", "--algo rtn"));
    let gpfq = perplexity(&run("gpfq", "--algo gpfq"));
    let at = run("qronos", "--algo qronos --set qronos.alpha=1e-3");
    let qronos = perplexity(&at);
    assert!(gpfq < rtn && qronos < rtn, "rtn {rtn}, gpfq {gpfq}, qronos {qronos}");
    assert!(tensors(&at) != tensors(&run("alpha", "--algo qronos --set qronos.alpha=0.1")));
    assert!(tensors(&at) != tensors(&run("order", "--algo qronos --set qronos.alpha=1e-3 --set qronos.act-order=off")));
}

#[test]
fn rounded_activations_are_looked_at_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply("tiny-llama", &out, words);
        tensors(&out)
    };
    let looking = "--algo gptq --set gptq.use-quant-activations=true";
    let four = INT8.replace("int8", "int4");
    assert_ne!(run("a", &format!("--algo gptq {four}")), run("b", &format!("{looking} {four}")));
    // Where nothing is rounded there is nothing else to see.
    assert_eq!(run("c", "--algo gptq --format qfw"), run("d", &format!("{looking} --format qfw")));
}

#[test]
fn accumulators_are_planned_for_each_site() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |words: &str| {
        let ran = qfw(&apply_args("tiny-llama", &dir.path().join("none"), words));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        ran.stderr
    };
    let channel = "--set scheme.weights.granularity=channel";
    let text = refused(&format!("--algo gpfq --set gpfq.accumulator-bits=16 {channel}"));
    assert!(text.contains("`blocks.0.attn.q`: `accumulator-bits` needs to know the inputs, and the scheme rounds none"), "{text}");
    let text = refused(&format!("--algo gptq --set gptq.accumulator-bits=16 {INT8} {channel}"));
    assert!(text.contains("option `accumulator-bits` of `gptq` is about rounded inputs"), "{text}");
    let (free, held) = (dir.path().join("free"), dir.path().join("held"));
    apply("tiny-llama", &free, &format!("--algo gpfq {INT8} {channel}"));
    apply("tiny-llama", &held, &format!("--algo gpfq --set gpfq.accumulator-bits=13 --set gpfq.accumulator-tile=32 {INT8} {channel}"));
    assert!(tensors(&free) != tensors(&held));
    assert!(perplexity(&held).is_finite());
}
