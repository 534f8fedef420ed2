//! The tensors of one or more files, by name, and their bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Finding, Result};
use crate::gguf_file::Key;
use crate::{gguf_file, irpa_file, safetensors_file};

/// Where a tensor lies. Its bytes are all there: others are not listed.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    /// Slowest axis first, whatever the file's order.
    pub shape: Vec<usize>,
    pub file: usize,
    pub start: u64,
    pub bytes: u64,
}

/// Where bytes come from.
#[derive(Debug)]
enum Source {
    File(File),
    /// The bytes of tensors that a file has had to be decoded for.
    Memory(Vec<u8>),
}

/// Open files and what is in them.
#[derive(Debug, Default)]
pub(crate) struct Store {
    files: Vec<(PathBuf, Source)>,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors that were announced and cannot be read; each has its finding.
    pub broken: BTreeSet<String>,
}

impl Store {
    /// The shards of a directory: those that its index names, or else every safetensors file.
    ///
    /// # Errors
    /// If the directory cannot be listed or holds no weights.
    pub(crate) fn open_dir(dir: &Path, findings: &mut Vec<Finding>) -> Result<Self> {
        let mut store = Self::default();
        let mut there = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::file(dir, &e))? {
            let name = entry.map_err(|e| Error::file(dir, &e))?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".safetensors") {
                there.insert(name);
            }
        }
        let index = dir.join("model.safetensors.index.json");
        let map = if index.exists() { weight_map(&index, findings)? } else { BTreeMap::new() };
        let named: BTreeSet<String> = map.values().cloned().collect();
        if named.is_empty() && there.is_empty() {
            return Err(Error::new("verify::no-weights", format!("`{}` holds no .safetensors and no .gguf file", dir.display()))
                .hint("give the directory of a checkpoint, or a .gguf file"));
        }
        for name in named.difference(&there) {
            findings.push(Finding::new("index", format!("the index names `{name}`, which is not there")));
            store.broken.extend(map.iter().filter(|(_, f)| *f == name).map(|(t, _)| t.clone()));
        }
        for name in &there {
            if !named.is_empty() && !named.contains(name) {
                findings.push(Finding::new("index", format!("`{name}` lies beside the shards, and the index does not name it")));
                continue;
            }
            let found = store.add(&dir.join(name), findings)?;
            for tensor in found.iter().filter(|_| !map.is_empty()) {
                match map.get(tensor) {
                    Some(file) if file == name => {}
                    Some(file) => {
                        findings.push(Finding::of("index", tensor, format!("`{name}` holds it, and the index says `{file}`")));
                    }
                    None => findings.push(Finding::of("index", tensor, format!("`{name}` holds it, and the index does not name it"))),
                }
            }
        }
        for (tensor, file) in &map {
            if store.get(tensor).is_none() && !store.broken.contains(tensor) {
                findings.push(Finding::of("index", tensor, format!("the index says `{file}`, which does not hold it")));
                store.broken.insert(tensor.clone());
            }
        }
        Ok(store)
    }

    /// Adds a safetensors file, and says which tensors its header announces.
    ///
    /// # Errors
    /// If it is none at all.
    pub(crate) fn add(&mut self, path: &Path, findings: &mut Vec<Finding>) -> Result<Vec<String>> {
        let file = File::open(path).map_err(|e| Error::file(path, &e))?;
        let length = file.metadata().map_err(|e| Error::file(path, &e))?.len();
        let number = self.files.len();
        let head = safetensors_file::read(&file, length, number, path)?;
        self.files.push((path.to_owned(), Source::File(file)));
        let mut names = Vec::new();
        findings.extend(head.findings);
        for name in head.broken {
            names.push(name.clone());
            self.broken.insert(name);
        }
        for tensor in head.tensors {
            names.push(tensor.name.clone());
            if self.tensors.contains_key(&tensor.name) {
                findings.push(Finding::of("header", &tensor.name, format!("`{}` holds it too: two shards have it", path.display())));
                continue;
            }
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        Ok(names)
    }

    /// A GGUF file, and its keys.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn open_gguf(path: &Path, findings: &mut Vec<Finding>) -> Result<(Self, BTreeMap<String, Key>)> {
        let file = File::open(path).map_err(|e| Error::file(path, &e))?;
        let length = file.metadata().map_err(|e| Error::file(path, &e))?.len();
        let head = gguf_file::read(&file, length, path)?;
        findings.extend(head.findings);
        let mut store =
            Self { files: vec![(path.to_owned(), Source::File(file))], broken: head.broken.into_iter().collect(), ..Self::default() };
        store.tensors = head.tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        Ok((store, head.keys))
    }

    /// A parameter archive.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn open_irpa(path: &Path, findings: &mut Vec<Finding>) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file(path, &e))?;
        let length = file.metadata().map_err(|e| Error::file(path, &e))?.len();
        let tensors = irpa_file::read(&file, length, path)?;
        let mut store = Self { files: vec![(path.to_owned(), Source::File(file))], ..Self::default() };
        for tensor in tensors {
            let name = tensor.name.clone();
            if store.insert(tensor) {
                findings.push(Finding::of("header", &name, format!("`{name}` is in the archive twice")));
            }
        }
        Ok(store)
    }

    /// Makes room for the bytes of a file that has to be decoded, as the first of the store's files.
    pub(crate) fn decoded(path: &Path) -> Self {
        Self { files: vec![(path.to_owned(), Source::Memory(Vec::new()))], ..Self::default() }
    }

    /// The bytes of tensors that lie in the first file.
    pub(crate) fn set_decoded(&mut self, bytes: Vec<u8>) {
        if let Some((_, source)) = self.files.first_mut() {
            *source = Source::Memory(bytes);
        }
    }

    /// Adds a file, and says which number it has.
    pub(crate) fn add_file(&mut self, path: &Path, file: File) -> usize {
        self.files.push((path.to_owned(), Source::File(file)));
        self.files.len() - 1
    }

    /// Adds a tensor whose bytes are all there. Whether there is one of its name already, which then stays.
    pub(crate) fn insert(&mut self, tensor: Tensor) -> bool {
        let twice = self.tensors.contains_key(&tensor.name);
        if !twice {
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        twice
    }

    /// Tensors that lie over others.
    pub(crate) fn overlaps(&self) -> Vec<Finding> {
        let mut order: Vec<&Tensor> = self.tensors.values().filter(|t| t.bytes > 0).collect();
        order.sort_by_key(|t| (t.file, t.start, t.bytes));
        let over = |p: &[&Tensor]| p[0].file == p[1].file && p[1].start < p[0].start + p[0].bytes;
        let pairs = order.windows(2).filter(|p| over(p));
        pairs.map(|p| Finding::of("header", &p[1].name, format!("`{}` lies over `{}`", p[1].name, p[0].name))).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A tensor that has to be there.
    ///
    /// # Errors
    /// Names it if it is not.
    pub(crate) fn require(&self, name: &str) -> Result<&Tensor> {
        self.get(name).ok_or_else(|| Error::tensor(format!("tensor `{name}` is missing or cannot be read")))
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// Bytes `range` of a tensor.
    ///
    /// # Errors
    /// If reading fails.
    pub(crate) fn part(&self, tensor: &Tensor, range: Range<u64>) -> Result<Vec<u8>> {
        let (path, source) = &self.files[tensor.file];
        let length = range.end.min(tensor.bytes).saturating_sub(range.start) as usize;
        let start = tensor.start + range.start;
        match source {
            Source::File(file) => {
                let (mut from, mut bytes) = (file, vec![0; length]);
                from.seek(SeekFrom::Start(start)).and_then(|_| from.read_exact(&mut bytes)).map_err(|e| Error::file(path, &e))?;
                Ok(bytes)
            }
            Source::Memory(all) => Ok(all[start as usize..][..length].to_vec()),
        }
    }

    /// All bytes of a tensor.
    ///
    /// # Errors
    /// If reading fails.
    pub(crate) fn bytes(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        self.part(tensor, 0..tensor.bytes)
    }

    /// The numbers of a tensor of floats that has to be there.
    ///
    /// # Errors
    /// If it is missing or holds something else.
    pub(crate) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.require(name)?;
        let numbers = tensor.dtype.floats(&self.bytes(tensor)?);
        numbers.ok_or_else(|| Error::tensor(format!("tensor `{name}` is {}, where floats belong", tensor.dtype)))
    }

    /// A tensor that has to be there, of this type and shape.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn expect(&self, name: &str, dtype: &Dtype, shape: &[usize]) -> Result<&Tensor> {
        let tensor = self.require(name)?;
        if tensor.dtype != *dtype || tensor.shape != shape {
            let message = format!("tensor `{name}` is {} {:?}, where {dtype} {shape:?} belongs", tensor.dtype, tensor.shape);
            return Err(Error::tensor(message));
        }
        Ok(tensor)
    }
}

/// Which file the index says that each tensor is in.
fn weight_map(index: &Path, findings: &mut Vec<Finding>) -> Result<BTreeMap<String, String>> {
    let unsound = |what: String| {
        let message = format!("`{}` {what}", index.display());
        Error::new("verify::index", message).hint("copy it again from where it was right, or remove it if all shards are to be read")
    };
    let text = std::fs::read(index).map_err(|e| Error::file(index, &e))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| unsound(format!("is no JSON: {e}")))?;
    let Some(map) = value["weight_map"].as_object() else {
        return Err(unsound("has no object `weight_map`".to_owned()));
    };
    let mut out = BTreeMap::new();
    for (tensor, file) in map {
        match file.as_str() {
            // A name, not a way out of the directory.
            Some(file) if !file.contains(['/', '\\']) => {
                out.insert(tensor.clone(), file.to_owned());
            }
            _ => findings.push(Finding::of("index", tensor, format!("the index says {file}, which is no file beside it"))),
        }
    }
    Ok(out)
}
