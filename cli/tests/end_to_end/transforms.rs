//! Changes of basis: the model stays what it was, and rounds better.

use std::path::Path;

use serde_json::Value;

use super::{apply, args, asset, copied, perplexity, qfw, same_tree, tensors, tree};

/// All that may be scaled is, strongly, and nothing is rounded: only the order of additions is another.
#[test]
fn the_function_of_the_model_stays_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for (model, regions) in
        [("tiny-llama", "[\"attn.in\",\"values\",\"mlp.in\",\"mlp.hidden\"]"), ("tiny-gpt2", "[\"attn.in\",\"values\",\"mlp.in\"]")]
    {
        let [kept, moved] = ["kept", "moved"].map(|name| dir.path().join(format!("{model}-{name}")));
        let common = "--format qfw --set harness.no-quantize=true --set model.dtype=float32 --algo";
        apply(model, &kept, &format!("{common} rtn"));
        apply(model, &moved, &format!("{common} smoothquant,rtn --set smoothquant.alpha=0.9 --set pass.0.regions={regions}"));
        assert!(tensors(&kept) != tensors(&moved), "{model}: nothing was moved");
        let (a, b) = (perplexity(&kept), perplexity(&moved));
        assert!((a / b - 1.0).abs() < 1e-5, "{model}: {a} and {b}");
    }
}

