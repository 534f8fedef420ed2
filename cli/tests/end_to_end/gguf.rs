//! The container `gguf`: one file with everything in it, whose codes are those of the native form.

use std::path::Path;

use serde_json::Value;

use super::{apply, apply_args, args, asset, eval, perplexity, qfw, tree};

fn types(path: &Path) -> Vec<String> {
    let ran = qfw(&args("inspect --json", &[&path.display().to_string()])).json();
    ran["types"].as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap().to_owned()).collect()
}

/// Scales of the tiny models are f16, which is what blocks hold: the models give the same numbers to the last bit. Affine blocks hold a
/// minimum in f16 in place of the zero point, and NVFP4 multiplies twice.
#[test]
fn codes_survive_in_blocks() {
    for (model, words, block, exact) in [
        ("tiny-llama", "format=int8 granularity.group=32", "Q8_0", true),
        ("tiny-llama", "format=int8 granularity=channel", "Q8_0", true),
        ("tiny-llama", "format=uint8 granularity.block=[64,32]", "Q8_0", true),
        ("tiny-llama", "format=int4 granularity.group=32", "Q4_0", true),
        ("tiny-llama", "format=uint4 granularity.group=128", "Q4_0", true),
        ("tiny-llama", "format=uint4 symmetric=false granularity.group=32", "Q4_1", false),
        ("tiny-llama", "format=int4 symmetric=false zero-point=float granularity.group=64", "Q4_1", false),
        ("tiny-llama", "format=int5 granularity.group=64", "Q5_0", true),
        ("tiny-llama", "format=uint5 symmetric=false granularity.group=32", "Q5_1", false),
        ("tiny-llama", "format=mxfp4", "MXFP4", true),
        ("tiny-llama", "format=nvfp4", "NVFP4", false),
        ("tiny-gpt2", "format=int8 granularity.group=32", "Q8_0", true),
        ("tiny-gpt2", "format=int4 granularity=tensor", "Q4_0", true),
        ("tiny-gpt2", "format=int4 symmetric=false granularity.group=32", "Q4_1", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let sets: Vec<String> = words.split(' ').map(|w| format!("--set scheme.weights.{w}")).collect();
        apply(model, &out, &format!("--algo rtn --format qfw,gguf {}", sets.join(" ")));
        let (native, file) = (out.join("qfw"), out.join("gguf"));
        if exact {
            assert_eq!(eval(&native), eval(&file), "{model} {words}");
        } else {
            let (a, b) = (perplexity(&native), perplexity(&file));
            assert!((a / b - 1.0).abs() < 1e-3, "{model} {words}: {a} and {b}");
        }
        assert!(types(&file).contains(&block.to_owned()), "{model} {words}: {:?}", types(&file));
    }
}

/// Calibrated codes, layers that differ or are kept, a head and an embedding of their own; the file alone, without what lies beside it.
#[test]
fn whole_models_survive() {
    for (model, words) in [
        ("tiny-llama", "--algo gptq --set gptq.act-order=static --set scheme.weights.granularity.group=32"),
        ("tiny-llama", "--algo quarot,gptq --set scheme.weights.granularity.group=32"),
        (
            "tiny-llama",
            "--algo rtn --set model.tie-policy=untie --set scheme.head.format=int8 --set scheme.embed.format=int4 \
             --set scheme.embed.granularity.group=32",
        ),
        ("tiny-llama", "--algo rtn --set model.dtype=bfloat16"),
        ("tiny-gpt2", "--algo smoothquant,gptq --set scheme.weights.granularity.group=64"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        apply(model, &out, &format!("{words} --format qfw,gguf"));
        let file = dir.path().join("alone.gguf");
        std::fs::rename(out.join("gguf/model.gguf"), &file).unwrap();
        assert_eq!(eval(&out.join("qfw")), eval(&file), "{model} {words}");
    }
}

/// A directory with nothing but the file and what belongs beside it; written alone or with others, the same bytes.
#[test]
fn the_file_is_all_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (alone, several) = (dir.path().join("alone"), dir.path().join("several"));
    let words = "--algo rtn --set scheme.weights.granularity.group=32 --format";
    apply("tiny-llama", &alone, &format!("{words} gguf"));
    apply("tiny-llama", &several, &format!("{words} gguf,gptq"));
    let names: Vec<String> = tree(&alone).into_keys().map(|p| p.display().to_string()).collect();
    assert_eq!(names, ["README.md", "generation_config.json", "model.gguf", "qfw.json", "tokenizer.json", "tokenizer_config.json"]);
    let tensors = |path: &Path| qfw(&args("inspect --json", &[&path.display().to_string()])).json()["bytes"].clone();
    assert_eq!(tensors(&alone), tensors(&several.join("gguf")));
    // Formats are part of the plan, and its hash of the file: the rest is the same.
    let without_plan = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        let at = bytes.windows(8).position(|w| w == b"qfw.plan").unwrap();
        bytes[at + 20..at + 20 + 64].fill(0);
        bytes
    };
    assert!(without_plan(&alone.join("model.gguf")) == without_plan(&several.join("gguf/model.gguf")));
    // A file is no checkpoint to quantize again.
    let again = qfw(&apply_args("tiny-llama", &alone, &format!("{words} gguf")));
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);
    let resumed = qfw(&apply_args("tiny-llama", &alone, &format!("{words} gguf --resume"))).ok();
    assert!(resumed.stderr.contains("finished") || resumed.stdout.contains("finished"), "{}{}", resumed.stdout, resumed.stderr);
    apply("tiny-llama", &alone, &format!("{words} gguf --overwrite"));
}

