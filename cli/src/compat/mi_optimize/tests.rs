//! One case per row: the keys, and what they become.

use super::super::System::MiOptimize;
use super::super::row::Meaning;
use super::super::tests::{holds, translated};
use super::rows::ROWS;
use super::{assemble, read};

/// Number, words, fragment of the translation. Methods that are not built yet are translated all the same.
const CASES: &[(&str, &str, &str)] = &[
    ("S84", "model_type=llama", "model.type = 'llama'"),
    ("S85", "w_dtype=int2", "scheme.weights.format = 'uint2'"),
    ("S85", "w_dtype=fp4", "scheme.weights.format = 'float-e2m1'"),
    ("S85", "w_dtype=fp8", "scheme.weights.format = 'float-fnuz-e4m3'"),
    ("S85", "w_dtype=float16", "scheme.weights = 'keep'"),
    ("S85", "", "scheme.weights = { format = 'uint4', symmetric = true, convention = 'pow-b1m1', granularity = 'channel' }"),
    (
        "S86",
        "a_dtype=int8",
        "scheme.inputs = { format = 'uint8', symmetric = true, granularity = 'tensor', timing = 'static', reduce = 'concat' }",
    ),
    ("S87", "num_calibrate=16", "calibration.samples = 16"),
    ("S87", "nsamples=16", "calibration.samples = 16"),
    ("S88", "calibrate_seq_length=512", "calibration.seq-len = 512"),
    ("S89", "device=cuda:7", "harness.device = 'cuda:7'"),
    ("S89", "device=cuda", "harness.device = 'cuda:0'"),
    ("S91", "skip_layers=[lm_head,.*down_proj]", "scheme.skip = ['embed', 'head', '.*down_proj']"),
    ("S91", "skip_layers=.*down_proj", "scheme.skip = ['embed', '.*down_proj']\nmodel.tie-policy = 'untie'"),
    ("S92", "calibrate_name=ptb split=train", "calibration = { source = 'ptb', split = 'train' }"),
    ("S93", "algo=rtn w_qtype=per_group w_groupsize=64", "scheme.weights.granularity.group = 64"),
    ("S93", "algo=rtn w_qtype=per_group groupsize=-1", "scheme.weights.granularity = 'channel'"),
    ("S94", "w_qtype=per_tensor", "scheme.weights.granularity = 'tensor'"),
    ("S95", "a_dtype=int8 quantization_type=dynamic a_qtype=per_token", "scheme.inputs.granularity = 'token'"),
    ("S95", "a_dtype=int8 quantization_type=dynamic a_qtype=per_dimension", "scheme.inputs.granularity = 'dimension'"),
    ("S95", "a_dtype=int8 quantization_type=dynamic a_qtype=per_group a_groupsize=32", "scheme.inputs.granularity.group = 32"),
    ("S96", "algo=rtn", "harness = { propagate = 'quantized', sequence = 'block' }"),
    ("S96", "algo=rtn block_sequential=False", "harness.propagate = 'reference'"),
    ("S97", "algo=rtn layer_sequential=True", "harness.sequence = 'layer'"),
    ("S98", "algo=gptq blocksize=64", "pass = [{ algo = 'gptq', options = { block-size = 64 } }]"),
    ("S99", "algo=gptq percdamp=.05", "pass = [{ algo = 'gptq', options = { damp = 0.05 } }]"),
    ("S100", "algo=gptq", "pass = [{ algo = 'gptq', options = { act-order = 'static' } }]"),
    (
        "S100",
        "algo=gptq actorder=false w_qtype=per_group w_groupsize=32",
        "pass = [{ algo = 'gptq', options = { act-order = 'off', static-groups = false } }]",
    ),
    ("S101", "algo=gptq block_sequential=false", "harness = { propagate = 'reference', sequence = 'layer' }"),
    ("S102", "algo=gptq layer_sequential=false", "harness = { propagate = 'quantized', sequence = 'block' }"),
    ("S103", "algo=awq w_groupsize=64", "scheme.weights.granularity.group = 64\npass = [{ algo = 'awq' }, { algo = 'rtn' }]"),
    ("S104", "algo=awq", "scheme.weights.granularity.group = 128"),
    ("S105", "algo=awq", "harness.propagate = 'reference'"),
    ("S106", "algo=awq layer_sequential=true", "harness.sequence = 'layer'"),
    ("S107", "algo=smoothquant w_qtype=per_group w_groupsize=32", "scheme.weights.granularity.group = 32"),
    ("S108", "algo=smoothquant w_groupsize=128", "scheme.weights.granularity = 'channel'"),
    ("S109", "algo=smoothquant a_dtype=int8", "scheme.inputs = { granularity = 'token', timing = 'dynamic' }"),
    ("S110", "algo=smoothquant alpha=0.7", "pass = [{ algo = 'smoothquant', options = { alpha = 0.7 } }, { algo = 'rtn' }]"),
    ("S111", "algo=smoothquant a_dtype=int8 quant_out=True", "scheme.outputs = { format = 'uint8', granularity = 'token' }"),
    (
        "S112",
        "algo=zeroquant a_dtype=int8 w_qtype=per_group a_qtype=per_group quantization_type=dynamic groupsize=64",
        "scheme = { weights.granularity.group = 64, inputs.granularity.group = 64 }",
    ),
    ("S113", "w_has_zero=True", "scheme.weights = { symmetric = false, zero-point = 'integer' }"),
    ("S114", "a_dtype=int8 a_has_zero=True", "scheme.inputs = { symmetric = false, zero-point = 'integer' }"),
    ("S115", "w_unsign=False", "scheme.weights.format = 'int4'"),
    ("S116", "a_dtype=int8 a_unsign=False", "scheme.inputs.format = 'int8'"),
    ("S117", "a_dtype=int8 quantization_type=dynamic", "scheme.inputs.timing = 'dynamic'"),
    ("S118", "algo=zeroquant block_sequential=false", "harness.propagate = 'reference'"),
    ("S119", "algo=zeroquant layer_sequential=true", "harness.sequence = 'layer'"),
    ("S120", "algo=awq+gptq", "pass = [{ algo = 'awq' }, { algo = 'gptq' }]"),
    ("S120", "algo=smoothquant+gptq", "pass = [{ algo = 'smoothquant' }, { algo = 'gptq' }]\nscheme.weights.symmetric = false"),
    ("S121", "algo=zeroquant lkd=true", "pass = [{ algo = 'zeroquant', options = { lkd = true } }]\nharness.propagate = 'reference'"),
    ("S121", "algo=zeroquant", "pass = [{ algo = 'zeroquant', options = { lkd = false } }]"),
    ("S136", "--model org/name", "model.path = 'org/name'"),
    ("S214", "--save out", "output.path = 'out'"),
];

