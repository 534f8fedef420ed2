//! Keys of the configuration that change the result, each seen to do what it says.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::{apply, apply_args, args, asset, command, eval, perplexity, qfw, same_tree, tensors, tree};

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// The tiny LLaMA with a head of its own: the embedding, but for one bit.
fn untied(dir: &Path) -> PathBuf {
    let (source, model) = (PathBuf::from(asset("tiny-llama")), dir.join("untied"));
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let split = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..split]).unwrap();
    let mut head = tensors(&source)["model.embed_tokens.weight"].2.clone();
    head[0] ^= 1;
    let start = bytes.len() - split;
    header["lm_head.weight"] = header["model.embed_tokens.weight"].clone();
    header["lm_head.weight"]["data_offsets"] = json!([start, start + head.len()]);
    let header = header.to_string().into_bytes();
    let whole = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &bytes[split..], &head].concat();
    std::fs::write(model.join("model.safetensors"), whole).unwrap();
    model
}

/// Kills a run when it says `line`.
fn killed_at(model: &str, out: &Path, words: &str, line: &str) {
    let mut child = command(&apply_args(model, out, words)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains(line)), "`{line}` was never said");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_head_is_quantized_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = untied(dir.path()).display().to_string();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply(&model, &out, &format!("--set scheme.weights.granularity.group=64 {words}"));
        out
    };
    let all = "--algo gptq --set scheme.skip=[\"embed\"]";
    let (with, without) = (run("with", &format!("{all} --threads 1")), run("without", "--algo gptq"));
    for (out, sites, ignored) in [(&with, 43, json!([])), (&without, 42, json!(["lm_head"]))] {
        let record: Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
        assert_eq!(record["sites"].as_array().unwrap().len(), sites);
        assert_eq!(config(out)["quantization_config"]["ignore"], ignored);
        let names = tensors(out);
        assert_eq!((names.contains_key("lm_head.weight_packed"), names.contains_key("lm_head.weight")), (sites == 43, sites == 42));
        assert!(names.contains_key("model.embed_tokens.weight"));
    }
    same_tree(&tree(&with), &tree(&run("threads", &format!("{all} --threads 3"))), "threads");

    // Alone and coarse, it costs something, and less where it is calibrated.
    let alone = "--set scheme.weights.format=int2 --set scheme.skip=[\"blocks.*\",\"embed\"]";
    let [float, gptq, rtn] = [
        PathBuf::from(&model),
        run("gptq", &format!("--algo gptq --set calibration.samples=32 {alone}")),
        run("rtn", &format!("--algo rtn {alone}")),
    ]
    .map(|m| perplexity(&m));
    assert!(float < gptq && gptq < rtn, "float {float}, gptq {gptq}, rtn {rtn}");

    // It comes after the last block, and is not forgotten by a run that was stopped in that.
    let out = dir.path().join("resumed");
    let words = format!("--set scheme.weights.granularity.group=64 {all}");
    killed_at(&model, &out, &words, "block 6/6");
    apply(&model, &out, &format!("{words} --resume"));
    same_tree(&tree(&with), &tree(&out), "resumed");
}