/// The tokenizer comes out of the file: greedy text is that of the native form.
#[test]
fn text_is_generated_from_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=32 --format qfw,gguf");
    let text =
        |model: &Path| qfw(&args("generate --max-new-tokens 12 --prompt", &["The old house", &model.display().to_string()])).ok().stdout;
    assert_eq!(text(&out.join("qfw")), text(&out.join("gguf/model.gguf")));
}

#[test]
fn what_changes_or_grows_is_said() {
    let notes = |words: &str| {
        let ran = qfw(&apply_args("tiny-llama", Path::new("unused"), &format!("--algo rtn --format gguf {words}"))
            .into_iter()
            .map(|w| if w == "apply" { "plan".to_owned() } else { w })
            .filter(|w| w != "-o" && w != "unused")
            .collect::<Vec<_>>())
        .ok();
        ran.stdout + &ran.stderr
    };
    let text = notes("--set scheme.weights.granularity.group=128");
    let larger = "`gguf` is larger than the plan says: each scale is stored once for every 32 inputs: 4.5 bits a weight in `blocks.0.attn.q`, not 4.12";
    assert!(text.contains(larger), "{text}");
    let text = notes("--set scheme.weights.granularity.group=32 --set scheme.weights.symmetric=false --set model.dtype=float32");
    let changes = "`gguf` changes the result: it holds scales as f16, and those of `blocks.0.attn.q` are f32: each moves by up to 1/2048 of \
                   itself; it holds what the smallest code of a group stands for as f16, in place of zero points: in `blocks.0.attn.q` that \
                   moves by up to 1/2048 of itself";
    assert!(text.contains(changes), "{text}");
    let text = notes("--set scheme.weights.granularity.group=32");
    assert!(!text.contains("`gguf` is larger") && !text.contains("`gguf` changes"), "{text}");
}

