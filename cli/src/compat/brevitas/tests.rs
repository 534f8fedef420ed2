//! One case per row: the words, and what they become.

use super::super::System::Brevitas;
use super::super::row::Meaning;
use super::super::tests::{holds, translated};
use super::rows::ROWS;

/// Inputs with every other flag at its default.
const IN: &str = "--input-bit-width 8 --act-calibration";
const DYNAMIC: &str = "--input-bit-width 8 --input-scale-type dynamic";

/// Number, words, fragment of the translation. `IN` and `DYNAMIC` in the words stand for the constants.
const CASES: &[(&str, &str, &str)] = &[
    (
        "S179",
        "--magr",
        "pass = [{ algo = 'magr', options = { alpha = 0.01, alpha-mode = 'brevitas', per = 'channel' } }, { algo = 'rtn' }]",
    ),
    ("S180", "--magr --magr-alpha 0.002", "pass = [{ algo = 'magr', options = { alpha = 0.002 } }, { algo = 'rtn' }]"),
    (
        "S191",
        "--bias-corr",
        "harness.propagate = 'both'\npass = [{ algo = 'rtn' }, { algo = 'bias-correction', options = { inputs = 'reference' } }]",
    ),
    (
        "S172",
        "--learned-round linear_round --learned-round-lr 0.01",
        "pass = [{ algo = 'learned-round', options = { iters = 200, lr = 0.01, learn-scale = false } }]",
    ),
    (
        "S173",
        "--learned-round linear_round --learned-round-scale --learned-round-scale-lr 0.02",
        "pass = [{ algo = 'learned-round', options = { iters = 200, lr = 0.005, learn-scale = true, scale-optimizer = 'sgd', scale-lr = 0.02, scale-momentum = 0.9 } }]",
    ),
    (
        "S174",
        "--learned-round linear_round --learned-round-scale --learned-round-scale-momentum 0.5",
        "pass = [{ algo = 'learned-round', options = { iters = 200, lr = 0.005, learn-scale = true, scale-optimizer = 'sgd', scale-lr = 0.01, scale-momentum = 0.5 } }]",
    ),
    (
        "S175",
        "--learned-round linear_round --learned-round-iters 50",
        "pass = [{ algo = 'learned-round', options = { iters = 50, lr = 0.005, learn-scale = false } }]",
    ),
    (
        "S176",
        "--learned-round linear_round --learned-round-scale",
        "pass = [{ algo = 'learned-round', options = { iters = 200, lr = 0.005, learn-scale = true, scale-optimizer = 'sgd', scale-lr = 0.01, scale-momentum = 0.9 } }]",
    ),
    (
        "S216",
        "--learned-round linear_round",
        "pass = [{ algo = 'learned-round', options = { iters = 200, lr = 0.005, learn-scale = false } }]",
    ),
    (
        "S217",
        "--learned-round linear_round --learned-round-fast-update",
        "pass = [{ algo = 'learned-round', options = { iters = 200, lr = 0.005, learn-scale = false } }]",
    ),
    ("S192", "--ln-affine-merge", "pass = [{ algo = 'fold-norms' }, { algo = 'rtn' }]"),
    ("S193", "--convert-layernorm-to-rmsnorm", "pass = [{ algo = 'center-residual' }, { algo = 'rtn' }]"),
    (
        "S200",
        "--rotation fx --ln-affine-merge --replace-rmsnorm --convert-layernorm-to-rmsnorm --gptq",
        "pass = [{ algo = 'fold-norms' }, { algo = 'center-residual' }, { algo = 'spinquant', options = { rotations = ['r1'], matrix = 'hadamard' } }, { algo = 'gptq' }]",
    ),
    (
        "S200",
        "--rotation layerwise",
        "pass = [{ algo = 'spinquant', options = { mode = 'layerwise' } }, { algo = 'rtn' }]\noutput.format = ['qfw']",
    ),
    (
        "S202",
        "--rotation fused_no_fx --replace-rmsnorm --rotation-mode ort",
        "pass = [{ algo = 'spinquant', options = { matrix = 'orthogonal', rotations = ['r1'] } }, { algo = 'rtn' }]",
    ),
    (
        "S203",
        "--rotation fused_no_fx --replace-rmsnorm --rotation-orphan-sink",
        "pass = [{ algo = 'spinquant', options = { orphan-sink = true } }, { algo = 'rtn' }]\noutput.format = ['qfw']",
    ),
    (
        "S204",
        "--rotation fused_no_fx --replace-rmsnorm --rotation-sdpa-regions",
        "pass = [{ algo = 'spinquant', options = { rotations = ['r1', 'r2', 'r3'] } }, { algo = 'rtn' }]",
    ),
    (
        "S201",
        "--rotation fused_no_fx --replace-rmsnorm --optimize-rotations",
        "pass = [{ algo = 'spinquant', options = { matrix = 'randomized-hadamard', optimize = { optimizer = 'cayley-sgd' } } }, { algo = 'rtn' }]",
    ),
    (
        "S229",
        "--rotation fused_no_fx --replace-rmsnorm --optimize-rotations --rotation-mode ort --learning-rate 0.5 --max-steps 20 --per-device-train-batch-size 2 --weight-decay 0",
        "pass = [{ algo = 'spinquant', options = { matrix = 'orthogonal', optimize = { optimizer = 'cayley-sgd', lr = 0.5, steps = 20, batch-size = 2 } } }, { algo = 'rtn' }]",
    ),
    (
        "S140",
        "--rotation fused_no_fx --replace-rmsnorm --optimize-rotations --nsamples-rot-calibration 100",
        "pass = [{ algo = 'spinquant', options = { optimize = { optimizer = 'cayley-sgd', samples = 100 } } }, { algo = 'rtn' }]",
    ),
    ("S199", "--weight-equalization --gptq", "pass = [{ algo = 'weight-equalization' }, { algo = 'gptq' }]"),
    (
        "S205",
        "--rotation fused_no_fx --replace-rmsnorm --rotation-layers-to-expand down_proj",
        "pass = [{ algo = 'spinquant', options = { expand = ['down_proj'], expansion-step = 1 } }, { algo = 'rtn' }]\noutput.format = ['qfw']",
    ),
    ("S207", "--svd-quant --gptq", "pass = [{ algo = 'svdquant' }, { algo = 'gptq' }]\noutput.format = ['qfw']"),
    ("S208", "--svd-quant --svd-quant-rank 8", "pass = [{ algo = 'svdquant', options = { rank = 8 } }, { algo = 'rtn' }]"),
    ("S209", "--svd-quant --svd-quant-iters 4", "pass = [{ algo = 'svdquant', options = { iters = 4 } }, { algo = 'rtn' }]"),
    (
        "S206",
        "--rotation fused_no_fx --replace-rmsnorm --rotation-layers-to-expand down_proj --expansion-step 2",
        "pass = [{ algo = 'spinquant', options = { expansion-step = 2 } }, { algo = 'rtn' }]",
    ),
    ("S210", "--act-equalization fx", "pass = [{ algo = 'smoothquant', options = { variant = 'brevitas' } }, { algo = 'rtn' }]"),
    (
        "S210",
        "--act-equalization layerwise",
        "pass = [{ algo = 'smoothquant', options = { everywhere = true, stand-alone = true } }, { algo = 'rtn' }]",
    ),
    (
        "S211",
        "--act-equalization fx --act-equalization-alpha 0.8",
        "pass = [{ algo = 'smoothquant', options = { alpha = 0.8 } }, { algo = 'rtn' }]",
    ),
    ("S226", "--awq-scale --awq-clip", "pass = [{ algo = 'awq' }, { algo = 'clip' }, { algo = 'rtn' }]"),
    ("S227", "--awq-clip --gptq", "pass = [{ algo = 'clip' }, { algo = 'gptq' }]"),
    ("S136", "--model org/name", "model.path = 'org/name'"),
    ("S137", "--dtype bfloat16", "model.dtype = 'bfloat16'"),
    ("S138", "--seed 7", "calibration.seed = 7"),
    ("S139", "--nsamples 64", "calibration.samples = 64"),
    ("S141", "--seqlen 512", "calibration.seq-len = 512"),
    ("S142", "--eval --dataset c4", "eval = { protocol = 'brevitas', data = 'c4' }"),
    ("S143", "--dataset pile", "calibration.source = 'pile'"),
    (
        "S144",
        "--gptq --gpxq-block-name model.layers",
        "harness = { block-name = 'model.layers', sequence = 'layer', propagate = 'quantized' }",
    ),
    ("S145", "--weight-bit-width 4", "scheme.weights = { format = 'int4', symmetric = true, convention = 'pow-b1', range = 'minmax' }"),
    (
        "S145",
        "",
        "scheme.weights = { format = 'int8', symmetric = true, convention = 'pow-b1', granularity = { group = 128 }, min-threshold = 1e-4 }",
    ),
    ("S146", "--weight-param-method mse", "scheme.weights.range.mse.search = 'brevitas'"),
    ("S146", "--weight-param-method hqo", "scheme.weights.range = 'hqo'"),
    (
        "S147",
        "--weight-scale-precision po2_scale --weight-quant-granularity per_channel",
        "scheme.weights = { scale = 'po2', scale-rounding = 'ceil' }",
    ),
    ("S147", "--weight-scale-precision po2_scale", "scheme.weights = { scale = 'po2', scale-rounding = 'floor' }"),
    ("S148", "--weight-quant-type asym", "scheme.weights = { format = 'uint8', symmetric = false, zero-point = 'float' }"),
    ("S148", "--weight-quant-type sym", "scheme.weights = { format = 'int8', symmetric = true }"),
    ("S149", "--weight-quant-format e4m3", "scheme.weights = { format = 'float-e4m3', symmetric = true }"),
    ("S149", "--weight-quant-format float_e4m3", "scheme.weights.format = 'float-e4m3'"),
    ("S149", "--weight-quant-format float_ocp_e5m2", "scheme.weights.format = 'float-ocp-e5m2'"),
    ("S149", "--weight-quant-format float_fnuz_e2m1 --weight-bit-width 4", "scheme.weights.format = 'float-fnuz-e2m1'"),
    ("S150", "--weight-quant-granularity per_channel", "scheme.weights.granularity = 'channel'"),
    ("S150", "--weight-quant-granularity per_tensor", "scheme.weights.granularity = 'tensor'"),
    ("S151", "--weight-scale-precision po2_scale --scale-rounding-func-type round", "scheme.weights.scale-rounding = 'round'"),
    ("S151", "IN --input-scale-precision po2_scale --scale-rounding-func-type floor", "scheme.inputs.scale-rounding = 'floor'"),
    ("S152", "--weight-group-dim 0 --weight-group-size 64", "scheme.weights.granularity.group-out = 64"),
    ("S152", "--weight-group-dim 1", "scheme.weights.granularity.group = 128"),
    ("S153", "--weight-group-size 32", "scheme.weights.granularity.group = 32"),
    ("S154", "--weight-quant-type asym --quantize-weight-zero-point", "scheme.weights.zero-point = 'integer'"),
    (
        "S155",
        "--input-bit-width 4 --act-calibration",
        "scheme.inputs = { format = 'uint4', symmetric = false, zero-point = 'float', granularity = 'tensor', timing = 'static' }",
    ),
    ("S156", "IN --input-quant-format float_ocp_e4m3", "scheme.inputs = { format = 'float-ocp-e4m3', symmetric = true }"),
    ("S157", "IN --input-param-method mse", "scheme.inputs = { range = { mse = { search = 'brevitas' } }, reduce = 'mean' }"),
    ("S158", "IN --input-scale-precision po2_scale", "scheme.inputs = { scale = 'po2', scale-rounding = 'ceil' }"),
    (
        "S158",
        "DYNAMIC --input-scale-precision po2_scale --input-quant-granularity per_row",
        "scheme.inputs = { scale = 'po2', scale-rounding = 'floor' }",
    ),
    ("S159", "DYNAMIC", "scheme.inputs = { timing = 'dynamic', range = 'minmax' }"),
    (
        "S159",
        "--input-bit-width 8 --input-scale-type no_scale --input-quant-format e4m3",
        "scheme.inputs = { timing = 'cast', format = 'float-e4m3' }",
    ),
    ("S160", "IN --input-quant-type sym", "scheme.inputs = { format = 'int8', symmetric = true, convention = 'pow-b1' }"),
    ("S161", "DYNAMIC --input-quant-granularity per_row", "scheme.inputs.granularity = 'token'"),
    ("S161", "DYNAMIC --input-quant-granularity per_group", "scheme.inputs.granularity.group = 64"),
    ("S162", "DYNAMIC --input-quant-granularity per_group --input-group-size 32", "scheme.inputs.granularity.group = 32"),
    ("S163", "IN --quant-sdpa eager", "scheme = { queries = {}, keys = {}, values = {}, probs = {} }"),
    ("S163", "IN --quant-sdpa eager --attn-quant-config kv", "scheme = { keys = { format = 'uint8' }, values = { format = 'uint8' } }"),
    ("S164", "IN --quant-sdpa fx --attn-bit-width 4", "scheme = { inputs.format = 'uint8', keys.format = 'uint4' }"),
    ("S165", "IN --quant-sdpa fx --attn-quant-format e4m3", "scheme = { inputs.format = 'uint8', probs.format = 'float-e4m3' }"),
    ("S166", "IN --quant-sdpa fx --attn-param-method mse", "scheme.values.range.mse.search = 'brevitas'"),
    ("S167", "IN --quant-sdpa fx --attn-scale-precision po2_scale", "scheme.keys.scale = 'po2'"),
    ("S168", "IN --quant-sdpa fx --attn-scale-type dynamic", "scheme = { inputs.timing = 'static', keys.timing = 'dynamic' }"),
    (
        "S169",
        "IN --quant-sdpa fx --attn-quant-type sym",
        "scheme = { keys = { format = 'int8', symmetric = true }, probs = { format = 'uint8', symmetric = false, zero-point = 'integer' } }",
    ),
    (
        "S170",
        "DYNAMIC --quant-sdpa fx --attn-quant-granularity per_row",
        "scheme = { inputs.granularity = 'tensor', queries.granularity = 'head', keys.granularity = 'head', probs.granularity = 'token' }",
    ),
    (
        "S171",
        "DYNAMIC --input-quant-granularity per_group --quant-sdpa fx --attn-group-size 16",
        "scheme = { inputs.granularity.group = 64, keys.granularity.group = 16 }",
    ),
    ("S177", "IN --quantize-input-zero-point", "scheme.inputs.zero-point = 'integer'"),
    ("S178", "--quantize-last-layer", "scheme.skip = ['embed']\nmodel.tie-policy = 'untie'"),
    (
        "S183",
        "--gptq",
        "harness = { sequence = 'layer', propagate = 'quantized' }\npass = [{ algo = 'gptq', options = { act-order = 'off' } }]",
    ),
    ("S183", "", "pass = [{ algo = 'rtn' }]"),
    ("S185", "--gptq --gpxq-act-order", "pass = [{ algo = 'gptq', options = { act-order = 'static' } }]"),
    ("S185", "--qronos --gpxq-act-order", "pass = [{ algo = 'qronos', options = { act-order = 'static' } }]"),
    (
        "S181",
        "--qronos",
        "harness = { sequence = 'layer', propagate = 'both' }\npass = [{ algo = 'qronos', options = { act-order = 'off' } }]",
    ),
    ("S182", "--qronos --qronos-alpha 1e-3", "pass = [{ algo = 'qronos', options = { alpha = 1e-3 } }]"),
    ("S184", "--gpfq", "harness = { sequence = 'layer', propagate = 'both' }\npass = [{ algo = 'gpfq', options = { act-order = 'off' } }]"),
    ("S186", "--gptq --gpxq-use-quant-activations", "pass = [{ algo = 'gptq', options = { use-quant-activations = true } }]"),
    ("S188", "--gpfq --gpxq-max-accumulator-bit-width 16", "pass = [{ algo = 'gpfq', options = { accumulator-bits = 16 } }]"),
    (
        "S189",
        "--gpfq --gpxq-max-accumulator-bit-width 16 --gpxq-max-accumulator-tile-size 64",
        "pass = [{ algo = 'gpfq', options = { accumulator-bits = 16, accumulator-tile = 64 } }]",
    ),
    ("S190", "IN", "scheme.inputs = { timing = 'static', reduce = 'mean' }"),
    ("S195", "--no-quantize", "harness.no-quantize = true"),
    ("S196", "IN --scaling-min-val 1e-6", "scheme = { weights.min-threshold = 1e-6, inputs.min-threshold = 1e-6 }"),
    ("S197", "IN --quant-sdpa functional", "scheme.probs = {}"),
    ("S198", "IN --quant-sdpa eager --eager-quant-sdpa-class LlamaAttention", "scheme.probs = {}"),
    ("S212", "--export-target gguf:q8_0", "output.format = ['gguf']"),
    ("S212", "--export-target onnx_qcdq", "output.format = ['onnx-qcdq']"),
    (
        "S212",
        "--export-target onnx_qcdq --weight-quant-type asym --quantize-weight-zero-point",
        "output.format = ['onnx-qcdq']\nscheme.weights.zero-point = 'integer'",
    ),
    ("S212", "--export-target sharded_torchmlir_group_weight --weight-quant-granularity per_group", "output.format = ['qfw']"),
    ("S212", "--export-target sharded_packed_torchmlir_group_weight --weight-quant-granularity per_group", "output.format = ['qfw']"),
    ("S236", "--export-target gguf:q4_0 --weight-bit-width 4", "output.format = ['gguf']"),
    ("S236", "--export-target gguf:q4_1 --weight-bit-width 4 --weight-quant-type asym", "output.format = ['gguf']"),
    ("S236", "--export-target shark", "output.format = ['shark']"),
    ("S213", "--export-target gguf:q8_0 --export-prefix out", "output.path = 'out'"),
    ("S214", "--checkpoint-name out", "output.path = 'out'"),
    ("S223", "--bos-preprocessing document --dataset c4", "calibration.bos = 'document'"),
    ("S223", "--bos-preprocessing document", "calibration.bos = 'sequence'"),
    ("S230", "IN", "scheme.inputs.range.percentile = { high = 99.999, low = 0.001 }"),
    ("S230", "DYNAMIC", "scheme.inputs.range = 'minmax'"),
    ("S231", "--gptq --quant-sdpa fx", "pass = [{ algo = 'gptq' }]"),
    ("S232", "--quantize-last-layer --gptq", "model.tie-policy = 'untie'"),
    ("S233", "--weight-narrow-range", "scheme.weights.convention = 'narrow'"),
    ("S234", "--weight-quant-rescaling-init 0.8", "scheme.weights.rescale = 0.8"),
    ("S235", "IN --quant-sdpa eager --attn-quant-config qkv", "scheme = { queries = {}, keys = {}, values = {} }"),
];

