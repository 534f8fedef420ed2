//! The header of a GGUF file, version 2 or 3: keys, then tensors, then their data at multiples of the alignment.
//!
//! What a header makes a reader keep is no larger than the header is: lists are read over, and so are long texts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde_json::{Number, Value, json};

use crate::dtype::{Dtype, array};
use crate::error::{Error, Finding, Result};
use crate::store::Tensor;

/// Most axes that llama.cpp reads.
const AXES: u32 = 4;

/// Deepest nesting of arrays that is followed.
const DEPTH: u32 = 4;

/// Longest name, and longest text of a key that is kept. Names have 2^16 − 1 bytes at most by the format's description.
const LONGEST: u64 = (1 << 16) - 1;

/// Bytes that a key takes at least: a name of none, its type, and a byte.
const LEAST_KEY: u64 = 8 + 4 + 1;

/// Bytes that a tensor takes at least: a name of none, its axes, none, its type and offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// The value of a key, as far as anything here asks for it.
#[derive(Debug, PartialEq)]
pub(crate) enum Key {
    Number(Number),
    /// A text, unless it is a long one.
    Text(Option<String>),
    Flag,
    /// A list of so many elements, which are not kept: they are read over, however many a file says that there are.
    List(u64),
}

impl Key {
    pub(crate) fn number(&self) -> Option<u64> {
        if let Self::Number(n) = self { n.as_u64() } else { None }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { text.as_deref() } else { None }
    }
}

/// What a file announces.
pub(crate) struct Head {
    pub keys: BTreeMap<String, Key>,
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
    /// Says that `n` bytes follow.
    fn follow(&self, n: Option<u64>) -> Result<u64> {
        match n.filter(|n| *n <= self.length - self.at) {
            Some(n) => Ok(n),
            None => {
                let n = n.map_or_else(|| "2^64 and more".to_owned(), |n| n.to_string());
                Err(self.unsound(format!("the header ends within the {n} bytes after byte {}", self.at)))
            }
        }
    }

    /// Bytes of what is short.
    fn take(&mut self, n: u64) -> Result<Vec<u8>> {
        self.follow(Some(n))?;
        let mut bytes = vec![0; n as usize];
        self.from.read_exact(&mut bytes).map_err(|e| Error::file(self.path, &e))?;
        self.at += n;
        Ok(bytes)
    }

    /// Reads over bytes.
    fn skip(&mut self, n: Option<u64>) -> Result<()> {
        let n = self.follow(n)?;
        let by = i64::try_from(n).map_err(|_| self.unsound(format!("{n} bytes are more than any file has")))?;
        self.from.seek_relative(by).map_err(|e| Error::file(self.path, &e))?;
        self.at += n;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(array(&self.take(4)?)))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(array(&self.take(8)?)))
    }

    fn name(&mut self) -> Result<String> {
        let (at, n) = (self.at, self.u64()?);
        if n > LONGEST {
            return Err(self.unsound(format!("the name at byte {at} has {n} bytes, and {LONGEST} are the most there can be")));
        }
        self.text(n)
    }

    fn text(&mut self, n: u64) -> Result<String> {
        let at = self.at;
        String::from_utf8(self.take(n)?).map_err(|_| self.unsound(format!("the text at byte {at} is not UTF-8")))
    }

    fn unsound(&self, message: String) -> Error {
        Error::new("verify::header", format!("`{}`: {message}", self.path.display())).hint("the file is truncated or damaged")
    }

    /// A value of the type numbered `kind`.
    fn value(&mut self, kind: u32) -> Result<Key> {
        let number = |n: Value| if let Value::Number(n) = n { Key::Number(n) } else { Key::Flag };
        Ok(match kind {
            0 => number(json!(self.take(1)?[0])),
            1 => number(json!(self.take(1)?[0] as i8)),
            2 => number(json!(u16::from_le_bytes(array(&self.take(2)?)))),
            3 => number(json!(i16::from_le_bytes(array(&self.take(2)?)))),
            4 => number(json!(self.u32()?)),
            5 => number(json!(self.u32()? as i32)),
            6 => number(json!(f32::from_le_bytes(array(&self.take(4)?)))),
            7 => {
                self.take(1)?;
                Key::Flag
            }
            8 => match self.u64()? {
                n if n <= LONGEST => Key::Text(Some(self.text(n)?)),
                n => {
                    self.skip(Some(n))?;
                    Key::Text(None)
                }
            },
            9 => Key::List(self.list(0)?),
            10 => number(json!(self.u64()?)),
            11 => number(json!(self.u64()? as i64)),
            12 => number(json!(f64::from_le_bytes(array(&self.take(8)?)))),
            other => return Err(self.no_type(other)),
        })
    }

    /// Reads over a list, and says how long it is.
    fn list(&mut self, depth: u32) -> Result<u64> {
        let (kind, n) = (self.u32()?, self.u64()?);
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..n {
                    let length = self.u64()?;
                    self.skip(Some(length))?;
                }
                return Ok(n);
            }
            9 if depth >= DEPTH => return Err(self.unsound("arrays are nested too deeply".to_owned())),
            9 => {
                for _ in 0..n {
                    self.list(depth + 1)?;
                }
                return Ok(n);
            }
            other => return Err(self.no_type(other)),
        };
        self.skip(n.checked_mul(each))?;
        Ok(n)
    }

    fn no_type(&self, kind: u32) -> Error {
        self.unsound(format!("a key has type {kind}, which there is not"))
    }

    /// A count of things that each take some bytes.
    fn count(&mut self, what: &str, each: u64) -> Result<u64> {
        let n = self.u64()?;
        match n.checked_mul(each).filter(|bytes| *bytes <= self.length - self.at) {
            Some(_) => Ok(n),
            None => Err(self.unsound(format!("it announces {n} {what}, and {} bytes follow", self.length - self.at))),
        }
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
    let (tensors, pairs) = (bytes.count("tensors", LEAST_TENSOR)?, bytes.count("keys", LEAST_KEY)?);
    let (mut keys, mut findings) = (BTreeMap::new(), Vec::new());
    for _ in 0..pairs {
        let key = bytes.name()?;
        let kind = bytes.u32()?;
        let value = bytes.value(kind)?;
        if keys.insert(key.clone(), value).is_some() {
            findings.push(Finding::new("header", format!("key `{key}` stands twice")));
        }
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        let name = bytes.name()?;
        let axes = bytes.u32()?;
        if axes > AXES {
            return Err(bytes.unsound(format!("tensor `{name}` has {axes} axes")));
        }
        let mut shape = (0..axes).map(|_| bytes.u64().map(|n| usize::try_from(n).unwrap_or(usize::MAX))).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let (kind, offset) = (bytes.u32()?, bytes.u64()?);
        infos.push((name, shape, Dtype::of_gguf(kind), offset));
    }
    let alignment = keys.get("general.alignment").and_then(Key::number).unwrap_or(32);
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
