//! From native shards to the finished output directory.
//!
//! Shards are written under their final names while `config.json` is absent, which keeps OUT from looking loadable; the index and then
//! `config.json` are renamed into place last. A GGUF file, which needs nothing beside it, is itself renamed into place last, and so is a
//! file that describes another.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::journal::{self, Journal};
use super::output::{Late, Output, run_log};
use super::record::FILE as RECORD;
use super::report::{Progress, SiteReport};
use super::run::{Control, Mode, Run, same_plan};
use crate::checkpoint::fingerprint::Fingerprints;
use crate::checkpoint::native::NativeReader;
use crate::checkpoint::{BranchPlace, adapter, open_tensors, replace_file};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::registry::Registry;

/// What is outside the guarantee.
pub(crate) const LOG: &str = "qfw-run.jsonl";

/// The work directory after its last use. Removing a directory is not one step, renaming it is.
pub(super) const USED: &str = ".qfw-used";

/// Makes OUT ready. `Some` if it is finished already under this very plan.
pub(super) fn prepare(out: &Path, mode: Mode, plan: &Plan, registry: &Registry) -> Result<Option<Vec<SiteReport>>> {
    let empty = is_empty(out)?;
    let unfinished = out.join(journal::DIR).exists();
    match mode {
        Mode::Fresh if !empty => {
            let hint = if unfinished { "`--resume` goes on with the unfinished run; " } else { "" };
            return Err(not_empty(out, hint));
        }
        Mode::Resume if !empty && !unfinished => {
            let path = out.join(RECORD);
            let text = match std::fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let what = format!("`{}` holds something that this program did not make", out.display());
                    return Err(Error::config("run::output", what).hint("choose another output directory"));
                }
                text => text.map_err(|e| Error::io(&path, "read", e))?,
            };
            let damaged = |e: serde_json::Error| {
                Error::config("run::record", format!("`{}` is damaged, or of another version of this program: {e}", path.display()))
                    .hint("`--overwrite` writes the model anew")
            };
            let record: Value = serde_json::from_slice(&text).map_err(damaged)?;
            let there: Plan = serde_json::from_value(record["plan"].clone()).map_err(damaged)?;
            same_plan(&there, plan)?;
            remove_dir(&out.join(USED))?;
            let sites = serde_json::from_value(record["sites"].clone()).map_err(damaged)?;
            return Ok(Some(sites));
        }
        Mode::Overwrite if !empty => clear(out, registry)?,
        _ => {}
    }
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, "create", e))?;
    Ok(None)
}

/// Whether there is nothing at `out`, or a directory without anything in it.
pub(super) fn is_empty(out: &Path) -> Result<bool> {
    if out.exists() && !out.is_dir() {
        return Err(Error::config("run::output", format!("`{}` is a file", out.display())).hint("give a directory"));
    }
    Ok(!out.exists() || std::fs::read_dir(out).map_err(|e| Error::io(out, "list", e))?.next().is_none())
}

/// `hint` is put before the way out that there always is.
pub(super) fn not_empty(out: &Path, hint: &str) -> Error {
    Error::config("run::output", format!("`{}` is not empty", out.display())).hint(format!("{hint}`--overwrite` replaces what is there"))
}

/// Removes what an earlier run wrote. A directory that no run wrote is not touched, nor one that a run is writing.
fn clear(out: &Path, registry: &Registry) -> Result<()> {
    ours(out)?;
    // The work directory stays, without its journal: stopped halfway, what is left counts as unfinished work.
    let _lock = journal::lock(out)?;
    sweep(out, registry)
}

/// Refuses a directory that no run wrote.
pub(super) fn ours(out: &Path) -> Result<()> {
    if out.join(RECORD).exists() || out.join(journal::DIR).exists() {
        return Ok(());
    }
    Err(Error::config("run::output", format!("`{}` was not written by this program, and is not overwritten", out.display()))
        .hint("empty it yourself, or choose another output directory"))
}

/// Removes all that a run writes but the work directory; first what makes the rest loadable.
pub(super) fn sweep(out: &Path, registry: &Registry) -> Result<()> {
    let files = [out.join(journal::DIR).join(journal::FILE), out.join("config.json")];
    files.iter().try_for_each(|f| remove_file(f))?;
    let written = |name: &str| {
        [USED, "native", adapter::DIR].contains(&name) || registry.list().iter().any(|l| l.kind == "output-format" && l.id == name)
    };
    for entry in std::fs::read_dir(out).map_err(|e| Error::io(out, "list", e))? {
        let entry = entry.map_err(|e| Error::io(out, "list", e))?;
        let path = entry.path();
        if !path.is_dir() {
            remove_file(&path)?;
        } else if entry.file_name().to_str().is_some_and(written) {
            remove_dir(&path)?;
        }
    }
    Ok(())
}

