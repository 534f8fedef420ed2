//! The container `shark`: an archive whose codes are those of the native form, what is said before a run, and what is refused.

use std::path::Path;

use serde_json::Value;

use super::{apply, apply_args, args, eval, perplexity, qfw, tree};

/// The native form and the archive of one run.
fn both(dir: &Path, words: &str) -> (std::path::PathBuf, std::path::PathBuf) {
    let out = dir.join("out");
    apply("tiny-llama", &out, &format!("{words} --format qfw,shark"));
    (out.join("qfw"), out.join("shark"))
}

fn sets(words: &str) -> String {
    words.split(' ').map(|w| format!("--set scheme.weights.{w} ")).collect()
}

/// Codes and scales survive to the last bit in every layout, and so does what a model computes. Float zero points of nibbles are stored as
/// what the smallest code stands for, which rounds.
#[test]
fn codes_survive_in_every_layout() {
    for (words, exact) in [
        ("format=int8 granularity=channel", true),
        ("format=int8 granularity=tensor", true),
        ("format=uint8 granularity=channel symmetric=false", true),
        ("format=uint8 granularity=channel symmetric=false zero-point=float", true),
        ("format=int8 granularity.group=32", true),
        ("format=uint8 granularity.block=[64,32]", true),
        ("format=int6 granularity.group=64", true),
        ("format=int4 granularity.group=32", true),
        ("format=int4 granularity=channel", true),
        ("format=uint4 granularity.group=32 symmetric=false", true),
        ("format=uint2 granularity.group=16 symmetric=false", true),
        ("format=uint4 granularity.group=32 symmetric=false zero-point=float", false),
        ("format=fp8 granularity=channel", true),
        ("format=float-fnuz-e4m3 granularity=tensor", true),
        ("format=float-ocp-e5m2 granularity=channel", true),
        ("format=mxfp4", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (native, archive) = both(dir.path(), &format!("--algo rtn {}", sets(words)));
        if exact {
            assert_eq!(eval(&native), eval(&archive), "{words}");
        } else {
            let (a, b) = (perplexity(&native), perplexity(&archive));
            assert!((a / b - 1.0).abs() < 1e-5, "{words}: {a} and {b}");
        }
    }
}

/// Calibrated codes, layers that are kept, inputs with a fixed scale, a head and an embedding of their own, and models without codes.
#[test]
fn whole_models_survive() {
    for words in [
        "--algo gptq --set gptq.act-order=static --set scheme.weights.granularity.group=32",
        "--algo quarot,gptq --set scheme.weights.granularity.group=32",
        "--algo rtn --set model.tie-policy=untie --set scheme.head.format=int8 --set scheme.embed.format=int4 \
         --set scheme.embed.granularity.group=32",
        "--algo rtn --set model.dtype=bfloat16",
        "--algo rtn --set scheme.skip=[\"head\",\"embed\",\"mlp.down\"]",
        "--preset fp8",
        "--preset w8a8 --set scheme.inputs.timing=static --set scheme.inputs.granularity=tensor",
        "--set harness.no-quantize=true",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (native, archive) = both(dir.path(), words);
        assert_eq!(eval(&native), eval(&archive), "{words}");
    }
}

/// The archive with the configuration and what else belongs to the model; the same bytes each time.
#[test]
fn the_archive_is_all_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (alone, again) = (dir.path().join("alone"), dir.path().join("again"));
    let words = "--algo rtn --set scheme.weights.granularity.group=32 --format shark";
    apply("tiny-llama", &alone, words);
    apply("tiny-llama", &again, words);
    let names: Vec<String> = tree(&alone).into_keys().map(|p| p.display().to_string()).collect();
    let expected =
        ["README.md", "config.json", "dataset.irpa", "generation_config.json", "qfw.json", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names, expected);
    let read = |path: &Path, file: &str| std::fs::read(path.join(file)).unwrap();
    assert!(read(&alone, "dataset.irpa") == read(&again, "dataset.irpa"));
    let config: Value = serde_json::from_slice(&read(&alone, "config.json")).unwrap();
    assert!(config.get("quantization_config").is_none() && config["model_type"] == "llama");
    assert_eq!(eval(&alone), eval(&alone.join("dataset.irpa")), "a file is named as its directory is");
    let inspected = qfw(&["inspect", &alone.display().to_string()]).ok().stdout;
    assert!(inspected.contains("quantized     shark") && inspected.contains("42 layers as int4 group 32 symmetric"), "{inspected}");
    let resumed = qfw(&apply_args("tiny-llama", &alone, &format!("{words} --resume"))).ok();
    assert!(resumed.stdout.contains("finished"), "{}{}", resumed.stdout, resumed.stderr);
    // What stands under the names of both versions of the package is the same, and what is tied is there once.
    let bytes = read(&alone, "dataset.irpa");
    let count = |text: &str| bytes.windows(text.len()).filter(|w| *w == text.as_bytes()).count();
    assert_eq!((count("__SHARK_DATASET__"), count("__AMD_SHARK_DATASET__")), (1, 1));
    assert_eq!(count(r#""output.weight":{"type_name":"PrimitiveTensor","raw_tensors":{"":"token_embd.weight"}}"#), 2);
}

/// Codes go from an archive into other containers, and from others into an archive.
#[test]
fn archives_are_exported_from_and_to() {
    let dir = tempfile::tempdir().unwrap();
    let (native, archive) = both(dir.path(), &format!("--algo rtn {}", sets("format=int4 granularity.group=32")));
    let export = |from: &Path, to: &Path, format: &str| {
        qfw(&args(&format!("export --format {format} -o"), &[&to.display().to_string(), &from.display().to_string()])).ok()
    };
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    export(&archive, &there, "gguf");
    export(&there, &back, "shark");
    assert_eq!(eval(&back), eval(&native));
    assert_eq!(eval(&there.join("model.gguf")), eval(&native));
}

#[test]
fn damage_and_other_archives_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --format shark");
    let file = out.join("dataset.irpa");
    let sound = std::fs::read(&file).unwrap();
    let failure = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let ran = qfw(&args("eval --data", &[&super::asset("text/evaluation.txt"), &out.display().to_string()]));
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        ran.stderr
    };
    assert!(failure(&sound[..sound.len() - 1]).contains("bytes of data at"), "cut");
    assert!(failure(b"IRPA").contains("4 bytes are no parameter archive"));
    let mut unnamed = sound.clone();
    for prefix in ["__SHARK_INFERENCE", "__AMD_SHARK_INFERENCE"] {
        let at = unnamed.windows(prefix.len()).position(|w| w == prefix.as_bytes()).unwrap();
        unnamed[at] = b'x';
    }
    let message = failure(&unnamed);
    assert!(message.contains("the archive has no entry `__SHARK_INFERENCE_TENSORS__`"), "{message}");
}

