//! `qfw export`

use std::path::Path;

use qfw_core::export::{Export, Made, Request};
use qfw_core::harness::{Control, peak_rss};
use qfw_core::registry::Registry;
use qfw_core::{Error, Result};
use serde_json::{Value, json};

use super::{adapter, say_json, use_threads};
use crate::arguments;
use crate::hub;
use crate::terminal::{CANCELLED, RunDisplay, catch_interrupt, duration, note, say, size};

pub(crate) fn run(a: &arguments::Export) -> Result<()> {
    use_threads(a.threads)?;
    let registry = Registry::linked()?;
    let request = Request { formats: a.format.clone(), target: a.target.clone(), dtype: a.dtype };
    // Names are looked up before anything is downloaded.
    a.format.iter().try_for_each(|f| registry.container(f).map(|_| ()))?;
    let export = Export::open(&hub::model(&a.model)?, &registry, &request)?;
    if !a.json || !a.dry_run {
        before(&export);
    }
    export.demand(a.requantize).map_err(|e| exact(a, &export, &registry, e))?;
    let Some(out) = a.output.as_deref().filter(|_| !a.dry_run) else {
        return if a.json { say_json(&object(a, &export, None)) } else { Ok(()) };
    };
    catch_interrupt();
    let display = RunDisplay::new(a.json);
    let show = |p| display.show(&p);
    let done = export.write(out, a.overwrite, &registry, &Control::new(&show, &CANCELLED))?;
    if a.json {
        return say_json(&object(a, &export, Some(&done)));
    }
    for made in export.made() {
        let at = place(out, &export, made);
        let bits = made.plan.bits_per_weight().map_or_else(String::new, |b| format!(", {b:.2} bits per quantized weight with scales"));
        say(&format!("`{at}`: {}{bits}", size(done.bytes.get(&made.format).copied().unwrap_or(0))));
    }
    if let Some(made) = export.made().first() {
        let dirs: Vec<String> = export.made().iter().map(|made| place(out, &export, made)).collect();
        adapter::say_how(&dirs, &made.plan);
    }
    say(&format!("written in {}, peak memory {}", duration(done.seconds), size(peak_rss())));
    say(&format!("next: qfw verify {}", out.display()));
    Ok(())
}

/// Where a format lies.
fn place(out: &Path, export: &Export, made: &Made) -> String {
    if export.made().len() > 1 { out.join(&made.format).display().to_string() } else { out.display().to_string() }
}

/// What is going to change, before it does.
fn before(export: &Export) {
    for made in export.made() {
        note(&format!("{} to {}", export.container(), made.format));
        made.changes.iter().for_each(|c| note(&format!("  {c}")));
        if made.changes.is_empty() {
            note("  nothing in it is quantized");
        }
        made.notes.iter().for_each(|n| note(&format!("  {n}")));
    }
    if let Some(judgement) = &export.judgement {
        note(judgement.to_string().trim_end());
    }
}

/// The error with the very commands that are ways out of it.
fn exact(a: &arguments::Export, export: &Export, registry: &Registry, e: Error) -> Error {
    if e.code() != "export::changes" {
        return e;
    }
    let out = a.output.as_deref().unwrap_or_else(|| Path::new("OUT")).display().to_string();
    let command = |format: &str| format!("qfw export {} --format {format} -o {out}", a.model.display());
    let anyway = format!("`{} --requantize` writes it all the same", command(&a.format.join(",")));
    let hint = match export.holders(registry).first() {
        Some(format) => format!("{anyway}; `{}` keeps every value", command(format)),
        None => anyway,
    };
    e.hint(hint)
}

fn object(a: &arguments::Export, export: &Export, done: Option<&qfw_core::export::Exported>) -> Value {
    let of = |made: &Made| {
        json!({
            "format": made.format, "changes": made.changes, "notes": made.notes, "bits_per_weight": made.plan.bits_per_weight(),
            "output": a.output.as_deref().map(|out| place(out, export, made)),
            "bytes": done.and_then(|d| d.bytes.get(&made.format)),
        })
    };
    let formats: Vec<Value> = export.made().iter().map(of).collect();
    json!({
        "model": a.model, "container": export.container(), "output": a.output, "written": done.is_some(), "formats": formats,
        "seconds": done.map(|d| d.seconds), "peak_rss_bytes": peak_rss(), "target": export.judgement,
    })
}
