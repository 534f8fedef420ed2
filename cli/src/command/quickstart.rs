//! `qfw quickstart`: two tiny models, each quantized several ways and measured on text they have not seen.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use qfw_core::calibration::{Bos, evaluation_windows, read_corpus, token_stream};
use qfw_core::evaluate::{EvalControl, Perplexity, Protocol, perplexity};
use qfw_core::harness::{Control, Mode};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::{Opened, Session};
use qfw_core::{Error, Result};
use serde::Serialize;

use super::{say_json, use_threads};
use crate::arguments::Quickstart;
use crate::assets::{CALIBRATION, EVALUATION, MODELS, unpack};
use crate::terminal::{note, say, size};

/// Tokens per window: what the tiny models were trained on.
const WINDOW: usize = 256;
/// Windows to calibrate on.
const SAMPLES: i64 = 64;

/// The ways each model is quantized: label, algorithm, number format.
const WAYS: [(&str, &str, &str); 4] =
    [("RTN W4", "rtn", "int4"), ("GPTQ W4", "gptq", "int4"), ("GPTQ W3", "gptq", "int3"), ("GPTQ W2", "gptq", "int2")];

#[derive(Serialize)]
struct Row {
    model: String,
    method: &'static str,
    bits_per_weight: f64,
    bytes: u64,
    perplexity: f64,
    perplexity_stderr: f64,
    path: PathBuf,
}

pub(crate) fn run(a: &Quickstart) -> Result<()> {
    use_threads(None)?;
    let registry = Registry::linked()?;
    let dir = tempfile::Builder::new()
        .prefix("qfw-quickstart-")
        .tempdir()
        .map_err(|e| Error::io(Path::new("."), "create a directory beside", e))?
        .keep();
    unpack(&dir, &[CALIBRATION, EVALUATION])?;
    let mut rows = Vec::new();
    for (name, files) in MODELS {
        let model = dir.join(name);
        unpack(&model, files)?;
        let float = Opened::open(&model, &registry)?;
        let bytes = std::fs::metadata(model.join("model.safetensors")).map_or(0, |m| m.len());
        rows.push(row(name, "float", 16.0, bytes, &measure(&float, &dir)?, &model));
        for (method, algo, format) in WAYS {
            note(&format!("{name}: {method}"));
            let out = dir.join(format!("{name}-{}", method.to_lowercase().replace(' ', "-")));
            let (bits, bytes) = quantize(&registry, &dir, &model, &out, algo, format)?;
            rows.push(row(name, method, bits, bytes, &measure(&Opened::open(&out, &registry)?, &dir)?, &out));
        }
    }
    if a.json { say_json(&rows) } else { print(&rows, &dir) }
}

fn quantize(registry: &Registry, dir: &Path, model: &Path, out: &Path, algo: &str, format: &str) -> Result<(f64, u64)> {
    let text = |path: &Path| path.display().to_string();
    let (raw, _) = Layers::new()
        .set("scheme.weights.format", format, "quickstart")
        .override_set("scheme.weights.granularity.group=\"auto:128\"")
        .algo(&[algo])
        .set("model.path", text(model), "quickstart")
        .set("calibration.source", text(&dir.join(CALIBRATION.0)), "quickstart")
        .set("calibration.samples", SAMPLES, "quickstart")
        .set("calibration.seq-len", WINDOW as i64, "quickstart")
        .set("output.format", toml::Value::Array(vec!["qfw".into()]), "quickstart")
        .finish()?;
    let session = Session::open(raw, registry, true)?;
    let never = AtomicBool::new(false);
    let summary = session.execute(registry, out, Mode::Fresh, &Control::new(&|_| (), &never))?;
    Ok((session.resolved.plan.bits_per_weight().unwrap_or(16.0), summary.bytes))
}

fn measure(opened: &Opened, dir: &Path) -> Result<Perplexity> {
    let tokenizer = opened.tokenizer()?;
    let corpus = read_corpus(&dir.join(EVALUATION.0), "text", tokenizer.as_ref())?;
    let stream = token_stream(&corpus, tokenizer.as_ref(), Bos::None)?;
    let windows: Vec<(Vec<u32>, usize)> = evaluation_windows(&stream, WINDOW, None, None)?.ids.into_iter().map(|ids| (ids, 0)).collect();
    let control = EvalControl { progress: &|_, _| (), cancelled: &|| false, stream_bytes: 1 << 30, bf16: None };
    perplexity(&opened.model, &windows, Protocol::Gptq, &control)
}

fn row(model: &str, method: &'static str, bits: f64, bytes: u64, p: &Perplexity, path: &Path) -> Row {
    Row {
        model: model.to_owned(),
        method,
        bits_per_weight: bits,
        bytes,
        perplexity: p.perplexity,
        perplexity_stderr: p.perplexity_stderr,
        path: path.to_owned(),
    }
}

fn print(rows: &[Row], dir: &Path) -> Result<()> {
    for (name, _) in MODELS {
        say(&format!("\n{name}\n  {:<10} {:>11} {:>10} {:>12}", "method", "bits/weight", "size", "perplexity"));
        for r in rows.iter().filter(|r| r.model == name) {
            let p = format!("{:.3}", r.perplexity);
            say(&format!("  {:<10} {:>11.2} {:>10} {p:>12} ± {:.3}", r.method, r.bits_per_weight, size(r.bytes), r.perplexity_stderr));
        }
    }
    say(&format!("\nThe checkpoints and texts are in {}", dir.display()));
    say("\nOn a real model:");
    say("  qfw plan  MODEL --preset w4a16 --data TEXT.txt            what will happen, and how much memory it takes");
    say("  qfw apply MODEL --preset w4a16 --data TEXT.txt -o OUT     quantize; OUT loads in vLLM and transformers");
    say("  qfw eval  OUT   --data TEXT.txt                           perplexity of what was written");
    Ok(())
}
