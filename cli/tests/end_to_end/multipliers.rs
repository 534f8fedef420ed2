//! Stand-alone multipliers: where what writes an activation can take no factor, one is put before who reads it.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::verify::{flip, named, report};
use super::{Ran, apply, apply_args, args, asset, eval, perplexity, qfw, same_tree, tree};

const STAND_ALONE: &str = "--set smoothquant.stand-alone=true";

/// 8 bits, the inputs with one fixed scale for all of a tensor.
const W8A8: &str = "--set scheme.weights.format=int8 --set scheme.weights.granularity=channel --set scheme.inputs.format=int8 \
                    --set scheme.inputs.granularity=tensor --set scheme.inputs.timing=static";

fn config(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap()
}

fn places() -> Value {
    (0..6).map(|b| json!(format!("blocks.{b}.down.in"))).collect()
}

/// The name of the vector of a block, and the bytes of it in the file of weights.
fn vector(out: &Path, block: u32) -> (String, std::ops::Range<usize>) {
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let (length, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let name = format!("transformer.h.{block}.mlp.c_proj.multiplier");
    let tensor = header.info(&name).unwrap();
    assert_eq!((tensor.dtype, &tensor.shape[..]), (Dtype::F32, &[512][..]));
    let (begin, end) = tensor.data_offsets;
    (name, 8 + length + begin..8 + length + end)
}

#[track_caller]
fn refused(model: &str, words: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let ran = qfw(&apply_args(model, &out, words));
    assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
    assert!(!out.exists(), "{words}");
    ran.stderr
}

fn planned(model: &str, words: &str) -> Ran {
    let mut all = apply_args(model, Path::new("unused"), words);
    "plan".clone_into(&mut all[0]);
    qfw(&all).ok()
}

/// With nothing rounded the model stays what it was, window by window and token by token with a cache.
#[test]
fn a_multiplied_model_computes_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply("tiny-gpt2", &out, &format!("--format qfw --set harness.no-quantize=true --set model.dtype=float32 {words}"));
        out
    };
    let kept = run("kept", "--algo rtn");
    let rotated = r#"--algo quarot,smoothquant --set quarot.rotations=["r4"]"#;
    for (name, words) in [
        ("merged", "--algo smoothquant --set smoothquant.everywhere=true".to_owned()),
        ("alone", format!("--algo smoothquant --set smoothquant.everywhere=true {STAND_ALONE}")),
        ("down", format!(r#"--algo smoothquant {STAND_ALONE} --set pass.0.regions=["down.in.multiplied"]"#)),
        ("rotated", format!("{rotated} {STAND_ALONE}")),
    ] {
        let out = run(name, &words);
        let ratio = perplexity(&out) / perplexity(&kept);
        assert!((ratio - 1.0).abs() < 1e-5, "{name}: {ratio}");
        assert_eq!(config(&out)["quantization_config"]["multipliers"], if name == "merged" { Value::Null } else { places() }, "{name}");
        if name != "merged" {
            let (_, at) = vector(&out, 3);
            let all = std::fs::read(out.join("model.safetensors")).unwrap();
            let factors: Vec<f32> = all[at].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert!(factors.iter().all(|x| x.is_finite() && *x > 0.0), "{name}");
            assert!(factors.iter().filter(|x| (*x - 1.0).abs() > 0.01).count() > 400, "{name}: {factors:?}");
        }
        let text = |model: &Path| qfw(&args("generate --prompt Alice --max-new-tokens 24", &[&model.display().to_string()])).ok().stdout;
        assert_eq!(text(&out), text(&kept), "{name}");
    }
}

/// What is read where a rotation has passed is no longer what was written: nothing is merged across one.
#[test]
fn nothing_is_merged_across_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply("tiny-llama", &out, &format!("--format qfw --set harness.no-quantize=true --set model.dtype=float32 {words}"));
        perplexity(&out)
    };
    let kept = run("kept", "--algo rtn");
    for (name, words, alone, multiplied) in [
        ("r4", r#"--set quarot.rotations=["r4"]"#, "", 0),
        ("layerwise", "--set quarot.mode=layerwise", "", 0),
        ("r4-alone", r#"--set quarot.rotations=["r4"]"#, STAND_ALONE, 6),
        ("layerwise-alone", "--set quarot.mode=layerwise", STAND_ALONE, 24),
    ] {
        let words = format!("--algo quarot,smoothquant {words} --set smoothquant.everywhere=true {alone}");
        let ratio = run(name, &words) / kept;
        assert!((ratio - 1.0).abs() < 1e-5, "{name}: {ratio}");
        let places = config(&dir.path().join(name))["quantization_config"]["multipliers"].as_array().map_or(0, Vec::len);
        assert_eq!(places, multiplied, "{name}");
    }
}

/// Where everything can be merged there is nothing to add: the same bytes, in a container that could hold no multiplier.
#[test]
fn where_all_merges_the_option_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [without, with] = ["false", "true"].map(|alone| {
        let out = dir.path().join(alone);
        let words = "--algo smoothquant,rtn --format compressed-tensors --set scheme.weights.granularity.group=32 --set smoothquant.everywhere=true";
        apply("tiny-llama", &out, &format!("{words} --set smoothquant.stand-alone={alone}"));
        // What is hashed of the plan, which has the option, is in the header.
        let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
        let (length, _) = SafeTensors::read_metadata(&bytes).unwrap();
        (config(&out), bytes[8 + length..].to_vec())
    });
    assert!(without == with);
}

