//! What is written can be read back, and what the commands print is what is documented.

use std::path::Path;

use serde_json::Value;

use super::{apply, apply_args, args, asset, eval, perplexity, qfw};

const FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Both containers hold the same codes and scales, so that the models they stand for give the same numbers to the last bit.
#[test]
fn every_container_holds_the_same_codes() {
    let mut perplexities = Vec::new();
    for (bits, format) in [
        ("int8", "compressed-tensors"),
        ("int4", "compressed-tensors"),
        ("int2", "compressed-tensors"),
        ("int8", "compressed-tensors-int8"),
    ] {
        for symmetric in [true, false] {
            for granularity in ["{group=64}", "\"channel\"", "\"tensor\""] {
                if format == "compressed-tensors-int8" && granularity == "{group=64}" {
                    continue;
                }
                let dir = tempfile::tempdir().unwrap();
                let out = dir.path().join("out");
                let weights = format!("--set scheme.weights.format={bits} --set scheme.weights.symmetric={symmetric}");
                let what = format!("--algo rtn {weights} --set scheme.weights.granularity={granularity} --format qfw,{format}");
                apply("tiny-llama", &out, &what);
                let (native, other) = (eval(&out.join("qfw")), eval(&out.join(format)));
                assert_eq!(native, other, "{what}");
                perplexities.push(native);
            }
        }
    }
    perplexities.sort_unstable();
    perplexities.dedup();
    // 8 bits in either container are the same codes; all else differs.
    assert_eq!(perplexities.len(), 18, "schemes that should differ do not");
}

/// Float weights, rounded inputs, rounded keys and values: the model that is read back rounds at the same places to the same values.
#[test]
fn rounded_activations_and_floats_survive_the_container() {
    const KV: &str = "scheme.keys.format=F scheme.keys.granularity=G scheme.keys.timing=static \
                      scheme.values.format=F scheme.values.granularity=G scheme.values.timing=static";
    let kv = |format: &str, granularity: &str| KV.replace('F', format).replace('G', granularity);
    let mut seen = Vec::new();
    for (format, scheme) in [
        ("int-quantized", "weights.format=int8 scheme.inputs.format=int8 scheme.inputs.timing=dynamic".to_owned()),
        ("int-quantized", "weights.format=int8 scheme.inputs.format=int8 scheme.inputs.timing=static".to_owned()),
        (
            "int-quantized",
            "weights.format=int8 scheme.inputs.format=uint8 scheme.inputs.symmetric=false scheme.inputs.timing=static".to_owned(),
        ),
        (
            "int-quantized",
            "weights.granularity.group=64 scheme.inputs.format=int8 scheme.inputs.timing=dynamic scheme.inputs.granularity.group=32"
                .to_owned(),
        ),
        ("float-quantized", "weights.format=fp8 scheme.inputs.format=fp8 scheme.inputs.timing=dynamic".to_owned()),
        (
            "float-quantized",
            "weights.format=fp8 scheme.weights.granularity=tensor scheme.inputs.format=fp8 scheme.inputs.timing=static".to_owned(),
        ),
        ("float-quantized", "weights.format=fp8 scheme.weights.granularity.block=[128,128]".to_owned()),
        ("nvfp4-pack-quantized", "weights.format=nvfp4".to_owned()),
        ("mxfp4-pack-quantized", "weights.format=mxfp4".to_owned()),
        ("mxfp8-quantized", "weights.format=mxfp8-e4m3".to_owned()),
        ("pack-quantized", "weights.format=int3 scheme.weights.granularity.group=32".to_owned()),
        ("pack-quantized", "weights.format=uint5 scheme.weights.symmetric=false scheme.weights.granularity.group=32".to_owned()),
        ("pack-quantized", "weights.format=int6 scheme.weights.granularity=channel".to_owned()),
        ("pack-quantized", "weights.format=int7 scheme.weights.granularity.group=64".to_owned()),
        ("pack-quantized", format!("weights.format=int8 {}", kv("int8", "tensor"))),
        ("pack-quantized", format!("weights.format=int4 {}", kv("fp8", "head"))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let sets = format!("scheme.{scheme}").replace(" ", " --set ");
        apply("tiny-llama", &out, &format!("--algo rtn --format qfw,compressed-tensors --set {sets}"));
        let (native, other) = (perplexity(&out.join("qfw")), perplexity(&out.join("compressed-tensors")));
        assert!((native / other - 1.0).abs() < 1e-6, "{scheme}: {native} and {other}");
        let config = json(&out.join("compressed-tensors/config.json"))["quantization_config"].clone();
        assert_eq!(config["format"], format, "{scheme}");
        // Widths that do not divide a word were packed otherwise before 0.18.
        let wide = ["int3", "int5", "int6", "int7"].iter().any(|w| scheme.contains(w));
        assert_eq!(config["version"], if wide { "0.18.0" } else { "0.17.0" }, "{scheme}");
        assert_eq!(config["kv_cache_scheme"].is_object(), scheme.contains("keys"), "{scheme}");
        assert_eq!(config["config_groups"]["group_0"]["input_activations"].is_object(), scheme.contains("inputs"), "{scheme}");
        seen.push(native.to_bits());
    }
    let schemes = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), schemes, "schemes that should differ do not");
}

