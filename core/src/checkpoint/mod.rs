//! Reading and writing checkpoints.
//!
//! Tensors are read one at a time by position, so that resident memory never holds more of a file than the caller asked for.

mod adapted;
pub(crate) mod adapter;
pub(crate) mod data_file;
mod dequantized;
mod dtype;
mod files;
pub(crate) mod fingerprint;
pub mod formats;
pub mod gguf;
mod header;
mod held;
#[cfg(feature = "hub")]
pub mod hub;
pub(crate) mod irpa;
#[cfg(test)]
mod irpa_tests;
pub mod native;
mod packed;
#[cfg(test)]
mod reader_tests;
mod rewritten;
mod safetensors;
mod writer;
#[cfg(test)]
mod writer_tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

pub use adapted::Adapted;
pub use adapter::Adapter;
pub use data_file::DataWriter;
pub use dtype::StoredDtype;
pub use files::{rename_file, replace_file, write_small};
pub use formats::{BranchPlace, Container, ContainerRecord, FileForm, StoredActivation, Verdict};
pub use held::{Arithmetic, Held};
pub use packed::{groups_of, matrix_of_words, packed_modules, scales_as_stored};
pub use rewritten::Rewritten;
pub use safetensors::SafetensorsSource;
pub use writer::{ContainerWriter, SafetensorsWriter, TensorDecl};

use crate::algorithm::Rounded;
use crate::error::{Error, Result, did_you_mean};
use crate::model::{ActivationQuant, StoredBranch, model_type};
use crate::registry::Registry;
use crate::topology::{OnlineStep, Topology};
use native::NativeSite;

/// The containers of this crate.
pub const BUILTIN: &[ContainerRecord] = &[native::RECORD];

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: StoredDtype,
    /// Its shape, outermost axis first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
    /// Byte range inside that file.
    pub(crate) bytes: Range<u64>,
}

impl TensorInfo {
    /// A tensor that is computed rather than stored; `file` says where it comes from.
    pub fn new(name: String, dtype: StoredDtype, shape: Vec<usize>, file: PathBuf) -> Self {
        Self { name, dtype, shape, file, bytes: 0..0 }
    }

    /// Length of the stored bytes.
    pub fn byte_len(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

/// Tensors by name.
pub trait TensorSource: Send + Sync {
    /// Every name, sorted.
    fn names(&self) -> Vec<String>;

    /// What is known of a tensor without reading it.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// Rows of a tensor along its first axis (elements of a vector) as f32, row-major; `out` is cleared first.
    ///
    /// # Errors
    /// If it does not exist, is not of a float type, or cannot be read.
    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// The stored bytes of a tensor.
    ///
    /// # Errors
    /// If it does not exist or cannot be read.
    fn read_bytes(&self, name: &str) -> Result<Vec<u8>>;

    /// How a tensor is quantized that appears as the floats it stands for, if this is one.
    fn coded(&self, name: &str) -> Option<&NativeSite> {
        let _ = name;
        None
    }

    /// Its codes.
    ///
    /// # Errors
    /// If [`TensorSource::coded`] knows none, or they cannot be read.
    fn rounded(&self, name: &str) -> Result<Rounded> {
        Err(Error::internal(format!("`{name}` has no codes")))
    }
}

impl dyn TensorSource + '_ {
    /// What is known of a tensor that has to be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.info(name).ok_or_else(|| {
            let names = self.names();
            missing_tensor(name, names.iter().map(String::as_str))
        })
    }

    /// What is known of a tensor that has to be there and of this shape.
    ///
    /// # Errors
    /// If it is missing or of another shape.
    pub fn expect_shape(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.require(name)?;
        if info.shape == shape {
            return Ok(info);
        }
        let message =
            format!("tensor `{name}` in `{}` has shape {:?}, but config.json asks for {shape:?}", info.file.display(), info.shape);
        Err(Error::input("checkpoint::wrong-shape", message).hint("does config.json belong to these weights?"))
    }
}

fn missing_tensor<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    Error::input("checkpoint::missing-tensor", format!("the checkpoint has no tensor `{name}`{}", did_you_mean(name, known)))
        .hint("is every shard there, and does config.json belong to these weights?")
}

/// Refuses weights that are not finite: one NaN spreads through every statistic after it.
///
/// # Errors
/// Names the tensor, the first such value and its index in `values`.
pub fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    // All bits of the exponent set; without a branch per value, so that the scan runs at memory speed.
    const EXPONENT: u32 = 0x7f80_0000;
    let sound = |piece: &[f32]| !piece.iter().fold(false, |bad, x| bad | (x.to_bits() & EXPONENT == EXPONENT));
    if values.chunks(4096).all(sound) {
        return Ok(());
    }
    let (i, x) = values.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
    Err(Error::numeric("checkpoint::not-finite", format!("tensor `{name}` holds {x} at flat index {i}"))
        .hint("the checkpoint is damaged, or was saved from a diverged run"))
}

