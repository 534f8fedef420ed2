//! `qfw apply`

use std::collections::BTreeMap;
use std::path::Path;

use qfw_core::algorithm::Event;
use qfw_core::harness::{Control, Mode, SiteReport, Summary, peak_rss};
use qfw_core::plan::Plan;
use qfw_core::session::Session;
use qfw_core::{Error, Result};
use serde_json::json;

use super::{adapter, plan, say_json};
use crate::arguments::RunArgs;
use crate::terminal::{CANCELLED, RunDisplay, catch_interrupt, duration, error_of, note, say, size};

pub(crate) fn run(a: &RunArgs) -> Result<()> {
    if let Some(flag) = [("--print-config", a.print_config), ("--measure", a.measure)].iter().find_map(|(f, given)| given.then_some(f)) {
        return Err(Error::config("config::invalid", format!("`{flag}` belongs to `qfw plan`")).hint("leave it out, or say `qfw plan`"));
    }
    let (session, registry) = plan::open(a, true)?;
    let Some(out) = session.raw.output.path.clone() else {
        return Err(
            Error::config("config::missing", "no output directory was given").hint("add `-o OUT`, or `output.path` to the configuration")
        );
    };
    let mode = match (session.raw.harness.resume, a.overwrite) {
        (_, true) => Mode::Overwrite,
        (true, _) => Mode::Resume,
        _ => Mode::Fresh,
    };
    catch_interrupt();
    if !a.json {
        note(session.resolved.plan.to_string().trim_end());
        note(&format!("memory        {}", session.budget));
        if let Some(judgement) = &session.resolved.judgement {
            note(judgement.to_string().trim_end());
        }
    }
    let display = RunDisplay::new(a.json);
    let show = |p| display.show(&p);
    let summary = session.execute(&registry, Path::new(&out), mode, &Control::new(&show, &CANCELLED))?;
    report(&session, &summary, &out, a.json)
}

fn report(session: &Session, summary: &Summary, out: &str, json: bool) -> Result<()> {
    let plan = &session.resolved.plan;
    if json {
        let sites: Vec<_> = summary
            .sites
            .iter()
            .map(|s| {
                let scheme = plan.sites.iter().find(|p| p.site == s.site).and_then(|p| p.weights.as_ref()).map(ToString::to_string);
                json!({
                    "name": s.site, "scheme": scheme, "error": error_of(s), "weight_error": s.weight_error,
                    "seconds": summary.site_seconds.get(&s.site), "algo": s.algo, "events": s.events,
                })
            })
            .collect();
        return say_json(&json!({
            "sites": sites, "seconds": summary.seconds, "peak_rss_bytes": peak_rss(), "output": out,
            "bytes": summary.bytes, "format_bytes": summary.format_bytes, "bits_per_weight": plan.bits_per_weight(), "already_done": summary.already_done,
            "target": session.resolved.judgement,
        }));
    }
    if summary.already_done {
        say(&format!("`{out}` is finished already, under this very plan"));
        return Ok(());
    }
    let formats = &plan.output.formats;
    let dir = |f: &String| if formats.len() > 1 { format!("{out}/{f}") } else { out.to_owned() };
    let dirs: Vec<String> = formats.iter().map(dir).collect();
    if summary.sites.is_empty() {
        say(&format!("`{out}`: {}, nothing quantized", size(summary.bytes)));
        next(&dirs, false);
        return Ok(());
    }
    say(&format!("{} layers quantized in {}, peak memory {}", summary.sites.len(), duration(summary.seconds), size(peak_rss())));
    say(&format!("`{out}`: {}, {:.2} bits per quantized weight with scales", size(summary.bytes), plan.bits_per_weight().unwrap_or(0.0)));
    events(&summary.sites);
    let mut worst: Vec<_> = summary.sites.iter().collect();
    worst.sort_by(|a, b| error_of(b).total_cmp(&error_of(a)).then(a.site.cmp(&b.site)));
    let what = if worst.first().is_some_and(|s| s.output_error.is_some()) { "output" } else { "weight" };
    say(&format!("largest relative {what} errors:"));
    for s in worst.iter().take(3) {
        say(&format!("  {:<24} {:.4}", shown(plan, &s.site), error_of(s)));
    }
    next(&dirs, true);
    adapter::say_how(&dirs, plan);
    Ok(())
}

/// What to do with the result: a graph is not read here, and floats need no other format.
fn next(dirs: &[String], quantized: bool) {
    let graph = |dir: &&String| Path::new(dir).join("model.onnx").exists();
    if let Some(dir) = dirs.iter().find(|dir| !graph(dir)) {
        say(&format!("next: qfw eval {dir} --data FILE"));
        if quantized {
            say(&format!("      qfw export {dir} --format F -o DIR  (the same codes for another engine)"));
        }
    } else if let Some(dir) = dirs.first() {
        say(&format!("next: load {dir}/model.onnx in onnxruntime"));
    }
}

/// What a person knows a site by: its role, or the stored name where the architecture is unknown.
fn shown<'a>(plan: &'a Plan, site: &'a str) -> &'a str {
    let module = plan.sites.iter().find(|p| p.site == site && site.ends_with(".linear")).map(|p| p.module.as_str());
    module.unwrap_or(site)
}

fn events(sites: &[SiteReport]) {
    for (s, e) in sites.iter().flat_map(|s| s.events.iter().map(move |e| (s, e))) {
        match e {
            Event::Fallback { reason } => note(&format!("warning: `{}` was rounded to nearest: {reason}", s.site)),
            Event::Skipped { reason } => note(&format!("warning: `{}`: {reason}", s.site)),
            _ => {}
        }
    }
    scaled(sites);
    let dead: usize = sites.iter().flat_map(|s| &s.events).map(|e| if let Event::DeadColumns { count } = e { *count } else { 0 }).sum();
    let damped = sites.iter().filter(|s| s.events.iter().any(|e| matches!(e, Event::Damped { .. }))).count();
    if dead > 0 {
        say(&format!("{dead} input channels never fired on the calibration data"));
    }
    if damped > 0 {
        say(&format!("{damped} layers needed more damping than asked for"));
    }
}

/// What searched scales have gained, pass by pass.
fn scaled(sites: &[SiteReport]) {
    let mut errors: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for e in sites.iter().flat_map(|s| &s.events) {
        if let Event::Scaled { by, error: Some(error), .. } = e {
            errors.entry(by).or_default().push(*error);
        }
    }
    for (by, errors) in errors {
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        say(&format!("{by} scaled {} regions; rounded to nearest, they err {mean:.2} times as much as before", errors.len()));
    }
}