#[test]
fn calibrated_codes_survive_the_container_too() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let done = apply("tiny-llama", &out, "--algo gptq --set scheme.weights.granularity.group=32 --format qfw,compressed-tensors");
    // What is advised is there, and what was meant by the directory of both is said.
    let shown = out.display();
    assert!(done.stdout.contains(&format!("next: qfw eval {shown}/qfw --data FILE")), "{}", done.stdout);
    let ran = qfw(&args("inspect", &[&shown.to_string()]));
    let hint = format!("hint: give the one that is meant: `{shown}/compressed-tensors`, `{shown}/qfw`");
    assert!(ran.code == Some(1) && ran.stderr.contains(&hint), "{}", ran.stderr);
    let native = eval(&out.join("qfw"));
    assert_eq!(native, eval(&out.join("compressed-tensors")));
    for format in ["qfw", "compressed-tensors"] {
        let alone = dir.path().join(format);
        apply("tiny-llama", &alone, &format!("--algo gptq --set scheme.weights.granularity.group=32 --format {format}"));
        assert_eq!(native, eval(&alone), "{format} written alone");
    }
}

/// Groups that do not divide, groups in order of activity, transposed layers: only the native form holds them.
#[test]
fn the_native_form_holds_what_no_other_does() {
    for (model, words) in [
        ("tiny-llama", "--set scheme.weights.format=int3 --set scheme.weights.granularity.group=48"),
        ("tiny-llama", "--set scheme.weights.format=int5 --set gptq.act-order=group --set scheme.weights.granularity.group=32"),
        ("tiny-gpt2", "--set scheme.weights.format=uint6 --set scheme.weights.symmetric=false"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        apply(model, &out, &format!("--algo gptq --format qfw {words}"));
        let value = |text: String| serde_json::from_str::<Value>(&text).unwrap()["perplexity"].as_f64().unwrap();
        let (float, quantized) = (value(eval(Path::new(&asset(model)))), value(eval(&out)));
        assert!(quantized > float * 0.98 && quantized < float * 1.6, "{words}: {quantized} after {float}");
    }
}

#[test]
fn side_files_are_copied_and_the_configuration_is_only_added_to() {
    for (model, format) in [("tiny-llama", "compressed-tensors"), ("tiny-gpt2", "qfw")] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        apply(model, &out, &format!("--algo rtn --format {format}"));
        let source = Path::new(&asset(model)).to_owned();
        for file in FILES {
            assert_eq!(std::fs::read(source.join(file)).unwrap(), std::fs::read(out.join(file)).unwrap(), "{model}: {file}");
        }
        let read = |dir: &Path| std::fs::read_to_string(dir.join("config.json")).unwrap();
        // Not as values: spelling and order of what was there stay too.
        let before = read(&source);
        let kept = before.trim_end().strip_suffix('}').unwrap().trim_end();
        let rest = read(&out);
        let rest = rest.strip_prefix(kept).unwrap_or_else(|| panic!("{model}: {rest}"));
        assert!(rest.trim_start_matches(',').trim_start().starts_with("\"quantization_config\": {"), "{model}: {rest}");
        assert!(!out.join(".qfw").exists() && !out.join("native").exists());
    }
}

#[test]
fn kept_native_shards_lie_beside_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --keep-native");
    assert_eq!(std::fs::read_dir(out.join("native")).unwrap().count(), 6);
}

