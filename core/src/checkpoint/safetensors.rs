//! Tensors of one or many safetensors shards, or of another file that has them one behind the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::header::read_header;
use super::{TensorInfo, TensorSource, irpa, missing_tensor};
use crate::error::{Error, Result};

/// The tensors of a set of shards, by name. Files stay open, nothing stays in memory.
pub struct SafetensorsSource {
    tensors: BTreeMap<String, TensorInfo>,
    files: BTreeMap<PathBuf, File>,
}

const INDEX: &str = "model.safetensors.index.json";

impl SafetensorsSource {
    /// The weights in a directory: those the index names, else `model.safetensors`, else every `*.safetensors` file.
    ///
    /// # Errors
    /// If there are none, or index and shards disagree.
    pub fn open_dir(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX);
        if index.exists() {
            return Self::open_indexed(dir, &index);
        }
        let mut shards = Vec::new();
        let (mut pickled, mut graph) = (None, None);
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
            let path = entry.map_err(|e| Error::io(dir, "list", e))?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("safetensors") => shards.push(path),
                Some("bin" | "pt" | "pth" | "ckpt") => pickled = Some(path),
                Some("onnx") => graph = Some(path),
                _ => {}
            }
        }
        shards.sort();
        // Others beside it are adapters, or the same weights in another naming.
        if let Some(single) = shards.iter().find(|s| s.ends_with("model.safetensors")) {
            return Self::open_files(std::slice::from_ref(single));
        }
        if !shards.is_empty() {
            check_numbered(&shards)?;
            return Self::open_files(&shards);
        }
        if let Some(path) = pickled {
            return Err(Error::input(
                "checkpoint::pickled",
                format!("`{}` is a pickled checkpoint, which can run code when read", path.display()),
            )
            .hint("save the model as safetensors with the program that made it; pickles are never read"));
        }
        if graph.is_some() {
            let what = format!("`{}` holds an ONNX graph, which is written here and not read", dir.display());
            return Err(Error::input("checkpoint::graph", what).hint("load it in onnxruntime, or write `--format qfw` too and give that"));
        }
        Err(Error::input("checkpoint::no-weights", format!("`{}` holds no *.safetensors file", dir.display()))
            .hint("give the directory that holds the weights"))
    }

    /// The tensors of these files.
    ///
    /// # Errors
    /// If a file is not sound, or two hold a tensor of the same name.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self> {
        let mut source = Self { tensors: BTreeMap::new(), files: BTreeMap::new() };
        for path in paths {
            for info in read_header(path)? {
                if let Some(other) = source.tensors.get(&info.name) {
                    let message = format!("tensor `{}` is in both `{}` and `{}`", info.name, other.file.display(), path.display());
                    return Err(Error::input("checkpoint::duplicate-tensor", message)
                        .hint("remove the file that does not belong to the model, or add an index that names its shards"));
                }
                source.tensors.insert(info.name.clone(), info);
            }
            source.files.insert(path.clone(), File::open(path).map_err(|e| Error::io(path, "open", e))?);
        }
        Ok(source)
    }

    /// The entries of a parameter archive.
    ///
    /// # Errors
    /// If it is not sound.
    pub(super) fn open_archive(path: &Path) -> Result<Self> {
        let tensors = irpa::read_header(path)?.into_iter().map(|info| (info.name.clone(), info)).collect();
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        Ok(Self { tensors, files: BTreeMap::from([(path.to_owned(), file)]) })
    }

    fn open_indexed(dir: &Path, index: &Path) -> Result<Self> {
        let bad = |what: String| Error::input("checkpoint::bad-index", format!("`{}`: {what}", index.display()));
        let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, "read", e))?;
        let parsed: Index = serde_json::from_str(&text).map_err(|e| bad(format!("not a valid index: {e}")))?;
        let mut named: BTreeMap<&str, &str> = BTreeMap::new();
        for (tensor, file) in &parsed.weight_map.0 {
            if Path::new(file).file_name().and_then(|n| n.to_str()) != Some(file.as_str()) || file.contains('\\') {
                return Err(bad(format!("`weight_map.{tensor}` is `{file}`, which is not a plain file name")));
            }
            if named.insert(tensor, file).is_some() {
                return Err(bad(format!("it lists tensor `{tensor}` twice")));
            }
        }
        let shards: BTreeSet<&str> = named.values().copied().collect();
        for shard in &shards {
            if !dir.join(shard).exists() {
                return Err(bad(format!("it names shard `{shard}`, which does not exist")).hint("fetch the missing shard"));
            }
        }
        let paths: Vec<PathBuf> = shards.iter().map(|s| dir.join(s)).collect();
        let source = Self::open_files(&paths)?;
        for (tensor, file) in &named {
            match source.tensors.get(*tensor) {
                Some(info) if info.file == dir.join(file) => {}
                Some(info) => {
                    return Err(bad(format!("it places tensor `{tensor}` in `{file}`, but `{}` holds it", info.file.display())));
                }
                None => return Err(bad(format!("it places tensor `{tensor}` in `{file}`, which does not hold it"))),
            }
        }
        if let Some(info) = source.tensors.values().find(|i| !named.contains_key(i.name.as_str())) {
            return Err(bad(format!("it does not list tensor `{}`, which `{}` holds", info.name, info.file.display()))
                .hint("the index belongs to other weights; fetch both again"));
        }
        Ok(source)
    }

    fn find(&self, name: &str) -> Result<(&TensorInfo, &File)> {
        let info = self.tensors.get(name).ok_or_else(|| missing_tensor(name, self.tensors.keys().map(String::as_str)))?;
        let file = self.files.get(&info.file).ok_or_else(|| Error::internal("a tensor without a file"))?;
        Ok((info, file))
    }
}