/// On GPT-2 the option adds the place behind GELU, the plan says so, and Brevitas' flag asks for it.
#[test]
fn the_plan_names_what_is_multiplied() {
    let words = "--algo smoothquant,rtn --format qfw --set smoothquant.everywhere=true";
    let line = "blocks.*.down.in multiplied online by a factor for each channel  ×6";
    let with = planned("tiny-gpt2", &format!("{words} {STAND_ALONE}")).stdout;
    assert!(with.contains(line) && with.contains("smoothquant (transform) on 24 regions"), "{with}");
    let without = planned("tiny-gpt2", words).stdout;
    assert!(!without.contains("multiplied") && without.contains("smoothquant (transform) on 18 regions"), "{without}");
    // A rounded input is reason enough, a kept layer none.
    let kept = planned("tiny-gpt2", &format!(r#"{words} {STAND_ALONE} --set scheme.skip=["head","embed","mlp.down"]"#)).stdout;
    assert!(!kept.contains("multiplied"), "{kept}");
    let twice = r#"--format qfw --set pass=[{algo="smoothquant",options={stand-alone=true}},{algo="smoothquant",options={stand-alone=true,alpha=0.3}},{algo="rtn"}]"#;
    assert!(planned("tiny-gpt2", twice).stdout.contains(line), "two passes share a multiplier");
}

/// Inputs with one scale for a whole tensor are what it is for: with nothing but `mlp.down` rounded, weights and inputs, less is lost, in 8
/// bits a little and in 4 a lot. All channels then reach to the end of the range, so that it takes more text to find where that is: with a
/// quarter of this, more is clipped in 8 bits than is gained.
#[test]
fn fixed_inputs_behind_gelu_lose_less() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        let only = r#"--format qfw --set scheme.skip=["head","embed","attn.qkv","attn.o","mlp.up"]"#;
        apply("tiny-gpt2", &out, &format!("{words} {only} --set calibration.samples=16 --set calibration.seq-len=128"));
        perplexity(&out)
    };
    for (bits, share) in [("int8", 1.0), ("int4", 0.97)] {
        let scheme = W8A8.replace("inputs.format=int8", &format!("inputs.format={bits}"));
        let without = run(&format!("{bits}-without"), &format!("--algo rtn {scheme}"));
        let words = format!(r#"--algo smoothquant,rtn {scheme} {STAND_ALONE} --set pass.0.regions=["down.in.multiplied"]"#);
        let with = run(&format!("{bits}-with"), &words);
        assert!(with < share * without, "{bits}: {with} with multipliers, {without} without");
    }
}

/// The same bytes at any number of threads, and after a kill.
#[test]
fn killed_and_resumed_or_on_other_threads_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let words = format!("--algo smoothquant,gptq --format qfw {W8A8} {STAND_ALONE} --set harness.propagate=both");
    let [one, three] = ["1", "3"].map(|threads| {
        let out = dir.path().join(threads);
        apply("tiny-gpt2", &out, &format!("{words} --threads {threads}"));
        out
    });
    same_tree(&tree(&one), &tree(&three), "other threads");
    for line in ["memory ", "block 4/6"] {
        let out = dir.path().join(line.trim().replace(['/', ' '], "-"));
        super::resume::stopped_at("tiny-gpt2", &out, &words, line);
        apply("tiny-gpt2", &out, &format!("{words} --resume"));
        same_tree(&tree(&one), &tree(&out), line);
    }
    let other = qfw(&apply_args("tiny-gpt2", &one, &format!("{words} --resume --set smoothquant.stand-alone=false")));
    assert!(other.code == Some(2) && other.stderr.contains("rewrites"), "{}", other.stderr);
}

