//! `qfw export`: what a run writes to two formats is what an export makes of the one for the other, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Tensors, apply, args, asset, eval, perplexity, qfw, same_tree, tensors, tree};

/// A file without the hash of the plan that made it.
fn without_plan(dir: &Path, record: &Path, file: &str) -> Vec<u8> {
    let record: Value = serde_json::from_slice(&std::fs::read(record.join("qfw.json")).unwrap()).unwrap();
    let mut bytes = std::fs::read(dir.join(file)).unwrap();
    let hash = record["signature"].as_str().unwrap();
    let at = bytes.windows(hash.len()).position(|w| w == hash.as_bytes()).expect("the hash of the plan is in the file");
    bytes[at..at + hash.len()].fill(b'0');
    bytes
}

fn export_args(from: &Path, to: &Path, words: &str) -> Vec<String> {
    args(&format!("export {words}"), &[&from.display().to_string(), "-o", &to.display().to_string()])
}

#[track_caller]
fn export(from: &Path, to: &Path, words: &str) -> Value {
    qfw(&export_args(from, to, &format!("--json {words}"))).json()
}

/// The changes of the only format, as `kind: tensors`.
fn kinds(report: &Value) -> BTreeMap<String, u64> {
    let changes = report["formats"][0]["changes"].as_array().unwrap();
    changes.iter().map(|c| (c["kind"].as_str().unwrap().to_owned(), c["tensors"].as_u64().unwrap())).collect()
}

/// What the second reader finds when it decodes one beside the other.
#[track_caller]
fn codes_equal(a: &Path, b: &Path) -> bool {
    let ran = qfw(&args("verify --json", &[&a.display().to_string(), "--against", &b.display().to_string()]));
    let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {}", ran.stderr));
    report["codes_equal"] == true
}

/// That the second reader finds what the export has recorded.
#[track_caller]
fn verified(dir: &Path) {
    qfw(&args("verify", &[&dir.display().to_string()])).ok();
}

fn quantization(dir: &Path) -> Value {
    serde_json::from_slice::<Value>(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()["quantization_config"].clone()
}

/// Symmetric int4 in groups of 32 with f16 scales is what six formats hold: from each, each.
#[test]
fn codes_go_from_every_format_to_every_other() {
    const FORMATS: [&str; 6] = ["qfw", "compressed-tensors", "gptq", "gptq-v2", "awq", "gguf"];
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    apply("tiny-llama", &run, &format!("--algo rtn --set scheme.weights.granularity.group=32 --format {}", FORMATS.join(",")));
    let direct: BTreeMap<&str, Tensors> = FORMATS.iter().filter(|f| **f != "gguf").map(|f| (*f, tensors(&run.join(f)))).collect();
    for from in FORMATS {
        let out = dir.path().join(from);
        let report = export(&run.join(from), &out, &format!("--format {}", FORMATS.join(",")));
        for made in report["formats"].as_array().unwrap() {
            let (format, changes) = (made["format"].as_str().unwrap(), &made["changes"]);
            assert_eq!(changes.as_array().unwrap().len(), 1, "{from} to {format}: {changes}");
            assert_eq!((&changes[0]["kind"], &changes[0]["tensors"]), (&json!("same"), &json!(42)), "{from} to {format}");
            let dir = out.join(format);
            let Some(direct) = direct.get(format) else {
                if from != "gguf" {
                    let (a, b) = (without_plan(&dir, &out, "model.gguf"), without_plan(&run.join(format), &run, "model.gguf"));
                    assert!(a == b, "{from} to {format}: other bytes");
                }
                assert_eq!(made["bytes"], std::fs::metadata(dir.join("model.gguf")).unwrap().len());
                continue;
            };
            let exported = tensors(&dir);
            assert_eq!(exported.keys().collect::<Vec<_>>(), direct.keys().collect::<Vec<_>>(), "{from} to {format}");
            for (name, tensor) in direct {
                // llama.cpp has vectors in f32 whatever they were.
                if from == "gguf" && name.contains("norm") {
                    continue;
                }
                assert!(exported[name] == *tensor, "{from} to {format}: `{name}` differs");
            }
            if format != "qfw" {
                assert_eq!(quantization(&dir), quantization(&run.join(format)), "{from} to {format}");
            }
        }
        verified(&out);
    }
}

/// Zero points are integers in some, what the smallest code stands for in others, and floats nowhere but here: the integers come back.
#[test]
fn zero_points_survive_a_minimum() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out, back) = (dir.path().join("run"), dir.path().join("out"), dir.path().join("back"));
    let scheme = "--set scheme.weights.format=uint4 --set scheme.weights.symmetric=false --set scheme.weights.granularity.group=32";
    apply("tiny-llama", &run, &format!("--algo rtn {scheme} --format qfw,gptq-v2,awq,compressed-tensors,gguf"));
    export(&run.join("gptq-v2"), &out, "--format awq,compressed-tensors");
    for format in ["awq", "compressed-tensors"] {
        assert!(tensors(&out.join(format)) == tensors(&run.join(format)), "gptq-v2 to {format}");
    }
    let report = export(&run.join("gguf"), &back, "--format gptq-v2");
    // A minimum was rounded to f16; the zero point it came from was not.
    assert_eq!(kinds(&report), BTreeMap::from([("scales".to_owned(), 42)]));
    let (exported, direct) = (tensors(&back), tensors(&run.join("gptq-v2")));
    for (name, tensor) in direct.iter().filter(|(name, _)| !name.contains("norm")) {
        assert!(exported[name] == *tensor, "`{name}` differs");
    }
    let change = &report["formats"][0]["changes"][0];
    let (rms, largest) = (change["rms"].as_f64().unwrap(), change["largest"].as_f64().unwrap());
    assert!(0.0 < rms && rms < largest && largest <= 1.0 / 2048.0, "{change}");
    let refused = qfw(&export_args(&run.join("gguf"), &dir.path().join("no"), "--format gptq"));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