fn message(words: &str) -> String {
    let e = translated(MiOptimize, words).unwrap_err();
    format!("{}: {e}", e.code())
}

#[test]
fn each_key_becomes_ours() {
    for (number, text, fragment) in CASES {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let (flags, methods) = read(&words).unwrap_or_else(|e| panic!("{number} {text}: {e}"));
        let translation = assemble(&flags, &methods).unwrap_or_else(|e| panic!("{number} {text}: {e}"));
        holds(&translation.toml, fragment, &format!("{number} {text}"));
    }
}

#[test]
fn each_row_has_a_case_and_the_list_is_whole() {
    let mut seen = Vec::new();
    for number in ROWS.iter().flat_map(|row| row.number.split(' ').map(move |number| (number, row))) {
        let (number, row) = number;
        let covered = CASES.iter().any(|(case, _, _)| *case == number);
        assert!(covered || !matches!(row.meaning, Meaning::Used), "{number} has no case");
        seen.push(number[1..].parse::<u32>().unwrap());
    }
    assert!((84..=121).all(|number| seen.contains(&number)));
}

#[test]
fn what_is_not_built_or_cannot_be_is_refused() {
    for (words, expected) in [
        ("algo=quip", "compat::not-built: `algo` asks for `quip`, which is not built yet"),
        ("--algo quip+spqr", "compat::not-built: `--algo` asks for `quip`, `--algo` asks for `spqr`, none of which is built yet"),
        ("calibrate_name=cmmlu_hm", "compat::not-built: `calibrate_name` asks for the data set `cmmlu_hm`, which is not built yet"),
        (
            "algo=gptqq",
            "compat::value: `algo`: unknown method `gptqq` (did you mean `gptq`?); known: awq, gptq, quip, rtn, smoothquant, spqr, \
             zeroquant, or several joined with `+`",
        ),
        (
            "a_dtype=int8 a_qtype=per_token",
            "compat::value: `a_qtype`: `per_token` activations cannot be static: their scales depend on the tokens of a call",
        ),
        (
            "w_dtype=int5",
            "compat::value: `w_dtype`: unknown value `int5` (did you mean `int2`?); known: int2, int3, int4, fp4, int8, fp8, float16",
        ),
    ] {
        assert_eq!(message(words), expected, "{words}");
    }
}

#[test]
fn what_has_no_effect_is_noted() {
    let notes = |words| translated(MiOptimize, words).unwrap().notes;
    assert_eq!(notes("offload=cpu"), ["`offload` has no effect: `--budget` says how much memory a run may use, and the rest follows"]);
    assert_eq!(notes("algo=rtn percdamp=0.1"), ["`percdamp` has no effect without `gptq`"]);
    assert_eq!(notes("quant_out=true"), ["`quant_out` has no effect: activations are not quantized"]);
    assert_eq!(notes("model_type=other_model"), ["`other_model`: the checkpoint says which architecture it has"]);
}

#[test]
fn files_are_read_as_that_system_nests_them() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = dir.path().join("gptq.yaml");
    std::fs::write(
        &yaml,
        "quant_config:\n  algo: gptq\n  kwargs:\n    w_dtype: int4    # or another\n    a_dtype: float16\n    percdamp: .01\n    \
         actorder: True\n    w_groupsize: -1\n    w_qtype: \"per_channel\"\n    skip_layers:\n      - lm_head\n  calibrate_config:\n    \
         name: 'c4'\n    split: train\n    nsample: 2\n    seqlen: 64\n",
    )
    .unwrap();
    let json = dir.path().join("gptq.json");
    let same = r#"{"algo": "gptq", "kwargs": {"w_dtype": "int4", "percdamp": 0.01, "actorder": true, "skip_layers": ["lm_head"]},
        "calibrate_config": {"name": "c4", "split": "train", "nsamples": 2, "seqlen": 64}}"#;
    std::fs::write(&json, same).unwrap();
    let from_yaml = translated(MiOptimize, &yaml.display().to_string()).unwrap();
    let expected = "calibration = { source = 'c4', split = 'train', samples = 2, seq-len = 64 }\nscheme.skip = ['embed', 'head']\n\
                    pass = [{ algo = 'gptq', options = { damp = 0.01, act-order = 'static' } }]";
    holds(&from_yaml.toml, expected, "nested");
    assert_eq!(from_yaml, translated(MiOptimize, &format!("--quant-config {}", json.display())).unwrap());
    let over = translated(MiOptimize, &format!("w_dtype=int8 {}", yaml.display())).unwrap();
    holds(&over.toml, "scheme.weights.format = 'uint8'", "words come after files");
}
