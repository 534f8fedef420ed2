//! Command lines of other systems: printed as ours, run, and refused with the offender named.

use serde_json::Value;

use super::errors::refused_with;
use super::{args, asset, qfw};

#[test]
fn a_brevitas_command_line_is_planned() {
    let model = asset("tiny-llama");
    let flags = "--gptq --gpxq-act-order --gpxq-block-name model.layers --weight-bit-width 4 --weight-group-size 64 --nsamples 8 --seqlen 64 \
                 --seed 3 --compile-ptq";
    let mut words = args("plan --compat brevitas --print-config -- --model", &[&model]);
    words.extend(args(flags, &[]));
    let printed = qfw(&words).ok();
    assert!(printed.stderr.contains("note: `--compile-ptq` has no effect: it switches a compiler of PyTorch on"), "{}", printed.stderr);
    let config: toml::Table = printed.stdout.parse().unwrap();
    let weights = &config["scheme"]["weights"];
    assert_eq!((weights["format"].as_str(), weights["convention"].as_str()), (Some("int4"), Some("pow-b1")));
    assert_eq!(weights["granularity"]["group"].as_integer(), Some(64));
    assert_eq!(weights["min-threshold"].as_float(), Some(1e-4));
    assert_eq!(config["pass"][0]["options"]["act-order"].as_str(), Some("static"));
    assert_eq!(config["harness"]["block-name"].as_str(), Some("model.layers"));
    assert_eq!((config["calibration"]["samples"].as_integer(), config["calibration"]["seed"].as_integer()), (Some(8), Some(3)));

    // What was printed is the same plan, and our own flags go before `--`.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, &printed.stdout).unwrap();
    let data = asset("text/calibration.txt");
    let mut direct = args("plan --json --compat brevitas --data", &[&data]);
    direct.extend(args("-- --model", &[&model]));
    direct.extend(args(flags, &[]));
    let direct = qfw(&direct).ok();
    assert!(direct.stderr.contains("# --compat brevitas is read as this run.toml:\nschema = 1"), "{}", direct.stderr);
    let printed = qfw(&args("plan --json", &["--data", &data, "--config", &path.display().to_string()])).json();
    assert_eq!(direct.json()["plan"], printed["plan"]);
}

#[test]
fn a_file_of_mi_optimize_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rtn.yaml");
    let text = "quant_config:\n  algo: rtn\n  model_type: llama\n  kwargs:\n    w_dtype: int4\n    a_dtype: float16\n    offload: cpu\n    \
                w_groupsize: 64\n    w_qtype: per_group\n    w_unsign: False\n    skip_layers:\n      - lm_head\n      - .*\\.down_proj\n";
    std::fs::write(&file, text).unwrap();
    let (model, data, out) = (asset("tiny-llama"), asset("text/calibration.txt"), dir.path().join("out"));
    let own = ["--data", &data, "-o", &out.display().to_string(), "--json", "--", &file.display().to_string()];
    let ran = qfw(&args(&format!("apply {model} --compat mi-optimize"), &own));
    let report = ran.json();
    let sites: Vec<&Value> = report["sites"].as_array().unwrap().iter().collect();
    assert_eq!(sites.len(), 36, "six of seven layers in each of six blocks");
    assert!(sites.iter().all(|s| !s["name"].as_str().unwrap().ends_with("mlp.down")));
}

#[test]
fn what_the_other_system_does_not_know_is_named() {
    let plan = |words: &str| qfw(&args(&format!("plan --compat {words}"), &[]));
    refused_with(
        &plan("brevitas -- --weight-bit-widht 4"),
        2,
        "compat::unknown-flag",
        &[
            "`--weight-bit-widht` is not known of Brevitas (did you mean `--weight-bit-width`?)",
            "hint: everything after `--` is read as the other system's command line; our own flags go before it",
        ],
    );
    refused_with(
        &plan("brevitas -- --load-checkpoint"),
        2,
        "compat::not-built",
        &[
            "`--load-checkpoint` asks for starting from a quantized checkpoint, which is not built yet",
            "hint: leave it out, or choose another method",
        ],
    );
    refused_with(
        &plan("mi-optimize -- w_dtyp=int4"),
        2,
        "compat::unknown-flag",
        &["`w_dtyp` is not known of MI-optimize (did you mean `w-dtype`?)"],
    );
}

#[test]
fn it_goes_with_our_flags_but_not_with_another_configuration() {
    for (words, says) in [
        ("plan --compat brevitas --algo rtn", "'--compat <SYSTEM>' cannot be used with '--algo"),
        ("plan --compat brevitas --preset w4a16", "'--compat <SYSTEM>' cannot be used with '--preset"),
        ("plan --compat brevitas --config run.toml", "'--compat <SYSTEM>' cannot be used with '--config"),
        ("plan --compat brevits", "a similar value exists: 'brevitas'"),
        ("plan -- --gptq", "--compat <SYSTEM>"),
    ] {
        let ran = qfw(&args(words, &[]));
        assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{words}: {}", ran.stderr);
    }
    let set = args("plan --compat brevitas --print-config --set gptq.damp=0.1 --seed 5 MODEL -- --gptq --seed 3", &[]);
    let config: toml::Table = qfw(&set).ok().stdout.parse().unwrap();
    assert_eq!(config["pass"][0]["options"]["damp"].as_float(), Some(0.1));
    assert_eq!(config["calibration"]["seed"].as_integer(), Some(5));
}