fn words(text: &str) -> String {
    let word = |word| match word {
        "IN" => IN,
        "DYNAMIC" => DYNAMIC,
        other => other,
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn message(words: &str) -> String {
    let e = translated(Brevitas, words).unwrap_err();
    format!("{}: {e}", e.code())
}

#[test]
fn each_flag_becomes_its_key() {
    for (number, text, fragment) in CASES {
        let translation = translated(Brevitas, &words(text)).unwrap_or_else(|e| panic!("{number} {text}: {e}"));
        holds(&translation.toml, fragment, &format!("{number} {text}"));
    }
}

/// Words that give a flag some value of its kind.
fn some_value(row: &super::super::row::Row) -> String {
    use super::super::row::Takes;
    match row.takes {
        Takes::Switch => format!("--{}", row.name),
        Takes::Whole => format!("--{} 16", row.name),
        Takes::Number => format!("--{} 0.5", row.name),
        Takes::Choice(known) => format!("--{} {}", row.name, known[0]),
        Takes::Text => format!("--{}=some", row.name),
        Takes::List => format!("--{} some more", row.name),
    }
}

#[test]
fn each_row_is_a_key_a_note_or_a_refusal() {
    for row in ROWS {
        let line = some_value(row);
        match row.meaning {
            Meaning::Used => {
                assert!(CASES.iter().any(|(number, _, _)| row.number.starts_with(number)), "{} has no case", row.number);
            }
            Meaning::NoEffect(why) => {
                assert_eq!(translated(Brevitas, &line).unwrap().notes, [format!("`--{}` has no effect: {why}", row.name)]);
            }
            Meaning::Of(owner) => {
                let refused = matches!(ROWS.iter().find(|r| r.name == owner).unwrap().meaning, Meaning::NotYet(_));
                assert!(refused || CASES.iter().any(|(number, _, _)| row.number.starts_with(number)), "{} has no case", row.number);
                let translation = translated(Brevitas, &line).unwrap();
                assert_eq!(translation.notes, [format!("`--{}` has no effect without `{owner}`", row.name)]);
            }
            Meaning::NotYet(method) => {
                assert_eq!(message(&line), format!("compat::not-built: `--{}` asks for {method}, which is not built yet", row.name));
            }
        }
    }
}

#[test]
fn rows_are_those_of_the_list_of_features() {
    let mut seen: Vec<u32> =
        ROWS.iter().flat_map(|row| row.number.split(' ')).map(|n| n.strip_prefix('S').unwrap().parse().unwrap()).collect();
    // The file itself, statistics, order of passes, and ties are not flags.
    seen.extend([135, 230, 231, 232]);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (135..=236).collect::<Vec<_>>());
}

#[test]
fn parts_that_are_not_asked_for_stay_as_they_are() {
    let scheme = |text: &str| -> Vec<String> {
        let toml: toml::Table = translated(Brevitas, &words(text)).unwrap().toml.parse().unwrap();
        let mut parts: Vec<String> = toml["scheme"].as_table().unwrap().keys().cloned().collect();
        parts.sort_unstable();
        parts
    };
    assert_eq!(scheme(""), ["weights"]);
    assert_eq!(scheme("--input-quant-format e4m3 --attn-bit-width 4"), ["weights"]);
    assert_eq!(scheme("--quant-sdpa eager"), ["weights"]);
    assert_eq!(scheme("IN --attn-quant-config kv"), ["inputs", "weights"]);
    assert_eq!(scheme("IN --quant-sdpa eager --attn-quant-config kv"), ["inputs", "keys", "values", "weights"]);
    assert_eq!(scheme("IN --quant-sdpa eager --attn-quant-config qkv"), ["inputs", "keys", "queries", "values", "weights"]);
}

#[test]
fn contradictions_are_refused() {
    for (text, expected) in [
        ("--input-bit-width 8", "`--input-bit-width`: static scales are calibrated"),
        ("DYNAMIC --quant-sdpa fx --attn-scale-type static", "`--input-bit-width`: static scales are calibrated"),
        ("--input-bit-width 8 --input-scale-type no_scale", "`--input-scale-type`: integers need a scale"),
        ("--weight-quant-format e4m3 --weight-quant-type asym", "`--weight-quant-type`: floats have no zero point"),
        ("--weight-quant-format e4m3 --weight-bit-width 4", "`--weight-quant-format`: `e4m3` has 8 bits with its sign, not 4"),
        ("--weight-quant-format fp8", "`--weight-quant-format`: unknown format `fp8`"),
        ("--weight-quant-format e9m1", "`--weight-quant-format`: unknown format `e9m1`"),
        ("--export-target gguf:q4_0", "`--export-target`: `gguf:q4_0` holds `--weight-bit-width 4 --weight-quant-type sym`, not 8 and sym"),
        (
            "--export-target gguf:q4_0 --weight-bit-width 4 --weight-quant-type asym",
            "`--export-target`: `gguf:q4_0` holds `--weight-bit-width 4 --weight-quant-type sym`, not 4 and asym",
        ),
        (
            "--export-target onnx_qcdq --weight-quant-type asym",
            "`--export-target`: `onnx_qcdq` holds integer zero points, so `--weight-quant-type asym` needs `--quantize-weight-zero-point`",
        ),
        (
            "IN --export-target onnx_qcdq --input-quant-type asym",
            "`--export-target`: `onnx_qcdq` holds integer zero points, so `--input-quant-type asym` needs `--quantize-input-zero-point`",
        ),
        (
            "--export-target sharded_torchmlir_group_weight",
            "`--export-target`: `sharded_torchmlir_group_weight` holds groups: `--weight-quant-granularity per_group`",
        ),
        (
            "IN --export-target sharded_torchmlir_group_weight --weight-quant-granularity per_group",
            "`--export-target`: `sharded_torchmlir_group_weight` holds weights only, without `--input-bit-width`",
        ),
        (
            "--export-target sharded_packed_torchmlir_group_weight --weight-quant-granularity per_group --weight-quant-type asym \
             --quantize-weight-zero-point",
            "`--export-target`: `sharded_packed_torchmlir_group_weight` holds float zero points, without `--quantize-weight-zero-point`",
        ),
        ("--weight-bit-width 1", "`--weight-bit-width`: integers have 2 to 16 bits, not 1"),
        ("--weight-narrow-range --weight-quant-type asym", "`--weight-narrow-range`: only symmetric integers have a narrow range here"),
    ] {
        assert_eq!(message(&words(text)), format!("compat::value: {expected}"), "{text}");
    }
}

#[test]
fn what_is_not_built_is_named_at_once() {
    assert_eq!(
        message("--few-shot-eval lm_eval --load-checkpoint --weight-bit-width 4"),
        "compat::not-built: `--load-checkpoint` asks for starting from a quantized checkpoint, `--few-shot-eval` asks for few-shot \
         tasks, none of which is built yet"
    );
}

#[test]
fn a_weight_is_rounded_by_one_method() {
    assert_eq!(message("--gptq --qronos"), "compat::value: `--qronos`: a weight is rounded once, and `--gptq` does it already");
    let refused = "compat::value: `--disable-create-weight-orig`: `gpfq` aims at the output of the original weights";
    assert_eq!(message("--gpfq --disable-create-weight-orig"), refused);
    let notes = |text: &str| translated(Brevitas, text).unwrap().notes;
    assert_eq!(notes("--gpxq-act-order"), ["`--gpxq-act-order` has no effect without `gptq`, `gpfq` or `qronos`"]);
    let on_qronos = "`--gpxq-max-accumulator-bit-width` has no effect on `qronos`, in Brevitas as here";
    assert!(notes("--qronos --gpxq-max-accumulator-bit-width 16").iter().any(|n| n == on_qronos));
    let layerwise = ["`--rotation-mode` has no effect with `--rotation layerwise`, in Brevitas as here"];
    assert_eq!(notes("--rotation layerwise --rotation-mode had"), layerwise);
}

#[test]
fn a_file_gives_the_defaults_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yml");
    let text = "# the template of the entry point writes everything out\n\
                model: org/name\nweight_bit_width: 4\nweight_quant_granularity: per_channel\nscaling_min_val: 1e-4\ngptq: true\n\
                magr: false\nmagr_alpha: 0.01\nexport_target: null\nact_equalization: null\nrotation_layers_to_expand: []\n\
                few_shot_tasks:\n- arc_easy\n- piqa\ncompile_ptq: false\nquant_sdpa: null\nattn_quant_config: qkvs\n";
    std::fs::write(&path, text).unwrap();
    let before = translated(Brevitas, &format!("--weight-bit-width 3 --config {}", path.display())).unwrap();
    let expected = "model.path = 'org/name'\npass = [{ algo = 'gptq' }]\n[scheme.weights]\nformat = 'int3'\ngranularity = 'channel'";
    holds(&before.toml, expected, "S135");
    assert_eq!(before.notes.len(), 1, "only what GPTQ does otherwise: {:?}", before.notes);
    let after = translated(Brevitas, &format!("--config={} --weight-bit-width=3", path.display())).unwrap();
    assert_eq!(before, after);
}

#[test]
fn the_environment_switch_may_stand_in_front() {
    let translation = translated(Brevitas, "BREVITAS_JIT=1 --weight-bit-width 4").unwrap();
    assert_eq!(translation.notes, ["`BREVITAS_JIT` has no effect: it switches a compiler of PyTorch on"]);
}