/// Codes are checked against the definition: a scale for each group of 64, the largest magnitude over 7.5, and the nearest multiple of it.
#[test]
fn the_embedding_is_quantized_where_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = untied(dir.path()).display().to_string();
    let run = |name: &str, words: &str| {
        let out = dir.path().join(name);
        apply(&model, &out, &format!("--format qfw --algo gptq --set calibration.samples=8 {words}"));
        out
    };
    let embed = "--set scheme.embed.format=int4 --set scheme.embed.granularity.group=64 --set scheme.embed.convention=half-range";
    let with = run("with", &format!("{embed} --threads 1"));
    let stored = tensors(&with);
    assert!(!stored.contains_key("model.embed_tokens.weight"));
    let halves = |bytes: &[u8]| -> Vec<f64> { bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f64()).collect() };
    let table = halves(&tensors(Path::new(&model))["model.embed_tokens.weight"].2);
    let scales: Vec<f32> =
        stored["model.embed_tokens.scale"].2.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let codes: Vec<i32> =
        stored["model.embed_tokens.codes"].2.iter().flat_map(|b| [i32::from(b & 15) - 8, i32::from(b >> 4) - 8]).collect();
    assert_eq!((codes.len(), scales.len() * 64), (table.len(), table.len()));
    for ((group, codes), s) in table.chunks_exact(64).zip(codes.chunks_exact(64)).zip(&scales) {
        let s = f64::from(*s);
        let expected = group.iter().fold(0.0f64, |m, x| m.max(x.abs())) / 7.5;
        // Scales are stored in the type of the weights, with a step of 2⁻¹⁰ between powers of two.
        assert!((s / expected - 1.0).abs() <= 2f64.powi(-11) * 1.01, "{s} {expected}");
        for (x, q) in group.iter().zip(codes) {
            let nearest = (x / s).clamp(-8.0, 7.0);
            assert!((f64::from(*q) - nearest).abs() <= 0.5 + 1e-6, "{x} / {s} is no {q}");
        }
    }
    let record: Value = serde_json::from_slice(&std::fs::read(with.join("qfw.json")).unwrap()).unwrap();
    assert_eq!(record["sites"][0]["site"], "embed");

    // It is what the rest is calibrated on, unless streams are of the original model; it costs something; nothing about it is of chance.
    let block = |out: &Path| tensors(out)["model.layers.0.self_attn.q_proj.codes"].clone();
    let without = run("without", "");
    assert_ne!(block(&with), block(&without));
    let reference = "--set harness.propagate=reference";
    assert_eq!(block(&run("with-r", &format!("{embed} {reference}"))), block(&run("without-r", reference)));
    assert!(perplexity(&with) > perplexity(&without));
    same_tree(&tree(&with), &tree(&run("threads", &format!("{embed} --threads 3"))), "threads");
    let stopped = dir.path().join("stopped");
    let words = format!("--format qfw --algo gptq --set calibration.samples=8 {embed}");
    killed_at(&model, &stopped, &words, "block 3/6");
    apply(&model, &stopped, &format!("{words} --resume"));
    same_tree(&tree(&with), &tree(&stopped), "resumed");

    // All of a table may share a scale, and a model may have nothing else that is quantized.
    for words in ["--set scheme.embed.granularity=tensor", "--set scheme.embed.granularity=channel --set scheme.embed.symmetric=false"] {
        let out = dir.path().join(words.len().to_string());
        let all = format!("--format qfw --set model.tie-policy=untie --set scheme.weights=\"keep\" --set scheme.embed.format=int8 {words}");
        qfw(&args(&format!("apply {all} -o"), &[&out.display().to_string(), &asset("tiny-gpt2")])).ok();
        assert!(tensors(&out).contains_key("transformer.wte.codes"));
        let (rounded, float) = (perplexity(&out), perplexity(Path::new(&asset("tiny-gpt2"))));
        assert!((rounded / float - 1.0).abs() < 0.02, "{words}: {rounded}, {float}");
    }
}

#[test]
fn a_scheme_of_its_own_says_more_than_what_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let model = untied(dir.path()).display().to_string();
    let out = dir.path().join("out");
    apply(&model, &out, "--algo rtn --set scheme.head.format=int8 --set scheme.head.granularity=channel --format qfw");
    assert!(tensors(&out).contains_key("lm_head.codes"));
}

#[test]
fn a_tied_head_is_untied_on_request_only() {
    let dir = tempfile::tempdir().unwrap();
    for (model, embedding) in [("tiny-llama", "model.embed_tokens.weight"), ("tiny-gpt2", "transformer.wte.weight")] {
        let [kept, copied, quantized] = ["kept", "copied", "quantized"].map(|name| dir.path().join(format!("{model}-{name}")));
        apply(model, &kept, "--algo rtn --format qfw");
        apply(model, &copied, "--algo rtn --format qfw --set model.tie-policy=untie");
        apply(model, &quantized, "--algo rtn --format qfw --set model.tie-policy=untie --set scheme.skip=[\"embed\"]");
        assert!(!tensors(&kept).contains_key("lm_head.weight"), "{model}");
        let both = tensors(&copied);
        assert_eq!(both["lm_head.weight"], both[embedding], "{model}");
        assert_eq!(config(&copied)["tie_word_embeddings"], false);
        assert_eq!(eval(&kept), eval(&copied), "{model}: a copy is the same model");
        let quantized_tensors = tensors(&quantized);
        assert_eq!(quantized_tensors[embedding], both[embedding], "{model}: the embedding changed with the head");
        assert!(quantized_tensors.contains_key("lm_head.codes"), "{model}");
        assert_ne!(eval(&quantized), eval(&copied), "{model}");
    }
}

