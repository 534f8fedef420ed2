//! What cannot work is refused before any work: the exit code, the message that names the offender, and the hint are pinned.

use std::path::Path;

use super::{Ran, apply, args, asset, qfw};

const INT4: &str = "--set calibration.samples=4 --set calibration.seq-len=32 --set scheme.weights.format=int4";

fn plan(model: &str, words: &str) -> Ran {
    let mut all = args("plan", &[model]);
    all.extend(args(words, &[]));
    qfw(&all)
}

/// Refused with exit code `code`, an error of this code name, and all of `says`; nothing on stdout.
#[track_caller]
pub(super) fn refused_with(ran: &Ran, code: i32, name: &str, says: &[&str]) {
    assert_eq!(ran.code, Some(code), "{}", ran.stderr);
    assert_eq!(ran.stdout, "", "an error belongs on stderr only");
    assert!(ran.stderr.contains(&format!("error[qfw::{name}]: ")), "not `{name}`: {}", ran.stderr);
    for part in says {
        assert!(ran.stderr.contains(part), "`{part}` is not in\n{}", ran.stderr);
    }
}

/// `qfw plan` of the tiny LLaMA in int4 with calibration text is refused as a matter of configuration.
#[track_caller]
fn refused(words: &str, name: &str, says: &[&str]) {
    let data = asset("text/calibration.txt");
    refused_with(&plan(&asset("tiny-llama"), &format!("{INT4} --data {data} {words}")), 2, name, says);
}

/// The same for a `run.toml`.
#[track_caller]
fn refused_file(text: &str, name: &str, says: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    refused_with(&plan(&asset("tiny-llama"), &format!("--config {}", path.display())), 2, name, says);
}

#[test]
fn unknown_names_are_answered_with_the_nearest_and_all_known() {
    let unknown = "registry::unknown";
    refused(
        "--algo gptqq",
        unknown,
        &[
            "unknown algorithm `gptqq` (did you mean `gptq`?)",
            "hint: known algorithms: act-equalization, adaround, auto-round, awq, awq-clip, bias-corr, bias-correction, center-residual, cle, clip, \
             cross-layer-equalization, fold-norms, gpfq, gptq, layernorm-to-rmsnorm, learned-round, ln-affine-merge, magr, optq, qronos, quarot, rotation, rtn, \
             smooth-quant, smoothquant, spinquant, svd-quant, svdquant, weight-equalization, zeroquant",
        ],
    );
    refused(
        "--preset w4a17",
        "config::unknown-preset",
        &[
            "unknown preset `w4a17` (did you mean `w4a16`?)",
            "hint: known presets: fp8, fp8-block, fp8-dynamic, mxfp4, nvfp4, ternary, w2a16, w3a16, w4a16, w4a16kv8, w4a4, w4a4kv4, w4a8, w8a16, w8a8, w8a8-static, zeroquant-mixed, zeroquant-w8a8; `--config FILE`",
        ],
    );
    refused(
        "--algo rtn --set scheme.weights.format=int44",
        unknown,
        &[
            "unknown format `int44` (did you mean `intN`?)",
            "hint: known formats: float-eXmY, float-fnuz-eXmY, float-ocp-eXmY, intN, mxfp4,",
        ],
    );
    refused(
        "--algo rtn --set scheme.weights.range=minmaxx",
        unknown,
        &[
            "unknown observer `minmaxx` (did you mean `minmax`?)",
            "hint: known observers: absmean, entropy, hqo, hqq, minmax, mse, percentile",
        ],
    );
    refused(
        "--algo rtn --format compresed-tensors",
        unknown,
        &["unknown output format `compresed-tensors` (did you mean `compressed-tensors`?)", "hint: known output formats: "],
    );
    refused_with(
        &qfw(&args("list-plugins --kind algoritm", &[])),
        2,
        unknown,
        &[
            "unknown kind `algoritm` (did you mean `algorithm`?)",
            "hint: kinds: algorithm, architecture, format, granularity, input-format, observer, output-format",
        ],
    );
    let (model, data) = (asset("tiny-llama"), asset("text/evaluation.txt"));
    refused_with(
        &qfw(&args("eval --protocol gpt --data", &[&data, &model])),
        2,
        "eval::protocol",
        &["unknown protocol `gpt` (did you mean `gptq`?)", "hint: known protocols: gptq, brevitas, hf-stride"],
    );
}