fn plan_of(words: &str) -> String {
    let line = apply_args("tiny-llama", Path::new("unused"), words);
    let line = line.into_iter().map(|w| if w == "apply" { "plan".to_owned() } else { w }).filter(|w| w != "-o" && w != "unused");
    let ran = qfw(&line.collect::<Vec<_>>()).ok();
    ran.stdout + &ran.stderr
}

#[test]
fn what_grows_or_changes_is_said() {
    for (words, bits) in [
        ("format=int4 granularity.group=32", "6.00 bits a weight in `blocks.0.attn.q`, not 4.50"),
        ("format=int4 granularity=channel", "4.50 bits a weight in `blocks.0.attn.q`, not 4.12"),
        ("format=int6 granularity=channel", "8.25 bits a weight in `blocks.0.attn.q`, not 6.12"),
        ("format=int8 granularity.group=32", "9.00 bits a weight in `blocks.0.attn.q`, not 8.50"),
    ] {
        let text = plan_of(&format!("--algo rtn --format shark {}", sets(words)));
        let note = format!("`shark` is larger than the plan says: codes lie in 4 or 8 bits and scales are f32: {bits}");
        assert!(text.contains(&note), "{words}: {text}");
        assert!(!text.contains("`shark` changes"), "{words}: {text}");
    }
    let changes = "`shark` changes the result: codes of 4 bits are read as `s·u + m` in f32, with an `m` for each group: in `blocks.0.attn.q` \
                   that moves a weight by up to 2^-22 of the largest of its group";
    for words in [
        "granularity.group=32 --set model.dtype=float32",
        "granularity.group=32 --set scheme.weights.symmetric=false --set scheme.weights.zero-point=float",
    ] {
        let text = plan_of(&format!("--algo rtn --format shark --set scheme.weights.{words}"));
        assert!(text.contains(changes), "{words}: {text}");
    }
    let text = plan_of(
        "--algo rtn --format shark --set scheme.weights.format=int8 --set scheme.weights.granularity=channel --set model.dtype=float32",
    );
    assert!(!text.contains("`shark` is larger") && !text.contains("`shark` changes"), "{text}");
}

