//! A checkpoint on disk as the tensors of the model that it stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::container::gguf::{Blocks, block_of, factor_name};
use crate::container::{Contents, awq, compressed_tensors, gptq, native};
use crate::error::{Error, Finding, Result};
use crate::family::{self, BUFFERS, Expected, short};
use crate::matrix::Load;
use crate::store::{Store, Tensor};

/// Files that older tools keep the quantization in.
const BESIDE: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// How a tensor of the model is stored.
pub(crate) enum Form {
    Coded(Box<dyn Load>),
    /// Floats under this name; turned, or with heads in pairs.
    Floats {
        tensor: String,
        turned: bool,
        head: Option<usize>,
    },
    /// Something else under this name.
    Bytes(String),
}

/// A tensor of the model.
pub(crate) struct Entry {
    pub shape: Vec<usize>,
    pub form: Form,
}

/// An open checkpoint.
pub(crate) struct Checkpoint {
    /// Where its files are.
    pub dir: PathBuf,
    /// What its quantized tensors are in: a `quant_method`, `gguf`, or `none`.
    pub container: String,
    pub store: Store,
    pub entries: BTreeMap<String, Entry>,
    pub activations: BTreeMap<String, Vec<f32>>,
    pub findings: Vec<Finding>,
    /// Tensors of the file that belong to no tensor of the model: what rotary embeddings are divided by.
    pub aside: Vec<String>,
    /// The architecture is known here, so that names and shapes were checked against it.
    pub known: bool,
}

