//! The header of a safetensors file: eight bytes of length, JSON, then the tensors without gaps.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::dtype::Dtype;
use crate::error::{Error, Finding, Result};
use crate::store::Tensor;

/// Longest header that readers accept.
const LONGEST: u64 = 100_000_000;

/// What a file announces.
pub(crate) struct Head {
    pub tensors: Vec<Tensor>,
    /// Names of tensors that are announced and cannot be read.
    pub broken: Vec<String>,
    pub findings: Vec<Finding>,
}

/// Entries in their order, twice named ones twice.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Reads the header of file number `number`, which is `length` bytes long.
///
/// # Errors
/// If reading itself fails. A header that is no header is a finding, for other files may be sound.
pub(crate) fn read(mut file: &File, length: u64, number: usize, path: &Path) -> Result<Head> {
    let shown = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unsound = |message: String| Ok(Head { tensors: Vec::new(), broken: Vec::new(), findings: vec![Finding::new("header", message)] });
    if length < 8 {
        return unsound(format!("`{shown}` has {length} bytes, which is no safetensors file"));
    }
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|e| Error::file(path, &e))?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST || size > length - 8 {
        return unsound(format!("`{shown}` announces a header of {size} bytes and has {length}"));
    }
    let mut text = vec![0; size as usize];
    file.read_exact(&mut text).map_err(|e| Error::file(path, &e))?;
    let entries = match serde_json::from_slice::<Entries>(&text) {
        Ok(Entries(entries)) => entries,
        Err(e) => return unsound(format!("the header of `{shown}` is no JSON object: {e}")),
    };
    Ok(tensors(entries, 8 + size, length, number, &shown))
}

/// The tensors of `entries`, whose data begins at byte `data` of `length`.
fn tensors(entries: Vec<(String, Value)>, data: u64, length: u64, number: usize, shown: &str) -> Head {
    let mut head = Head { tensors: Vec::new(), broken: Vec::new(), findings: Vec::new() };
    let mut end = 0;
    for (name, value) in entries {
        if name == "__metadata__" {
            continue;
        }
        let mut broken = |code, message: String| {
            head.findings.push(Finding::of(code, &name, format!("`{shown}`: {message}")));
            head.broken.push(name.clone());
        };
        let Some((dtype, shape, range)) = entry(&value) else {
            broken("header", format!("its entry is malformed: {}", brief(&value)));
            continue;
        };
        end = end.max(range.1);
        let bytes = range.1 - range.0;
        if let Some(needs) = dtype.bytes(&shape)
            && needs != bytes
        {
            broken("header", format!("{dtype} {shape:?} takes {needs} bytes, and its range has {bytes}"));
        } else if dtype.bytes(&shape).is_none()
            && !(matches!(dtype, Dtype::Other(..)) && elements(&shape).is_some_and(|n| n <= bytes.saturating_mul(8)))
        {
            broken("header", format!("a tensor of shape {shape:?} is larger than any file"));
        } else if range.1 > length - data {
            broken("truncated", format!("it ends at byte {} of the data, and the file has {}", range.1, length - data));
        } else {
            head.tensors.push(Tensor { name, dtype, shape, file: number, start: data + range.0, bytes });
        }
    }
    if end < length - data {
        let message = format!("`{shown}` has {} bytes after its last tensor", length - data - end);
        head.findings.push(Finding::new("header", message));
    }
    gaps(&mut head, data, shown);
    head
}

/// How many numbers there are; of a type that is not known each takes a bit at least.
fn elements(shape: &[usize]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))
}

/// Finds tensors that lie over each other, gaps between them, and names that stand twice.
fn gaps(head: &mut Head, data: u64, shown: &str) {
    let mut order: Vec<&Tensor> = head.tensors.iter().collect();
    order.sort_by_key(|t| (t.start, t.bytes));
    // What is broken may be what lies between.
    let whole = head.broken.is_empty();
    let mut end = data;
    for tensor in order {
        if tensor.start < end {
            let message = format!("`{shown}`: it begins {} bytes before the tensor before it ends", end - tensor.start);
            head.findings.push(Finding::of("header", &tensor.name, message));
        } else if tensor.start > end && whole {
            let message = format!("`{shown}`: {} bytes before it belong to no tensor", tensor.start - end);
            head.findings.push(Finding::of("header", &tensor.name, message));
        }
        end = end.max(tensor.start + tensor.bytes);
    }
    let mut names: Vec<&str> = head.tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    let twice = names.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0].to_owned()).collect::<std::collections::BTreeSet<_>>();
    for name in twice {
        head.findings.push(Finding::of("header", &name, format!("`{shown}` announces it twice")));
        head.tensors.retain(|t| t.name != name);
        head.broken.push(name);
    }
}

/// Type, shape and range of a well-formed entry.
fn entry(value: &Value) -> Option<(Dtype, Vec<usize>, (u64, u64))> {
    let dtype = Dtype::of_safetensors(value["dtype"].as_str()?);
    let shape = value["shape"].as_array()?.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect::<Option<Vec<_>>>()?;
    let [start, end] = value["data_offsets"].as_array()?.as_slice() else { return None };
    let (start, end) = (start.as_u64()?, end.as_u64()?);
    (start <= end).then_some((dtype, shape, (start, end)))
}

fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { format!("{}…", text.chars().take(79).collect::<String>()) }
}