#[test]
fn containers_without_room_for_a_multiplier_refuse() {
    let groups = "--set scheme.weights.granularity.group=32";
    let listed = qfw(&args("list-plugins --kind output-format --json", &[])).ok().json();
    let formats: Vec<&str> = listed.as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    let carried = |f: &&&str| **f == "qfw" || f.starts_with("onnx");
    assert!(formats.iter().filter(carried).count() > 3, "{formats:?}");
    for format in formats.iter().filter(|f| !carried(f)) {
        let said = refused("tiny-gpt2", &format!("--algo smoothquant,rtn {groups} {STAND_ALONE} --format {format}"));
        let message = format!(
            "output format `{format}`: `blocks.0.down.in`: it is multiplied by a vector while the model runs, which no reader of this format does"
        );
        for part in ["plan::container", &message, "hint: leave `stand-alone` of the pass out, or use `--format qfw` or `--format onnx`"] {
            assert!(said.contains(part), "{format}: {said}");
        }
    }
    let said = refused("tiny-gpt2", r#"--algo smoothquant,rtn --format qfw --set pass.0.regions=["down.in.multiplied"]"#);
    assert!(said.contains("`down.in.multiplied` matches no region of this model"), "{said}");
}

/// Engines that no rule speaks of with multipliers are not said to load them.
#[test]
fn what_engines_do_with_multipliers_is_not_guessed() {
    let judged = |words: &str| {
        let mut all = apply_args("tiny-gpt2", Path::new("unused"), words);
        "plan".clone_into(&mut all[0]);
        all.push("--json".to_owned());
        qfw(&all).json()["target"]["formats"][0].clone()
    };
    let words = "--algo smoothquant,rtn --format onnx-matmulnbits --set scheme.weights.granularity.group=32 --target onnxruntime";
    assert_eq!(judged(words)["outcome"], "loads");
    let judged = judged(&format!("{words} {STAND_ALONE}"));
    assert_eq!(judged["outcome"], "unknown", "{judged}");
}

/// One bit of a factor, a place that is not listed, a vector that is not there: all are found, and no model is made of half of it.
#[test]
fn a_changed_multiplier_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-gpt2", &out, &format!("--algo smoothquant,rtn {STAND_ALONE} --format qfw,onnx"));
    let native = out.join("qfw");
    for part in ["qfw", "onnx"] {
        let (code, found) = report(&out.join(part), &[]);
        assert!(code == Some(0) && found["equal"] == true, "{part}: {found}");
    }
    let against = report(&out.join("onnx"), &["--against", &native.display().to_string()]).1;
    assert_eq!(against["checked"][0]["findings"], json!([]), "{against}");
    let (name, at) = vector(&native, 2);
    let file = native.join("model.safetensors");
    // The lowest bit of the seventh factor.
    flip(&file, at.start + 6 * 4, 1);
    let (code, found) = report(&native, &[]);
    assert_eq!((code, named(&found)), (Some(1), vec![name]));
    flip(&file, at.start + 6 * 4, 1);
    assert_eq!(report(&native, &[]).0, Some(0));
    // In the graph's numbers too.
    let data = out.join("onnx/model.onnx.data");
    let (factors, numbers) = (std::fs::read(&file).unwrap()[at].to_vec(), std::fs::read(&data).unwrap());
    let there = numbers.windows(factors.len()).position(|w| w == factors).unwrap();
    flip(&data, there, 1);
    assert_eq!(report(&out.join("onnx"), &[]).0, Some(1));
    // One that is not listed any more is not run, and is told.
    let text = std::fs::read_to_string(native.join("config.json")).unwrap();
    let write = |change: &dyn Fn(&mut Value)| {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        change(&mut config["quantization_config"]["multipliers"]);
        std::fs::write(native.join("config.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();
    };
    write(&|list| drop(list.as_array_mut().unwrap().pop()));
    let (code, found) = report(&native, &[]);
    assert!(code == Some(1) && found.to_string().contains("`multipliers` lists 5 places, and 6 vectors are stored"), "{found}");
    for (place, said) in [
        ("blocks.9.down.in", "`blocks.9.down.in` is no place of this model at which activations can be multiplied"),
        ("blocks.0.down.in", "`blocks.0.down.in` is multiplied twice"),
        ("blocks.0.mlp.in", "no tensor `transformer.h.0.mlp.c_fc.multiplier`"),
        ("nowhere", "`nowhere` is no place of a model"),
    ] {
        write(&|list| list[5] = place.into());
        let ran = qfw(&args("eval --data", &[&asset("text/evaluation.txt"), &native.display().to_string()]));
        assert!(ran.code == Some(1) && ran.stderr.contains(said), "{place}: {}", ran.stderr);
    }
}

/// Exports carry it where there is room, and name the formats that have it where there is none.
#[test]
fn multipliers_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    let [run, again, graph] = ["run", "again", "graph"].map(|n| dir.path().join(n));
    apply("tiny-gpt2", &run, &format!("--algo smoothquant,rtn {W8A8} {STAND_ALONE} --format qfw,onnx"));
    let native = run.join("qfw");
    let export = |to: &PathBuf, format: &str| {
        qfw(&args(&format!("export --format {format}"), &[&native.display().to_string(), "-o", &to.display().to_string()]))
    };
    export(&again, "qfw").ok();
    assert_eq!(eval(&again), eval(&native));
    assert_eq!(config(&again)["quantization_config"]["multipliers"], places());
    export(&graph, "onnx").ok();
    let numbers = |dir: PathBuf| std::fs::read(dir.join("model.onnx.data")).unwrap();
    assert!(numbers(graph) == numbers(run.join("onnx")));
    let refused = export(&dir.path().join("no"), "gguf");
    assert_eq!(refused.code, Some(2));
    for part in ["`blocks.0.down.in`: it is multiplied by a vector while the model runs", "formats that hold it as it is", "--format onnx"]
    {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
}