/// Floats of four bits, in the three containers that have them.
#[test]
fn small_floats_keep_their_bits() {
    for format in ["mxfp4", "nvfp4"] {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        apply("tiny-llama", &run, &format!("--algo rtn --set scheme.weights.format={format} --format qfw,compressed-tensors,gguf"));
        for from in ["qfw", "compressed-tensors", "gguf"] {
            let out = dir.path().join(from);
            export(&run.join(from), &out, "--format qfw,compressed-tensors,gguf");
            verified(&out);
            for to in ["qfw", "compressed-tensors", "gguf"] {
                assert!(codes_equal(&out.join(to), &run.join(to)), "{format}: {from} to {to}");
            }
            if from == "compressed-tensors" {
                assert!(tensors(&out.join("compressed-tensors")) == tensors(&run.join("compressed-tensors")), "{format}");
            }
        }
    }
}

/// Codes that are too narrow for a container lie in its wider ones.
#[test]
fn narrow_codes_lie_in_wider_ones() {
    for (format, symmetric, to) in [
        ("int3", true, "gguf"),
        ("int3", true, "compressed-tensors"),
        ("uint3", false, "gguf"),
        ("int2", true, "awq"),
        ("int6", true, "gguf"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (run, out) = (dir.path().join("run"), dir.path().join("out"));
        let scheme = format!("--set scheme.weights.format={format} --set scheme.weights.symmetric={symmetric}");
        apply("tiny-llama", &run, &format!("--algo rtn {scheme} --set scheme.weights.granularity.group=32 --format qfw"));
        let report = export(&run, &out, &format!("--format {to}"));
        let kind = if symmetric { "same" } else { "scales" };
        assert_eq!(kinds(&report), BTreeMap::from([(kind.to_owned(), 42)]), "{format} to {to}");
        assert!(codes_equal(&out, &run), "{format} to {to}");
        verified(&out);
        if symmetric {
            assert_eq!(eval(&out), eval(&run), "{format} to {to}");
        }
    }
}

/// Groups in order of activity: kept where there is an index of them, and a refusal with commands that work elsewhere.
#[test]
fn act_order_goes_where_there_is_room_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    apply("tiny-llama", &run, "--algo gptq --set gptq.act-order=group --set scheme.weights.granularity.group=32 --format qfw,gptq-v2");
    let out = dir.path().join("out");
    export(&run.join("gptq-v2"), &out, "--format qfw,gptq-v2");
    assert!(tensors(&out.join("gptq-v2")) == tensors(&run.join("gptq-v2")));
    assert!(tensors(&out.join("qfw")) == tensors(&run.join("qfw")));
    assert_eq!(quantization(&out.join("gptq-v2"))["desc_act"], true);
    let no = dir.path().join("no");
    let from = run.join("gptq-v2");
    let refused = qfw(&export_args(&from, &no, "--format compressed-tensors"));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for words in [
        "error[qfw::export::changes]",
        "the checkpoint has groups that do not run in storage order",
        "42 tensors of int4 group 32 symmetric rounded again, to int4 group 32 symmetric: values move by",
        &format!("`qfw export {} --format compressed-tensors -o {} --requantize` writes it all the same", from.display(), no.display()),
        &format!("`qfw export {} --format gptq -o {}` keeps every value", from.display(), no.display()),
    ] {
        assert!(refused.stderr.contains(words), "`{words}` is not in\n{}", refused.stderr);
    }
    assert!(!no.exists(), "a refusal leaves nothing");
    let report = export(&from, &no, "--format compressed-tensors --requantize");
    assert_eq!(kinds(&report), BTreeMap::from([("rounded".to_owned(), 42)]));
    let change = &report["formats"][0]["changes"][0];
    assert!(change["rms"].as_f64().unwrap() > 0.01 && change["rms"].as_f64().unwrap() < 0.2, "{change}");
    verified(&no);
    assert!(!codes_equal(&no, &run.join("qfw")));
    // Rounded twice is worse than once, and by no more than that.
    let (once, twice) = (perplexity(&from), perplexity(&no));
    assert!((twice / once - 1.0).abs() < 0.2, "{once} and {twice}");
}

