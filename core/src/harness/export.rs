//! From native shards to the finished output directory.
//!
//! Shards are written under their final names while `config.json` is absent, which keeps OUT from looking loadable; the index and then
//! `config.json` are renamed into place last. A GGUF file, which needs nothing beside it, is itself renamed into place last, and so is a
//! file that describes another.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::journal::{self, Journal};
use super::report::{Progress, SiteReport, peak_rss};
use super::run::{Control, Mode, Run, same_plan};
use crate::checkpoint::fingerprint::Fingerprints;
use crate::checkpoint::gguf::{self, GgufWriter};
use crate::checkpoint::native::NativeReader;
use crate::checkpoint::{Container, DataWriter, FileForm, SafetensorsWriter, open_tensors, rename_file, replace_file};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::registry::Registry;

/// The record of a finished run.
const RECORD: &str = "qfw.json";

/// What tells which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// The file of a GGUF container.
const GGUF: &str = "model.gguf";

/// The work directory after its last use. Removing a directory is not one step, renaming it is.
const USED: &str = ".qfw-used";

/// Makes OUT ready. `Some` if it is finished already under this very plan.
pub(super) fn prepare(out: &Path, mode: Mode, plan: &Plan, registry: &Registry) -> Result<Option<Vec<SiteReport>>> {
    if out.exists() && !out.is_dir() {
        return Err(Error::config("run::output", format!("`{}` is a file", out.display())).hint("give a directory"));
    }
    let empty = !out.exists() || std::fs::read_dir(out).map_err(|e| Error::io(out, "list", e))?.next().is_none();
    let unfinished = out.join(journal::DIR).exists();
    match mode {
        Mode::Fresh if !empty => {
            let hint = if unfinished { "`--resume` goes on with the unfinished run; " } else { "" };
            return Err(Error::config("run::output", format!("`{}` is not empty", out.display()))
                .hint(format!("{hint}`--overwrite` replaces what is there")));
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

/// Removes what an earlier run wrote. A directory that no run wrote is not touched, nor one that a run is writing.
fn clear(out: &Path, registry: &Registry) -> Result<()> {
    let ours = out.join(RECORD).exists() || out.join(journal::DIR).exists();
    if !ours {
        return Err(Error::config("run::output", format!("`{}` was not written by this program, and is not overwritten", out.display()))
            .hint("empty it yourself, or choose another output directory"));
    }
    // The work directory stays, without its journal: stopped halfway, what is left counts as unfinished work.
    let _lock = journal::lock(out)?;
    let files = [out.join(journal::DIR).join(journal::FILE), out.join("config.json")];
    files.iter().try_for_each(|f| remove_file(f))?;
    let written =
        |name: &str| name == USED || name == "native" || registry.list().iter().any(|l| l.kind == "output-format" && l.id == name);
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
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", e)),
        _ => Ok(()),
    }
}

/// Removes a directory that need not be there.
fn remove_dir(path: &Path) -> Result<()> {
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
    let provenance: BTreeMap<String, String> =
        [("qfw_version", plan.qfw.clone()), ("qfw_plan", plan.signature())].into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let (mut last, mut fingerprints) = (Vec::new(), BTreeMap::new());
    for format in &plan.output.formats {
        if control.cancelled() {
            return Err(Error::interrupted());
        }
        control.report(Progress::Export { format: format.clone() });
        let dir = if several { out.join(format) } else { out.to_owned() };
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
        let container = run.registry().container(format)?.container;
        let mut fingerprint = Fingerprints::of(container, &native, plan)?;
        match container.file_form(plan, run.checkpoint())? {
            FileForm::Safetensors => {
                // There is one if the run was stopped after this very point; its weights are about to be written anew.
                remove_file(&dir.join("config.json"))?;
                let decls = container.declare(&native)?;
                let mut writer = SafetensorsWriter::create(&dir, "model", &decls, plan.output.max_shard, &provenance)?;
                container.write(&native, &mut writer)?;
                let (_, index) = writer.finish()?;
                // A reader would look for codes that are not there.
                let quantization = if native.sites.is_empty() && native.activations.is_empty() && plan.online().is_empty() {
                    None
                } else {
                    Some(container.quantization_config(plan)?)
                };
                let text = with_quantization(&run.checkpoint().config, quantization)?;
                fingerprint.file("config.json".to_owned(), text.as_bytes());
                if let Some(index) = &index {
                    fingerprint.file(INDEX.to_owned(), index.as_bytes());
                }
                last.push((dir.join("config.json"), Last::Config { index, text }));
            }
            FileForm::Gguf(pairs) => last.push((dir.join(GGUF), Last::Written(write_gguf(container, &native, &dir, pairs, &provenance)?))),
            FileForm::Described { file, data } => {
                let main = dir.join(file);
                remove_file(&main)?;
                remove_file(&dir.join("config.json"))?;
                let mut writer = DataWriter::create(&dir.join(data), &container.declare(&native)?)?;
                container.write(&native, &mut writer)?;
                let described = container.describe(&native, &writer.finish()?, &provenance)?;
                fingerprint.file(file.to_owned(), &described);
                last.push((main, Last::Made(described)));
                let text = with_quantization(&run.checkpoint().config, None)?;
                fingerprint.file("config.json".to_owned(), text.as_bytes());
                last.push((dir.join("config.json"), Last::Config { index: None, text }));
            }
        }
        copy_side_files(run, &dir, &mut fingerprint)?;
        fingerprints.insert(format.as_str(), fingerprint);
    }
    replace_file(&out.join(RECORD), &record(run, journal, sites, &fingerprints)?)?;
    replace_file(&out.join("README.md"), card(run, sites).as_bytes())?;
    replace_file(&out.join("qfw-run.jsonl"), run_log(start).as_bytes())?;
    if plan.output.keep_native {
        let kept = out.join("native");
        std::fs::create_dir_all(&kept).map_err(|e| Error::io(&kept, "create", e))?;
        for shard in shard_files(journal) {
            let to = kept.join(shard.file_name().unwrap_or_default());
            std::fs::copy(&shard, &to).map_err(|e| Error::io(&to, "copy to", e))?;
        }
    }
    for (path, content) in last {
        match content {
            Last::Config { index, text } => {
                if let Some(index) = index {
                    replace_file(&path.with_file_name(INDEX), index.as_bytes())?;
                }
                replace_file(&path, text.as_bytes())?;
            }
            Last::Written(written) => rename_file(&written, &path)?,
            Last::Made(bytes) => replace_file(&path, &bytes)?,
        }
    }
    let used = out.join(USED);
    remove_dir(&used)?;
    std::fs::rename(journal.dir(), &used).map_err(|e| Error::io(journal.dir(), "rename", e))?;
    remove_dir(&used)
}

/// What makes a container loadable, and so comes last.
enum Last {
    /// `config.json`, after the index of several shards.
    Config { index: Option<String>, text: String },
    /// A file under its temporary name.
    Written(PathBuf),
    /// A file that is small.
    Made(Vec<u8>),
}

/// Writes the file under a temporary name.
fn write_gguf(
    container: &dyn Container,
    native: &NativeReader,
    dir: &Path,
    mut pairs: Vec<(String, gguf::Value)>,
    provenance: &BTreeMap<String, String>,
) -> Result<PathBuf> {
    pairs.extend(provenance.iter().map(|(key, value)| (key.replacen('_', ".", 1), gguf::Value::Text(value.clone()))));
    let path = dir.join(GGUF).with_extension("tmp~");
    remove_file(&dir.join(GGUF))?;
    let mut writer = GgufWriter::create(&path, &pairs, &container.declare(native)?)?;
    container.write(native, &mut writer)?;
    writer.finish()?;
    Ok(path)
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

fn copy_side_files(run: &Run<'_>, dir: &Path, fingerprint: &mut Fingerprints) -> Result<()> {
    let checkpoint = run.checkpoint();
    for file in &checkpoint.side_files {
        let (from, to) = (checkpoint.path.join(file), dir.join(file));
        let bytes = std::fs::read(&from).map_err(|e| Error::io(&from, "read", e))?;
        replace_file(&to, &bytes)?;
        fingerprint.file(file.to_string_lossy().into_owned(), &bytes);
    }
    for (name, text) in &checkpoint.made_files {
        replace_file(&dir.join(name), text.as_bytes())?;
        fingerprint.file(name.clone(), text.as_bytes());
    }
    Ok(())
}

/// The source's configuration with every key, order and spelling kept, and `quantization_config` added or replaced where there is one.
fn with_quantization(config: &Value, quantization: Option<Value>) -> Result<String> {
    let mut config = config.clone();
    let map = config.as_object_mut().ok_or_else(|| Error::input("checkpoint::bad-config", "config.json is not an object"))?;
    if let Some(quantization) = quantization {
        map.insert("quantization_config".to_owned(), quantization);
    }
    Ok(serde_json::to_string_pretty(&config).map_err(|e| Error::internal(e.to_string()))? + "\n")
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
    text.push_str("`qfw.json` holds the whole plan and the error of every layer.\n");
    text
}

/// What is outside the guarantee: time and machine.
fn run_log(start: Instant) -> String {
    let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (seconds, threads) = (start.elapsed().as_secs_f64(), rayon::current_num_threads());
    json!({ "unix_time": date, "seconds": seconds, "threads": threads, "peak_rss_bytes": peak_rss() }).to_string() + "\n"
}

/// Bytes of all weight files under OUT.
pub(super) fn weight_bytes(out: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(out).map_err(|e| Error::io(out, "list", e))? {
        let path = entry.map_err(|e| Error::io(out, "list", e))?.path();
        if path.extension().is_some_and(|e| ["safetensors", "gguf", "onnx", "data"].iter().any(|known| e == *known)) {
            total += std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
        }
    }
    Ok(total)
}