#[test]
fn a_plan_writes_nothing_and_its_configuration_repeats_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut all = apply_args("tiny-llama", &out, "--algo gptq --set scheme.weights.granularity.group=64");
    "plan".clone_into(&mut all[0]);
    let words = |flag: &str| [all.clone(), vec![flag.to_owned()]].concat();
    let plan = qfw(&words("--json")).json();
    assert_eq!(plan["plan"]["sites"].as_array().unwrap().len(), 43);
    assert_eq!(plan["plan"]["sites"][0]["site"], "blocks.0.attn.q");
    assert_eq!(plan["plan"]["passes"][0]["algo"], "gptq");
    assert_eq!(plan["plan"]["passes"][0]["options"]["act-order"], "static");
    assert_eq!(plan["plan"]["calibration"]["samples"], 8);
    assert!(plan["memory"]["base"].as_u64().unwrap() > 0 && plan["notes"].is_array());
    let text = qfw(&all).ok().stdout;
    for line in ["int4 group 64 symmetric", "gptq (round) on 42 sites", "8 windows of 64 tokens", "4.25 bits each", "memory "] {
        assert!(text.contains(line), "`{line}` is not in\n{text}");
    }
    let file = dir.path().join("run.toml");
    std::fs::write(&file, qfw(&words("--print-config")).ok().stdout).unwrap();
    let again = qfw(&["plan", "--json", "--config", &file.display().to_string()]).json();
    assert_eq!(plan, again);
    assert!(!out.exists());
}

#[test]
fn every_preset_plans() {
    for preset in ["w2a16", "w3a16", "w4a16", "w8a16"] {
        let data = asset("text/calibration.txt");
        let ran =
            qfw(&args(&format!("plan --format qfw --preset {preset} --set calibration.samples=2 --data"), &[&data, &asset("tiny-llama")]));
        assert!(ran.ok().stdout.contains(&format!("int{} ", &preset[1..2])), "{preset}");
    }
}

#[test]
fn a_plan_can_measure_the_first_block_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words: Vec<String> = apply_args("tiny-llama", &out, "--algo gptq --measure").into_iter().skip(1).collect();
    let ran = qfw(&[vec!["plan".to_owned()], words.clone()].concat()).ok();
    assert!(ran.stdout.contains("\ntime ") && ran.stdout.contains(": 6 blocks of ") && ran.stdout.contains("\ndisk "), "{}", ran.stdout);
    let m = qfw(&[vec!["plan".to_owned(), "--json".to_owned()], words.clone()].concat()).json()["measured"].clone();
    let [total, block, embed] = ["total_seconds", "block_seconds", "embed_seconds"].map(|k| m[k].as_f64().unwrap());
    assert!(block > 0.0 && (total - 6.0 * block - embed).abs() < 1e-9, "{m}");
    // 6 blocks of 3·384·128 + 2·128·128 + 2·64·128 weights at 4 bits, and a 16-bit scale for each of their 1280 rows.
    assert_eq!(m["quantized_bytes"], 6 * (196_608 / 2 + 1280 * 2));
    // Beside them the hidden states, 8 windows of 64 tokens and 128 channels in f32, before and behind a block.
    assert_eq!(m["work_bytes"].as_u64().unwrap() - m["quantized_bytes"].as_u64().unwrap(), 2 * 8 * 64 * 128 * 4);
    assert!(!out.exists());
    let ran = qfw(&[vec!["apply".to_owned()], words].concat());
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("`--measure` belongs to `qfw plan`") && ran.stderr.contains("hint: "), "{}", ran.stderr);
}