/// Scales in f32 have to be rounded where a container has f16: that is said, measured, and no reason to refuse.
#[test]
fn what_rounding_a_scale_does_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    apply("tiny-llama", &run, "--algo rtn --set model.dtype=float32 --set scheme.weights.granularity.group=32 --format qfw,gptq");
    let ran = qfw(&export_args(&run.join("qfw"), &out, "--format gptq")).ok();
    assert!(ran.stderr.contains("42 tensors keep their codes, with scales as the format stores them: values move by"), "{}", ran.stderr);
    assert!(ran.stderr.contains("each moves by up to 1/2048 of itself"), "{}", ran.stderr);
    assert!(tensors(&out) == tensors(&run.join("gptq")));
    let dry = qfw(&args("export --json --dry-run --format gptq", &[&run.join("qfw").display().to_string()])).json();
    let change = &dry["formats"][0]["changes"][0];
    // A half has eleven bits: half a step is 2^-11 of the scale, and so of every value.
    let (rms, largest) = (change["rms"].as_f64().unwrap(), change["largest"].as_f64().unwrap());
    assert!(rms > 1e-5 && largest > rms && largest <= 1.0 / 2048.0, "{change}");
    assert_eq!(dry["written"], false);
}

/// Activations, cache, branches and rotations go along where the container has room.
#[test]
fn what_surrounds_the_codes_goes_along() {
    let kv = "--set scheme.keys.format=fp8 --set scheme.keys.timing=static --set scheme.keys.granularity=tensor \
              --set scheme.values.format=fp8 --set scheme.values.timing=static --set scheme.values.granularity=tensor";
    let inputs = "--set scheme.weights.format=int8 --set scheme.inputs.format=int8 --set scheme.inputs.timing=static";
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    apply("tiny-llama", &run, &format!("--algo rtn {inputs} {kv} --format qfw,compressed-tensors"));
    for from in ["qfw", "compressed-tensors"] {
        let out = out.join(from);
        export(&run.join(from), &out, "--format qfw,compressed-tensors");
        for to in ["qfw", "compressed-tensors"] {
            assert!(tensors(&out.join(to)) == tensors(&run.join(to)), "{from} to {to}");
        }
        assert_eq!(quantization(&out.join("compressed-tensors")), quantization(&run.join("compressed-tensors")), "{from}");
        assert_eq!(eval(&out.join("qfw")), eval(&run.join("qfw")), "{from}");
        verified(&out);
    }
    let refused = qfw(&export_args(&run.join("qfw"), &dir.path().join("no"), "--format gguf"));
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("nothing that rounds inputs") && refused.stderr.contains("--format compressed-tensors"),
        "{}",
        refused.stderr
    );
    let branched = dir.path().join("branched");
    apply("tiny-llama", &branched, "--algo svdquant,rtn --set svdquant.rank=4 --format qfw");
    let again = dir.path().join("again");
    export(&branched, &again, "--format qfw");
    assert!(tensors(&again) == tensors(&branched));
    assert_eq!(eval(&again), eval(&branched));
}

