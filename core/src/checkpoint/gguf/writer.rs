//! Writing a GGUF file whose tensors are all known beforehand.
//!
//! Layout of version 3, little endian: magic, version, the numbers of tensors and of keys, the keys with their values, the tensors with
//! their lengths (fastest first), types and offsets, then the tensors, each on a multiple of 32 bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ggml_type::GgmlType;
use super::metadata::{List, Value};
use crate::checkpoint::writer::ContainerWriter;
use crate::checkpoint::{StoredDtype, TensorDecl};
use crate::error::{Error, Result};

/// Every tensor begins on a multiple of this; readers take it where `general.alignment` says nothing.
const ALIGNMENT: u64 = 32;

/// Writes one GGUF file. Tensors lie in it in declared order and may be written in any; equal input gives equal bytes.
pub struct GgufWriter {
    path: PathBuf,
    file: File,
    /// Where each tensor goes on and where it ends.
    places: BTreeMap<String, (u64, u64)>,
}

impl GgufWriter {
    /// Writes the header. `pairs` are the keys in their order: integers are written in 32 bits where they fit, which is what llama.cpp
    /// asks for. The type of a tensor is one of ggml: a block format is [`StoredDtype::Ggml`].
    ///
    /// # Errors
    /// If a name is declared twice, a type is none of ggml, rows are not whole blocks, or the file cannot be created.
    pub fn create(path: &Path, pairs: &[(String, Value)], tensors: &[TensorDecl]) -> Result<Self> {
        let mut header = b"GGUF".to_vec();
        header.extend(3_u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((pairs.len() as u64).to_le_bytes());
        for (key, value) in pairs {
            text(key, &mut header);
            typed(value, &mut header);
        }
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut next = 0_u64;
        for t in tensors {
            let (format, bytes) = described(t)?;
            text(&t.name, &mut header);
            header.extend((t.shape.len() as u32).to_le_bytes());
            header.extend(t.shape.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
            header.extend(format.id.to_le_bytes());
            header.extend(next.to_le_bytes());
            offsets.push((next, bytes));
            next = (next + bytes).next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let data = header.len() as u64;
        let mut places = BTreeMap::new();
        for (t, (offset, bytes)) in tensors.iter().zip(offsets) {
            if places.insert(t.name.clone(), (data + offset, data + offset + bytes)).is_some() {
                return Err(Error::internal(format!("tensor `{}` was declared twice", t.name)));
            }
        }
        let mut file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
        file.write_all(&header).and_then(|()| file.set_len(data + next)).map_err(|e| Error::io(path, "write", e))?;
        Ok(Self { path: path.to_owned(), file, places })
    }

    /// Checks that everything declared was written, and syncs.
    ///
    /// # Errors
    /// If a tensor is incomplete or syncing fails.
    pub fn finish(self) -> Result<()> {
        if let Some((name, (next, end))) = self.places.iter().find(|(_, (next, end))| next != end) {
            return Err(Error::internal(format!("tensor `{name}` lacks {} bytes", end - next)));
        }
        self.file.sync_all().map_err(|e| Error::io(&self.path, "sync", e))
    }
}

impl ContainerWriter for GgufWriter {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (next, end) = self.places.get_mut(name).ok_or_else(|| Error::internal(format!("tensor `{name}` was not declared")))?;
        let after = *next + bytes.len() as u64;
        if after > *end {
            return Err(Error::internal(format!("tensor `{name}` has {} bytes too many", after - *end)));
        }
        self.file.write_all_at(bytes, *next).map_err(|e| Error::io(&self.path, "write", e))?;
        *next = after;
        Ok(())
    }
}

/// The number format of a tensor and its length in bytes.
fn described(t: &TensorDecl) -> Result<(&'static GgmlType, u64)> {
    let name = match &t.dtype {
        StoredDtype::Ggml(name) => *name,
        dtype => dtype.name(),
    };
    let format = GgmlType::by_name(name).ok_or_else(|| Error::internal(format!("`{}` is of type {name}, which ggml lacks", t.name)))?;
    let columns = t.shape.last().copied().unwrap_or(1);
    let rows: usize = t.shape.iter().rev().skip(1).product();
    let bytes = format.row_bytes(columns).and_then(|row| row.checked_mul(rows));
    let bytes = bytes.ok_or_else(|| Error::internal(format!("`{}` of shape {:?} has no whole blocks of {name}", t.name, t.shape)))?;
    Ok((format, bytes as u64))
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number that stands for the type of a value, then the value.
fn typed(value: &Value, out: &mut Vec<u8>) {
    let scalar = |kind: u32, bytes: &[u8], out: &mut Vec<u8>| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::Uint(v) => match u32::try_from(*v) {
            Ok(v) => scalar(4, &v.to_le_bytes(), out),
            Err(_) => scalar(10, &v.to_le_bytes(), out),
        },
        Value::Int(v) => match i32::try_from(*v) {
            Ok(v) => scalar(5, &v.to_le_bytes(), out),
            Err(_) => scalar(11, &v.to_le_bytes(), out),
        },
        Value::F32(v) => scalar(6, &v.to_le_bytes(), out),
        Value::F64(v) => scalar(12, &v.to_le_bytes(), out),
        Value::Bool(v) => scalar(7, &[u8::from(*v)], out),
        Value::Text(v) => {
            out.extend(8_u32.to_le_bytes());
            text(v, out);
        }
        Value::List(list) => {
            out.extend(9_u32.to_le_bytes());
            listed(list, out);
        }
    }
}

/// The type of the elements, their number, then the elements.
fn listed(list: &List, out: &mut Vec<u8>) {
    let mut start = |kind: u32, n: usize| {
        out.extend(kind.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
    };
    match list {
        List::Uint(v) => {
            let narrow: Option<Vec<u32>> = v.iter().map(|x| u32::try_from(*x).ok()).collect();
            start(if narrow.is_some() { 4 } else { 10 }, v.len());
            match narrow {
                Some(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
                None => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            }
        }
        List::Int(v) => {
            let narrow: Option<Vec<i32>> = v.iter().map(|x| i32::try_from(*x).ok()).collect();
            start(if narrow.is_some() { 5 } else { 11 }, v.len());
            match narrow {
                Some(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
                None => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
            }
        }
        List::F32(v) => {
            start(6, v.len());
            out.extend(v.iter().flat_map(|x| x.to_le_bytes()));
        }
        List::F64(v) => {
            start(12, v.len());
            out.extend(v.iter().flat_map(|x| x.to_le_bytes()));
        }
        List::Bool(v) => {
            start(7, v.len());
            out.extend(v.iter().map(|x| u8::from(*x)));
        }
        List::Text(v) => {
            start(8, v.len());
            v.iter().for_each(|x| text(x, out));
        }
    }
}
