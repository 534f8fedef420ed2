//! `qfw plan`, and what it shares with `qfw apply`: from arguments to a session.

use std::path::Path;

use qfw_core::harness::{Control, Measured};
use qfw_core::plan::layer::Layers;
use qfw_core::plan::raw::RawCalibration;
use qfw_core::registry::Registry;
use qfw_core::session::Session;
use qfw_core::{Error, Result, target};
use serde_json::json;

use super::{say_json, use_threads};
use crate::arguments::RunArgs;
use crate::terminal::{CANCELLED, catch_interrupt, duration, handle_interrupts, note, say, size};
use crate::{compat, dynamic, hub};

pub(crate) fn run(a: &RunArgs) -> Result<()> {
    if a.print_config {
        let (raw, notes) = layers(a)?.finish()?;
        notes.iter().for_each(|n| note(n));
        say(raw.to_toml()?.trim_end());
        return Ok(());
    }
    let (session, registry) = open(a, false)?;
    if !a.json {
        say(session.resolved.plan.to_string().trim_end());
        say(&format!("memory        {}", session.budget));
        if let Some(judgement) = &session.resolved.judgement {
            say(judgement.to_string().trim_end());
        }
    }
    let measured = if a.measure { Some(measure(&session, &registry)?) } else { None };
    if a.json {
        return say_json(&json!({
            "plan": session.resolved.plan, "memory": session.budget, "notes": session.resolved.notes, "measured": measured,
            "target": session.resolved.judgement,
        }));
    }
    if let Some(m) = &measured {
        let blocks = session.resolved.plan.blocks;
        say(&format!("time          {}: {blocks} blocks of {}", duration(m.total_seconds), duration(m.block_seconds)));
        say(&format!("measured      block 0 took up to {} of memory", size(m.peak_rss_bytes)));
        say(&format!("disk          {} of quantized weights, {} while it runs", size(m.quantized_bytes), size(m.work_bytes)));
    }
    Ok(())
}

/// Block 0, run for its cost.
fn measure(session: &Session, registry: &Registry) -> Result<Measured> {
    catch_interrupt();
    let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "create a directory in", e))?;
    session.measure(registry, dir.path(), &Control::new(&|_| (), &CANCELLED))
}

/// The session that the arguments describe, and what it chooses from; notes go to stderr. `demand`: what the engine of `--target` does not
/// load is refused before data is looked for.
pub(crate) fn open(a: &RunArgs, demand: bool) -> Result<(Session, Registry)> {
    let (raw, notes) = layers(a)?.finish()?;
    handle_interrupts();
    if let Some(target) = &raw.output.target {
        // Before a model is fetched for nothing.
        target::check(target)?;
    }
    let registry = dynamic::registry(&raw.plugins, &a.dynamic)?;
    use_threads(raw.harness.threads.map(Into::into))?;
    let model = hub::model(Path::new(&raw.model.path))?;
    let named = a.data.is_some() || raw.calibration.source != RawCalibration::default().source;
    if demand {
        Session::demand_target(&raw, &registry, !a.algo.is_empty(), &model)?;
    }
    let session = Session::open_at(raw, &registry, !a.algo.is_empty(), &model, &mut |c| hub::calibration(c, named))?;
    notes.iter().chain(&session.resolved.notes).for_each(|n| note(&format!("note: {n}")));
    Ok((session, registry))
}

fn layers(a: &RunArgs) -> Result<Layers> {
    let mut layers = Layers::new();
    if let Some(preset) = &a.preset {
        layers = layers.preset(preset);
    }
    if let Some(path) = &a.config {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        layers = layers.file(&path.display().to_string(), &text);
    }
    if let Some(system) = a.compat {
        let translation = compat::translate(system, &a.words)?;
        translation.notes.iter().for_each(|n| note(&format!("note: {n}")));
        if !a.print_config {
            note(&format!("# --compat {} is read as this run.toml:\n{}", system.name(), translation.toml));
        }
        layers = layers.file(&format!("the translation of `--compat {}`", system.name()), &translation.toml);
    }
    layers = layers.algo(&a.algo);
    let text = [
        ("model.path", &a.model, "MODEL"),
        ("calibration.source", &a.data, "--data"),
        ("output.target", &a.target, "--target"),
        ("harness.device", &a.device, "--device"),
        ("harness.budget", &a.budget, "--budget"),
    ];
    for (path, value, flag) in text {
        if let Some(value) = value {
            layers = layers.set(path, value.as_str(), flag);
        }
    }
    if let Some(out) = &a.output {
        layers = layers.set("output.path", out.display().to_string().as_str(), "--output");
    }
    if !a.format.is_empty() {
        let formats: Vec<toml::Value> = a.format.iter().map(|f| toml::Value::from(f.as_str())).collect();
        layers = layers.set("output.format", toml::Value::Array(formats), "--format");
    }
    if a.keep_native {
        layers = layers.set("output.keep-native", true, "--keep-native");
    }
    if a.resume {
        layers = layers.set("harness.resume", true, "--resume");
    }
    if a.strict {
        layers = layers.set("harness.on-failure", "error", "--strict");
    }
    let number =
        |n: u64, flag: &str| i64::try_from(n).map_err(|_| Error::config("config::invalid", format!("`{flag}` is {n}, which is too large")));
    if let Some(n) = a.threads {
        layers = layers.set("harness.threads", number(n as u64, "--threads")?, "--threads");
    }
    if let Some(n) = a.seed {
        layers = layers.set("calibration.seed", number(n, "--seed")?, "--seed");
    }
    for assignment in &a.set {
        layers = layers.override_set(assignment);
    }
    Ok(layers)
}
