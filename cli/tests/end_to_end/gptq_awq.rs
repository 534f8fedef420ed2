//! The containers `gptq`, `gptq-v2` and `awq`: the codes survive, and `config.json` says what they are.

use std::path::Path;

use serde_json::{Value, json};

use super::{apply, apply_args, asset, eval, perplexity, qfw};

fn config(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("config.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["quantization_config"].clone()
}

/// Scales of the tiny models are f16, which is what these containers hold: the models give the same numbers to the last bit.
#[test]
fn codes_of_every_width_survive() {
    let formats = |bits: u8, symmetric: bool, model: &str| {
        let mut formats = vec!["gptq-v2"];
        if symmetric {
            formats.push("gptq");
        }
        if bits == 4 && model == "tiny-llama" {
            formats.push("awq");
        }
        formats
    };
    for (model, bits, format, symmetric, granularity) in [
        ("tiny-llama", 4, "int4", true, "{group=64}"),
        ("tiny-llama", 4, "uint4", false, "{group=32}"),
        ("tiny-llama", 4, "uint4", true, "\"channel\""),
        ("tiny-llama", 2, "int2", false, "\"tensor\""),
        ("tiny-llama", 3, "int3", true, "{group=16}"),
        ("tiny-llama", 3, "uint3", false, "\"channel\""),
        ("tiny-llama", 8, "int8", true, "{block=[64,32]}"),
        ("tiny-llama", 8, "int8", false, "{group=64}"),
        ("tiny-gpt2", 4, "int4", true, "{group=32}"),
        ("tiny-gpt2", 3, "int3", false, "{group=64}"),
    ] {
        let formats = formats(bits, symmetric, model);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let weights = format!("--set scheme.weights.format={format} --set scheme.weights.symmetric={symmetric}");
        let what = format!("--algo rtn {weights} --set scheme.weights.granularity={granularity} --format qfw,{}", formats.join(","));
        apply(model, &out, &what);
        let native = eval(&out.join("qfw"));
        for format in formats {
            assert_eq!(native, eval(&out.join(format)), "{model} {what}: {format}");
        }
    }
}

/// Groups in order of activity, whose index only `gptq` and the native form hold; and groups in storage order from calibrated passes.
#[test]
fn calibrated_codes_and_their_groups_survive() {
    for (order, formats, desc_act) in [("group", "gptq,gptq-v2", true), ("static", "gptq,awq", false)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        apply(
            "tiny-llama",
            &out,
            &format!("--algo gptq --set gptq.act-order={order} --set scheme.weights.granularity.group=32 --format qfw,{formats}"),
        );
        let native = eval(&out.join("qfw"));
        for format in formats.split(',') {
            assert_eq!(native, eval(&out.join(format)), "{order}: {format}");
        }
        assert_eq!(config(&out.join("gptq"))["desc_act"], desc_act);
    }
}

#[test]
fn the_configuration_says_what_was_done() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --set scheme.weights.granularity.group=64 --format awq,gptq,gptq-v2");
    let quantizer = json!([format!("qfw:{}", env!("CARGO_PKG_VERSION"))]);
    let expected = json!({
        "quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": false, "sym": true, "lm_head": false,
        "checkpoint_format": "gptq", "pack_dtype": "int32", "true_sequential": true, "meta": { "quantizer": quantizer },
    });
    assert_eq!(config(&out.join("gptq")), expected);
    assert_eq!(config(&out.join("gptq-v2"))["checkpoint_format"], "gptq_v2");
    let expected = json!({
        "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "gemm", "modules_to_not_convert": ["lm_head"],
    });
    assert_eq!(config(&out.join("awq")), expected);
}