impl Checkpoint {
    /// Opens a directory, or a `.gguf` file.
    ///
    /// # Errors
    /// If there is nothing, or nothing that can be read at all.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::new("verify::not-found", format!("there is nothing at `{}`", path.display())));
        }
        match single_gguf(path)? {
            Some(file) => Self::of_gguf(&file),
            None => Self::of_dir(path),
        }
    }

    fn of_dir(dir: &Path) -> Result<Self> {
        let config = object(&dir.join("config.json"))?.ok_or_else(|| {
            Error::new("verify::no-config", format!("`{}` has no config.json", dir.display()))
                .hint("give the directory of a checkpoint, or a .gguf file")
        })?;
        let mut findings = Vec::new();
        let store = Store::open_dir(dir, &mut findings)?;
        let expected = family::of_config(&config);
        let names = Names::of(expected.as_deref().unwrap_or_default(), &store);
        let (container, contents) = contents(dir, &config, &store, &names.linears())?;
        findings.extend(contents.findings);
        let mut entries = BTreeMap::new();
        for (name, load) in contents.coded {
            let (rows, cols) = load.shape();
            entries.insert(name, Entry { shape: vec![rows, cols], form: Form::Coded(load) });
        }
        let parts: BTreeSet<String> = contents.parts.into_iter().collect();
        for tensor in store.tensors().filter(|t| !parts.contains(&t.name)) {
            let turned = names.get(&tensor.name).is_some_and(|e| e.turned) && tensor.shape.len() == 2;
            if entries.insert(tensor.name.clone(), plain(tensor, turned)).is_some() {
                let message = format!("`{}` is stored as floats and as codes", tensor.name);
                findings.push(Finding::of("extra", &tensor.name, message));
            }
        }
        let known = expected.is_some();
        if known {
            names.check(&entries, &store, &mut findings);
        }
        let (activations, aside) = (contents.activations, Vec::new());
        Ok(Self { dir: dir.to_owned(), container, store, entries, activations, findings, aside, known })
    }

    fn of_gguf(file: &Path) -> Result<Self> {
        let mut findings = Vec::new();
        let (mut store, keys) = Store::open_gguf(file, &mut findings)?;
        let expected = family::of_gguf(&keys);
        let by_name: BTreeMap<&str, &Expected> = expected.iter().flatten().map(|e| (e.gguf.as_str(), e)).collect();
        // What cannot be read is known by the names of the model too.
        let in_model = |name: &String| by_name.get(name.as_str()).map_or(name, |e| &e.name).clone();
        findings.iter_mut().for_each(|f| f.tensor = f.tensor.as_ref().map(in_model));
        store.broken = store.broken.iter().map(in_model).collect();
        let factors: BTreeSet<String> = store
            .tensors()
            .filter(|t| matches!(block_of(t), Ok(Some((crate::dtype::Block::Nvfp4, _)))))
            .filter_map(|t| factor_name(&t.name))
            .collect();
        let (mut entries, mut aside) = (BTreeMap::new(), Vec::new());
        for tensor in store.tensors().filter(|t| !factors.contains(&t.name)) {
            let named = by_name.get(tensor.name.as_str());
            let head = named.and_then(|e| e.head).filter(|d| tensor.shape.first().is_some_and(|rows| rows % d == 0));
            let name = named.map_or(&tensor.name, |e| &e.name).clone();
            let form = match block_of(tensor) {
                Ok(Some((block, shape))) => Form::Coded(Box::new(Blocks { name: tensor.name.clone(), shape, block, head })),
                Ok(None) if tensor.dtype.float_bytes().is_some() => Form::Floats { tensor: tensor.name.clone(), turned: false, head },
                Ok(None) => Form::Bytes(tensor.name.clone()),
                Err(e) => {
                    findings.push(Finding::of("tensor", &name, e.message));
                    continue;
                }
            };
            if tensor.name == "rope_freqs.weight" {
                aside.push(tensor.name.clone());
            }
            entries.insert(name, Entry { shape: tensor.shape.clone(), form });
        }
        if let Some(expected) = &expected {
            let expected = expected.iter().map(|e| (e.name.clone(), e.clone())).collect();
            Names { expected, aside: aside.iter().cloned().collect() }.check(&entries, &store, &mut findings);
        }
        let dir = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_owned();
        let (known, container) = (expected.is_some(), "gguf".to_owned());
        Ok(Self { dir, container, store, entries, activations: BTreeMap::new(), findings, aside, known })
    }

    /// The name here of a tensor that another checkpoint calls `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&str> {
        if let Some((key, _)) = self.entries.get_key_value(name) {
            return Some(key);
        }
        let bare = short(name);
        self.entries.keys().find(|k| short(k) == bare).map(String::as_str)
    }

    /// Whether `name` was announced and cannot be read, or is a part of something that cannot be.
    pub(crate) fn broken(&self, name: &str) -> bool {
        let stem = name.strip_suffix("weight").unwrap_or(name);
        let bare = short(stem);
        self.store.broken.iter().any(|b| short(b).starts_with(bare)) || self.findings.iter().any(|f| f.tensor.as_deref() == Some(name))
    }
}

/// How a directory says that it is quantized, and what is quantized in it.
fn contents(dir: &Path, config: &Value, store: &Store, linears: &[String]) -> Result<(String, Contents)> {
    let mut quantization = config["quantization_config"].clone();
    for name in BESIDE {
        if quantization.is_null() {
            quantization = object(&dir.join(name))?.unwrap_or_default();
        }
    }
    // Files of their own, as older tools wrote them, do not name the method.
    let unnamed = quantization["bits"].is_u64() && quantization["group_size"].is_i64();
    let method = quantization["quant_method"].as_str().unwrap_or(if unnamed { "gptq" } else { "none" });
    let contents = match method {
        "none" if quantization.is_null() => Ok(Contents::default()),
        "compressed-tensors" => compressed_tensors::contents(&quantization, store, linears),
        "gptq" => gptq::contents(&quantization, store, linears),
        "awq" => awq::contents(&quantization, store, linears),
        "qfw" => native::contents(&quantization, store),
        other => Err(Error::config(format!("checkpoints that are quantized by `{other}` cannot be checked"))
            .hint("those of compressed-tensors, gptq, awq, qfw and gguf can be")),
    }?;
    Ok((method.to_owned(), contents))
}

