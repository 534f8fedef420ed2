//! Configuration files of MI-optimize, with its defaults (`configs/default_quant_config.yaml` there).

mod rows;
#[cfg(test)]
mod tests;

use qfw_core::Result;
use qfw_core::error::did_you_mean;
use toml::{Table, Value};

use super::Translation;
use super::draft::{Draft, table};
use super::flags::{Flags, not_built};
use super::words::{self, Manner};

/// A method, by its name there and here.
struct Method {
    name: &'static str,
    /// Whether it rounds; to one that does not, rounding to nearest is added.
    rounds: bool,
    /// Whether it is built here.
    built: bool,
}

const METHODS: &[Method] = &[
    Method { name: "awq", rounds: false, built: true },
    Method { name: "gptq", rounds: true, built: true },
    Method { name: "quip", rounds: true, built: false },
    Method { name: "rtn", rounds: true, built: true },
    Method { name: "smoothquant", rounds: false, built: true },
    Method { name: "spqr", rounds: true, built: false },
    // It rounds, but only where nothing else does.
    Method { name: "zeroquant", rounds: false, built: true },
];

/// Data sets that are built here; the others are question answering, classification and exams.
const DATA: &[&str] = &["wikitext2", "c4", "ptb", "pile"];

pub(super) fn translate(words: &[String]) -> Result<Translation> {
    let (flags, methods) = read(words)?;
    let missing: Vec<String> =
        methods.iter().filter(|m| !m.built).map(|m| format!("{} asks for `{}`", flags.shown("algo"), m.name)).collect();
    if !missing.is_empty() {
        return Err(not_built(&missing.join(", "), missing.len()));
    }
    assemble(&flags, &methods)
}

fn read(words: &[String]) -> Result<(Flags, Vec<&'static Method>)> {
    let manner = Manner { rows: rows::ROWS, file_flag: "quant-config", bare_files: true };
    let flags = Flags::read(words::read(words, &manner)?, rows::ROWS, "MI-optimize")?;
    let methods = methods(&flags)?;
    Ok((flags, methods))
}

/// The methods that `algo` names, joined with `+`.
fn methods(flags: &Flags) -> Result<Vec<&'static Method>> {
    let named = flags.text("algo").unwrap_or("rtn").to_lowercase();
    let find = |name: &str| {
        METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
            let known: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
            let nearest = did_you_mean(name, known.iter().copied());
            flags.wrong("algo", format!("unknown method `{name}`{nearest}; known: {}, or several joined with `+`", known.join(", ")))
        })
    };
    named.split(['+', ',']).map(|name| find(name.trim())).collect()
}

/// The run, whether its methods are built or not.
fn assemble(flags: &Flags, methods: &[&Method]) -> Result<Translation> {
    let uses = |name: &str| methods.iter().any(|m| m.name == name);
    let mut draft = Draft::new();
    flags.judge(&mut draft)?;
    sections(flags, &mut draft)?;

    // AWQ and SmoothQuant look at the float model; GPTQ goes through a block layer by layer.
    let on_floats = (uses("awq") || uses("smoothquant")) && !uses("gptq");
    let distils = uses("zeroquant") && flags.on("lkd", false);
    let propagate = match (flags.on("block-sequential", !on_floats && !distils), distils) {
        (false, _) => "reference",
        (true, true) => "both",
        (true, false) => "quantized",
    };
    draft.set("harness.propagate", propagate);
    draft.set("harness.sequence", if flags.on("layer-sequential", uses("gptq")) { "layer" } else { "block" });

    let weights = weights(flags, uses("gptq"), uses("awq"), &mut draft);
    let grouped = weights.as_table().and_then(|spec| spec.get("granularity")).is_some_and(Value::is_table);
    draft.set("scheme.weights", weights);
    if let Some(spec) = inputs(flags, uses("smoothquant"), &mut draft)? {
        if flags.on("quant-out", false) {
            draft.set("scheme.outputs", spec.clone());
        }
        draft.set("scheme.inputs", spec);
    } else if flags.given("quant-out") {
        draft.note(format!("{} has no effect: activations are not quantized", flags.shown("quant-out")));
    }
    passes(flags, methods, grouped, &mut draft);
    draft.finish()
}

fn sections(flags: &Flags, draft: &mut Draft) -> Result<()> {
    draft.set_some("model.path", flags.text("model"));
    match flags.text("model-type") {
        Some("other_model") => draft.note("`other_model`: the checkpoint says which architecture it has"),
        other => draft.set_some("model.type", other),
    }
    if let Some(data) = flags.text("calibrate-name") {
        if !DATA.contains(&data) {
            return Err(not_built(&format!("{} asks for the data set `{data}`", flags.shown("calibrate-name")), 1));
        }
        draft.set("calibration.source", data);
    }
    draft.set_some("calibration.split", flags.text("split"));
    draft.set_some("calibration.samples", flags.whole("num-calibrate"));
    draft.set_some("calibration.seq-len", flags.whole("calibrate-seq-length"));
    draft.set_some("harness.device", flags.text("device").map(|device| if device == "cuda" { "cuda:0" } else { device }));
    draft.set_some("output.path", flags.text("save"));
    if let Some(layers) = flags.list("skip-layers") {
        let ours = |name: &String| if name == "lm_head" { "head".to_owned() } else { name.clone() };
        let skip: Vec<String> = std::iter::once("embed".to_owned()).chain(layers.iter().map(ours)).collect();
        if !skip.iter().any(|name| name == "head") {
            draft.set("model.tie-policy", "untie");
        }
        draft.set("scheme.skip", skip);
    }
    Ok(())
}