/// GPT-2 has no place in compressed-tensors: the engine's reason, and formats that work.
#[test]
fn a_model_that_a_container_cannot_take_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let (run, no, out) = (dir.path().join("run"), dir.path().join("no"), dir.path().join("out"));
    apply("tiny-gpt2", &run, "--algo rtn --set scheme.weights.granularity.group=32 --format qfw,gptq,gguf");
    let from = run.join("qfw");
    let refused = qfw(&export_args(&from, &no, "--format compressed-tensors"));
    assert_eq!(refused.code, Some(2));
    for words in ["stored transposed (`Conv1D`)", "fill the layer with random numbers", "--format gptq"] {
        assert!(refused.stderr.contains(words), "`{words}` is not in\n{}", refused.stderr);
    }
    assert!(!no.exists());
    export(&from, &out, "--format gptq");
    assert!(tensors(&out) == tensors(&run.join("gptq")));
    // In the file a matrix lies the other way round.
    let back = dir.path().join("back");
    export(&run.join("gguf"), &back, "--format gptq");
    assert!(codes_equal(&back, &run.join("gptq")));
}

/// One that is refused, one that is unknown, one that is damaged, one over its own source: OUT is as it was.
#[test]
fn what_fails_leaves_the_output_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    apply("tiny-llama", &run, "--algo rtn --set scheme.weights.format=fp8 --format qfw");
    export(&run, &out, "--format compressed-tensors");
    let before = tree(&out);
    let fails = |from: &Path, to: &Path, words: &str, code: i32, said: &str| {
        let ran = qfw(&export_args(from, to, words));
        assert_eq!(ran.code, Some(code), "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{words}: `{said}` is not in\n{}", ran.stderr);
    };
    fails(&run, &out, "--format qfw", 2, "is not empty");
    fails(&run, &out, "--format ggfu --overwrite", 2, "did you mean `gguf`?");
    fails(&run, &out, "--format gguf --overwrite", 2, "none of its blocks holds float-ocp-e4m3");
    fails(&run, &out, "--format qfw,qfw --overwrite", 2, "named twice");
    fails(&run, &run, "--format qfw --overwrite", 2, "is where the checkpoint lies");
    fails(&run, &out, "--format compressed-tensors --target vlm --overwrite", 2, "did you mean `vllm`?");
    same_tree(&tree(&out), &before, "after refusals");
    let damaged = dir.path().join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    for (name, bytes) in tree(&run) {
        std::fs::write(damaged.join(name), bytes).unwrap();
    }
    let file = damaged.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
    fails(&damaged, &out, "--format qfw --overwrite", 1, "model.safetensors");
    same_tree(&tree(&out), &before, "after a damaged source");
    // A code that is no number is found before anything is written.
    let mut bytes = bytes;
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..8 + header + 64].fill(0x7f);
    std::fs::write(&file, &bytes).unwrap();
    fails(&damaged, &dir.path().join("new"), "--format compressed-tensors", 1, "holds");
    assert!(!dir.path().join("new").exists());
    export(&run, &out, "--format gguf --overwrite --requantize");
    assert!(out.join("model.gguf").is_file() && !out.join("config.json").exists() && !out.join(".qfw").exists());
    verified(&out);
}

/// A float model goes through as it is, and side files byte for byte.
#[test]
fn floats_and_side_files_go_through() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let model = Path::new(&asset("tiny-llama")).to_owned();
    let report = export(&model, &out, "--format qfw,gguf");
    assert_eq!(report["formats"][0]["changes"], json!([]));
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(std::fs::read(model.join(file)).unwrap(), std::fs::read(out.join("qfw").join(file)).unwrap(), "{file}");
    }
    assert!(tensors(&out.join("qfw")) == tensors(&model));
    assert_eq!(eval(&out.join("gguf")), eval(&model));
    verified(&out);
}

