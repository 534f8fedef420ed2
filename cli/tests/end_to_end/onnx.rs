//! The containers of ONNX: what lies in OUT, what is said before a run, and what is refused.

use std::path::Path;

use super::{apply, apply_args, args, qfw, tree};

const FORMS: [&str; 4] = ["onnx", "onnx-qdq", "onnx-qcdq", "onnx-matmulnbits"];

/// A directory with the graph, its numbers and what belongs beside them; written alone or with others, the same bytes.
#[test]
fn the_graph_and_its_numbers_are_all_there_is() {
    let words = "--algo rtn --set scheme.weights.granularity.group=32 --format";
    let dir = tempfile::tempdir().unwrap();
    let (alone, several) = (dir.path().join("alone"), dir.path().join("several"));
    apply("tiny-llama", &alone, &format!("{words} onnx"));
    apply("tiny-llama", &several, &format!("{words} qfw,{}", FORMS.join(",")));
    let names: Vec<String> = tree(&alone).into_keys().map(|p| p.display().to_string()).collect();
    let expected = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.onnx",
        "model.onnx.data",
        "qfw.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    let read = |path: &Path, file: &str| std::fs::read(path.join(file)).unwrap();
    assert!(read(&alone, "model.onnx.data") == read(&several.join("onnx"), "model.onnx.data"));
    // Formats are part of the plan, and its hash of the graph: the rest is the same.
    let without_plan = |path: &Path| {
        let mut bytes = read(path, "model.onnx");
        let at = bytes.windows(8).position(|w| w == b"qfw_plan").unwrap();
        bytes[at + 10..at + 10 + 64].fill(0);
        bytes
    };
    assert!(without_plan(&alone) == without_plan(&several.join("onnx")));
    for form in FORMS {
        assert_eq!(read(&several.join(form), "tokenizer.json"), read(&alone, "tokenizer.json"), "{form}");
        assert_eq!(read(&several.join(form), "config.json"), read(&alone, "config.json"), "{form}");
    }
    let config: serde_json::Value = serde_json::from_slice(&read(&alone, "config.json")).unwrap();
    assert!(config.get("quantization_config").is_none() && config["model_type"] == "llama");
    let again = qfw(&apply_args("tiny-llama", &alone, &format!("{words} onnx")));
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);
    let resumed = qfw(&apply_args("tiny-llama", &alone, &format!("{words} onnx --resume"))).ok();
    assert!(resumed.stdout.contains("finished"), "{}{}", resumed.stdout, resumed.stderr);
    let before = tree(&alone);
    apply("tiny-llama", &alone, &format!("{words} onnx --overwrite"));
    assert!(before == tree(&alone), "overwriting changes bytes");
}

/// Graphs are read by onnxruntime; a command that is given one says so.
#[test]
fn a_graph_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let done = apply("tiny-gpt2", &out, "--algo rtn --format onnx-qdq");
    assert!(done.stdout.contains("next: load") && !done.stdout.contains("next: qfw eval"), "{}", done.stdout);
    let ran = qfw(&args("eval --data", &[&super::asset("text/evaluation.txt"), &out.display().to_string()]));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("holds an ONNX graph, which is written here and not read"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: load it in onnxruntime, or write `--format qfw` too and give that"), "{}", ran.stderr);
}