#[test]
fn the_keys_of_calibration_choose_its_windows() {
    let plan = |words: &str| {
        let data = asset("text/calibration.txt");
        let all = args(&format!("plan --json --algo gptq --set scheme.weights.format=int4 {words} --data"), &[&data, &asset("tiny-llama")]);
        qfw(&all).json()["plan"]["calibration"].clone()
    };
    let base = plan("--set calibration.samples=8 --set calibration.seq-len=64");
    assert_eq!((&base["samples"], &base["seq-len"], &base["tokens"]), (&json!(8), &json!(64), &json!(512)));
    let longer = plan("--set calibration.samples=8 --set calibration.seq-len=96");
    assert_eq!((&longer["samples"], &longer["seq-len"], &longer["tokens"]), (&json!(8), &json!(96), &json!(768)));
    let more = plan("--set calibration.samples=12 --set calibration.seq-len=64");
    assert_eq!((&more["samples"], &more["tokens"]), (&json!(12), &json!(768)));
    // Without them: 128 windows as long as the model takes, which is less than 2048 here.
    let default = plan("");
    assert_eq!((&default["samples"], &default["seq-len"]), (&json!(128), &json!(256)));
    let hashes: std::collections::BTreeSet<String> = ["none", "sequence", "document"]
        .map(|bos| {
            plan(&format!("--set calibration.samples=8 --set calibration.seq-len=64 --set calibration.bos={bos}"))["hash"].to_string()
        })
        .into();
    assert!(hashes.len() == 3 && hashes.contains(&base["hash"].to_string()), "{hashes:?}");
}

#[test]
fn the_architecture_can_be_said_where_the_checkpoint_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let model = untied(dir.path());
    let text = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), text.replace("\"model_type\": \"llama\"", "\"model_type\": \"lama\"")).unwrap();
    let model = model.display().to_string();
    assert_eq!(qfw(&apply_args(&model, &dir.path().join("none"), "--algo gptq")).code, Some(1));
    let out = dir.path().join("out");
    apply(&model, &out, "--algo gptq --set model.type=llama");
    assert_eq!(config(&out)["model_type"], "llama");
    eval(&out);
}

#[test]
fn weights_that_are_kept_have_the_type_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    for (dtype, stored) in [("auto", "F16"), ("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")] {
        let out = dir.path().join(dtype);
        apply("tiny-llama", &out, &format!("--algo rtn --set model.dtype={dtype}"));
        let tensors = tensors(&out);
        for name in ["model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight_scale"] {
            assert_eq!(tensors[name].0, stored, "{dtype}: {name}");
        }
        let named = if dtype == "auto" { "float16" } else { dtype };
        assert_eq!(config(&out)["torch_dtype"], named);
    }
    let [auto, same, wide, narrow] = ["auto", "float16", "float32", "bfloat16"].map(|d| dir.path().join(d));
    assert_eq!(eval(&auto), eval(&same));
    let embedding = |dir: &Path| tensors(dir)["model.embed_tokens.weight"].2.clone();
    let numbers = |bytes: &[u8]| -> Vec<f32> { bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect() };
    // bfloat16 is the upper half of f32, to the nearest.
    for (x, b) in numbers(&embedding(&wide)).iter().zip(embedding(&narrow).chunks(2)) {
        let y = f32::from_le_bytes([0, 0, b[0], b[1]]);
        assert!((x - y).abs() <= x.abs() / 256.0 + 1e-30, "{x} became {y}");
    }
}

#[test]
fn without_quantization_the_model_comes_out_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["compressed-tensors", "qfw"] {
        let out = dir.path().join(format);
        let ran = apply("tiny-llama", &out, &format!("--algo gptq --format {format} --set harness.no-quantize=true"));
        assert!(ran.stdout.contains("nothing quantized"), "{}", ran.stdout);
        assert!(ran.stderr.contains("`harness.no-quantize` leaves out the pass `gptq`"), "{}", ran.stderr);
        let source = PathBuf::from(asset("tiny-llama"));
        assert!(tensors(&out) == tensors(&source), "{format}: a tensor changed");
        assert_eq!(config(&out), config(&source));
        assert_eq!(perplexity(&out).to_bits(), perplexity(&source).to_bits());
    }
}