#[test]
fn what_it_cannot_hold_is_refused_with_the_nearest_that_works() {
    let refused = |model: &str, words: &str, message: &str, hint: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let ran = qfw(&apply_args(model, &out, &format!("--algo {words} --format shark")));
        assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
        let message = format!("output format `shark`: {message}");
        assert!(ran.stderr.contains(&message) && ran.stderr.contains(&format!("hint: {hint}")), "{words}: {}", ran.stderr);
        assert!(!out.exists());
    };
    let nearest = "use int4, int8 or fp8, or `--format qfw`";
    let site = "`blocks.0.attn.q`: ";
    for (words, message, hint) in [
        ("format=nf4", "it has no tables of values, which nf4 is", nearest),
        ("format=int12", "it holds weights of up to 8 bits, not of 12", nearest),
        ("format=nvfp4", "it holds one scale for each group, not two levels of them", "use mxfp4 or int4, or `--format qfw`"),
        ("format=fp8 granularity.group=32", "it holds fp8 with a scale for the tensor or for each output channel", "use tensor or channel"),
        ("format=uint8 granularity.group=32 symmetric=false", "it holds groups of 8 bits without zero points", "set `symmetric = true`"),
        ("format=int4 granularity.group=48", "group 48 does not divide its 128 input channels", "group 32 divides it"),
        ("format=float-ocp-e3m2 granularity=channel", "none of its types is float-ocp-e3m2", nearest),
    ] {
        refused("tiny-llama", &format!("rtn {}", sets(words)), &format!("{site}{message}"), hint);
    }
    for (words, message, hint) in [
        (
            "gptq --set gptq.act-order=group --set scheme.weights.granularity.group=32",
            "pass `gptq` makes groups that do not run in storage order, and blocks do",
            "set `act-order = \"static\"`",
        ),
        (
            "rtn --set scheme.inputs.format=int8",
            "`blocks.0.attn.in`: sharktank rounds inputs with scales that are fixed, not ",
            "set `scheme.inputs.timing = \"static\"`",
        ),
        (
            "rtn --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --set scheme.inputs.granularity=tensor --set scheme.inputs.symmetric=false",
            "`blocks.0.attn.in`: sharktank's product of integers corrects for zero points of inputs along the wrong axis",
            "set `scheme.inputs.symmetric = true`",
        ),
        (
            "rtn --set scheme.inputs.format=int6 --set scheme.inputs.timing=static --set scheme.inputs.granularity=tensor",
            "`blocks.0.attn.in`: it holds inputs of 8 bits that use every code, or e4m3, not ",
            "use int8 or fp8 with `timing = \"static\"` and tensor",
        ),
        (
            "rtn --set scheme.keys.format=int8",
            "`blocks.0.k.rope`: it holds rounded inputs of linears, and this is keys",
            "leave `scheme.keys` out",
        ),
        (
            "quarot,rtn --set quarot.rotations=[\"r1\",\"r2\",\"r4\"]",
            "`blocks.0.down.in`: it is rotated while the model runs, which no reader of this format does",
            "leave `r3`, `r4`",
        ),
    ] {
        refused("tiny-llama", words, message, hint);
    }
    refused(
        "tiny-gpt2",
        "rtn",
        "sharktank has no model for `gpt2`",
        "known are llama, mistral, qwen2; use `--format gguf`, `onnx` or `qfw`",
    );
}

/// What stands in `config.json` and what sharktank's graph has not.
#[test]
fn models_that_compute_otherwise_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value, message) in [
        ("rope_scaling", serde_json::json!({ "rope_type": "linear", "factor": 2.0 }), "has no scaling of rotary positions"),
        ("hidden_act", serde_json::json!("gelu"), "of sharktank has SiLU"),
    ] {
        let model = dir.path().join(key);
        std::fs::create_dir(&model).unwrap();
        for (path, bytes) in tree(Path::new(&super::asset("tiny-llama"))) {
            std::fs::write(model.join(path), bytes).unwrap();
        }
        let mut config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
        let out = dir.path().join("out");
        let mut words = apply_args("tiny-llama", &out, "--algo rtn --format shark");
        words[1] = model.display().to_string();
        let ran = qfw(&words);
        assert_eq!(ran.code, Some(2), "{key}: {}", ran.stderr);
        assert!(ran.stderr.contains(message) && !out.exists(), "{key}: {}", ran.stderr);
    }
}
