//! One container of a finished model, written into a directory.
//!
//! Whatever makes it loadable is held back until everything else is there: see [`Late`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::export::remove_file;
use super::report::peak_rss;
use crate::checkpoint::adapter;
use crate::checkpoint::data_file::places;
use crate::checkpoint::fingerprint::Fingerprints;
use crate::checkpoint::gguf::{self, GgufWriter};
use crate::checkpoint::native::NativeReader;
use crate::checkpoint::{
    BranchPlace, Checkpoint, Container, ContainerWriter, DataWriter, FileForm, SafetensorsWriter, StoredDtype, TensorDecl, irpa,
    rename_file, replace_file,
};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::scheme::FloatKind;

/// What tells which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";

/// The file of a GGUF container.
const GGUF: &str = "model.gguf";

/// What makes a container loadable, and so comes last.
pub(crate) struct Late {
    /// Where it belongs.
    path: PathBuf,
    content: Content,
}

enum Content {
    /// `config.json`, after the index of several shards.
    Config { index: Option<String>, text: String },
    /// A file under its temporary name.
    Written(PathBuf),
    /// A file that is small.
    Made(Vec<u8>),
}

impl Late {
    /// Puts it there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn place(self) -> Result<()> {
        match self.content {
            Content::Config { index, text } => {
                if let Some(index) = index {
                    replace_file(&self.path.with_file_name(INDEX), index.as_bytes())?;
                }
                replace_file(&self.path, text.as_bytes())
            }
            Content::Written(written) => rename_file(&written, &self.path),
            Content::Made(bytes) => replace_file(&self.path, &bytes),
        }
    }
}

/// A container that is to be written.
pub(crate) struct Output<'a> {
    /// The container.
    pub(crate) container: &'a dyn Container,
    /// What it was made by.
    pub(crate) plan: &'a Plan,
    /// Configuration and side files.
    pub(crate) checkpoint: &'a Checkpoint,
    /// Codes and floats.
    pub(crate) native: &'a NativeReader,
    /// What the model's class calls its body.
    pub(crate) body: &'a str,
}