/// A tensor that is not quantized.
fn plain(tensor: &Tensor, turned: bool) -> Entry {
    let mut shape = tensor.shape.clone();
    if tensor.dtype.float_bytes().is_none() {
        return Entry { shape, form: Form::Bytes(tensor.name.clone()) };
    }
    if turned {
        shape.reverse();
    }
    Entry { shape, form: Form::Floats { tensor: tensor.name.clone(), turned, head: None } }
}

/// The names that a model's tensors have, in the spelling of a checkpoint.
struct Names {
    expected: BTreeMap<String, Expected>,
    /// Tensors that belong to no tensor of the model.
    aside: BTreeSet<String>,
}

impl Names {
    /// Drops the module around the model from expected names where the checkpoint does.
    fn of(expected: &[Expected], store: &Store) -> Self {
        let bare = expected.first().is_some_and(|first| {
            let stem = short(&first.name).trim_end_matches("weight");
            store.tensors().any(|t| t.name.starts_with(stem))
                && !store.tensors().any(|t| t.name.starts_with(first.name.trim_end_matches("weight")))
        });
        let named = expected.iter().map(|e| {
            let name = if bare { short(&e.name).to_owned() } else { e.name.clone() };
            (name.clone(), Expected { name, ..e.clone() })
        });
        Self { expected: named.collect(), aside: BTreeSet::new() }
    }

    fn get(&self, name: &str) -> Option<&Expected> {
        self.expected.get(name)
    }

    fn linears(&self) -> Vec<String> {
        self.expected.values().filter(|e| e.linear).filter_map(|e| e.name.strip_suffix(".weight").map(ToOwned::to_owned)).collect()
    }

    /// Finds tensors that are missing, of another shape, or nobody's.
    fn check(&self, entries: &BTreeMap<String, Entry>, store: &Store, findings: &mut Vec<Finding>) {
        let mut found = Vec::new();
        for (name, e) in &self.expected {
            let module = name.strip_suffix("weight").unwrap_or(name);
            let broken = || store.broken.iter().any(|b| b.starts_with(module));
            let reported = || findings.iter().any(|f| f.tensor.as_ref() == Some(name));
            match entries.get(name) {
                Some(entry) if entry.shape != e.shape => {
                    found.push(Finding::of("shape", name, format!("`{name}` is {:?}, and the model asks for {:?}", entry.shape, e.shape)));
                }
                None if !e.optional && !broken() && !reported() => {
                    found.push(Finding::of("missing", name, format!("the model has `{name}`, and the checkpoint has not")));
                }
                _ => {}
            }
        }
        for name in entries.keys().filter(|n| !self.expected.contains_key(*n) && !self.aside.contains(*n)) {
            let branch = name.ends_with(".branch_a") || name.ends_with(".branch_b");
            if !branch && !BUFFERS.iter().any(|b| name.ends_with(b)) {
                found.push(Finding::of("extra", name, format!("`{name}` is a tensor that the model does not have")));
            }
        }
        findings.extend(found);
    }
}

/// `path` itself, or the only `.gguf` file of a directory without a configuration.
fn single_gguf(path: &Path) -> Result<Option<PathBuf>> {
    if !path.is_dir() {
        if path.extension().is_some_and(|e| e == "gguf") {
            return Ok(Some(path.to_owned()));
        }
        return Err(Error::new("verify::not-found", format!("`{}` is neither a directory nor a .gguf file", path.display())));
    }
    if path.join("config.json").exists() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::file(path, &e))? {
        let file = entry.map_err(|e| Error::file(path, &e))?.path();
        if file.extension().is_some_and(|e| e == "gguf") {
            files.push(file);
        }
    }
    match files.len() {
        0 | 1 => Ok(files.pop()),
        n => Err(Error::new("verify::not-found", format!("`{}` holds {n} .gguf files", path.display())).hint("give one of the files")),
    }
}

/// A JSON object in a file that need not be there.
pub(crate) fn object(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file(path, &e)),
    };
    match serde_json::from_slice::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(Error::new("verify::config", format!("`{}` is no JSON object", path.display()))),
        Err(e) => Err(Error::new("verify::config", format!("`{}` is no JSON: {e}", path.display()))),
    }
}
