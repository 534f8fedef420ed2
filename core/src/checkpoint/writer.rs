//! Writing safetensors shards whose tensors are all known beforehand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::StoredDtype;
use super::files::sync_dir;
use crate::error::{Error, Result};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDecl {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: StoredDtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorDecl {
    /// Length of its bytes.
    ///
    /// # Errors
    /// If its type has no fixed size, or the product overflows.
    pub fn byte_len(&self) -> Result<u64> {
        let size =
            self.dtype.size().ok_or_else(|| Error::internal(format!("`{}` of type {} has no fixed size", self.name, self.dtype.name())))?;
        let bytes = self.shape.iter().try_fold(size, |n, d| n.checked_mul(*d as u64));
        bytes.ok_or_else(|| Error::internal(format!("`{}` of shape {:?} is larger than a file can be", self.name, self.shape)))
    }
}

/// Receives tensors that were declared before.
pub trait ContainerWriter {
    /// The whole of a tensor, or its next part.
    ///
    /// # Errors
    /// If it was not declared, or more bytes come than declared.
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()>;
}

struct Place {
    shard: usize,
    next: u64,
    end: u64,
}

/// Writes `STEM.safetensors`, or `STEM-0000i-of-0000n.safetensors` with an index.
///
/// Tensors lie in the file in declared order, unless that would put one off a multiple of its element size, where torch cannot view
/// it: then larger elements come first. They may be written in any order; equal declarations and bytes give equal files.
pub struct SafetensorsWriter {
    shards: Vec<(PathBuf, File)>,
    places: BTreeMap<String, Place>,
    index: Option<String>,
}

impl SafetensorsWriter {
    /// Lays out `tensors` in shards of at most `max_shard` bytes (a larger tensor gets one of its own) and writes the headers.
    ///
    /// # Errors
    /// If a name is declared twice or a file cannot be created.
    pub fn create(dir: &Path, stem: &str, tensors: &[TensorDecl], max_shard: u64, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let mut groups: Vec<(Vec<&TensorDecl>, u64)> = vec![(Vec::new(), 0)];
        for t in tensors {
            let bytes = t.byte_len()?;
            let last = groups.len() - 1;
            if !groups[last].0.is_empty() && groups[last].1.saturating_add(bytes) > max_shard {
                groups.push((Vec::new(), 0));
            }
            let last = groups.len() - 1;
            groups[last].0.push(t);
            groups[last].1 += bytes;
        }
        groups.iter_mut().try_for_each(|(group, _)| align(group))?;
        let n = groups.len();
        let mut writer = Self { shards: Vec::new(), places: BTreeMap::new(), index: None };
        let mut weight_map = BTreeMap::new();
        let total: u64 = groups.iter().map(|g| g.1).sum();
        for (i, (group, _)) in groups.iter().enumerate() {
            let name = if n == 1 { format!("{stem}.safetensors") } else { format!("{stem}-{:05}-of-{n:05}.safetensors", i + 1) };
            for t in group {
                weight_map.insert(t.name.clone(), name.clone());
            }
            writer.create_shard(&dir.join(name), i, group, metadata)?;
        }
        if n > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            writer.index = Some(serde_json::to_string_pretty(&index).map_err(|e| Error::internal(e.to_string()))? + "\n");
        }
        Ok(writer)
    }

    fn create_shard(&mut self, path: &Path, shard: usize, group: &[&TensorDecl], metadata: &BTreeMap<String, String>) -> Result<()> {
        let mut header = Map::new();
        let mut entries: BTreeMap<String, String> = metadata.clone();
        entries.insert("format".to_owned(), "pt".to_owned());
        header.insert("__metadata__".to_owned(), json!(entries));
        let mut offset = 0;
        for t in group {
            let end = offset + t.byte_len()?;
            header.insert(t.name.clone(), json!({ "dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [offset, end] }));
            offset = end;
        }
        let mut text = serde_json::to_vec(&Value::Object(header)).map_err(|e| Error::internal(e.to_string()))?;
        text.resize(text.len().next_multiple_of(8), b' ');
        let data = 8 + text.len() as u64;
        let mut file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
        file.write_all(&(text.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&text))
            .and_then(|()| file.set_len(data + offset))
            .map_err(|e| Error::io(path, "write", e))?;
        let mut next = data;
        for t in group {
            let end = next + t.byte_len()?;
            if self.places.insert(t.name.clone(), Place { shard, next, end }).is_some() {
                return Err(Error::internal(format!("tensor `{}` was declared twice", t.name)));
            }
            next = end;
        }
        self.shards.push((path.to_owned(), file));
        Ok(())
    }

    /// Checks that everything declared was written, and syncs. Returns the files and the index's text, where there are several shards.
    ///
    /// # Errors
    /// If a tensor is incomplete or syncing fails.
    pub fn finish(self) -> Result<(Vec<PathBuf>, Option<String>)> {
        if let Some((name, p)) = self.places.iter().find(|(_, p)| p.next != p.end) {
            return Err(Error::internal(format!("tensor `{name}` lacks {} bytes", p.end - p.next)));
        }
        for (path, file) in &self.shards {
            file.sync_all().map_err(|e| Error::io(path, "sync", e))?;
        }
        if let Some(dir) = self.shards.first().and_then(|(path, _)| path.parent()) {
            sync_dir(dir)?;
        }
        Ok((self.shards.into_iter().map(|(p, _)| p).collect(), self.index))
    }
}

/// Puts larger elements first if in the given order some tensor is off a multiple of its element size.
fn align(group: &mut [&TensorDecl]) -> Result<()> {
    let mut offset = 0;
    let mut aligned = true;
    for t in group.iter() {
        aligned &= offset % t.dtype.size().unwrap_or(1) == 0;
        offset += t.byte_len()?;
    }
    if !aligned {
        // Stable, and every length is a multiple of its own element size, so all following offsets are multiples of smaller ones.
        group.sort_by_key(|t| std::cmp::Reverse(t.dtype.size()));
    }
    Ok(())
}

impl ContainerWriter for SafetensorsWriter {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let place = self.places.get_mut(name).ok_or_else(|| Error::internal(format!("tensor `{name}` was not declared")))?;
        if place.next + bytes.len() as u64 > place.end {
            return Err(Error::internal(format!("tensor `{name}` has {} bytes too many", place.next + bytes.len() as u64 - place.end)));
        }
        let (path, file) = &self.shards[place.shard];
        file.write_all_at(bytes, place.next).map_err(|e| Error::io(path, "write", e))?;
        place.next += bytes.len() as u64;
        Ok(())
    }
}