impl Output<'_> {
    /// Writes it into `dir`, but for what makes it loadable, which is added to `late`. Returns what is to be recorded of it.
    ///
    /// # Errors
    /// If reading or writing fails, or the container cannot hold the model.
    pub(crate) fn write(&self, dir: &Path, late: &mut Vec<Late>) -> Result<Fingerprints> {
        let Self { container, plan, checkpoint, native, body } = *self;
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
        let provenance: BTreeMap<String, String> =
            [("qfw_version", plan.qfw.clone()), ("qfw_plan", plan.signature())].into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let mut fingerprint = Fingerprints::of(container, native, plan)?;
        match container.file_form(plan, checkpoint)? {
            FileForm::Safetensors => {
                // There is one if the run was stopped after this very point; its weights are about to be written anew.
                remove_file(&dir.join("config.json"))?;
                let decls = container.declare(native)?;
                let mut writer = SafetensorsWriter::create(dir, "model", &decls, plan.output.max_shard, &provenance)?;
                container.write(native, &mut writer)?;
                let (_, index) = writer.finish()?;
                // A reader would look for codes that are not there.
                let quantization = if native.sites.is_empty() && native.activations.is_empty() && plan.online().is_empty() {
                    None
                } else {
                    Some(container.quantization_config(plan)?).filter(|q| !q.is_null())
                };
                let text = configuration(&checkpoint.config, quantization, container.float_type())?;
                fingerprint.file("config.json".to_owned(), text.as_bytes());
                if container.branches_lie() == BranchPlace::Beside && !native.branches.is_empty() {
                    let (name, text) = adapter::write(dir, body, native, &provenance)?;
                    fingerprint.file(name, text.as_bytes());
                }
                if let Some(index) = &index {
                    fingerprint.file(INDEX.to_owned(), index.as_bytes());
                }
                late.push(Late { path: dir.join("config.json"), content: Content::Config { index, text } });
            }
            FileForm::Gguf(pairs) => {
                let written = self.gguf(dir, pairs, &provenance)?;
                late.push(Late { path: dir.join(GGUF), content: Content::Written(written) });
            }
            FileForm::Described { file, data } => {
                let main = dir.join(file);
                remove_file(&main)?;
                remove_file(&dir.join("config.json"))?;
                let mut writer = DataWriter::create(&dir.join(data), &container.declare(native)?)?;
                container.write(native, &mut writer)?;
                let described = container.describe(native, &writer.finish()?, &provenance)?;
                fingerprint.file(file.to_owned(), &described);
                late.push(Late { path: main, content: Content::Made(described) });
                late.push(self.as_it_was(dir, &mut fingerprint)?);
            }
            FileForm::Archive { file } => {
                let written = self.archive(dir, file, &provenance)?;
                late.push(Late { path: dir.join(file), content: Content::Written(written) });
                late.push(self.as_it_was(dir, &mut fingerprint)?);
            }
        }
        self.side_files(dir, &mut fingerprint)?;
        Ok(fingerprint)
    }

    /// Writes the file under a temporary name.
    fn gguf(&self, dir: &Path, mut pairs: Vec<(String, gguf::Value)>, provenance: &BTreeMap<String, String>) -> Result<PathBuf> {
        pairs.extend(provenance.iter().map(|(key, value)| (key.replacen('_', ".", 1), gguf::Value::Text(value.clone()))));
        let path = dir.join(GGUF).with_extension("tmp~");
        remove_file(&dir.join(GGUF))?;
        let mut writer = GgufWriter::create(&path, &pairs, &self.container.declare(self.native)?)?;
        self.container.write(self.native, &mut writer)?;
        writer.finish()?;
        Ok(path)
    }

    /// Writes the archive under a temporary name. What is to be known of the run are entries of their own, which nobody reads.
    fn archive(&self, dir: &Path, file: &str, provenance: &BTreeMap<String, String>) -> Result<PathBuf> {
        let path = dir.join(file).with_extension("tmp~");
        remove_file(&dir.join(file))?;
        remove_file(&dir.join("config.json"))?;
        let mut decls = self.container.declare(self.native)?;
        let known = |(name, text): (&String, &String)| TensorDecl { name: name.clone(), dtype: StoredDtype::U8, shape: vec![text.len()] };
        decls.extend(provenance.iter().map(known));
        let places = places(&decls)?;
        let mut writer = DataWriter::behind(&path, &irpa::head(&decls, &places)?, places)?;
        self.container.write(self.native, &mut writer)?;
        provenance.iter().try_for_each(|(name, text)| writer.write(name, text.as_bytes()))?;
        writer.finish()?;
        Ok(path)
    }

    /// The configuration of the source, for files that say themselves what is in them.
    fn as_it_was(&self, dir: &Path, fingerprint: &mut Fingerprints) -> Result<Late> {
        let text = configuration(&self.checkpoint.config, None, None)?;
        fingerprint.file("config.json".to_owned(), text.as_bytes());
        Ok(Late { path: dir.join("config.json"), content: Content::Config { index: None, text } })
    }

    fn side_files(&self, dir: &Path, fingerprint: &mut Fingerprints) -> Result<()> {
        for file in &self.checkpoint.side_files {
            let (from, to) = (self.checkpoint.path.join(file), dir.join(file));
            let bytes = std::fs::read(&from).map_err(|e| Error::io(&from, "read", e))?;
            replace_file(&to, &bytes)?;
            fingerprint.file(file.to_string_lossy().into_owned(), &bytes);
        }
        for (name, text) in &self.checkpoint.made_files {
            replace_file(&dir.join(name), text.as_bytes())?;
            fingerprint.file(name.clone(), text.as_bytes());
        }
        Ok(())
    }
}

/// The source's configuration with every key, order and spelling kept, `quantization_config` added or replaced where there is one, and the
/// type of the floats said where it has changed.
fn configuration(config: &Value, quantization: Option<Value>, floats: Option<FloatKind>) -> Result<String> {
    let mut config = config.clone();
    let map = config.as_object_mut().ok_or_else(|| Error::input("checkpoint::bad-config", "config.json is not an object"))?;
    if let Some(quantization) = quantization {
        map.insert("quantization_config".to_owned(), quantization);
    }
    if let Some(kind) = floats {
        kind.state_in(map);
    }
    Ok(serde_json::to_string_pretty(&config).map_err(|e| Error::internal(e.to_string()))? + "\n")
}

/// What is outside the guarantee: time and machine.
pub(crate) fn run_log(start: Instant) -> String {
    let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (seconds, threads) = (start.elapsed().as_secs_f64(), rayon::current_num_threads());
    json!({ "unix_time": date, "seconds": seconds, "threads": threads, "peak_rss_bytes": peak_rss() }).to_string() + "\n"
}

/// Bytes of the weight files of each format under OUT, where several have a directory each.
///
/// # Errors
/// If a directory cannot be listed.
pub(crate) fn weight_bytes(out: &Path, formats: &[String]) -> Result<BTreeMap<String, u64>> {
    let of = |format: &String| {
        let dir = if formats.len() > 1 { out.join(format) } else { out.to_owned() };
        let beside = dir.join(adapter::DIR);
        Ok((format.clone(), bytes_in(&dir)? + if beside.is_dir() { bytes_in(&beside)? } else { 0 }))
    };
    formats.iter().map(of).collect()
}

fn bytes_in(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
        let path = entry.map_err(|e| Error::io(dir, "list", e))?.path();
        if path.extension().is_some_and(|e| ["safetensors", "gguf", "onnx", "data", "irpa"].iter().any(|known| e == *known)) {
            total += std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
        }
    }
    Ok(total)
}