/// The sizes of `--json`, of one format and of several.
#[test]
fn sizes_are_those_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    let report = apply("tiny-llama", &one, "--algo rtn --json").json();
    assert_eq!(report["bytes"], size(&one.join("model.safetensors")));
    let report = apply("tiny-llama", &two, "--algo rtn --set scheme.weights.granularity.group=32 --format qfw,gguf --json").json();
    let (native, gguf) = (size(&two.join("qfw/model.safetensors")), size(&two.join("gguf/model.gguf")));
    assert_eq!(report["format_bytes"], json!({ "qfw": native, "gguf": gguf }));
    assert_eq!(report["bytes"], native + gguf);
}

/// Writes a safetensors file as the format defines it.
fn write(path: &Path, tensors: &Tensors) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }));
        data.extend(bytes);
    }
    let text = serde_json::to_vec(&header).unwrap();
    let all = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
    std::fs::write(path, all).unwrap();
}

/// A checkpoint in compressed-tensors, told as another tool tells it: the same codes under other names.
fn retold(
    from: &Path,
    to: &Path,
    quantization: &Value,
    beside: Option<&str>,
    rename: impl Fn(&str, &mut (String, Value, Vec<u8>)) -> String,
) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && !["qfw.json", "model.safetensors", "config.json"].contains(&name.as_str()) {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config");
    match beside {
        Some(file) => std::fs::write(to.join(file), quantization.to_string()).unwrap(),
        None => config["quantization_config"] = quantization.clone(),
    }
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let told = tensors(from).into_iter().map(|(name, mut tensor)| (rename(&name, &mut tensor), tensor)).collect();
    write(&to.join("model.safetensors"), &told);
}