#[test]
fn what_it_cannot_hold_is_refused_with_the_nearest_that_works() {
    let refused = |model: &str, words: &str, message: &str, hint: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let ran = qfw(&apply_args(model, &out, &format!("{words} --format gguf")));
        assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
        let message = format!("output format `gguf`: {message}");
        assert!(ran.stderr.contains(&message) && ran.stderr.contains(&format!("hint: {hint}")), "{words}: {}", ran.stderr);
        assert!(!out.exists());
    };
    let near_int4 = "k-quants are not written; nearest: `int4` in groups of 32, or `--format qfw`";
    let near_int8 = "k-quants are not written; nearest: `int8` in groups of 32, or `--format qfw`";
    let nearest = "use int4, int5 or int8 in groups of 32, mxfp4, or `--format qfw`";
    for (sets, message, hint) in [
        ("format=int2", "it has blocks of 4, 5 and 8 bits, not of 2", near_int4),
        ("format=int3", "it has blocks of 4, 5 and 8 bits, not of 3", near_int4),
        ("format=int6", "it has blocks of 4, 5 and 8 bits, not of 6", near_int8),
        ("format=uint7", "it has blocks of 4, 5 and 8 bits, not of 7", near_int8),
        ("format=nf4", "none of its blocks holds nf4", nearest),
        ("format=fp8", "none of its blocks holds float-ocp-e4m3", nearest),
        (
            "format=int8 symmetric=false",
            "its blocks of 8 bits have no minimum, and so no zero points",
            "set `symmetric = true`, or use uint4 or uint5",
        ),
        (
            "granularity.group=48",
            "groups of 48 inputs are no multiple of 32, which is what shares a scale in Q4_0",
            "use groups of 32, 64 or 128, or `--format qfw`",
        ),
        (
            "granularity.group=16",
            "groups of 16 inputs are no multiple of 32, which is what shares a scale in Q4_0",
            "use groups of 32, 64 or 128, or `--format qfw`",
        ),
    ] {
        let sets: Vec<String> = sets.split(' ').map(|w| format!("--set scheme.weights.{w}")).collect();
        refused("tiny-llama", &format!("--algo rtn {}", sets.join(" ")), &format!("`blocks.0.attn.q`: {message}"), hint);
    }
    refused(
        "tiny-llama",
        "--algo gptq --set gptq.act-order=group --set scheme.weights.granularity.group=32",
        "pass `gptq` makes groups that do not run in storage order, and blocks do",
        "set `act-order = \"static\"`",
    );
    refused(
        "tiny-llama",
        "--algo rtn --set scheme.inputs.format=int8",
        "`blocks.0.attn.in`: it holds weights, and nothing that rounds inputs",
        "leave `scheme.inputs` out",
    );
    refused(
        "tiny-llama",
        r#"--algo quarot,rtn --set quarot.rotations=["r4"]"#,
        "`blocks.0.down.in`: it is rotated while the model runs, which no reader of this format does",
        "leave `r3`, `r4`",
    );
    refused(
        "tiny-gpt2",
        "--algo rtn --set scheme.weights.format=nvfp4",
        "`blocks.0.attn.qkv`: llama.cpp leaves out the factor that nvfp4 has for the whole tensor in feed-forward layers of gpt2",
        "use mxfp4",
    );
    refused(
        "tiny-llama",
        "--algo svdquant,rtn",
        "`blocks.0.attn.q`: it holds codes, and no branch of rank",
        "leave the pass out, or use `--format qfw`",
    );
}

/// What a file needs beside the weights is checked before the run as well.
#[test]
fn a_tokenizer_without_a_place_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(&asset("tiny-llama")).join(file), model.join(file)).unwrap();
    }
    let words = format!("apply --algo rtn --format gguf --set scheme.weights.format=int8 -o {}", out.display());
    let ran = qfw(&args(&words, &[&model.display().to_string()]));
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    let message = "output format `gguf`: a GGUF file holds its tokenizer, and there is no tokenizer.json beside the model";
    assert!(ran.stderr.contains(message), "{}", ran.stderr);
    assert!(!out.exists());
}

/// A float model in a file is a source like any other: GGUF to GGUF.
#[test]
fn a_file_can_be_quantized_into_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (float, twice, once) = (dir.path().join("float"), dir.path().join("twice"), dir.path().join("once"));
    let scheme = "--algo rtn --set scheme.weights.format=int8 --set scheme.weights.granularity.group=32 --format gguf";
    apply("tiny-llama", &once, scheme);
    apply("tiny-llama", &float, "--set harness.no-quantize=true --format gguf");
    assert_eq!(types(&float), ["F16", "F32"]);
    let words = format!("apply {scheme} -o {}", twice.display());
    qfw(&args(&words, &[&float.join("model.gguf").display().to_string()])).ok();
    let value = |text: String| serde_json::from_str::<Value>(&text).unwrap()["perplexity"].clone();
    assert_eq!(value(eval(&once)), value(eval(&twice)));
}

/// Names of blocks that llama.cpp has and that are not written say what comes nearest.
#[test]
fn names_of_k_quants_say_what_is_near() {
    let dir = tempfile::tempdir().unwrap();
    for (words, says) in [
        ("--set scheme.weights.format=q6_k --format gguf", "nearest: `format = \"int8\"` in groups of 32, with `--format gguf`"),
        ("--format q4_k_m", "k-quants and i-quants are not written; nearest: `format = \"int4\"`"),
        (
            "--set scheme.weights.format=int3 --set scheme.weights.granularity.group=32 --format gguf",
            "k-quants are not written; nearest: `int4` in groups of 32",
        ),
        (
            "--set scheme.weights.format=int6 --set scheme.weights.granularity.group=32 --format gguf",
            "k-quants are not written; nearest: `int8` in groups of 32",
        ),
    ] {
        let refused = qfw(&apply_args("tiny-llama", &dir.path().join("out"), &format!("--algo rtn {words}")));
        assert!(refused.code == Some(2) && refused.stderr.contains(says), "{words}: {}", refused.stderr);
    }
}
