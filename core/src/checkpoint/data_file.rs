//! Tensors' bytes one behind the other: what lies where is said by another file, or by what stands before them.
//!
//! Tensors lie in declared order. Those of a page or more begin at a page, so that a reader can map each of them alone; smaller ones
//! begin at a multiple of 64 bytes, the widest register.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{ContainerWriter, TensorDecl};
use crate::error::{Error, Result};

pub(super) const PAGE: u64 = 4096;
const LINE: u64 = 64;

/// Writes such a file. Tensors may be written in any order; equal declarations and bytes give equal files.
pub struct DataWriter {
    path: PathBuf,
    file: File,
    places: BTreeMap<String, Range<u64>>,
    /// Where the next bytes of each tensor go.
    next: BTreeMap<String, u64>,
}

impl DataWriter {
    /// Lays out `tensors` in a new file.
    ///
    /// # Errors
    /// If a name is declared twice or the file cannot be created.
    pub fn create(path: &Path, tensors: &[TensorDecl]) -> Result<Self> {
        Self::behind(path, &[], places(tensors)?)
    }

    /// Lays out tensors behind `head`, which is whole pages; `places` are counted from its end.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub(crate) fn behind(path: &Path, head: &[u8], places: BTreeMap<String, Range<u64>>) -> Result<Self> {
        let first = head.len() as u64;
        let places: BTreeMap<String, Range<u64>> =
            places.into_iter().map(|(name, place)| (name, first + place.start..first + place.end)).collect();
        let end = places.values().map(|p| p.end).max().unwrap_or(first);
        let file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
        file.set_len(end).and_then(|()| file.write_all_at(head, 0)).map_err(|e| Error::io(path, "write", e))?;
        let next = places.iter().map(|(name, place)| (name.clone(), place.start)).collect();
        Ok(Self { path: path.to_owned(), file, places, next })
    }

    /// Checks that everything declared was written, and syncs. Returns the bytes of each tensor's place.
    ///
    /// # Errors
    /// If a tensor is incomplete or syncing fails.
    pub fn finish(self) -> Result<BTreeMap<String, Range<u64>>> {
        let left = |(name, place): (&String, &Range<u64>)| Some((name.clone(), place.end - self.next.get(name)?));
        if let Some((name, left)) = self.places.iter().filter_map(left).find(|(_, left)| *left > 0) {
            return Err(Error::internal(format!("tensor `{name}` lacks {left} bytes")));
        }
        self.file.sync_all().map_err(|e| Error::io(&self.path, "sync", e))?;
        Ok(self.places)
    }
}

/// The bytes of each tensor, from where the first begins.
///
/// # Errors
/// If a name is declared twice, or a type has no fixed size.
pub(crate) fn places(tensors: &[TensorDecl]) -> Result<BTreeMap<String, Range<u64>>> {
    let (mut places, mut end) = (BTreeMap::new(), 0_u64);
    for t in tensors {
        let bytes = t.byte_len()?;
        let start = end.next_multiple_of(if bytes < PAGE { LINE } else { PAGE });
        end = start + bytes;
        if places.insert(t.name.clone(), start..end).is_some() {
            return Err(Error::internal(format!("tensor `{}` was declared twice", t.name)));
        }
    }
    Ok(places)
}

impl ContainerWriter for DataWriter {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (Some(place), Some(next)) = (self.places.get(name), self.next.get_mut(name)) else {
            return Err(Error::internal(format!("tensor `{name}` was not declared")));
        };
        let after = *next + bytes.len() as u64;
        if after > place.end {
            return Err(Error::internal(format!("tensor `{name}` has {} bytes too many", after - place.end)));
        }
        self.file.write_all_at(bytes, *next).map_err(|e| Error::io(&self.path, "write", e))?;
        *next = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::StoredDtype;

    fn decl(name: &str, bytes: usize) -> TensorDecl {
        TensorDecl { name: name.to_owned(), dtype: StoredDtype::U8, shape: vec![bytes] }
    }

    #[test]
    fn tensors_lie_in_order_and_on_their_boundaries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.data");
        let mut writer = DataWriter::create(&path, &[decl("a", 3), decl("b", 65), decl("c", 5000), decl("d", 1)]).unwrap();
        writer.write("c", &[3; 4999]).unwrap();
        writer.write("b", &[2; 65]).unwrap();
        writer.write("c", &[4]).unwrap();
        writer.write("d", &[5]).unwrap();
        writer.write("a", &[1; 3]).unwrap();
        let places = writer.finish().unwrap();
        assert_eq!([&places["a"], &places["b"], &places["c"], &places["d"]], [&(0..3), &(64..129), &(4096..9096), &(9152..9153)]);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len(), bytes[2], bytes[3], bytes[128], bytes[9095], bytes[9152]), (9153, 1, 0, 2, 4, 5));
    }

    #[test]
    fn what_is_declared_is_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.data");
        let twice = DataWriter::create(&path, &[decl("a", 1), decl("a", 1)]).map(|_| ()).unwrap_err();
        assert_eq!(twice.to_string(), "tensor `a` was declared twice");
        let mut writer = DataWriter::create(&path, &[decl("a", 2), decl("b", 0)]).unwrap();
        assert_eq!(writer.write("c", &[1]).unwrap_err().to_string(), "tensor `c` was not declared");
        assert_eq!(writer.write("a", &[1; 3]).unwrap_err().to_string(), "tensor `a` has 1 bytes too many");
        writer.write("a", &[1]).unwrap();
        assert_eq!(writer.finish().unwrap_err().to_string(), "tensor `a` lacks 1 bytes");
    }
}