/// A checkpoint on disk: configuration, tensors, and the files beside them.
#[derive(Clone)]
pub struct Checkpoint {
    /// Where it is.
    pub path: PathBuf,
    /// `config.json`, parsed, with the `quantization_config` that older tools keep in a file of its own.
    pub config: Value,
    /// `config.json`, byte for byte.
    pub config_text: String,
    /// The tensors as stored.
    pub tensors: Arc<dyn TensorSource>,
    /// Every other file that belongs to the model (tokenizer, templates, code), relative to `path`.
    pub side_files: Vec<PathBuf>,
    /// Side files that exist only inside another file (the tokenizer of a GGUF), by name.
    pub made_files: Vec<(String, String)>,
    /// Branches that lie beside it.
    pub adapter: Option<Arc<Adapter>>,
}

impl Checkpoint {
    /// Opens a checkpoint directory, a `.gguf` file, a directory whose only weights are one, or an `.irpa` file beside a configuration.
    ///
    /// # Errors
    /// If it does not exist, has no configuration or no weights, or any file contradicts another.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::input("checkpoint::not-found", format!("there is no model at `{}`", path.display()))
                .hint("give a directory with config.json and *.safetensors, or a .gguf file"));
        }
        if path.extension().is_some_and(|e| e == "gguf") {
            return gguf::open(path);
        }
        if let Some(file) = files::single_gguf(path)? {
            return gguf::open(&file);
        }
        if path.extension().is_some_and(|e| e == "irpa") {
            return Self::open_dir(path.parent().unwrap_or(Path::new(".")), Some(path));
        }
        if !path.is_dir() {
            return Err(Error::input("checkpoint::not-found", format!("`{}` is not a checkpoint directory", path.display()))
                .hint("give a directory with config.json and *.safetensors, or a .gguf file"));
        }
        Self::open_dir(path, files::single_archive(path)?.as_deref())
    }

    /// Opens a directory, with the tensors of `archive` where there is one. An archive has to say itself how its tensors are quantized, since it
    /// has names of its own for all of them.
    fn open_dir(path: &Path, archive: Option<&Path>) -> Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let config_path = path.join("config.json");
        let config_text = match std::fs::read_to_string(&config_path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let inside = files::checkpoints_in(path)?;
                let hint = match inside.as_slice() {
                    [] => "a Hugging Face checkpoint directory holds config.json beside its weights".to_owned(),
                    dirs => format!("give the one that is meant: {}", dirs.join(", ")),
                };
                return Err(Error::input("checkpoint::no-config", format!("`{}` has no config.json", path.display())).hint(hint));
            }
            Err(e) => return Err(Error::io(&config_path, "read", e)),
        };
        let mut config = files::json_object(&config_path, &config_text)?;
        if config.get("quantization_config").is_none_or(Value::is_null)
            && let Some(beside) = files::quantization_beside(path)?
        {
            config["quantization_config"] = beside;
        }
        if archive.is_some() {
            config["quantization_config"] = json!({ "archive": "irpa" });
        }
        let tensors = Arc::new(match archive {
            Some(file) => SafetensorsSource::open_archive(file)?,
            None => SafetensorsSource::open_dir(path)?,
        });
        let side_files = files::side_files(path)?;
        let adapter = Adapter::beside(path)?.map(Arc::new);
        Ok(Self { path: path.to_owned(), config, config_text, tensors, side_files, made_files: Vec::new(), adapter })
    }

    /// The tensors as the float model sees them: a quantized checkpoint is read through the container that claims it. Those of branches are
    /// found by their names.
    ///
    /// # Errors
    /// If the checkpoint is quantized in a way nobody here reads.
    pub fn float_tensors(&self, registry: &Registry) -> Result<Arc<dyn TensorSource>> {
        let floats = self.dequantized(registry)?;
        Ok(self.adapter.as_ref().map_or_else(|| Arc::clone(&floats), |adapter| adapter.behind(Arc::clone(&floats))))
    }

    fn dequantized(&self, registry: &Registry) -> Result<Arc<dyn TensorSource>> {
        let Some(q) = self.quantization() else { return Ok(Arc::clone(&self.tensors)) };
        if let Some(record) = self.container(registry) {
            let read = record.container.read(q, &self.transposed(registry), Arc::clone(&self.tensors));
            return read.map_err(|e| e.within(format!("reading `{}`", record.id)));
        }
        let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("(none)");
        let known: Vec<&str> = registry.containers().map(|r| r.id).collect();
        Err(Error::input(
            "checkpoint::unknown-quantization",
            format!("the checkpoint is quantized by `{method}`, which nothing here reads"),
        )
        .hint(format!("formats that can be read: {}", known.join(", "))))
    }

    /// Modules whose float weight the model stores as `[in, out]`. An architecture that is unknown, or a configuration that is not
    /// its own, has none here; both are errors where the model is built.
    fn transposed(&self, registry: &Registry) -> BTreeSet<String> {
        let Ok(architecture) = model_type(&self.config).and_then(|name| registry.architecture(name)) else { return BTreeSet::new() };
        let Ok(dims) = architecture.parse(&self.config, &|name| self.tensors.info(name).is_some()) else { return BTreeSet::new() };
        architecture.topology(&dims).linears.into_iter().filter(|l| l.transposed).map(|l| l.module).collect()
    }

    /// The activations that a quantized checkpoint rounds.
    ///
    /// # Errors
    /// If what it says of them is malformed, or there are no such places.
    pub fn activations(&self, registry: &Registry, topology: &Topology) -> Result<Vec<ActivationQuant>> {
        let stored = self.stored_activations(registry, topology)?.into_iter();
        stored.map(|a| ActivationQuant::new(a.planned.place, a.planned.spec, a.params)).collect()
    }

    /// The same, with the modules they were rounded for.
    ///
    /// # Errors
    /// As [`Self::activations`].
    pub fn stored_activations(&self, registry: &Registry, topology: &Topology) -> Result<Vec<StoredActivation>> {
        self.claimed(registry, |container, q| container.activations(q, &*self.tensors, topology))
    }

    /// What a model does to activations while it runs.
    ///
    /// # Errors
    /// If what the checkpoint says of them is malformed.
    pub fn online(&self, registry: &Registry, topology: &Topology) -> Result<Vec<OnlineStep>> {
        self.claimed(registry, |container, q| container.online(q, topology))
    }

    /// The branches beside the linears of a checkpoint, in its container or in an adapter.
    ///
    /// # Errors
    /// If what it says of them is malformed, or both have some.
    pub fn branches(&self, registry: &Registry, topology: &Topology) -> Result<Vec<StoredBranch>> {
        let inside = self.claimed(registry, Container::branches)?;
        let Some(adapter) = &self.adapter else { return Ok(inside) };
        if !inside.is_empty() {
            return Err(Error::input("checkpoint::adapter", format!("`{}` has branches inside and in an adapter", self.path.display()))
                .hint("move the directory `adapter` away, if it is not the model's"));
        }
        adapter.branches(registry.architecture(model_type(&self.config)?)?.body(), topology)
    }

    /// The container that this checkpoint is in, if one says that it is.
    pub fn container(&self, registry: &Registry) -> Option<&'static ContainerRecord> {
        let q = self.quantization()?;
        registry.containers().find(|r| r.container.claims(q))
    }

    /// `quantization_config`, if there is one.
    fn quantization(&self) -> Option<&Value> {
        self.config.get("quantization_config").filter(|q| !q.is_null())
    }

    /// What the container of a quantized checkpoint reads out of it; of others there is nothing to read.
    fn claimed<T: Default>(&self, registry: &Registry, read: impl FnOnce(&'static dyn Container, &Value) -> Result<T>) -> Result<T> {
        match (self.container(registry), self.quantization()) {
            (Some(record), Some(q)) => read(record.container, q).map_err(|e| e.within(format!("reading `{}`", record.id))),
            _ => Ok(T::default()),
        }
    }

    /// Hash of what identifies the model, without reading all of it: configuration; names, types, shapes and positions of all tensors;
    /// size and samples of each file.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn content_hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.config_text.as_bytes());
        let mut files = BTreeSet::new();
        for tensors in [Some(&*self.tensors), self.adapter.as_ref().map(|a| a.tensors())].into_iter().flatten() {
            for name in tensors.names() {
                if let Some(i) = tensors.info(&name) {
                    hasher.update(format!("{name} {:?} {:?} {:?}\n", i.dtype, i.shape, i.bytes).as_bytes());
                    files.insert(&i.file);
                }
            }
        }
        for file in files {
            files::hash_samples(file, &mut hasher)?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// The tensors of one safetensors file.
///
/// # Errors
/// If it is not a sound safetensors file.
pub fn open_tensors(file: &Path) -> Result<Arc<dyn TensorSource>> {
    Ok(Arc::new(SafetensorsSource::open_files(&[file.to_owned()])?))
}