/// Layers that differ or are kept are listed under the names that layers have here and in vLLM; they are read back as they are.
#[test]
fn mixed_precision_is_stated_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (out, file) = (dir.path().join("out"), dir.path().join("run.toml"));
    std::fs::write(
        &file,
        "schema = 1\n[scheme.weights]\nformat = \"int4\"\ngranularity = { group = 64 }\n[[pass]]\nalgo = \"rtn\"\n\
         [[override]]\nmatch = \"mlp.down\"\nweights = \"keep\"\n\
         [[override]]\nmatch = 'blocks\\.1\\.attn\\.(q|k|v)'\nweights = { format = \"int8\", granularity = \"channel\" }\n",
    )
    .unwrap();
    let words =
        ["apply", &asset("tiny-llama"), "--config", &file.display().to_string(), "--format", "qfw,gptq", "-o", &out.display().to_string()]
            .map(ToOwned::to_owned);
    qfw(&words).ok();
    assert_eq!(eval(&out.join("qfw")), eval(&out.join("gptq")));
    let config = config(&out.join("gptq"));
    let dynamic = json!({
        r"+:^model\.layers\.1\.(?:self_attn\.k_proj|self_attn\.q_proj|self_attn\.qkv_proj|self_attn\.v_proj)$":
            { "bits": 8, "group_size": -1, "sym": true },
        r"-:^model\.layers\.\d+\.mlp\.down_proj$": {},
    });
    assert_eq!((&config["bits"], &config["dynamic"]), (&json!(4), &dynamic));
    let inside = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"];
    assert_eq!(config["modules_in_block_to_quantize"], json!([inside]));
}

/// Where blocks differ, loaders that know no patterns are told whole names.
#[test]
fn layers_of_one_block_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (out, file) = (dir.path().join("out"), dir.path().join("run.toml"));
    let text = "schema = 1\n[scheme.weights]\nformat = \"int4\"\n[[pass]]\nalgo = \"rtn\"\n\
                [[override]]\nmatch = \"blocks.2.mlp.down\"\nweights = \"keep\"\n";
    std::fs::write(&file, text).unwrap();
    let (file, to) = (file.display().to_string(), out.display().to_string());
    let words = ["apply", &asset("tiny-llama"), "--config", &file, "--format", "qfw,gptq,awq", "-o", &to];
    qfw(&words).ok();
    let native = eval(&out.join("qfw"));
    assert_eq!((&native, &native), (&eval(&out.join("gptq")), &eval(&out.join("awq"))));
    let gptq = config(&out.join("gptq"));
    assert_eq!(gptq["dynamic"], json!({ r"-:^model\.layers\.2\.mlp\.down_proj$": {} }));
    let named = gptq["modules_in_block_to_quantize"][0].as_array().unwrap();
    assert_eq!((named.len(), &named[0]), (41, &json!("model.layers.0.self_attn.q_proj")));
    let awq = config(&out.join("awq"));
    assert_eq!(awq["modules_to_not_convert"], json!(["model.layers.2.mlp.down_proj", "lm_head"]));
    assert_eq!(awq["dynamic"], json!({ r"-:^(?:model\.layers\.2\.mlp\.down_proj)$": {} }));
}

/// A model in f32 has scales in f32; what the containers make of them is said, and bounded.
#[test]
fn scales_of_f32_are_rounded_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let ran = apply(
        "tiny-llama",
        &out,
        "--algo rtn --set model.dtype=\"float32\" --set scheme.weights.granularity.group=64 --format qfw,gptq,awq",
    );
    for format in ["gptq", "awq"] {
        let note = format!("`{format}` changes the result: it holds scales as f16, and those of `blocks.0.attn.q` are f32");
        assert!(ran.stderr.contains(&note), "{}", ran.stderr);
        let (native, other) = (perplexity(&out.join("qfw")), perplexity(&out.join(format)));
        // Weights that move by 2^-11 of themselves are a hundredth of what rounding them to 4 bits has done.
        assert!(native != other && (native / other - 1.0).abs() < 1e-3, "{format}: {native} and {other}");
    }
}

/// The head of a model that has one of its own.
#[test]
fn a_head_is_held_by_gptq() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words = "--algo rtn --set model.tie-policy=\"untie\" --set scheme.head.format=int8 --format";
    apply("tiny-llama", &out, &format!("{words} qfw,gptq"));
    assert_eq!(eval(&out.join("qfw")), eval(&out.join("gptq")));
    let config = config(&out.join("gptq"));
    assert_eq!(
        (&config["lm_head"], &config["dynamic"]),
        (&json!(true), &json!({ "+:^lm_head$": { "bits": 8, "group_size": -1, "sym": true } }))
    );
    let refused = qfw(&apply_args("tiny-llama", &dir.path().join("no"), &format!("{words} awq")));
    assert!(refused.stderr.contains("`head`: readers of this format keep the head in floats"), "{}", refused.stderr);
}