/// Every algorithm's result, and everything that runs beside codes, is held by every form that the plan accepts it in.
#[test]
fn whole_recipes_are_written() {
    for (model, format, words) in [
        ("tiny-llama", "onnx", "--algo gptq --set gptq.act-order=static --set scheme.weights.granularity.group=32"),
        ("tiny-llama", "onnx", r#"--algo quarot,rtn --set quarot.rotations=["r1","r2","r3","r4"]"#),
        ("tiny-llama", "onnx-qdq", "--algo svdquant,rtn --set scheme.weights.granularity.group=32"),
        ("tiny-llama", "onnx-matmulnbits", "--algo rtn,bias-correction --set scheme.weights.granularity.group=32"),
        (
            "tiny-llama",
            "onnx",
            "--algo rtn --set model.tie-policy=untie --set scheme.head.format=int8 --set scheme.embed.format=int4 \
             --set scheme.embed.granularity.group=32",
        ),
        ("tiny-gpt2", "onnx-qcdq", "--algo smoothquant,rtn --set scheme.inputs.format=int6 --set scheme.inputs.timing=static"),
        ("tiny-llama", "onnx-qdq", "--algo rtn --set model.dtype=bfloat16"),
        ("tiny-llama", "onnx", "--set harness.no-quantize=true"),
        ("tiny-llama", "onnx", "--preset w8a8"),
        ("tiny-llama", "onnx", "--preset fp8"),
        ("tiny-llama", "onnx-matmulnbits", "--preset w4a16kv8"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        apply(model, &out, &format!("{words} --format {format}"));
        assert!(out.join("model.onnx").metadata().unwrap().len() > 10_000, "{words}");
    }
}

fn plan_of(model: &str, words: &str) -> String {
    let line = apply_args(model, Path::new("unused"), words);
    let line = line.into_iter().map(|w| if w == "apply" { "plan".to_owned() } else { w }).filter(|w| w != "-o" && w != "unused");
    let ran = qfw(&line.collect::<Vec<_>>()).ok();
    ran.stdout + &ran.stderr
}

#[test]
fn what_grows_is_said() {
    for (format, words, bits) in [
        ("onnx", "format=int4 granularity.group=32", "5.00 bits a weight in `blocks.0.attn.q`, not 4.50"),
        ("onnx", "format=int4 granularity=channel", "4.25 bits a weight in `blocks.0.attn.q`, not 4.12"),
        ("onnx", "format=int3 granularity.group=32", "5.00 bits a weight in `blocks.0.attn.q`, not 3.50"),
        ("onnx-qcdq", "format=int4 granularity.group=32", "9.00 bits a weight in `blocks.0.attn.q`, not 4.50"),
        ("onnx-qdq", "format=int6 granularity=channel", "8.25 bits a weight in `blocks.0.attn.q`, not 6.12"),
    ] {
        let sets: Vec<String> = words.split(' ').map(|w| format!("--set scheme.weights.{w}")).collect();
        let text = plan_of("tiny-llama", &format!("--algo rtn --format {format} {}", sets.join(" ")));
        let note = format!("`{format}` is larger than the plan says: codes lie in 2, 4 or 8 bits and scales are f32: {bits}");
        assert!(text.contains(&note), "{words}: {text}");
    }
    let text = plan_of(
        "tiny-llama",
        "--algo rtn --format onnx --set scheme.weights.format=int8 --set scheme.weights.granularity.group=32 --set model.dtype=float32",
    );
    assert!(!text.contains("larger than"), "{text}");
}

#[test]
fn what_a_form_cannot_hold_is_refused_with_the_nearest_that_works() {
    let refused = |model: &str, format: &str, words: &str, message: &str, hint: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let ran = qfw(&apply_args(model, &out, &format!("--algo {words} --format {format}")));
        assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
        let message = format!("output format `{format}`: {message}");
        assert!(ran.stderr.contains(&message) && ran.stderr.contains(&format!("hint: {hint}")), "{words}: {}", ran.stderr);
        assert!(!out.exists());
    };
    let nearest = "use int4, int8 or fp8, or `--format qfw`";
    for (format, sets, message, hint) in [
        ("onnx", "format=nf4", "ONNX has no type for nf4", nearest),
        ("onnx", "format=mxfp4", "onnxruntime computes with no weights in mxfp4", nearest),
        ("onnx-qdq", "format=nvfp4", "onnxruntime computes with no weights in nvfp4", nearest),
        ("onnx", "format=int12", "MatMulNBits holds integers of up to 8 bits, not of 12", "use int8"),
        ("onnx-qcdq", "format=int12", "it holds weights of up to 8 bits, not of 12", "use int8"),
        ("onnx-matmulnbits", "format=fp8", "MatMulNBits holds integers, not float-ocp-e4m3", "use `--format onnx-qdq`"),
        (
            "onnx-matmulnbits",
            "granularity.group=24",
            "blocks of MatMulNBits are powers of two from 16 up, which do not divide groups of 24",
            "use groups of 32, 64 or 128, or `--format onnx-qdq`",
        ),
        (
            "onnx-qdq",
            "symmetric=false zero-point=float granularity.group=32",
            "zero points of DequantizeLinear are integers",
            "set `zero-point = \"integer\"`, or use `--format onnx-matmulnbits`",
        ),
    ] {
        let sets: Vec<String> = sets.split(' ').map(|w| format!("--set scheme.weights.{w}")).collect();
        refused("tiny-llama", format, &format!("rtn {}", sets.join(" ")), &format!("`blocks.0.attn.q`: {message}"), hint);
    }
    for (format, sets, message, hint) in [
        (
            "onnx-qdq",
            "format=int8",
            "QuantizeLinear has fixed scales, and inputs are int8",
            "set `scheme.inputs.timing = \"static\"`, or use `--format onnx`",
        ),
        (
            "onnx",
            "format=int8 granularity=tensor",
            "a graph rounds to int8 or fp8 with scales that it finds for each token, and not to int8 tensor symmetric dynamic",
            "set `scheme.inputs.granularity = \"token\"`",
        ),
        (
            "onnx",
            "format=int8 timing=static granularity.group=32",
            "QuantizeLinear has one scale for all channels or one for each, and not int8 group 32",
            "set `scheme.inputs.granularity = \"tensor\"`",
        ),
        (
            "onnx-qdq",
            "format=int6 timing=static granularity=tensor",
            "int6 tensor symmetric is narrower than the types of QuantizeLinear",
            "use `--format onnx-qcdq`, which clips, or int8",
        ),
        (
            "onnx",
            "format=int12 timing=static granularity=tensor",
            "QuantizeLinear does not round to int12",
            "use int8 or fp8 in `scheme.inputs`",
        ),
    ] {
        let sets: Vec<String> = sets.split(' ').map(|w| format!("--set scheme.inputs.{w}")).collect();
        refused("tiny-llama", format, &format!("rtn {}", sets.join(" ")), &format!("`blocks.0.attn.in`: {message}"), hint);
    }
    refused(
        "tiny-llama",
        "onnx",
        "gptq --set gptq.act-order=group --set scheme.weights.granularity.group=32",
        "pass `gptq` makes groups that do not run in storage order, and blocks do",
        "set `act-order = \"static\"`",
    );
}