#[test]
fn a_flag_that_is_a_key_says_so() {
    let ran = plan(&asset("tiny-llama"), "--algo rtn --seq_len 128");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{}", ran.stderr);
    for part in ["unexpected argument '--seq_len'", "`--set calibration.seq-len=VALUE` sets it"] {
        assert!(ran.stderr.contains(part), "`{part}` is not in\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("-- --seq_len"), "{}", ran.stderr);
}

#[test]
fn what_the_plan_refuses_is_refused_before_data_is_looked_for() {
    let ran = plan(&asset("tiny-llama"), &format!("{INT4} --algo gptq,rtn --data no-such-file.txt"));
    refused_with(&ran, 2, "plan::two-rounds", &["would be rounded by gptq and rtn"]);
}

#[test]
fn unknown_and_wrong_options_of_a_pass_are_named() {
    refused(
        "--algo gptq --set gptq.dampp=1",
        "config::invalid",
        &["options of `gptq`: unknown field `dampp`", "hint: its options: block-size, num-blocks, damp, act-order (off, static, group), "],
    );
    refused(
        "--preset w4a16 --set gptq.actorder=group",
        "config::invalid",
        &[
            "`act-order` and `actorder` are two names of one option of `gptq`",
            "hint: keep one of them; a preset or a file may have set the other",
        ],
    );
    // An option that may be left out is not left out by a number that is none.
    for number in ["nan", "inf", "-inf"] {
        let set = format!("learned-round.lr={number}");
        let shown = number.replace("nan", "NaN");
        refused(
            &format!("--algo learned-round --set {set}"),
            "config::invalid",
            &["options.lr` from `--set ", &format!("`{shown}` is not a finite number")],
        );
    }
    refused("--algo gptq --set gptq.damp=2", "config::invalid", &["option `damp` of `gptq` is 2", "hint: it must be from 0 to 1"]);
    refused("--algo rtn --set rtn.damp=1", "config::invalid", &["options of `rtn`", "`damp`"]);
}

#[test]
fn unknown_keys_and_paths_say_where_they_were_written() {
    let hint = "hint: `qfw schema` describes every key and its values";
    refused_file(
        "schema = 1\n[scheme.weights]\nformat = \"int4\"\ngranularty = \"channel\"\n[[pass]]\nalgo = \"rtn\"\n",
        "config::unknown-key",
        &["`scheme.weights.granularty`", "run.toml line 4: unknown key (did you mean `granularity`?)", hint],
    );
    refused(
        "--algo rtn --set scheme.wights.format=int4",
        "config::unknown-key",
        &["`scheme.wights` from `--set scheme.wights.format=int4`: unknown key (did you mean `weights`?)", hint],
    );
    refused(
        "--algo rtn --set gtpq.damp=1",
        "config::set",
        &["`--set gtpq.damp=1`: `gtpq` is neither a section nor a pass of this run; its passes: `rtn`", "hint: add the pass with `--algo`"],
    );
    refused("--algo rtn --set nope", "config::set", &["`--set nope`: no `=`", "hint: write `--set PATH=VALUE`"]);
}

#[test]
fn selectors_that_match_nothing_are_named_with_the_roles_there_are() {
    let (name, roles) =
        ("config::unmatched-selector", "hint: roles of this model: attn.k, attn.o, attn.q, attn.v, head, mlp.down, mlp.gate, mlp.up");
    let start = "schema = 1\n[scheme.weights]\nformat = \"int4\"\n";
    refused(
        "--algo rtn --set scheme.skip=[\"head\",\"mlp.dwn\"]",
        name,
        &["`scheme.skip` entry `mlp.dwn` matches no site of this model (did you mean `mlp.down`?)", roles],
    );
    refused_file(
        &format!("{start}[[override]]\nmatch = \"mlp.dwn\"\nweights = \"keep\"\n[[pass]]\nalgo = \"rtn\"\n"),
        name,
        &["override `mlp.dwn` matches no site of this model (did you mean `mlp.down`?)", roles],
    );
    refused_file(
        &format!("{start}[[pass]]\nalgo = \"rtn\"\nmatch = \"attn.qq\"\n"),
        name,
        &["pass `rtn`: selector `attn.qq` matches no site of this model (did you mean `attn.q`?)", roles],
    );
    refused_file(
        &format!("{start}[[pass]]\nalgo = \"rtn\"\nskip = [\"attn.qq\"]\n"),
        name,
        &["pass `rtn`: selector `attn.qq` matches no site", roles],
    );
    refused_file(
        &format!("{start}[[override]]\nmatch = \"mlp.down\"\nexpect = 7\nweights = \"keep\"\n[[pass]]\nalgo = \"rtn\"\n"),
        name,
        &["override `mlp.down` matches 6 sites, not the 7 expected", "hint: change the selector or `expect`"],
    );
    refused(
        "--algo rtn --set scheme.skip=[\"attn.(\"]",
        "config::selector",
        &["`attn.(` is not a valid selector", "hint: selectors are regular"],
    );
}

#[test]
fn every_quantized_site_is_rounded_once() {
    refused(
        "",
        "plan::no-round",
        &["`blocks.0.attn.q` is to be quantized, but no pass rounds it", "hint: add a pass such as `--algo rtn` or `--algo gptq`"],
    );
    refused(
        "--algo rtn,gptq",
        "plan::two-rounds",
        &["`blocks.0.attn.q` would be rounded by rtn and gptq", "hint: keep one of them, or give each its own sites with `match`"],
    );
    let ran = plan(&asset("tiny-llama"), "--algo rtn");
    refused_with(&ran, 2, "plan::nothing-selected", &["no site is selected to be quantized", "hint: set `scheme.weights`"]);
}

#[test]
fn sites_that_engines_fuse_have_to_agree() {
    for (selector, format, names) in [
        ("attn.k", "int8", "`blocks.0.attn.q` is `int4 channel symmetric` and `blocks.0.attn.k` is `int8 channel symmetric`"),
        ("mlp.up", "keep", "`blocks.0.mlp.gate` is `int4 channel symmetric` and `blocks.0.mlp.up` is kept"),
    ] {
        let change = if format == "keep" { "\"keep\"".to_owned() } else { format!("{{format=\"{format}\"}}") };
        let over = format!("--set override=[{{match=\"{selector}\",weights={change}}}]");
        refused(
            &format!("--algo rtn {over}"),
            "plan::fused-sites",
            &[names, "but engines run them as one matrix", "hint: give them the same scheme"],
        );
        let dir = tempfile::tempdir().unwrap();
        super::apply("tiny-llama", &dir.path().join("out"), &format!("--algo rtn --format qfw {over}"));
    }
}

#[test]
fn what_this_version_cannot_quantize_is_refused() {
    refused(
        "--algo rtn --set scheme.embed.format=int8",
        "plan::tied-head",
        &["the embedding is the head's own tensor", "hint: leave `scheme.embed` out, or set `model.tie-policy = \"untie\"`"],
    );
    refused(
        "--algo rtn --set model.tie-policy=untie --set scheme.embed.format=int8",
        "plan::container",
        &["`embed`: readers of this format look tokens up in floats", "hint: leave `scheme.embed` out, or use `--format qfw`"],
    );
    refused(
        "--algo rtn --set scheme.skip=[\"embed\"]",
        "plan::tied-head",
        &["`head` shares its tensor with the embedding", "hint: add \"head\" to `scheme.skip`, or set `model.tie-policy"],
    );
    refused(
        "--algo rtn --set harness.block-name=model.layer",
        "config::block-name",
        &["`harness.block-name` is `model.layer`, but this model stores its blocks under `model.layers`", "hint: write `model.layers`"],
    );
    refused(
        "--algo rtn --target vlm",
        "target::unknown-engine",
        &["`vlm` is no engine (did you mean `vllm`?)", "hint: engines that rules are known of: vllm, vllm-cpu, transformers"],
    );
    refused(
        "--algo rtn --device cuda:0",
        "device::unavailable",
        &["device `cuda:0` is not available in this build", "hint: use `--device cpu`, or a program built with"],
    );
    refused("--algo rtn --device gpu", "device::unknown", &["there is no device `gpu`", "hint: `cpu`, or `cuda:N`"]);
    refused(
        "--algo rtn --set harness.device=cuda0",
        "device::unknown",
        &["there is no device `cuda0`", "the CUDA device of that number, such as `cuda:0`"],
    );
}

#[test]
fn what_the_container_cannot_hold_is_refused_with_the_nearest_that_works() {
    let name = "plan::container";
    refused(
        "--algo rtn --set scheme.weights.granularity.group=48",
        name,
        &[
            "output format `compressed-tensors`: `blocks.0.attn.q`: group 48 does not divide its 128 input channels",
            "hint: group 32 divides it; or use `--format qfw`",
        ],
    );
    refused(
        "--algo gptq --set gptq.act-order=group --set scheme.weights.granularity.group=64",
        name,
        &["pass `gptq` makes groups that do not run in storage order", "hint: set `act-order = \"static\"`"],
    );
    refused(
        "--algo rtn --format compressed-tensors-int8",
        name,
        &["`blocks.0.attn.q`: it holds 8-bit codes, not int4", "hint: use `--format compressed-tensors`"],
    );
    for (sets, message, hint) in [
        ("weights.format=float-ocp-e5m2", "its floats are OCP e4m3", "use fp8, nvfp4, mxfp4, mxfp8-e4m3, int4 or int8"),
        ("weights.format=mxfp8-e5m2", "its floats are OCP e4m3", "use fp8, nvfp4"),
        (
            "weights.format=mxfp8-e4m3 scheme.inputs.format=fp8",
            "it holds integer inputs of integer weights",
            "use inputs of the weights' kind",
        ),
        ("weights.format=nf4", "it has no room for a table of values", "use fp8, nvfp4"),
        (
            "weights.granularity.block=[128,128]",
            "it holds no integers in tiles of the kind `block 128x128`",
            "use group, channel or tensor",
        ),
        ("outputs.format=int8", "it holds rounded inputs, and keys and values, but no outputs", "leave `scheme.outputs` out"),
        ("probs.format=int8", "but no probs", "leave `scheme.probs` out"),
        ("inputs.format=fp8", "`blocks.0.attn.in`: it holds integer inputs of integer weights", "use inputs of the weights' kind"),
        (
            "inputs.format=int8 scheme.inputs.timing=static scheme.inputs.granularity=dimension",
            "its static inputs have one scale",
            "use tensor",
        ),
        (
            "inputs.format=int8 scheme.inputs.timing=dynamic scheme.inputs.convention=pow-b1",
            "readers compute dynamic scales themselves",
            "leave `convention`",
        ),
        (
            "keys.format=int8 scheme.keys.timing=static",
            "but values are rounded in 0 of 6",
            "give `keys` and `values` of all blocks the same scheme",
        ),
        (
            "keys.format=int8 scheme.keys.timing=static scheme.values.format=fp8 scheme.values.timing=static",
            "readers round all keys and values alike",
            "give `keys` and `values` the same scheme",
        ),
        (
            "keys.format=int8 scheme.keys.timing=dynamic scheme.values.format=int8",
            "engines read one fixed scale",
            "use `timing = \"static\"`",
        ),
    ] {
        let words = format!("--algo rtn --set scheme.{}", sets.replace(' ', " --set "));
        refused(&words, name, &[message, hint, "`--format qfw`"]);
    }
    refused_with(
        &plan(&asset("tiny-gpt2"), &format!("{INT4} --algo rtn")),
        2,
        name,
        &[
            "`blocks.0.attn.qkv`: its weight is stored transposed (`Conv1D`)",
            "hint: use `--format gptq`, which GPTQModel loads, `gguf` for llama.cpp, or `qfw`",
        ],
    );
}

#[test]
fn data_and_budget_have_to_suffice() {
    let llama = asset("tiny-llama");
    refused_with(
        &plan(&llama, &format!("{INT4} --algo gptq")),
        2,
        "calibration::no-data",
        &[
            "a pass reads activations, no `--data` was given, and the default `wikitext2` cannot be fetched",
            "and HF_HUB_OFFLINE is set",
            "hint: give a text or token file with `--data FILE`",
        ],
    );
    let hint = "hint: give a text or token file (`.txt`, `.jsonl`, `.jsonl.gz`, `.parquet`, `.safetensors`, `.npy`), or one of: c4, pile,";
    refused_with(
        &plan(&llama, &format!("{INT4} --algo gptq --data nope.txt")),
        2,
        "data::not-found",
        &["`nope.txt` is neither a file nor the name of a data set\n", hint],
    );
    refused_with(
        &qfw(&args("eval --data wikitext", &[&llama])),
        2,
        "data::not-found",
        &["`wikitext` is neither a file nor the name of a data set (did you mean `wikitext2`?)", hint],
    );
    refused(
        "--algo gptq --budget 10MiB",
        "plan::budget",
        &["the run needs ", "= base 60 + blocks 2 + streams on disk", "more than the budget of 10MiB", "hint: raise `--budget`"],
    );
    refused(
        "--algo gptq --budget lots",
        "config::invalid",
        &["`harness.budget` from `--budget`: `lots` is not a size", "hint: write a number and a unit, such as `8GiB` or `1.5GB`"],
    );
    refused(
        "--algo gptq --threads 0",
        "config::invalid",
        &["`harness.threads` from `--threads`: expected a whole number of at least 1", "hint: leave it out for one thread per core"],
    );
}

#[test]
fn the_model_has_to_be_there_known_and_unquantized() {
    refused_with(
        &plan("./nope", &format!("{INT4} --algo rtn")),
        1,
        "checkpoint::not-found",
        &["there is no model at `./nope`", "hint: give a directory with config.json"],
    );
    refused_with(
        &qfw(&args(&format!("plan {INT4} --algo rtn"), &[])),
        2,
        "config::no-model",
        &["no model is given", "hint: name it on the command line"],
    );
    let dir = tempfile::tempdir().unwrap();
    let quantized = dir.path().join("quantized");
    apply("tiny-llama", &quantized, "--algo rtn");
    let path = quantized.display().to_string();
    refused_with(
        &plan(&path, &format!("{INT4} --algo rtn")),
        2,
        "plan::already-quantized",
        &[&format!("`{path}` is quantized already"), "hint: start from the original checkpoint"],
    );
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(Path::new(&asset("tiny-llama")).join(file), other.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(Path::new(&asset("tiny-llama")).join("config.json")).unwrap();
    std::fs::write(other.join("config.json"), config.replace("\"model_type\": \"llama\"", "\"model_type\": \"lama\"")).unwrap();
    refused_with(
        &plan(&other.display().to_string(), &format!("{INT4} --algo gptq --data {}", asset("text/calibration.txt"))),
        1,
        "model::unknown-type",
        &["unknown model_type `lama` (did you mean `llama`?)", "hint: known model types: gpt2, llama, mistral, opt, qwen2, qwen3"],
    );
}

#[test]
fn apply_needs_an_output_and_takes_one_of_resume_and_overwrite() {
    let llama = asset("tiny-llama");
    refused_with(
        &qfw(&args(&format!("apply {INT4} --algo rtn"), &[&llama])),
        2,
        "config::missing",
        &["no output directory was given", "hint: add `-o OUT`"],
    );
    let ran = qfw(&args("apply --resume --overwrite -o out", &[&llama]));
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("'--resume' cannot be used with '--overwrite'"), "{}", ran.stderr);
}
