//! A checkpoint on disk as the tensors of the model that it stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::adapter;
use crate::container::gguf::{Blocks, block_of, factor_name};
use crate::container::{Contents, awq, compressed_tensors, gptq, native};
use crate::error::{Error, Finding, Result};
use crate::family::{self, BUFFERS, Expected, short};
use crate::matrix::Load;
use crate::store::{Store, Tensor};

/// Files that are a checkpoint by themselves.
const ALONE: [&str; 3] = ["gguf", "onnx", "irpa"];

/// What says that a directory is a checkpoint.
pub(crate) const CONFIG: &str = "config.json";

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

/// Parameters of rounded activations: scales, then zero points counted from the smallest code.
pub(crate) struct Activation {
    pub numbers: Vec<f32>,
    /// So many of them say it all, if the format has its zero in the middle and the container states it nevertheless.
    pub enough: Option<usize>,
}

impl From<Vec<f32>> for Activation {
    fn from(numbers: Vec<f32>) -> Self {
        Self { numbers, enough: None }
    }
}

/// An open checkpoint.
pub(crate) struct Checkpoint {
    /// Where its files are.
    pub dir: PathBuf,
    /// What its quantized tensors are in: a `quant_method`, `gguf`, or `none`.
    pub container: String,
    pub store: Store,
    pub entries: BTreeMap<String, Entry>,
    pub activations: BTreeMap<String, Activation>,
    pub findings: Vec<Finding>,
    /// Tensors of the file that belong to no tensor of the model: what rotary embeddings are divided by.
    pub aside: Vec<String>,
    /// Of a tensor that is there more than once, the others.
    pub copies: BTreeMap<String, Vec<String>>,
    /// The architecture is known here, so that names and shapes were checked against it.
    pub known: bool,
}

impl Checkpoint {
    /// Opens a directory, or a `.gguf` or `.onnx` file.
    ///
    /// # Errors
    /// If there is nothing, or nothing that can be read at all.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::new("verify::not-found", format!("there is nothing at `{}`", path.display()))
                .hint("give the directory of a checkpoint, or a .gguf or .onnx file"));
        }
        let one = the_one(path)?;
        match one.extension().and_then(|e| e.to_str()) {
            Some("gguf") => Self::of_gguf(&one),
            Some("onnx") => Self::of_onnx(&one),
            Some("irpa") => Self::of_irpa(&one),
            _ => Self::of_dir(beside(&one)),
        }
    }

    fn of_dir(dir: &Path) -> Result<Self> {
        let config = object(&dir.join(CONFIG))?.ok_or_else(|| {
            Error::new("verify::no-config", format!("`{}` has no config.json", dir.display()))
                .hint("give the directory of a checkpoint, or a .gguf file")
        })?;
        let mut findings = Vec::new();
        let mut store = Store::open_dir(dir, &mut findings)?;
        let expected = family::of_config(&config);
        let names = Names::of(expected.as_deref().unwrap_or_default(), &store);
        let (container, contents) = contents(dir, &config, &store, &names.linears())?;
        findings.extend(contents.findings);
        let mut entries = BTreeMap::new();
        let mut parts: BTreeSet<String> = contents.parts.into_iter().collect();
        for (name, load) in contents.coded {
            let (rows, cols) = load.shape();
            parts.extend(load.parts(&store));
            entries.insert(name, Entry { shape: vec![rows, cols], form: Form::Coded(load) });
        }
        rest(&store, &parts, &names, &mut entries, &mut findings);
        let branches = adapter::read(dir, &names.linears(), &mut store, &mut findings)?;
        entries.extend(branches.entries);
        let copies = branches.copies;
        let known = expected.is_some();
        if known {
            names.check(&entries, &store, &mut findings);
        }
        let activations = contents.activations.into_iter().map(|(name, numbers)| (name, numbers.into())).collect();
        let aside = Vec::new();
        Ok(Self { dir: dir.to_owned(), container, store, entries, activations, findings, aside, copies, known })
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
            Names { expected, aside: BTreeSet::new() }.with_aside(&aside).check(&entries, &store, &mut findings);
        }
        let dir = beside(file).to_owned();
        let (known, container) = (expected.is_some(), "gguf".to_owned());
        let (activations, copies) = Default::default();
        Ok(Self { dir, container, store, entries, activations, findings, aside, copies, known })
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
    let stated = |bits: &str, group: &str| quantization[bits].is_u64() && quantization[group].is_i64();
    let unnamed = match () {
        () if stated("bits", "group_size") => "gptq",
        () if stated("w_bit", "q_group_size") => "awq",
        () => "none",
    };
    let method = quantization["quant_method"].as_str().unwrap_or(unnamed);
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

/// What may lie beside the codes of a module and is a tensor of its own.
const OWN: [&str; 4] = ["bias", "branch_a", "branch_b", "multiplier"];

/// The same of what an architecture has not, but a run may have added.
const BESIDE_CODES: [&str; 3] = [".branch_a", ".branch_b", ".multiplier"];

