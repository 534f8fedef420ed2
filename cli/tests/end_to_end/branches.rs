//! Low-rank branches beside the codes, from the plan to a model that runs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::verify::report;
use super::{apply, apply_args, args, asset, eval, perplexity, qfw, same_tree, tree};

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
    let beside = plan("--algo svdquant,rtn").ok();
    assert!((beside.stdout + &beside.stderr).contains("`compressed-tensors` has no room for branches: they lie beside it"));
    let refused = plan("--algo svdquant,rtn --format gguf");
    assert_eq!(refused.code, Some(2));
    for part in [
        "plan::container",
        "output format `gguf`: `blocks.0.attn.q`: it holds codes, and no branch of rank 32 beside them",
        "hint: leave the pass out, or use `--format qfw`, or `compressed-tensors` with an adapter beside it",
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
    super::resume::stopped_at("tiny-llama", &out, &words, "block 4/6");
    apply("tiny-llama", &out, &format!("{words} --resume"));
    same_tree(&tree(&one), &tree(&out), "resumed");
    // Tensors that the list names have to be there.
    let mut config = config(&out);
    config["quantization_config"]["branches"][3]["module"] = "model.layers.0.nowhere".into();
    std::fs::write(out.join("config.json"), config.to_string()).unwrap();
    let ran = qfw(&args("eval --data", &[&asset("text/evaluation.txt"), &out.display().to_string()]));
    assert!(ran.stderr.contains("the branch of `model.layers.0.nowhere` runs beside no linear layer of a block"), "{}", ran.stderr);
}

const COARSE: &str = "--set scheme.weights.granularity.group=32 --set svdquant.rank=8";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Changes `key` of an adapter's configuration, and gives back what was there.
fn state(adapter: &Path, key: &str, value: Value) -> Value {
    let path = adapter.join("adapter_config.json");
    let mut config = read(&path);
    let before = std::mem::replace(&mut config[key], value);
    std::fs::write(path, config.to_string()).unwrap();
    before
}

/// Engines know no container with branches inside, but a LoRA over a quantized model: what is read back is the very model.
#[test]
fn branches_lie_beside_containers_that_have_no_room_for_them() {
    let dir = tempfile::tempdir().unwrap();
    for (model, formats, shared, count) in [
        ("tiny-llama", "compressed-tensors,gptq,gptq-v2,awq,safetensors-f32", true, 42),
        ("tiny-llama", "compressed-tensors", false, 42),
        ("tiny-gpt2", "gptq,safetensors-f32", false, 24),
    ] {
        let out = dir.path().join(format!("{model}-{shared}"));
        let ran = apply(model, &out, &format!("--algo svdquant,rtn {COARSE} --set svdquant.shared={shared} --format qfw,{formats}"));
        for how in ["--enable-lora --max-lora-rank 8 --lora-modules branches=", "PeftModel.from_pretrained(model, "] {
            assert!(ran.stdout.contains(how), "{model}: `{how}` is not in\n{}", ran.stdout);
        }
        assert_eq!(
            ran.stdout.contains("CompressedTensorsConfig(dequantize=True)"),
            formats.contains("compressed-tensors"),
            "{}",
            ran.stdout
        );
        let native = eval(&out.join("qfw"));
        assert!(!out.join("qfw/adapter").exists());
        for format in formats.split(',') {
            let (at, what) = (out.join(format), format!("{model}: {format}"));
            let adapter = at.join("adapter");
            assert_eq!(eval(&at), native, "{what}");
            let config = read(&adapter.join("adapter_config.json"));
            assert_eq!([&config["peft_type"], &config["r"], &config["lora_alpha"]], [&json!("LORA"), &json!(8), &json!(8)], "{what}");
            assert_eq!(config["target_modules"].as_array().unwrap().len(), count, "{what}");
            let first = if model == "tiny-gpt2" { "transformer.h.0.attn.c_attn" } else { "model.layers.0.self_attn.q_proj" };
            assert_eq!(config["target_modules"][0], first, "{what}");
            assert!(ran.stdout.contains(&adapter.display().to_string()), "{what}: {}", ran.stdout);
            let (code, found) = report(&at, &[]);
            assert!(code == Some(0) && found["equal"] == true, "{what}: {found}");
            assert_eq!(report(&at, &["--against", &out.join("qfw").display().to_string()]).1["checked"][0]["findings"], json!([]));
            // It is the branches that are read back.
            std::fs::rename(&adapter, at.join("away")).unwrap();
            assert_ne!(eval(&at), native, "{what}");
        }
    }
}

/// Layers of which no side is as long as the rank have ranks of their own, and their own scale in PEFT's patterns.
#[test]
fn ranks_that_differ_are_stated() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo svdquant,rtn --set svdquant.rank=100 --set svdquant.dtype=float32 --format qfw,gptq");
    assert_eq!(eval(&out.join("gptq")), eval(&out.join("qfw")));
    let config = read(&out.join("gptq/adapter/adapter_config.json"));
    assert_eq!([&config["r"], &config["rank_pattern"]["model.layers.3.self_attn.k_proj"]], [&json!(100), &json!(64)]);
    assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), 12);
}

