//! The header of a GGUF file, version 2 or 3: keys, then tensors, then their data at multiples of the alignment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde_json::{Value, json};

use crate::dtype::{Dtype, array};
use crate::error::{Error, Finding, Result};
use crate::store::Tensor;

/// Most axes that llama.cpp reads.
const AXES: u32 = 4;

/// Deepest nesting of arrays that is followed.
const DEPTH: u32 = 4;

/// What a file announces.
pub(crate) struct Head {
    pub keys: BTreeMap<String, Value>,
    pub tensors: Vec<Tensor>,
    /// Names of tensors that are announced and cannot be read.
    pub broken: Vec<String>,
    pub findings: Vec<Finding>,
}

/// A file that is read from front to end; counts are believed only as far as bytes follow.
struct Bytes<'a> {
    from: BufReader<&'a File>,
    at: u64,
    length: u64,
    path: &'a Path,
}

impl Bytes<'_> {
    fn take(&mut self, n: u64) -> Result<Vec<u8>> {
        if n > self.length - self.at {
            let message = format!("the header of `{}` ends within the {n} bytes after byte {}", self.path.display(), self.at);
            return Err(Error::new("verify::header", message).hint("the file is truncated or damaged"));
        }
        let mut bytes = vec![0; n as usize];
        self.from.read_exact(&mut bytes).map_err(|e| Error::file(self.path, &e))?;
        self.at += n;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(array(&self.take(4)?)))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(array(&self.take(8)?)))
    }

    fn text(&mut self) -> Result<String> {
        let n = self.u64()?;
        let at = self.at;
        String::from_utf8(self.take(n)?).map_err(|_| self.unsound(format!("the text at byte {at} is not UTF-8")))
    }

    fn unsound(&self, message: String) -> Error {
        Error::new("verify::header", format!("`{}`: {message}", self.path.display())).hint("the file is truncated or damaged")
    }

    /// A value of the type numbered `kind`.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => json!(self.take(1)?[0]),
            1 => json!(self.take(1)?[0] as i8),
            2 => json!(u16::from_le_bytes(array(&self.take(2)?))),
            3 => json!(i16::from_le_bytes(array(&self.take(2)?))),
            4 => json!(self.u32()?),
            5 => json!(self.u32()? as i32),
            6 => json!(f32::from_le_bytes(array(&self.take(4)?))),
            7 => json!(self.take(1)?[0] != 0),
            8 => json!(self.text()?),
            9 => {
                let (kind, n) = (self.u32()?, self.u64()?);
                if depth >= DEPTH {
                    return Err(self.unsound("arrays are nested too deeply".to_owned()));
                }
                // Every element takes at least a byte.
                if n > self.length - self.at {
                    return Err(self.unsound(format!("an array of {n} elements ends after the file does")));
                }
                let mut list = Vec::new();
                for _ in 0..n {
                    list.push(self.value(kind, depth + 1)?);
                }
                Value::Array(list)
            }
            10 => json!(self.u64()?),
            11 => json!(self.u64()? as i64),
            12 => json!(f64::from_le_bytes(array(&self.take(8)?))),
            other => return Err(self.unsound(format!("a key has type {other}, which there is not"))),
        })
    }
}

/// Reads a file of `length` bytes.
///
/// # Errors
/// If its header is not sound: nothing behind it could be found.
pub(crate) fn read(file: &File, length: u64, path: &Path) -> Result<Head> {
    let mut bytes = Bytes { from: BufReader::new(file), at: 0, length, path };
    if bytes.take(4)? != *b"GGUF" {
        return Err(bytes.unsound("it does not begin with GGUF".to_owned()));
    }
    let version = bytes.u32()?;
    if !(2..=3).contains(&version) {
        return Err(bytes.unsound(format!("it is of version {version}, and 2 and 3 are known")));
    }
    let (tensors, pairs) = (bytes.u64()?, bytes.u64()?);
    let (mut keys, mut findings) = (BTreeMap::new(), Vec::new());
    for _ in 0..pairs {
        let key = bytes.text()?;
        let kind = bytes.u32()?;
        let value = bytes.value(kind, 0)?;
        if keys.insert(key.clone(), value).is_some() {
            findings.push(Finding::new("header", format!("key `{key}` stands twice")));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = bytes.text()?;
        let axes = bytes.u32()?;
        if axes > AXES {
            return Err(bytes.unsound(format!("tensor `{name}` has {axes} axes")));
        }
        let mut shape = (0..axes).map(|_| bytes.u64().map(|n| usize::try_from(n).unwrap_or(usize::MAX))).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let (kind, offset) = (bytes.u32()?, bytes.u64()?);
        infos.push((name, shape, Dtype::of_gguf(kind), offset));
    }
    let alignment = keys.get("general.alignment").and_then(Value::as_u64).unwrap_or(32);
    if !alignment.is_power_of_two() {
        return Err(bytes.unsound(format!("an alignment of {alignment} is no power of two")));
    }
    let data = bytes.at.checked_next_multiple_of(alignment).unwrap_or(length).min(length);
    let mut head = Head { keys, tensors: Vec::new(), broken: Vec::new(), findings };
    place(&mut head, infos, data, length, alignment);
    Ok(head)
}

/// Lists tensors whose bytes are all there.
fn place(head: &mut Head, infos: Vec<(String, Vec<usize>, Dtype, u64)>, data: u64, length: u64, alignment: u64) {
    let mut seen = BTreeSet::new();
    for (name, shape, dtype, offset) in infos {
        let mut broken = |code, message: String| {
            head.findings.push(Finding::of(code, &name, message));
            head.broken.push(name.clone());
        };
        if !seen.insert(name.clone()) {
            broken("header", "the file announces it twice".to_owned());
            continue;
        }
        let Some(bytes) = dtype.bytes(&shape) else {
            broken("header", format!("{dtype} {shape:?} is nothing that can be read here"));
            continue;
        };
        if offset % alignment != 0 {
            broken("header", format!("it begins at byte {offset} of the data, and not at a multiple of {alignment}"));
        } else if offset.checked_add(bytes).is_none_or(|end| end > length - data) {
            broken("truncated", format!("it takes {bytes} bytes from byte {offset} of the data, and the file has {}", length - data));
        } else {
            head.tensors.push(Tensor { name, dtype, shape, file: 0, start: data + offset, bytes });
        }
    }
    let mut order: Vec<&Tensor> = head.tensors.iter().collect();
    order.sort_by_key(|t| (t.start, t.bytes));
    for pair in order.windows(2).filter(|p| p[1].start < p[0].start + p[0].bytes) {
        head.findings.push(Finding::of("header", &pair[1].name, format!("it lies over `{}`", pair[0].name)));
    }
}