/// `model.safetensors.index.json`, as far as it matters here.
#[derive(Deserialize)]
struct Index {
    weight_map: Pairs,
}

/// An object's pairs as they stand: an ordinary map would silently keep the last of a repeated key.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names by tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = access.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Without an index the names `…-0000i-of-0000n` still tell whether a shard is missing.
fn check_numbered(shards: &[PathBuf]) -> Result<()> {
    let mut sets: BTreeMap<(&str, u64), BTreeSet<u64>> = BTreeMap::new();
    for shard in shards {
        let Some(stem) = shard.file_stem().and_then(|s| s.to_str()) else { continue };
        let Some((rest, count)) = stem.rsplit_once("-of-") else { continue };
        let Some((prefix, number)) = rest.rsplit_once('-') else { continue };
        if let (Ok(number), Ok(count)) = (number.parse(), count.parse()) {
            sets.entry((prefix, count)).or_default().insert(number);
        }
    }
    for ((prefix, count), present) in &sets {
        if let Some(missing) = (1..=*count).find(|i| !present.contains(i)) {
            let dir = shards[0].parent().unwrap_or(Path::new("."));
            let message = format!("`{}` lacks shard {missing} of {count} of `{prefix}`", dir.display());
            return Err(Error::input("checkpoint::missing-shard", message).hint("fetch the missing shard, and the index with it"));
        }
    }
    Ok(())
}

impl TensorSource for SafetensorsSource {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let (info, file) = self.find(name)?;
        let all = info.shape.first().copied().unwrap_or(1);
        if rows.end > all || rows.start > rows.end {
            return Err(Error::internal(format!("rows {rows:?} of tensor `{name}`, which has {all}")));
        }
        let row_bytes = if all == 0 { 0 } else { info.byte_len() / all as u64 };
        out.clear();
        // In pieces: the bytes are needed only until they are decoded.
        const PIECE: u64 = 1 << 20;
        let mut position = info.bytes.start + rows.start as u64 * row_bytes;
        let end = info.bytes.start + rows.end as u64 * row_bytes;
        let mut bytes = vec![0; PIECE.min(end - position) as usize];
        out.reserve_exact(((end - position) / info.dtype.size().unwrap_or(1)) as usize);
        while position < end {
            let n = PIECE.min(end - position) as usize;
            file.read_exact_at(&mut bytes[..n], position).map_err(|e| Error::io(&info.file, "read", e))?;
            if !info.dtype.decode_f32(&bytes[..n], out) {
                let message = format!("tensor `{name}` in `{}` is of type {}, not a float type", info.file.display(), info.dtype.name());
                return Err(Error::input("checkpoint::wrong-dtype", message)
                    .hint("the checkpoint is already quantized, or config.json does not say how it is"));
            }
            position += n as u64;
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (info, file) = self.find(name)?;
        let mut bytes = vec![0; info.byte_len() as usize];
        file.read_exact_at(&mut bytes, info.bytes.start).map_err(|e| Error::io(&info.file, "read", e))?;
        Ok(bytes)
    }
}