/// One codes, another the adapter: exports carry it from container to container, and what is overwritten leaves none behind.
#[test]
fn an_adapter_is_exported_and_goes_with_what_it_belonged_to() {
    let dir = tempfile::tempdir().unwrap();
    let [run, there, back] = ["run", "there", "back"].map(|n| dir.path().join(n));
    apply("tiny-llama", &run, &format!("--algo svdquant,rtn {COARSE} --set svdquant.shared=true --format qfw,gptq"));
    let export = |from: &Path, to: &Path, words: &str| {
        qfw(&args(&format!("export {words}"), &[&from.display().to_string(), "-o", &to.display().to_string()]))
    };
    export(&run.join("qfw"), &there, "--format gptq").ok();
    for file in ["model.safetensors", "adapter/adapter_model.safetensors"] {
        let tensors = |path: PathBuf| {
            let bytes = std::fs::read(path).unwrap();
            let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            bytes[8 + n..].to_vec()
        };
        assert!(tensors(there.join(file)) == tensors(run.join("gptq").join(file)), "{file}");
    }
    export(&there, &back, "--format qfw").ok();
    assert_eq!(eval(&back), eval(&run.join("qfw")));
    assert_eq!(report(&there, &[]).0, Some(0));
    let refused = export(&there, &dir.path().join("no"), "--format gguf");
    assert_eq!(refused.code, Some(2));
    for part in ["no branch of rank 8 beside them", "formats that hold it as it is", "--format gptq"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    // Quantized once more it would lose them.
    let floats = dir.path().join("floats");
    export(&there, &floats, "--format safetensors-float").ok();
    let mut again = apply_args("tiny-llama", &dir.path().join("again"), "--algo rtn");
    again[1] = floats.display().to_string();
    let refused = qfw(&again);
    assert!(refused.code == Some(2) && refused.stderr.contains("plan::adapter"), "{}", refused.stderr);
    apply("tiny-llama", &there, &format!("--algo rtn {} --format gptq --overwrite", "--set scheme.weights.granularity.group=32"));
    assert!(!there.join("adapter").exists());
}

/// An adapter that is damaged, of another model, or more than a branch is told, and never half of it taken.
#[test]
fn an_adapter_that_is_not_what_was_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, &format!("--algo svdquant,rtn {COARSE} --format gptq"));
    let adapter = out.join("adapter");
    let fails = |key: &str, value: Value, said: &str| {
        let before = state(&adapter, key, value);
        let ran = qfw(&args("eval --data", &[&asset("text/evaluation.txt"), &out.display().to_string()]));
        assert_eq!(ran.code, Some(1), "{key}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{key}: `{said}` is not in\n{}", ran.stderr);
        let (code, found) = report(&out, &[]);
        assert!(code == Some(1) && found["equal"] == false, "{key}: {found}");
        state(&adapter, key, before);
    };
    fails("lora_alpha", 16.into(), "is of rank 8, with `r` 8 and `lora_alpha` 16");
    fails("use_dora", true.into(), "with `use_dora` it is more than `B·(A·x)`");
    fails("use_rslora", true.into(), "with `use_rslora` it is more than `B·(A·x)`");
    fails("peft_type", "VERA".into(), "it is a `VERA`, and only a `LORA` is run here");
    // As it was, but for blanks in the JSON, which the record knows: back byte by byte.
    apply("tiny-llama", &out, &format!("--algo svdquant,rtn {COARSE} --format gptq --overwrite"));
    let file = adapter.join("adapter_model.safetensors");
    let sound = std::fs::read(&file).unwrap();
    super::verify::flip(&file, sound.len() - 100, 1);
    let (code, found) = report(&out, &[]);
    assert_eq!(code, Some(1), "{found}");
    let named = super::verify::named(&found);
    assert!(named.len() == 1 && named[0].ends_with(".branch_b"), "{named:?}");
    // A tensor under another name belongs to nothing.
    let text = String::from_utf8_lossy(&sound[..200]).into_owned();
    assert!(text.contains("base_model.model.model.layers.0"), "{text}");
    let at = sound.windows(9).position(|w| w == b"layers.0.").unwrap();
    let mut other = sound;
    other[at + 7] = b'9';
    std::fs::write(&file, &other).unwrap();
    let ran = qfw(&args("eval --data", &[&asset("text/evaluation.txt"), &out.display().to_string()]));
    assert!(
        ran.stderr.contains("is no part of a branch beside a layer of this model") || ran.stderr.contains("layers.9."),
        "{}",
        ran.stderr
    );
    assert_eq!(report(&out, &[]).0, Some(1));
}

/// An adapter reads what the layer is called with, a branch what is rotated inside: where these differ, it is refused.
#[test]
fn a_branch_behind_a_rotation_has_no_place_beside() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let r4 = r#"--algo quarot,svdquant,rtn --set quarot.rotations=["r1","r2","r4"] --set quarot.online-block=128 --format compressed-tensors-online"#;
    let plan = |words: &str| {
        let mut all = apply_args("tiny-llama", &out, words);
        "plan".clone_into(&mut all[0]);
        qfw(&all)
    };
    let refused = plan(r4);
    assert_eq!(refused.code, Some(2));
    for part in ["`blocks.0.mlp.down`: its branch reads a rotated input", "leave out the rotation, or the branch of that layer"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    plan(&format!(r#"{r4} --set pass=[{{algo="quarot",options={{rotations=["r4"],online-block=128}}}},{{algo="svdquant",skip=["mlp\\.down$"]}},{{algo="rtn"}}]"#)).ok();
    plan(&r4.replace("-online", "").replace(r#","r4""#, "")).ok();
}