/// Removes a file that need not be there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Removes a directory that need not be there.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Writes the containers, the record, the model card and the side files, and removes the work directory.
pub(super) fn finish(
    out: &Path,
    journal: &Journal,
    run: &Run<'_>,
    start: Instant,
    sites: &Vec<SiteReport>,
    control: &Control<'_>,
) -> Result<()> {
    let plan = run.plan();
    let native = reader(journal, run)?;
    let several = plan.output.formats.len() > 1;
    let body = run.model().architecture().body();
    let (mut last, mut fingerprints) = (Vec::new(), BTreeMap::new());
    for format in &plan.output.formats {
        if control.cancelled() {
            return Err(Error::interrupted());
        }
        control.report(Progress::Export { format: format.clone() });
        let dir = if several { out.join(format) } else { out.to_owned() };
        let output =
            Output { container: run.registry().container(format)?.container, plan, checkpoint: run.checkpoint(), native: &native, body };
        fingerprints.insert(format.as_str(), output.write(&dir, &mut last)?);
    }
    replace_file(&out.join(RECORD), &record(run, journal, sites, &fingerprints)?)?;
    replace_file(&out.join("README.md"), card(run, sites).as_bytes())?;
    replace_file(&out.join(LOG), run_log(start).as_bytes())?;
    if plan.output.keep_native {
        let kept = out.join("native");
        std::fs::create_dir_all(&kept).map_err(|e| Error::io(&kept, "create", e))?;
        for shard in shard_files(journal) {
            let to = kept.join(shard.file_name().unwrap_or_default());
            std::fs::copy(&shard, &to).map_err(|e| Error::io(&to, "copy to", e))?;
        }
    }
    last.into_iter().try_for_each(Late::place)?;
    let used = out.join(USED);
    remove_dir(&used)?;
    std::fs::rename(journal.dir(), &used).map_err(|e| Error::io(journal.dir(), "rename", e))?;
    remove_dir(&used)
}

fn reader(journal: &Journal, run: &Run<'_>) -> Result<NativeReader> {
    let mut shards = BTreeMap::new();
    for entry in journal.blocks() {
        for site in &entry.sites {
            if let Some(native) = run.natives().iter().find(|n| n.site == site.site) {
                shards.insert(native.module.clone(), journal.shard(entry.block));
            }
        }
    }
    let activations = &run.plan().activations;
    for a in activations {
        shards.insert(a.place.to_string(), journal.shard(a.place.block.unwrap_or(run.plan().blocks)));
    }
    let source = Arc::clone(run.model().weights.tensors());
    let mut changed = BTreeMap::new();
    for entry in journal.blocks().iter().filter(|e| e.shard.is_some()) {
        let shard = journal.shard(entry.block);
        let names = open_tensors(&shard)?.names();
        changed.extend(names.into_iter().filter(|n| source.info(n).is_some()).map(|n| (n, shard.clone())));
    }
    let reader = NativeReader::new(source, run.natives().to_vec(), activations.clone(), shards, changed);
    Ok(reader.with_config(run.checkpoint().config.clone()).with_extras(run.plan().branches.clone(), run.plan().online()))
}

fn shard_files(journal: &Journal) -> Vec<PathBuf> {
    journal.blocks().iter().filter(|b| b.shard.is_some()).map(|b| journal.shard(b.block)).collect()
}

/// The deterministic record of the run.
fn record(run: &Run<'_>, journal: &Journal, sites: &Vec<SiteReport>, fingerprints: &BTreeMap<&str, Fingerprints>) -> Result<Vec<u8>> {
    let plan = run.plan();
    let mut value = json!({ "qfw": plan.qfw, "signature": plan.signature(), "plan": plan, "sites": sites });
    if let Some(entry) = journal.prelude() {
        value["rotations"] = serde_json::to_value(&entry.learned).map_err(|e| Error::internal(e.to_string()))?;
    }
    if let Some(judgement) = run.judgement() {
        value["target"] = serde_json::to_value(judgement).map_err(|e| Error::internal(e.to_string()))?;
    }
    value["fingerprints"] = json!({ "formats": fingerprints });
    let mut text = serde_json::to_vec_pretty(&value).map_err(|e| Error::internal(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// The model card: deterministic too.
fn card(run: &Run<'_>, sites: &[SiteReport]) -> String {
    let (plan, mut text) = (run.plan(), String::new());
    if sites.is_empty() {
        let _ = writeln!(
            text,
            "---\ntags:\n- qfw\n---\n\nWritten by qfw {} from a `{}` model; nothing is quantized.",
            plan.qfw, plan.model_type
        );
        return text;
    }
    text.push_str("---\ntags:\n- quantized\n- qfw\n---\n\n# Quantized checkpoint\n\n");
    let bits = plan.bits_per_weight().unwrap_or(0.0);
    let passes: Vec<&str> = plan.passes.iter().map(|p| p.algo.as_str()).collect();
    let _ = writeln!(
        text,
        "Made with qfw {} by {} from a `{}` model: {} linear layers, {bits:.2} bits per quantized weight.\n",
        plan.qfw,
        passes.join(", "),
        plan.model_type,
        sites.len()
    );
    let _ = writeln!(text, "```text\n{plan}```\n");
    let beside = |f: &String| run.registry().container(f).is_ok_and(|r| r.container.branches_lie() == BranchPlace::Beside);
    if !plan.branches.is_empty() && plan.output.formats.iter().any(beside) {
        text.push_str(adapter::CARD);
    }
    text.push_str("`qfw.json` holds the whole plan and the error of every layer.\n");
    text
}