fn weights(flags: &Flags, gptq: bool, awq: bool, draft: &mut Draft) -> Value {
    // Its GPTQ always has zero points.
    let affine = gptq || flags.on("w-has-zero", false);
    let Some(mut spec) = numbers(flags.text("w-dtype").unwrap_or("int4"), affine, flags.on("w-unsign", true), draft) else {
        return "keep".into();
    };
    let size = flags.whole("w-groupsize").filter(|n| *n != -1).or_else(|| flags.whole("groupsize"));
    let default = if awq { "per_group" } else { "per_channel" };
    let granularity = match (flags.text("w-qtype").unwrap_or(default), size) {
        ("per_group", Some(-1)) | ("per_channel", _) => "channel".into(),
        ("per_group", size) => table("group", size.unwrap_or(128)),
        _ => "tensor".into(),
    };
    spec.insert("granularity".to_owned(), granularity);
    spec.insert("range".to_owned(), "minmax".into());
    Value::Table(spec)
}

fn inputs(flags: &Flags, smoothquant: bool, draft: &mut Draft) -> Result<Option<Table>> {
    let dtype = flags.text("a-dtype").unwrap_or("float16");
    let Some(mut spec) = numbers(dtype, flags.on("a-has-zero", false), flags.on("a-unsign", true), draft) else { return Ok(None) };
    let kind = flags.text("a-qtype").unwrap_or(if smoothquant { "per_token" } else { "per_tensor" });
    let timing = flags.text("quantization-type").unwrap_or(if smoothquant { "dynamic" } else { "static" });
    if timing == "static" && kind != "per_tensor" {
        let why = format!("`{kind}` activations cannot be static: their scales depend on the tokens of a call");
        return Err(flags.wrong("a-qtype", why).hint("set `quantization_type` to `dynamic`, or `a_qtype` to `per_tensor`"));
    }
    let size = flags.whole("a-groupsize").filter(|n| *n != -1).or_else(|| flags.whole("groupsize"));
    let granularity = match (kind, size) {
        ("per_group", Some(-1)) | ("per_token", _) => "token".into(),
        ("per_group", size) => table("group", size.unwrap_or(128)),
        ("per_dimension", _) => "dimension".into(),
        _ => "tensor".into(),
    };
    spec.insert("granularity".to_owned(), granularity);
    spec.insert("timing".to_owned(), timing.into());
    spec.insert("range".to_owned(), "minmax".into());
    if timing == "static" {
        spec.insert("reduce".to_owned(), "concat".into());
    }
    Ok(Some(spec))
}

/// Format and zero point of a data type; none for `float16`.
fn numbers(dtype: &str, affine: bool, unsigned: bool, draft: &mut Draft) -> Option<Table> {
    let pairs: Vec<(&str, Value)> = match dtype {
        "float16" => return None,
        "fp4" => vec![("format", "float-e2m1".into())],
        "fp8" => {
            draft.note("`fp8` reaches to 240, as `float-fnuz-e4m3` does, which tells one more step of small magnitudes apart");
            vec![("format", "float-fnuz-e4m3".into())]
        }
        int => {
            let format = if unsigned { format!("u{int}") } else { int.to_owned() };
            let how = if affine { ("zero-point", "integer".into()) } else { ("convention", "pow-b1m1".into()) };
            vec![("format", format.into()), ("symmetric", (!affine).into()), how]
        }
    };
    Some(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn passes(flags: &Flags, methods: &[&Method], grouped: bool, draft: &mut Draft) {
    for method in methods {
        let mut options = Table::new();
        let mut set = |key: &str, value: Option<Value>| value.map(|value| options.insert(key.to_owned(), value));
        match method.name {
            "gptq" => {
                set("block-size", flags.whole("blocksize").map(Value::from));
                set("damp", flags.number("percdamp").map(Value::from));
                let ordered = flags.on("actorder", true);
                set("act-order", Some(if ordered { "static" } else { "off" }.into()));
                if grouped && ordered {
                    draft.note("with `actorder`, groups keep their stored columns, so that no container needs an index of them");
                } else if grouped {
                    set("static-groups", Some(false.into()));
                }
            }
            // Per linear and in the weights' and inputs' own proportion, as MI-optimize's search has it.
            "awq" => drop(set("duo-scaling", Some(true.into()))),
            "smoothquant" => drop(set("alpha", flags.number("alpha").map(Value::from))),
            _ => {}
        }
        if method.name != "zeroquant" {
            draft.pass(method.name, options);
        }
    }
    let distils = flags.on("lkd", false);
    if methods.iter().any(|m| m.rounds) {
        if distils {
            draft.note(format!("{} has no effect beside a method that rounds", flags.shown("lkd")));
        }
    } else if methods.iter().any(|m| m.name == "zeroquant") {
        let mut options = Table::new();
        options.insert("lkd".to_owned(), distils.into());
        draft.pass("zeroquant", options);
    } else {
        draft.pass("rtn", Table::new());
        if distils {
            draft.note(format!("{} has no effect without `zeroquant`", flags.shown("lkd")));
        }
    }
    for (key, method) in [("blocksize", "gptq"), ("percdamp", "gptq"), ("actorder", "gptq"), ("alpha", "smoothquant")] {
        if flags.given(key) && !methods.iter().any(|m| m.name == method) {
            draft.note(format!("{} has no effect without `{method}`", flags.shown(key)));
        }
    }
}
