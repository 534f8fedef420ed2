//! What a quantized checkpoint says of its codes.
//!
//! The first byte chooses the checkpoint and the file of it that the rest replaces: `a` the first, `b` the second, and so on.

use qfw_core::checkpoint::{StoredDtype, TensorDecl, write_small};
use serde_json::{Value, json};

use crate::stage::Stage;
use crate::verdict::{Readers, sound_second};
use crate::{Target, bases};

pub(crate) const TARGET: Target = Target {
    name: "quantization",
    about: "config.json, hf_quant_config.json, qfw.json and adapter_config.json of quantized checkpoints",
    run,
    seeds,
};

/// A checkpoint, and what of it is replaced.
struct Case {
    name: &'static str,
    stage: Stage,
    file: &'static str,
    sound: Vec<u8>,
}

thread_local!(static STATE: (Readers, Vec<Case>) = (Readers::new(), cases()));

const CONFIG: &str = "config.json";
const BESIDE: &str = "hf_quant_config.json";
const RECORD: &str = "qfw.json";
const ADAPTER: &str = "adapter/adapter_config.json";

fn cases() -> Vec<Case> {
    const INT4: [&str; 2] = ["scheme.weights.format=int4", "scheme.weights.granularity.group=16"];
    let static8 = [
        "scheme.weights.format=int8",
        "scheme.inputs.format=int8",
        "scheme.inputs.granularity=\"tensor\"",
        "scheme.inputs.timing=static",
        "scheme.keys.format=int8",
        "scheme.values.format=int8",
    ];
    let case = |name, file, stage: Stage| Case { name, sound: read(&stage, file), file, stage };
    let rotated = ["scheme.weights.format=int4", "quarot.rotations=[\"r1\", \"r2\", \"r3\", \"r4\"]", "svdquant.rank=4"];
    vec![
        case("compressed-tensors-int4", CONFIG, bases::quantized("compressed-tensors", &["rtn"], &INT4)),
        case("compressed-tensors-static", CONFIG, bases::quantized("compressed-tensors", &["rtn"], &static8[..4])),
        case("compressed-tensors-nvfp4", CONFIG, bases::quantized("compressed-tensors", &["rtn"], &["scheme.weights.format=nvfp4"])),
        case("gptq", CONFIG, bases::quantized("gptq", &["gptq"], &[INT4[0], INT4[1], "gptq.act-order=\"group\""])),
        case("awq", CONFIG, bases::quantized("awq", &["rtn"], &INT4)),
        case(
            "fp8-blocks",
            CONFIG,
            fp8(json!({ "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16] })),
        ),
        case("fp8-tensor", CONFIG, fp8(json!({ "quant_method": "fp8", "activation_scheme": "static" }))),
        case("modelopt", BESIDE, fp8(Value::Null)),
        case("native", CONFIG, bases::quantized("qfw", &["rtn"], &static8)),
        case("native-extras", CONFIG, bases::quantized("qfw", &["quarot", "svdquant", "rtn"], &rotated)),
        case("adapter", ADAPTER, bases::quantized("gptq", &["svdquant", "rtn"], &[INT4[0], INT4[1], "svdquant.rank=4"])),
        case("record", RECORD, bases::quantized("gptq", &["rtn"], &INT4)),
    ]
}

#[allow(clippy::expect_used, reason = "it was just written")]
fn read(stage: &Stage, file: &str) -> Vec<u8> {
    std::fs::read(stage.path().join(file)).expect("a base can be read")
}

/// The float model with weights of e4m3 as DeepSeek and vLLM store them (`quantization`), or as ModelOpt does (null).
#[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
fn fp8(quantization: Value) -> Stage {
    let stage = Stage::copy(bases::float().path());
    let blocks = quantization.get("weight_block_size").is_some();
    let mut tensors = Vec::new();
    for (decl, bytes) in bases::tensors("") {
        let module = decl.name.trim_end_matches(".weight").to_owned();
        if !module.contains("_proj") {
            tensors.push((decl, bytes));
            continue;
        }
        let shape = if blocks { vec![decl.shape[0].div_ceil(16), decl.shape[1].div_ceil(16)] } else { vec![] };
        let n: usize = shape.iter().product();
        // Codes of numbers between 0.25 and 2, both signs.
        let codes = (0..bytes.len() / 2).map(|i| 0x28 + (i % 24) as u8 + 0x80 * (i % 2) as u8).collect();
        tensors.push((TensorDecl { dtype: StoredDtype::Other("F8_E4M3".to_owned()), ..decl }, codes));
        let scale = |name: String, shape: Vec<usize>, n: usize| {
            (TensorDecl { name, dtype: StoredDtype::F32, shape }, 0.1f32.to_le_bytes().repeat(n))
        };
        tensors.push(scale(format!("{module}.weight_scale{}", if blocks { "_inv" } else { "" }), shape, n));
        if !blocks {
            tensors.push(scale(format!("{module}.input_scale"), vec![], 1));
        }
    }
    write_small(&stage.path().join("model.safetensors"), tensors).expect("the weights can be written");
    if quantization.is_null() {
        let said = json!({ "producer": { "name": "modelopt", "version": "0.37.0" },
            "quantization": { "quant_algo": "FP8", "kv_cache_quant_algo": null, "exclude_modules": ["lm_head"] } });
        stage.put(BESIDE, said.to_string().as_bytes());
    } else {
        let mut config = bases::config();
        config["quantization_config"] = quantization;
        stage.put(CONFIG, config.to_string().as_bytes());
    }
    stage
}

fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    STATE.with(|(readers, cases)| {
        let case = &cases[usize::from(first.wrapping_sub(b'a')) % cases.len()];
        case.stage.put(case.file, rest);
        readers.read(case.stage.path());
        if case.file == RECORD {
            sound_second(qfw_verify::verify(case.stage.path(), None));
        }
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let seed = |(i, case): (usize, &Case)| (case.name.to_owned(), [&[b'a' + i as u8], &case.sound[..]].concat());
    cases().iter().enumerate().map(seed).collect()
}