#[test]
fn skipped_layers_keep_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source = tensors(Path::new(&asset("tiny-llama")));
    // By role, and by a regular expression over stored names; a name that is only contained does not count.
    for (skip, keeps) in [
        ("'mlp.down'", Box::new(|module: &str| module.ends_with("mlp.down_proj")) as Box<dyn Fn(&str) -> bool>),
        (r"'model\.layers\.[01]\..*'", Box::new(|module: &str| module.contains(".0.") || module.contains(".1."))),
        (
            "'attn.[qkv]','blocks.5.mlp.(up|gate)'",
            Box::new(|m: &str| {
                ["q_proj", "k_proj", "v_proj", "layers.5.mlp.up_proj", "layers.5.mlp.gate_proj"].iter().any(|name| m.ends_with(name))
            }),
        ),
    ] {
        let out = dir.path().join(skip.replace(['\'', '\\', '*'], ""));
        apply("tiny-llama", &out, &format!("--algo rtn --set scheme.skip=['head','embed',{skip}]"));
        let written = tensors(&out);
        for (name, tensor) in source.iter().filter(|(name, _)| name.contains("_proj")) {
            let module = name.strip_suffix(".weight").unwrap();
            assert_eq!(written.get(name) == Some(tensor), keeps(module), "{skip}: {name}");
            assert_eq!(written.contains_key(&format!("{module}.weight_packed")), !keeps(module), "{skip}: {name}");
        }
    }
}

#[test]
fn only_affine_weights_have_zero_points() {
    let dir = tempfile::tempdir().unwrap();
    for (symmetric, points) in [(true, 0), (false, 42)] {
        let out = dir.path().join(symmetric.to_string());
        apply("tiny-llama", &out, &format!("--algo rtn --set scheme.weights.symmetric={symmetric}"));
        assert_eq!(tensors(&out).keys().filter(|name| name.ends_with("weight_zero_point")).count(), points);
    }
}

/// It reads no activations, so that the order in which they would be taken changes nothing.
#[test]
fn rounding_to_nearest_is_the_same_in_every_sequence() {
    let dir = tempfile::tempdir().unwrap();
    let runs = ["block", "layer"].map(|sequence| {
        let out = dir.path().join(sequence);
        let ran = apply("tiny-llama", &out, &format!("--algo rtn --set harness.sequence={sequence}"));
        assert!(ran.stderr.contains(&format!("sequence {sequence}")), "{}", ran.stderr);
        tensors(&out)
    });
    assert!(runs[0] == runs[1]);
}

#[test]
fn the_list_of_blocks_may_be_named_if_it_is_the_one() {
    for (model, list) in [("tiny-llama", "model.layers"), ("tiny-gpt2", "transformer.h")] {
        let words = format!("plan --format qfw --algo rtn --set scheme.weights.format=int4 --set harness.block-name={list}");
        assert!(qfw(&args(&words, &[&asset(model)])).ok().stdout.contains("rtn (round)"), "{model}");
    }
}

/// The original model runs beside the quantized one only where a pass is to see both.
#[test]
fn originals_are_kept_only_where_they_are_propagated() {
    let memory = |propagate: &str| {
        let data = asset("text/calibration.txt");
        let fixed = "plan --json --algo gptq --set scheme.weights.format=int4 --set calibration.samples=8";
        let all = args(&format!("{fixed} --set harness.propagate={propagate} --data"), &[&data, &asset("tiny-llama")]);
        qfw(&all).json()["memory"]["streams"].as_u64().unwrap()
    };
    assert_eq!((memory("quantized"), memory("both")), (memory("reference"), 2 * memory("quantized")));
}

/// Far more hidden states than the budget has room for: the run stays within it, and without it does not.
#[test]
fn the_budget_is_kept() {
    const BUDGET: u64 = 82 << 20;
    let dir = tempfile::tempdir().unwrap();
    let peak = |name: &str, words: &str| {
        let fixed = "--algo gptq --json --threads 1 --set calibration.samples=240 --set calibration.seq-len=256";
        let all = apply_args("tiny-llama", &dir.path().join(name), &format!("{fixed} --set harness.propagate=both {words}"));
        qfw(&all).json()["peak_rss_bytes"].as_u64().unwrap()
    };
    let (ample, tight) = (peak("ample", ""), peak("tight", &format!("--budget {BUDGET}")));
    assert!(ample > BUDGET && tight <= BUDGET, "{ample} without, {tight} with a budget of {BUDGET}");
}
