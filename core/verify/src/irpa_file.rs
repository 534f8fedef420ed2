//! The header of a parameter archive of IREE.
//!
//! Numbers are little-endian and lie one behind the other. Header, 88 bytes: `IRPA`, u16 and u16 of the version, u64 of its own size, of a
//! further header and of flags, u64 entries, then three ranges of offset and length: of the entries, of texts, of data. Entry, at a multiple of
//! 16: u64 of its size, u32 of its kind (2 has data), u64 of flags, the ranges of its name and its description among the texts, u64 of an
//! alignment, and the range of its bytes among the data. A description is `PYTORCH:` and JSON with `dtype` and `shape`, or nothing.
//! Source: IREE, `runtime/src/iree/schemas/parameter_archive.h`; iree-turbine, `aot/params.py`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

use crate::dtype::{Dtype, array};
use crate::error::{Error, Result};
use crate::store::Tensor;

const HEADER: u64 = 88;
const ENTRY: u64 = 76;
/// Most bytes of entries and texts, which are read at once.
const MOST: u64 = 100_000_000;

/// A range of offset and length in a part of the file.
type Range = (u64, u64);

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(&bytes[at..]))
}

fn range(bytes: &[u8], at: usize) -> Range {
    (number(bytes, at), number(bytes, at + 8))
}

/// Whether a range ends before `end`.
fn fits((offset, length): Range, end: u64) -> bool {
    offset.checked_add(length).is_some_and(|e| e <= end)
}

/// The entries of an archive.
///
/// # Errors
/// If the file is none, or is damaged.
pub(crate) fn read(mut file: &File, length: u64, path: &Path) -> Result<Vec<Tensor>> {
    let unsound =
        |what: String| Error::new("verify::irpa", format!("`{}` {what}", path.display())).hint("copy it again from where it was right");
    let mut part = |(offset, n): Range| {
        let mut bytes = vec![0; n as usize];
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| Error::file(path, &e))?;
        Ok::<_, Error>(bytes)
    };
    if length < HEADER {
        return Err(unsound(format!("has {length} bytes, which are no parameter archive")));
    }
    let head = part((0, HEADER))?;
    if &head[..4] != b"IRPA" || head[4..8] != [0; 4] || number(&head, 8) != HEADER || number(&head, 16) != 0 {
        return Err(unsound("does not begin as one parameter archive of version 0.0".to_owned()));
    }
    let (count, table, texts, data) = (number(&head, 32), range(&head, 40), range(&head, 56), range(&head, 72));
    if ![table, texts, data].iter().all(|r| fits(*r, length)) || count.checked_mul(ENTRY).is_none_or(|n| n > table.1) {
        return Err(unsound(format!("says that parts of it lie outside of its {length} bytes")));
    }
    if table.1.saturating_add(texts.1) > MOST {
        return Err(unsound(format!("has {} bytes of entries and {} of texts, above the limit of {MOST}", table.1, texts.1)));
    }
    let (entries, texts) = (part(table)?, part(texts)?);
    let text = |at: Range| {
        let all = fits(at, texts.len() as u64).then(|| &texts[at.0 as usize..][..at.1 as usize]);
        all.and_then(|bytes| std::str::from_utf8(bytes).ok())
    };
    let (mut out, mut at) = (Vec::new(), 0);
    for i in 0..count {
        let entry = entries.get(at..).filter(|rest| rest.len() as u64 >= ENTRY && fits((0, number(rest, 0)), rest.len() as u64));
        let Some(entry) = entry.filter(|e| number(e, 0) == ENTRY && e[8..12] == [2, 0, 0, 0]) else {
            return Err(unsound(format!("has an entry, number {i}, that is none with data")));
        };
        at += (ENTRY as usize).next_multiple_of(16);
        let place = range(entry, 60);
        let (Some(name), Some(said)) = (text(range(entry, 20)), text(range(entry, 36))) else {
            return Err(unsound(format!("has an entry, number {i}, whose name or description cannot be read")));
        };
        let typed = described(said, place.1);
        let (Some((dtype, shape)), true) = (typed, fits(place, data.1)) else {
            return Err(unsound(format!("says of `{name}`, {} bytes: {said}", place.1)));
        };
        out.push(Tensor { name: name.to_owned(), dtype, shape, file: 0, start: data.0 + place.0, bytes: place.1 });
    }
    Ok(out)
}

/// Type and shape, which have to have so many bytes.
fn described(said: &str, bytes: u64) -> Option<(Dtype, Vec<usize>)> {
    if said.is_empty() {
        return Some((Dtype::Uint(1), vec![usize::try_from(bytes).ok()?]));
    }
    let said: Value = serde_json::from_str(said.strip_prefix("PYTORCH:")?).ok()?;
    let dtype = match said["dtype"].as_str()? {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float8_e4m3fn" => Dtype::E4m3,
        "int64" => Dtype::Int(8),
        "int32" => Dtype::Int(4),
        "int16" => Dtype::Int(2),
        "int8" => Dtype::Int(1),
        "uint8" => Dtype::Uint(1),
        "bool" => Dtype::Bool,
        other => Dtype::Other(other.to_owned(), Some(1)),
    };
    let shape = said["shape"].as_array()?.iter().map(|d| usize::try_from(d.as_u64()?).ok()).collect::<Option<Vec<usize>>>()?;
    (dtype.bytes(&shape) == Some(bytes)).then_some((dtype, shape))
}