/// As older tools wrote them: no `quantization_config` in `config.json`, but a file beside it.
#[test]
fn configurations_in_a_file_of_their_own_are_read() {
    for (format, file, keys) in [
        ("gptq", "quantize_config.json", json!({ "bits": 4, "group_size": 64, "damp_percent": 0.01, "desc_act": false, "sym": true })),
        ("awq", "quant_config.json", json!({ "zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM" })),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        apply("tiny-llama", &out, &format!("--algo rtn --set scheme.weights.granularity.group=64 --format {format}"));
        let before = eval(&out);
        std::fs::copy(Path::new(&asset("tiny-llama")).join("config.json"), out.join("config.json")).unwrap();
        std::fs::write(out.join(file), keys.to_string()).unwrap();
        assert_eq!(before, eval(&out), "{format}");
        let inspected = qfw(&["inspect", "--json", &out.display().to_string()]).json();
        assert_eq!(inspected["quantization_config"], keys);
        let text = qfw(&["generate", "--max-new-tokens", "4", "--prompt", "It was the", &out.display().to_string()]).ok().stdout;
        assert!(text.starts_with("It was the"), "{text}");
        let words =
            ["apply", &out.display().to_string(), "--algo", "rtn", "--preset", "w4a16", "-o", &dir.path().join("x").display().to_string()]
                .map(ToOwned::to_owned);
        assert!(qfw(&words).stderr.contains("plan::already-quantized"));
    }
}

#[test]
fn what_they_cannot_hold_is_refused_with_the_nearest_that_works() {
    let refused = |model: &str, words: &str, message: &str, hint: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let ran = qfw(&apply_args(model, &out, words));
        assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains(message) && ran.stderr.contains(&format!("hint: {hint}")), "{words}: {}", ran.stderr);
        assert!(!out.exists());
    };
    let site = "`blocks.0.attn.q`:";
    for (format, sets, message, hint) in [
        ("gptq", "weights.granularity.group=48", "group 48 does not divide its 128 input channels", "group 32 divides it"),
        ("awq", "weights.granularity.group=48", "group 48 does not divide its 128 input channels", "group 32 divides it"),
        ("gptq", "weights.format=int5", "it holds 2, 3, 4 and 8 bits", "use int2, int3, int4 or int8"),
        ("awq", "weights.format=int8", "it holds integers of 4 bits, not int8", "use int4, or `--format gptq`"),
        ("gptq", "weights.format=nf4", "it holds integers, not nf4", "use int2, int3, int4 or int8"),
        ("awq", "weights.format=mxfp4", "it holds integers of 4 bits, not mxfp4", "use int4"),
        ("gptq", "weights.symmetric=false", "it stores zero points less one, which leaves 0 no place", "use `--format gptq-v2`"),
        (
            "gptq-v2",
            "weights.symmetric=false --set scheme.weights.zero-point=float",
            "its zero points are integers",
            "leave `zero-point` out",
        ),
        ("awq", "weights.symmetric=false --set scheme.weights.zero-point=float", "its zero points are integers", "leave `zero-point` out"),
    ] {
        refused("tiny-llama", &format!("--algo rtn --set scheme.{sets} --format {format}"), &format!("{site} {message}"), hint);
    }
    for format in ["gptq", "awq"] {
        let message = format!("output format `{format}`: `blocks.0.attn.in`: it holds weights, and nothing that rounds inputs");
        refused(
            "tiny-llama",
            &format!("--algo rtn --set scheme.inputs.format=int8 --format {format}"),
            &message,
            "leave `scheme.inputs` out",
        );
        let message = "it is rotated while the model runs, which no reader of this format does";
        let words = r#"--algo quarot,rtn --set quarot.rotations=["r4"] --format"#;
        refused("tiny-llama", &format!("{words} {format}"), message, "leave `r3`, `r4`");
    }
    let order = "--algo gptq --set gptq.act-order=group --set scheme.weights.granularity.group=32 --format awq";
    refused("tiny-llama", order, "pass `gptq` makes groups that do not run in storage order", "set `act-order = \"static\"`");
    refused("tiny-gpt2", "--algo rtn --format awq", "its weight is stored transposed (`Conv1D`)", "use `--format gptq` or `qfw`");
    let embed = "--algo rtn --set model.tie-policy=\"untie\" --set scheme.embed.format=int8 --format gptq";
    refused("tiny-llama", embed, "`embed`: readers of this format look tokens up in floats", "leave `scheme.embed` out");
}