#[test]
fn json_has_the_documented_fields() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let applied = qfw(&apply_args("tiny-llama", &out, "--algo gptq --json")).json();
    let sites = applied["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 42);
    for s in sites {
        assert!(s["name"].as_str().unwrap().starts_with("blocks."), "{s}");
        assert!(s["scheme"].as_str().unwrap().contains("int4 channel"), "{s}");
        assert!((0.0..1.0).contains(&s["error"].as_f64().unwrap()), "{s}");
    }
    assert!(applied["seconds"].as_f64().unwrap() > 0.0);
    assert!(applied["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(applied["output"], out.display().to_string());
    let again = qfw(&apply_args("tiny-llama", &out, "--algo gptq --json --resume")).json();
    // How long a site took is known only to the process that did it.
    let mut done = applied["sites"].clone();
    for s in done.as_array_mut().unwrap() {
        assert!(s["seconds"].as_f64().unwrap() > 0.0, "{s}");
        s["seconds"] = Value::Null;
    }
    assert_eq!((&again["already_done"], &again["sites"]), (&Value::Bool(true), &done));

    let evaluated: Value = serde_json::from_str(&eval(&out)).unwrap();
    assert!(evaluated["perplexity"].as_f64().unwrap() > 1.0 && evaluated["perplexity_stderr"].as_f64().unwrap() > 0.0);
    assert_eq!(evaluated["windows_nll"].as_array().unwrap().len(), 24);
    assert_eq!((evaluated["windows"].as_u64(), evaluated["seq_len"].as_u64()), (Some(24), Some(128)));
    assert_eq!(evaluated["tokens"], 24 * 127);
    assert_eq!(evaluated["protocol"], "gptq");
    assert_eq!(evaluated["data_hash"].as_str().unwrap().len(), 64);

    let inspected = qfw(&["inspect", "--json", &out.display().to_string()]).json();
    assert_eq!(inspected["model_type"], "llama");
    assert_eq!(inspected["quantization_config"], json(&out.join("config.json"))["quantization_config"]);
    assert_eq!(inspected["plan"], json(&out.join("qfw.json"))["plan"]);
    let bytes: u64 = inspected["bytes"].as_u64().unwrap();
    assert!(bytes < std::fs::metadata(out.join("model.safetensors")).unwrap().len());
    let counted: u64 = inspected["types"].as_array().unwrap().iter().map(|t| t["tensors"].as_u64().unwrap()).sum();
    assert_eq!(inspected["tensors"], counted);
    assert!(qfw(&["inspect", &asset("tiny-gpt2")]).ok().stdout.contains("quantized     no"));

    let plugins = qfw(&["list-plugins", "--json"]).json();
    for p in plugins.as_array().unwrap() {
        for field in ["kind", "id", "summary", "source", "version"] {
            assert!(p[field].as_str().is_some_and(|s| !s.is_empty()), "{field} of {p}");
        }
        assert_eq!(p["kind"] == "algorithm", p["phase"].is_string(), "{p}");
    }
    let algorithms = qfw(&["list-plugins", "--json", "--kind", "algorithm"]).json();
    let ids: Vec<&str> = algorithms.as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap()).collect();
    let expected = [
        "adaround",
        "awq",
        "bias-correction",
        "center-residual",
        "clip",
        "fold-norms",
        "gpfq",
        "gptq",
        "learned-round",
        "magr",
        "qronos",
        "rtn",
        "smoothquant",
        "spinquant",
        "svdquant",
        "weight-equalization",
        "zeroquant",
    ];
    assert_eq!(ids, expected);
}

#[test]
fn text_is_continued_the_same_way_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let quantized = dir.path().join("quantized");
    apply("tiny-llama", &quantized, "--algo rtn");
    for model in [asset("tiny-llama"), asset("tiny-gpt2"), quantized.display().to_string()] {
        for draw in ["", "--temperature 0.8 --top-k 20 --top-p 0.9 --seed 3"] {
            let words = args(&format!("generate {draw} --max-new-tokens 16"), &["--prompt", "It was the", &model]);
            let text = qfw(&words).ok().stdout;
            assert!(text.starts_with("It was the") && text.len() > "It was the".len() + 8, "{model}: {text}");
            assert_eq!(text, qfw(&words).ok().stdout, "{model} {draw}");
        }
    }
    let llama = asset("tiny-llama");
    let drawn = |seed| qfw(&args("generate --temperature 2 --prompt The --seed", &[seed, &llama])).ok().stdout;
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn schema_completions_and_the_topology_check_work() {
    let schema = qfw(&["schema"]).json();
    assert!(schema["run"]["properties"]["scheme"].is_object());
    let options = schema["options"].to_string();
    assert!(options.contains("act-order") && options.contains("block-size"), "{options}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(qfw(&["completions", shell]).ok().stdout.contains("list-plugins"), "{shell}");
    }
    for model in ["tiny-llama", "tiny-gpt2"] {
        let table = qfw(&["topology", "check", "--json", &asset(model)]).json();
        let rows = table["rows"].as_array().unwrap();
        for must in ["hold", "break"] {
            assert!(rows.iter().any(|r| r["must"] == must), "{model}: no case that must {must}");
        }
        assert!(rows.iter().all(|r| r["ok"] == true), "{model}");
        assert!(qfw(&["topology", "check", &asset(model)]).ok().stdout.contains("rotate"), "{model}");
    }
}
