//! Low-rank branches beside the codes, from the plan to a model that runs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{apply, apply_args, args, asset, perplexity, qfw, same_tree, tree};

const INPUTS: &str = "--set scheme.inputs.format=int4 --set scheme.inputs.granularity=token --set scheme.inputs.timing=dynamic";

fn config(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap()
}

fn run(dir: &Path, model: &str, name: &str, words: &str) -> PathBuf {
    let out = dir.join(format!("{model}-{name}"));
    apply(model, &out, &format!("--format qfw {words}"));
    out
}

fn generated(model: &str) -> String {
    qfw(&args("generate --prompt Alice --max-new-tokens 24", &[model])).ok().stdout
}

/// With a branch that is the whole weight, 2-bit codes and 4-bit inputs cost nothing, in every linear of both families: it runs
/// everywhere, on what is not rounded. Without it nothing is left of the model.
#[test]
fn a_branch_of_full_rank_leaves_nothing_to_round() {
    let dir = tempfile::tempdir().unwrap();
    for (model, shared) in [("tiny-llama", false), ("tiny-llama", true), ("tiny-gpt2", false)] {
        let full = format!("--set svdquant.rank=4096 --set svdquant.dtype=float32 --set svdquant.shared={shared}");
        let words = format!("--algo svdquant,rtn {full} --set scheme.weights.format=int2 {INPUTS}");
        let out = run(dir.path(), model, &format!("full-{shared}"), &words);
        let (is, was) = (perplexity(&out), perplexity(Path::new(&asset(model))));
        assert!((is / was - 1.0).abs() < 2e-3, "{model}: {is} for {was}");
        assert_eq!(generated(&out.display().to_string()), generated(&asset(model)), "{model}");
        let mut config = config(&out);
        let quantization = config["quantization_config"].as_object_mut().unwrap();
        let count = |list: &Value| list.as_array().unwrap().len();
        assert_eq!(count(&quantization["modules"]), count(&quantization.remove("branches").unwrap()));
        std::fs::write(out.join("config.json"), config.to_string()).unwrap();
        assert!(perplexity(&out) > 5.0 * was, "{model}: the branches do nothing");
    }
}

/// Shared or not, before rounding or after it, with what comes before and behind: nearer than without, and reported.
#[test]
fn branches_bring_the_model_nearer() {
    let dir = tempfile::tempdir().unwrap();
    let coarse = "--set scheme.weights.format=int2 --set scheme.weights.granularity.group=32";
    let error = |out: &Path| {
        let record: Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
        let sites = record["sites"].as_array().unwrap();
        sites.iter().map(|s| s["weight-error"].as_f64().unwrap()).sum::<f64>() / sites.len() as f64
    };
    let of = |name: &str, algo: &str| run(dir.path(), "tiny-llama", name, &format!("{coarse} --algo {algo}"));
    let plain = of("plain", "rtn");
    let (without, loss) = (error(&plain), perplexity(&plain));
    for (name, algo, share) in [
        ("split", "svdquant,rtn --set svdquant.rank=16", 0.95),
        ("iterated", "svdquant,rtn --set svdquant.rank=16 --set svdquant.iters=8", 0.9),
        ("shared", "svdquant,rtn --set svdquant.rank=16 --set svdquant.shared=true", 0.97),
        ("smoothed", "smoothquant,svdquant,rtn --set svdquant.rank=16", f64::INFINITY),
        ("lorc", "svdquant,rtn --set svdquant.rank=16 --set svdquant.compensate=true", 0.95),
        ("eora", "svdquant,gptq --set svdquant.rank=16 --set svdquant.compensate=true --set svdquant.gram=true", f64::INFINITY),
        ("gptq", "svdquant,gptq --set svdquant.rank=16", f64::INFINITY),
        // It compares two streams, and wants to know their inputs well.
        ("qronos", "svdquant,qronos --set svdquant.rank=16 --set calibration.samples=48", f64::INFINITY),
    ] {
        let out = of(name, algo);
        assert!(error(&out) < share * without, "{name}: {} for {without}", error(&out));
        assert!(perplexity(&out) < loss, "{name}: {} for {loss}", perplexity(&out));
        let branches = config(&out)["quantization_config"]["branches"].clone();
        let own = branches.as_array().unwrap().iter().filter(|b| b["a"] == b["module"]).count();
        assert_eq!(own, if name == "shared" { 24 } else { 42 }, "{name}");
    }
}

#[test]
fn the_plan_counts_branches_and_containers_without_room_refuse_them() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let plan = |words: &str| {
        let mut all = apply_args("tiny-llama", &out, words);
        "plan".clone_into(&mut all[0]);
        qfw(&all)
    };
    let text = plan("--format qfw --algo svdquant,rtn --set svdquant.rank=4 --set svdquant.dtype=bfloat16").ok().stdout;
    // A block has 196 608 weights of 4 bits, 1280 rows with a scale, and 4·16 bits for each of 1280 rows and 1152 columns.
    let bits = 4.0 + 16.0 * (1280.0 + 4.0 * (1280.0 + 1152.0)) / 196_608.0;
    for line in [
        "svdquant (split) on 42 sites",
        "branches      of rank 4 in bfloat16  ×42",
        &format!("{bits:.2} bits each with scales, zero points and branches"),
    ] {
        assert!(text.contains(line), "`{line}` is not in\n{text}");
    }
    let shared = plan("--format qfw --algo svdquant,rtn --set svdquant.rank=4 --set svdquant.shared=true").ok().stdout;
    assert!(shared.contains("of rank 4 in") && shared.contains("A shared  ×18"), "{shared}");
    let refused = plan("--algo svdquant,rtn");
    assert_eq!(refused.code, Some(2));
    for part in [
        "plan::container",
        "output format `compressed-tensors`: `blocks.0.attn.q`: it holds codes, and no branch of rank 32 beside them",
        "hint: leave the pass out, or use `--format qfw`",
    ] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let twice = plan("--format qfw --algo svdquant,svd-quant,rtn");
    assert!(twice.stderr.contains("`blocks.0.attn.q` would get two branches, the second from `svdquant`"), "{}", twice.stderr);
}

#[test]
fn branches_are_the_same_bytes_at_any_number_of_threads_and_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let words = format!(
        "--format qfw --algo svdquant,gptq --set svdquant.rank=8 --set svdquant.iters=2 --set svdquant.gram=true --set svdquant.shared=true {INPUTS}"
    );
    let [one, three] = ["1", "3"].map(|threads| {
        let out = dir.path().join(threads);
        apply("tiny-llama", &out, &format!("{words} --threads {threads}"));
        out
    });
    same_tree(&tree(&one), &tree(&three), "other threads");
    let out = dir.path().join("stopped");
    super::resume::stopped_at(&out, &words, "block 4/6");
    apply("tiny-llama", &out, &format!("{words} --resume"));
    same_tree(&tree(&one), &tree(&out), "resumed");
    // Tensors that the list names have to be there.
    let mut config = config(&out);
    config["quantization_config"]["branches"][3]["module"] = "model.layers.0.nowhere".into();
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let ran = qfw(&args("eval --data", &[&asset("text/evaluation.txt"), &out.display().to_string()]));
    assert!(ran.stderr.contains("the branch of `model.layers.0.nowhere` runs beside no linear layer of a block"), "{}", ran.stderr);
}