/// Weights alone say which factors: there is no calibration data.
#[test]
fn weights_are_equalized_without_data() {
    let dir = tempfile::tempdir().unwrap();
    let run = |model: &str, name: &str, words: &str| {
        let out = dir.path().join(format!("{model}-{name}"));
        let ran = qfw(&args(&format!("apply --format qfw {words} -o"), &[&out.display().to_string(), &asset(model)]));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        out
    };
    for model in ["tiny-llama", "tiny-gpt2"] {
        let exact = "--set harness.no-quantize=true --set model.dtype=float32 --algo";
        let [kept, moved] =
            [("kept", "rtn"), ("moved", "weight-equalization,rtn")].map(|(n, algo)| run(model, n, &format!("{exact} {algo}")));
        assert!(tensors(&kept) != tensors(&moved), "{model}: nothing was moved");
        let (a, b) = (perplexity(&kept), perplexity(&moved));
        assert!((a / b - 1.0).abs() < 1e-5, "{model}: {a} and {b}");
    }
    let out = run("tiny-llama", "int8", "--set scheme.weights.format=int8 --algo cle,rtn");
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
    let events = record["sites"].as_array().unwrap().iter().flat_map(|s| s["events"].as_array().unwrap());
    let scaled = events.filter(|e| e["scaled"]["by"] == "weight-equalization").count();
    assert_eq!(scaled, 2 * 6, "values and the hidden channels of six blocks");
    let refused = qfw(&args(
        "plan --format qfw --set scheme.weights.format=int8 --algo weight-equalization,rtn --set pass.0.regions=[\"mlp.hidden\"]",
        &[&asset("tiny-gpt2")],
    ));
    assert!(refused.stderr.contains("`weight-equalization` cannot work on `blocks.0.mlp.hidden`"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: of this model it can work on: values"), "{}", refused.stderr);
}

#[test]
fn what_a_model_does_not_allow_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |words: &str| {
        let data = asset("text/calibration.txt");
        qfw(&args(&format!("plan --algo smoothquant,rtn --set scheme.weights.format=int4 {words} --data"), &[&data, &asset("tiny-gpt2")]))
    };
    // GELU stands between the two layers: no factor passes it.
    let refused = plan("--format qfw --set pass.0.regions=[\"mlp.hidden\"]");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for part in [
        "plan::region",
        "`smoothquant` cannot work on `blocks.0.mlp.hidden`",
        "hint: of this model it can work on: attn.in, mlp.in, values",
    ] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let order = dir.path().join("run.toml");
    std::fs::write(&order, "schema = 1\n[[pass]]\nalgo = 'rtn'\n[[pass]]\nalgo = 'awq'\n").unwrap();
    let refused = qfw(&args(
        "plan --set scheme.weights.format=int4 --format qfw --config",
        &[&order.display().to_string(), "--data", &asset("text/calibration.txt"), &asset("tiny-gpt2")],
    ));
    assert!(refused.stderr.contains("`awq` (transform) cannot follow `rtn` (round)"), "{}", refused.stderr);
    let nothing = plan("--format qfw --set scheme.weights=\"keep\" --set scheme.keys.format=fp8");
    assert!(nothing.stderr.contains("`smoothquant` finds nothing to work on"), "{}", nothing.stderr);
}

/// Multiplies every eighth channel of what enters the layers of attention and divides the columns that read it: the same function, with
/// outliers.
fn give_outliers(model: &Path, factor: f32) {
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let scaled = |name: &str| {
        let norm = name.ends_with(".input_layernorm.weight").then_some(factor);
        norm.or(["q", "k", "v"].iter().any(|l| name.ends_with(&format!(".{l}_proj.weight"))).then_some(1.0 / factor))
    };
    for name in header.offset_keys() {
        let info = header.info(&name).unwrap();
        let (Some(factor), width) = (scaled(&name), *info.shape.last().unwrap()) else { continue };
        let (from, to) = info.data_offsets;
        for (i, value) in bytes[8 + length..][from..to].chunks_exact_mut(2).enumerate().filter(|(i, _)| i % width % 8 == 0) {
            let f16 = half::f16::from_le_bytes([value[0], value[1]]);
            assert!(f16.is_finite(), "{name}[{i}]");
            value.copy_from_slice(&half::f16::from_f32(f16.to_f32() * factor).to_le_bytes());
        }
    }
    std::fs::write(&file, bytes).unwrap();
}

/// Outliers that a factor between layers has made cost nothing once another takes them back.
#[test]
fn smoothing_finds_the_factor_that_made_outliers() {
    let dir = tempfile::tempdir().unwrap();
    let outliers = dir.path().join("outliers");
    copied(Path::new(&asset("tiny-llama")), &outliers);
    give_outliers(&outliers, 16.0);
    let outliers = outliers.display().to_string();
    let inputs = "--set scheme.inputs.format=int4 --set scheme.inputs.timing=static --set scheme.inputs.granularity=tensor";
    let run = |model: &str, name: &str, words: &str| {
        let out = dir.path().join(name);
        apply(model, &out, &format!("--format qfw {words} {inputs}"));
        perplexity(&out)
    };
    let (plain, hurt) = (run("tiny-llama", "plain", "--algo rtn"), run(&outliers, "hurt", "--algo rtn"));
    assert!(hurt > 1.1 * plain, "{plain} {hurt}");
    for alpha in ["0.0", "0.5", "1.0"] {
        let words = format!("--algo smoothquant,rtn --set smoothquant.alpha={alpha}");
        let (of_plain, healed) = (run("tiny-llama", &format!("plain {alpha}"), &words), run(&outliers, &format!("healed {alpha}"), &words));
        assert!((healed / of_plain - 1.0).abs() < 5e-3, "{alpha}: {of_plain} {healed}");
        assert!(healed < hurt / 1.1, "{alpha}: {hurt} {healed}");
    }
}

/// Passes may be named in any order; scales come before what rounds.
#[test]
fn scales_and_rounding_stack_in_any_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply("tiny-llama", &out, &format!("--set scheme.weights.format=int4 --set scheme.weights.granularity.group=32 {words}"));
        out
    };
    let gptq = run("gptq", "--algo gptq --threads 1");
    let both = run("both", "--algo gptq,awq --threads 1");
    same_tree(&tree(&both), &tree(&run("sorted", "--algo awq,gptq --threads 3")), "the other order of names, and other threads");
    // What was done is in the record: of the regions that were scaled how much was gained, and never a loss.
    let record = |out: &Path| -> Value { serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap() };
    let sites = |record: &Value| record["sites"].as_array().unwrap().clone();
    let nearest = record(&run("rtn", "--algo awq,rtn"));
    let gains: Vec<f64> = sites(&nearest)
        .iter()
        .flat_map(|s| s["events"].as_array().unwrap().clone())
        .filter_map(|e| e["scaled"]["error"].as_f64())
        .collect();
    assert!(gains.len() >= 6 && gains.iter().all(|g| *g < 1.0), "{gains:?}");
    // Before error feedback another measure counts, by which scales that feedback makes needless do no harm.
    assert!(tensors(&both) == tensors(&run("compensated", "--algo awq,gptq --set awq.loss=compensated")), "another measure");
    assert!(tensors(&both) != tensors(&run("linear", "--algo awq,gptq --set awq.loss=linear")), "the measure of rounding to nearest");
    let (alone, record) = (record(&gptq), record(&both));
    let total = |record: &Value| sites(record).iter().map(|s| s["output-error"].as_f64().unwrap().powi(2)).sum::<f64>();
    assert!(total(&record) < 1.02 * total(&alone), "{} with scales, {} without", total(&record), total(&alone));
}

/// The whole module may be asked instead of its layers: it is another choice, the same at any number of threads and below any budget.
#[test]
fn awq_may_listen_to_the_module() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        let scheme = "--format qfw --algo awq,rtn --set scheme.weights.format=int3 --set scheme.weights.granularity.group=32";
        apply("tiny-llama", &out, &format!("{scheme} {words}"));
        out
    };
    let module = run("module", "--set awq.loss=module --threads 1");
    same_tree(&tree(&module), &tree(&run("again", "--set awq.loss=module --threads 3 --budget 80MiB")), "other threads, streams on disk");
    assert!(tensors(&module) != tensors(&run("linear", "")), "the same scales");
}