/// fp8 as DeepSeek has it, with blocks of weights and of inputs: it runs, and goes on as compressed-tensors with every code.
#[test]
fn fp8_of_deepseek_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (run, told, out) = (dir.path().join("run"), dir.path().join("told"), dir.path().join("out"));
    let inputs = "--set scheme.inputs.format=fp8 --set scheme.inputs.timing=dynamic --set scheme.inputs.granularity.group=128";
    let blocks = "--set scheme.weights.format=fp8 --set scheme.weights.granularity.block=[128,128] --set model.dtype=float32";
    apply("tiny-llama", &run, &format!("--algo rtn {blocks} {inputs}"));
    let said = json!({ "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128] });
    retold(&run, &told, &said, None, |name, _| name.replace("weight_scale", "weight_scale_inv"));
    assert_eq!(eval(&told), eval(&run));
    let shown = qfw(&["inspect", "--json", &told.display().to_string()]).json();
    assert_eq!(shown["schemes"], json!([{ "scheme": "float-ocp-e4m3 block 128x128", "layers": 42 }]));
    assert!(qfw(&args("generate --max-new-tokens 4 --prompt", &["The", &told.display().to_string()])).ok().stdout.contains("The"));
    let report = export(&told, &out, "--format compressed-tensors");
    assert_eq!(kinds(&report), BTreeMap::from([("same".to_owned(), 42)]));
    assert!(tensors(&out) == tensors(&run));
    assert_eq!(quantization(&out), quantization(&run));
    verified(&out);
    let refused = qfw(&export_args(&run, &dir.path().join("no"), "--format fp8"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("`fp8` is read, and not written"), "{}", refused.stderr);
}

/// fp8 and nvfp4 as ModelOpt has them: static inputs and a rounded cache; the configuration in a file of its own.
#[test]
fn modelopt_is_read() {
    let fixed =
        |part: &str| format!("--set scheme.{part}.format=fp8 --set scheme.{part}.timing=static --set scheme.{part}.granularity=tensor");
    let all = ["weights", "inputs", "keys", "values"].map(fixed).join(" ").replace("--set scheme.weights.timing=static", "");
    let dir = tempfile::tempdir().unwrap();
    let (run, told, out) = (dir.path().join("run"), dir.path().join("told"), dir.path().join("out"));
    apply("tiny-llama", &run, &format!("--algo rtn --set model.dtype=float32 {all}"));
    let said = json!({
        "producer": { "name": "modelopt", "version": "0.37.0" },
        "quantization": { "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"] },
    });
    let beside_projections = |name: &str, _: &mut _| {
        name.replace("self_attn.k_scale", "self_attn.k_proj.k_scale").replace("self_attn.v_scale", "self_attn.v_proj.v_scale")
    };
    retold(&run, &told, &said, Some("hf_quant_config.json"), beside_projections);
    assert_eq!(eval(&told), eval(&run));
    export(&told, &out, "--format compressed-tensors");
    assert!(tensors(&out) == tensors(&run));
    assert!(!out.join("hf_quant_config.json").exists());
    assert_eq!(quantization(&out), quantization(&run));

    let (run, told, out) = (dir.path().join("run4"), dir.path().join("told4"), dir.path().join("out4"));
    apply("tiny-llama", &run, "--algo rtn --set scheme.weights.format=nvfp4");
    let said = json!({ "quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "ignore": ["lm_head"] });
    retold(&run, &told, &said, None, |name, tensor| {
        if name.ends_with("weight_global_scale") {
            let global = f32::from_le_bytes(tensor.2[..].try_into().unwrap());
            tensor.2 = (1.0 / global).to_le_bytes().to_vec();
        }
        name.replace("weight_packed", "weight").replace("weight_global_scale", "weight_scale_2")
    });
    let (theirs, ours) = (perplexity(&told), perplexity(&run));
    // The factor is an inverse there, so that it has been rounded twice.
    assert!((theirs / ours - 1.0).abs() < 1e-5, "{theirs} and {ours}");
    export(&told, &out, "--format compressed-tensors,gguf");
    let exported = tensors(&out.join("compressed-tensors"));
    for (name, tensor) in tensors(&run).into_iter().filter(|(name, _)| !name.ends_with("weight_global_scale")) {
        assert!(exported[&name] == tensor, "`{name}` differs");
    }
    verified(&out);
}

/// The floats that codes stand for: the same numbers for every reader of plain models, in the type that is asked for.
#[test]
fn floats_are_what_the_codes_stand_for() {
    for (model, scheme) in [("tiny-llama", "--set scheme.weights.granularity.group=32"), ("tiny-gpt2", "--set scheme.weights.format=int8")]
    {
        let dir = tempfile::tempdir().unwrap();
        let (run, out) = (dir.path().join("run"), dir.path().join("out"));
        apply(model, &run, &format!("--algo rtn {scheme} --format qfw,safetensors-float"));
        verified(&run);
        export(&run.join("qfw"), &out, "--format safetensors-float,safetensors-f32,safetensors-f16,safetensors-bf16");
        verified(&out);
        let config = |dir: &Path| serde_json::from_slice::<Value>(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert!(tensors(&out.join("safetensors-float")) == tensors(&run.join("safetensors-float")), "{model}");
        let original: Value = config(Path::new(&asset(model)));
        for (format, key, dtype) in
            [("safetensors-f32", "float32", "F32"), ("safetensors-f16", "float16", "F16"), ("safetensors-bf16", "bfloat16", "BF16")]
        {
            let dir = out.join(format);
            assert!(tensors(&dir).values().all(|(t, ..)| t == dtype || !t.contains('F')), "{model}: {format}");
            let (mut said, mut meant) = (config(&dir), original.clone());
            assert!(said.get("quantization_config").is_none());
            let spelling = if said.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
            assert_eq!(said[spelling], key);
            // Nothing else has changed.
            said[spelling] = Value::Null;
            meant[spelling] = Value::Null;
            assert_eq!(said, meant, "{model}: {format}");
        }
        assert_eq!(eval(&out.join("safetensors-f32")), eval(&run.join("qfw")), "{model}");
        let (half, exact) = (perplexity(&out.join("safetensors-f16")), perplexity(&run.join("qfw")));
        assert!((half / exact - 1.0).abs() < 1e-3, "{model}: {half} and {exact}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (run, no) = (dir.path().join("run"), dir.path().join("no"));
    apply("tiny-llama", &run, "--algo svdquant,rtn --set svdquant.rank=4 --format qfw");
    let refused = qfw(&export_args(&run, &no, "--format gguf"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("no branch of rank 4 beside them"), "{}", refused.stderr);
}