/// Adds the tensors that are parts of nothing, each as itself. Those that only a module's codes could need, and do not, are nobody's.
fn rest(store: &Store, parts: &BTreeSet<String>, names: &Names, entries: &mut BTreeMap<String, Entry>, findings: &mut Vec<Finding>) {
    let mut seen: BTreeMap<String, String> = entries.keys().map(|name| (short(name).to_owned(), name.clone())).collect();
    for tensor in store.tensors().filter(|t| !parts.contains(&t.name)) {
        let name = &tensor.name;
        let (module, suffix) = name.rsplit_once('.').unwrap_or(("", name));
        let coded = matches!(entries.get(&format!("{module}.weight")), Some(Entry { form: Form::Coded(_), .. }));
        if coded && !OWN.contains(&suffix) {
            let message = format!("`{name}` lies beside the codes of `{module}`, and nothing reads it");
            findings.push(Finding::of("extra", name, message));
            continue;
        }
        if let Some(other) = seen.insert(short(name).to_owned(), name.clone()) {
            findings.push(Finding::of("extra", name, format!("`{name}` and `{other}` are the same tensor of the model")));
        }
        let turned = names.get(name).is_some_and(|e| e.turned) && tensor.shape.len() == 2;
        entries.insert(name.clone(), plain(tensor, turned));
    }
}

/// A tensor that is not quantized.
pub(crate) fn plain(tensor: &Tensor, turned: bool) -> Entry {
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
pub(crate) struct Names {
    expected: BTreeMap<String, Expected>,
    /// Tensors that belong to no tensor of the model.
    aside: BTreeSet<String>,
}

impl Names {
    /// Drops the module around the model from expected names where the checkpoint does.
    pub(crate) fn of(expected: &[Expected], store: &Store) -> Self {
        let moved = || expected.iter().filter(|e| short(&e.name) != e.name);
        let bare = moved().any(|e| store.get(short(&e.name)).is_some()) && !moved().any(|e| store.get(&e.name).is_some());
        let named = expected.iter().map(|e| {
            let name = if bare { short(&e.name).to_owned() } else { e.name.clone() };
            (name.clone(), Expected { name, ..e.clone() })
        });
        Self { expected: named.collect(), aside: BTreeSet::new() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Expected> {
        self.expected.get(name)
    }

    /// The same, with tensors that belong to no tensor of the model.
    pub(crate) fn with_aside(mut self, aside: &[String]) -> Self {
        self.aside = aside.iter().cloned().collect();
        self
    }

    /// The name of the module in each role.
    pub(crate) fn modules(&self) -> BTreeMap<String, String> {
        let named = |e: &Expected| Some((e.path.clone()?, e.name.strip_suffix(".weight")?.to_owned()));
        self.expected.values().filter_map(named).collect()
    }

    fn linears(&self) -> Vec<String> {
        self.expected.values().filter(|e| e.linear).filter_map(|e| e.name.strip_suffix(".weight").map(ToOwned::to_owned)).collect()
    }

    /// Finds tensors that are missing, of another shape, or nobody's.
    pub(crate) fn check(&self, entries: &BTreeMap<String, Entry>, store: &Store, findings: &mut Vec<Finding>) {
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
        let nobodys = |n: &&String| findings.iter().any(|f| f.code == "extra" && f.tensor.as_ref() == Some(*n));
        for name in entries.keys().filter(|n| !self.expected.contains_key(*n) && !self.aside.contains(*n) && !nobodys(n)) {
            let beside = BESIDE_CODES.iter().any(|end| name.ends_with(end));
            if !beside && !BUFFERS.iter().any(|b| name.ends_with(b)) {
                found.push(Finding::of("extra", name, format!("`{name}` is a tensor that the model does not have")));
            }
        }
        findings.extend(found);
    }
}

/// The directory that a file is in.
pub(crate) fn beside(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// The checkpoints of a directory: `config.json`, where there are weights for it, and files that are one.
///
/// # Errors
/// If it cannot be listed.
pub(crate) fn within(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let (mut found, mut weights) = (Vec::new(), false);
    for entry in std::fs::read_dir(path).map_err(|e| Error::file(path, &e))? {
        let file = entry.map_err(|e| Error::file(path, &e))?.path();
        match file.extension().and_then(|e| e.to_str()) {
            Some(extension) if ALONE.contains(&extension) => found.push(file),
            Some("safetensors") => weights = true,
            _ => {}
        }
    }
    found.sort();
    if weights || found.is_empty() {
        found.insert(0, path.join(CONFIG));
    }
    Ok(found)
}

/// The `config.json` or the file of weights that `path` names.
///
/// # Errors
/// If there is none, or one cannot be told from others.
fn the_one(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return match path.file_name().and_then(|n| n.to_str()) {
            Some(CONFIG) => Ok(path.to_owned()),
            Some(name) if ALONE.iter().any(|e| Path::new(name).extension().is_some_and(|x| x == *e)) => Ok(path.to_owned()),
            _ => Err(Error::new("verify::not-found", format!("`{}` is neither a directory nor a .gguf or .onnx file", path.display()))
                .hint("give the directory of a checkpoint, or such a file")),
        };
    }
    let mut found = within(path)?;
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        _ => {
            let names: Vec<String> = found.iter().map(|f| format!("`{}`", f.display())).collect();
            Err(Error::new("verify::several", format!("`{}` holds more than one checkpoint", path.display()))
                .hint(format!("give one of them: {}", names.join(", "))))
        }
    }
}

/// A JSON object in a file that need not be there.
pub(crate) fn object(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file(path, &e)),
    };
    let unsound = |what: String| {
        Error::new("verify::config", format!("`{}` {what}", path.display()))
            .hint("the file is damaged; copy it again from where it was right")
    };
    match serde_json::from_slice::<Value>(&text) {
        Ok(value) if value.is_object() => Ok(Some(value)),
        Ok(_) => Err(unsound("is no JSON object".to_owned())),
        Err(e) => Err(unsound(format!("is no JSON: {e}"))),
    }
}
