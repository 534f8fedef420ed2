//! The LLM entry point of Brevitas.

mod rows;
mod tensors;
#[cfg(test)]
mod tests;
mod transforms;

use qfw_core::Result;
use toml::Table;

use super::Translation;
use super::draft::Draft;
use super::flags::Flags;
use super::words::{self, Manner};

pub(super) fn translate(words: &[String]) -> Result<Translation> {
    let manner = Manner { rows: rows::ROWS, file_flag: "config", bare_files: false };
    let flags = Flags::read(words::read(words, &manner)?, rows::ROWS, "Brevitas")?;
    let mut draft = Draft::new();
    flags.judge(&mut draft)?;
    sections(&flags, &mut draft)?;
    tensors::weights(&flags, &mut draft)?;
    tensors::inputs(&flags, &mut draft)?;
    tensors::attention(&flags, &mut draft)?;
    passes(&flags, &mut draft)?;
    draft.finish()
}

/// `[model]`, `[calibration]`, `[harness]`, `[eval]` and `[output]`. What is not given has the same default here.
fn sections(flags: &Flags, draft: &mut Draft) -> Result<()> {
    draft.set_some("model.path", flags.text("model"));
    draft.set_some("model.dtype", flags.text("dtype"));
    draft.set_some("calibration.source", flags.text("dataset"));
    draft.set_some("calibration.samples", flags.whole("nsamples"));
    draft.set_some("calibration.seq-len", flags.whole("seqlen"));
    draft.set_some("calibration.seed", flags.whole("seed"));
    if let Some(bos) = flags.text("bos-preprocessing") {
        let one_text = flags.text("dataset").unwrap_or("wikitext2") == "wikitext2";
        if one_text && bos == "document" {
            draft.note("wikitext2 is read as one text, so that `--bos-preprocessing document` is done as `sequence`, as Brevitas does");
        }
        draft.set("calibration.bos", if one_text { "sequence" } else { bos });
    }
    if flags.on("quantize-last-layer", false) {
        draft.set("scheme.skip", vec!["embed"]);
        draft.set("model.tie-policy", "untie");
    }
    if flags.on("no-quantize", false) {
        draft.set("harness.no-quantize", true);
    }
    draft.set_some("harness.block-name", flags.text("gpxq-block-name"));
    if flags.on("eval", false) {
        draft.set("eval.protocol", "brevitas");
        draft.set("eval.data", flags.text("dataset").unwrap_or("wikitext2"));
        draft.note("`--eval`: the result is measured by `qfw eval OUT --protocol brevitas --data NAME`");
    }
    export(flags, draft)
}

/// Where the result goes, and as what. The types of GGUF follow from the scheme, which has to be one that is stored in that type.
fn export(flags: &Flags, draft: &mut Draft) -> Result<()> {
    draft.set_some("output.path", flags.text("checkpoint-name"));
    let Some(target) = flags.text("export-target") else { return Ok(()) };
    if !flags.given("checkpoint-name") {
        draft.set_some("output.path", flags.text("export-prefix"));
    }
    let (bits, kind) = match target {
        "gguf:q8_0" => (8, "sym"),
        "gguf:q4_0" => (4, "sym"),
        "gguf:q4_1" => (4, "asym"),
        "onnx_qcdq" => return clipped_graph(flags, draft),
        // What it holds, the container says of the plan.
        "shark" => {
            draft.set("output.format", vec!["shark"]);
            return Ok(());
        }
        _ => return group_weights(flags, draft, target),
    };
    let given = (flags.whole("weight-bit-width").unwrap_or(8), flags.text("weight-quant-type").unwrap_or("sym"));
    if given != (bits, kind) {
        let why = format!("`{target}` holds `--weight-bit-width {bits} --weight-quant-type {kind}`, not {} and {}", given.0, given.1);
        return Err(flags.wrong("export-target", why));
    }
    draft.set("output.format", vec!["gguf"]);
    Ok(())
}

/// `onnx_qcdq`, whose zero points are integers.
fn clipped_graph(flags: &Flags, draft: &mut Draft) -> Result<()> {
    let kinds = [("weight-quant-type", "quantize-weight-zero-point"), ("input-quant-type", "quantize-input-zero-point")];
    if let Some((kind, rounded)) = kinds.into_iter().find(|(kind, rounded)| flags.text(kind) == Some("asym") && !flags.on(rounded, false)) {
        return Err(flags.wrong("export-target", format!("`onnx_qcdq` holds integer zero points, so `--{kind} asym` needs `--{rounded}`")));
    }
    draft.set("output.format", vec!["onnx-qcdq"]);
    Ok(())
}

/// The two for torch-mlir: what they hold is held by the native form.
fn group_weights(flags: &Flags, draft: &mut Draft, target: &str) -> Result<()> {
    let needs = |what: &str| Err(flags.wrong("export-target", format!("`{target}` {what}")));
    if flags.text("weight-quant-granularity") != Some("per_group") {
        return needs("holds groups: `--weight-quant-granularity per_group`");
    }
    if flags.given("input-bit-width") {
        return needs("holds weights only, without `--input-bit-width`");
    }
    if flags.on("quantize-weight-zero-point", false) {
        return needs("holds float zero points, without `--quantize-weight-zero-point`");
    }
    draft.note(format!("`--export-target {target}` is the native form here: safetensors shards whose codes are packed"));
    draft.set("output.format", vec!["qfw"]);
    Ok(())
}

/// Flags that the three methods which go column by column share.
const SHARED: [&str; 3] = ["gpxq-act-order", "gpxq-use-quant-activations", "gpxq-max-accumulator-bit-width"];

