//! The header of a safetensors file: eight bytes of length, then JSON, then the data.
//!
//! Everything a hostile or damaged file can get wrong is an error that names the file and, where there is one, the tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::{StoredDtype, TensorInfo};
use crate::error::{Error, Result};

/// Longer headers are refused; the reference implementation has the same limit.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// Reads and checks the header of `path`.
pub(super) fn read_header(path: &Path) -> Result<Vec<TensorInfo>> {
    let bad = |what: String| {
        Error::input("checkpoint::malformed", format!("`{}` is not a sound safetensors file: {what}", path.display()))
            .hint("fetch or save the file again")
    };
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let size = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
    if size < 8 {
        return Err(bad(format!("it has {size} bytes, less than the length of a header")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|e| Error::io(path, "read", e))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(bad(format!("its header claims {length} bytes, above the limit of {MAX_HEADER}")));
    }
    if length > size - 8 {
        return Err(bad(format!("its header claims {length} bytes, but only {} follow", size - 8)));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(|e| Error::io(path, "read", e))?;
    let text = std::str::from_utf8(&text).map_err(|_| bad("its header is not UTF-8".to_owned()))?;
    let entries: Entries = serde_json::from_str(text).map_err(|e| bad(format!("its header is not valid JSON: {e}")))?;
    if let Some(name) = entries.duplicate {
        return Err(bad(format!("its header lists tensor `{name}` twice")));
    }
    let data = 8 + length;
    let mut tensors = Vec::new();
    for (name, entry) in entries.map {
        let (start, end) = entry.data_offsets;
        if start > end || end > size - data {
            return Err(bad(format!(
                "tensor `{name}` lies at bytes {start}..{end} of {} bytes of data: the file is truncated or the header wrong",
                size - data
            )));
        }
        let dtype = StoredDtype::parse(&entry.dtype);
        let elements = entry.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let expected = match (dtype.size(), elements) {
            (Some(size), Some(n)) => n.checked_mul(size),
            (None, Some(_)) => Some(end - start),
            (_, None) => None,
        };
        if expected != Some(end - start) {
            return Err(bad(format!(
                "tensor `{name}` of type {} and shape {:?} cannot have {} bytes",
                entry.dtype,
                entry.shape,
                end - start
            )));
        }
        tensors.push(TensorInfo { name, dtype, shape: entry.shape, file: path.to_owned(), bytes: data + start..data + end });
    }
    tensors.sort_by_key(|t| (t.bytes.start, t.bytes.end));
    if let Some(pair) = tensors.windows(2).find(|p| p[1].bytes.start < p[0].bytes.end) {
        return Err(bad(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)));
    }
    // The format allows no bytes that belong to no tensor, and its other readers refuse them.
    let mut covered = data;
    for (start, end) in tensors.iter().map(|t| (t.bytes.start, t.bytes.end)).chain([(size, size)]) {
        if start > covered {
            return Err(bad(format!("bytes {}..{} of its data belong to no tensor", covered - data, start - data)));
        }
        covered = end;
    }
    Ok(tensors)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The header's object, remembering the first key that occurs twice: an ordinary map would silently keep the last.
struct Entries {
    map: BTreeMap<String, Entry>,
    duplicate: Option<String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Entries, A::Error> {
                let mut entries = Entries { map: BTreeMap::new(), duplicate: None };
                while let Some(key) = access.next_key::<String>()? {
                    if key == "__metadata__" {
                        access.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value = access.next_value::<Entry>().map_err(|e| A::Error::custom(format!("tensor `{key}`: {e}")))?;
                    if entries.map.insert(key.clone(), value).is_some() {
                        entries.duplicate.get_or_insert(key);
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