fn passes(flags: &Flags, draft: &mut Draft) -> Result<()> {
    transforms::passes(flags, draft)?;
    if flags.on("magr", false) {
        let alpha = flags.number("magr-alpha").unwrap_or(0.01);
        // Its steps have no momentum, and it takes all of them.
        let options = [
            ("alpha", alpha.into()),
            ("alpha-mode", "brevitas".into()),
            ("per", "channel".into()),
            ("solver", "plain".into()),
            ("iterations", 200.into()),
            ("tolerance", 0.0.into()),
        ];
        draft.pass("magr", options.into_iter().map(|(k, v): (&str, toml::Value)| (k.to_owned(), v)).collect());
        draft.note("`--magr`: Brevitas takes the inputs of the float model, here they are those of the partly quantized one");
    }
    if flags.on("awq-clip", false) {
        draft.pass("clip", Table::new());
    }
    if flags.on("svd-quant", false) {
        let options = [("rank", "svd-quant-rank"), ("iters", "svd-quant-iters")];
        let given = options.into_iter().filter_map(|(ours, theirs)| Some((ours.to_owned(), flags.whole(theirs)?.into())));
        draft.pass("svdquant", given.collect());
        draft.set("output.format", vec!["qfw"]);
    }
    rounding(flags, draft)?;
    if flags.on("bias-corr", false) {
        draft.set("harness.propagate", "both");
        draft.pass("bias-correction", Table::from_iter([("inputs".to_owned(), "reference".into())]));
    }
    Ok(())
}

/// The defaults are Brevitas'.
fn learned_round(flags: &Flags, draft: &mut Draft) {
    for name in SHARED.into_iter().filter(|name| flags.given(name)) {
        draft.note(format!("{} has no effect without `gptq`, `gpfq` or `qronos`", flags.shown(name)));
    }
    let mut options = Table::new();
    let mut set = |name: &str, value: toml::Value| options.insert(name.to_owned(), value);
    set("iters", flags.whole("learned-round-iters").unwrap_or(200).into());
    set("lr", flags.number("learned-round-lr").unwrap_or(5e-3).into());
    let scales = flags.on("learned-round-scale", false);
    set("learn-scale", scales.into());
    if scales {
        set("scale-optimizer", "sgd".into());
        set("scale-lr", flags.number("learned-round-scale-lr").unwrap_or(1e-2).into());
        set("scale-momentum", flags.number("learned-round-scale-momentum").unwrap_or(0.9).into());
    } else {
        for name in ["learned-round-scale-lr", "learned-round-scale-momentum"].into_iter().filter(|name| flags.given(name)) {
            draft.note(format!("{} has no effect without `--learned-round-scale`", flags.shown(name)));
        }
    }
    if !flags.on("learned-round-fast-update", false) {
        draft.note("`--learned-round`: no block is run again once it is learned, as with `--learned-round-fast-update`");
    }
    draft.pass("learned-round", options);
}

fn rounding(flags: &Flags, draft: &mut Draft) -> Result<()> {
    let learned = flags.text("learned-round").map(|_| "learned-round");
    let methods: Vec<&str> = ["gptq", "gpfq", "qronos"].into_iter().filter(|m| flags.on(m, false)).chain(learned).collect();
    let method = match methods[..] {
        [] => {
            for name in SHARED.into_iter().filter(|name| flags.given(name)) {
                draft.note(format!("{} has no effect without `gptq`, `gpfq` or `qronos`", flags.shown(name)));
            }
            draft.pass("rtn", Table::new());
            return Ok(());
        }
        ["learned-round"] => {
            learned_round(flags, draft);
            return Ok(());
        }
        [method] => method,
        [first, second, ..] => {
            return Err(flags.wrong(second, format!("a weight is rounded once, and {} does it already", flags.shown(first))));
        }
    };
    // Brevitas runs the partly quantized model up to each layer in turn, whether it keeps the inputs of blocks or not.
    draft.set("harness.sequence", "layer");
    draft.set("harness.propagate", if method == "gptq" { "quantized" } else { "both" });
    let order = if flags.on("gpxq-act-order", false) { "static" } else { "off" };
    let mut options = Table::from_iter([("act-order".to_owned(), order.into())]);
    let mut set = |name: &str, value: toml::Value| options.insert(name.to_owned(), value);
    if method == "gptq" {
        if flags.on("gpxq-use-quant-activations", false) {
            set("use-quant-activations", true.into());
        }
    } else if flags.on("disable-create-weight-orig", false) || !flags.on("gpxq-create-weight-orig", true) {
        let name = if flags.given("disable-create-weight-orig") { "disable-create-weight-orig" } else { "gpxq-create-weight-orig" };
        return Err(flags.wrong(name, format!("`{method}` aims at the output of the original weights")));
    }
    if method == "qronos" {
        if let Some(alpha) = flags.number("qronos-alpha") {
            set("alpha", alpha.into());
        }
        if flags.given("gpxq-max-accumulator-bit-width") {
            draft.note(format!("{} has no effect on `qronos`, in Brevitas as here", flags.shown("gpxq-max-accumulator-bit-width")));
        }
    } else if let Some(bits) = flags.whole("gpxq-max-accumulator-bit-width") {
        set("accumulator-bits", bits.into());
        if let Some(tile) = flags.whole("gpxq-max-accumulator-tile-size") {
            set("accumulator-tile", tile.into());
        }
    }
    draft.pass(method, options);
    if method != "gpfq" {
        draft.note(format!(
            "`--{method}`: Brevitas updates the weights in 100 runs of columns, here runs have 128; this changes speed only"
        ));
    }
    Ok(())
}
