//! Parameter archives of IREE (`.irpa`): tensors in one file, behind a table of what lies where.
//!
//! Little endian, nothing is aligned inside of the structures:
//!
//! ```text
//! header     "IRPA", version u16 major u16 minor, u64 size (88), u64 offset of a further header, u64 flags,
//!            u64 number of entries, then ranges (u64 offset, u64 length) of the entries, the texts and the data
//! entry      u64 size, u32 kind, u64 flags, ranges of its name and its description among the texts, u64 alignment,
//!            and for kind 2 the range of its bytes among the data; entries begin at multiples of 16
//! ```
//!
//! The format leaves open what a description says. That of a tensor is what iree-turbine writes and reads: `PYTORCH:` and an object with
//! `type`, `dtype` and `shape`. What has none is bytes. Sources: IREE, `runtime/src/iree/schemas/parameter_archive.h`; iree-turbine 3.9,
//! `iree/turbine/aot/params.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::data_file::PAGE;
use super::header::MAX_HEADER;
use super::{StoredDtype, TensorDecl, TensorInfo};
use crate::error::{Error, Result};

const MAGIC: &[u8; 4] = b"IRPA";
/// Bytes of the header.
const HEADER: u64 = 88;
/// Bytes of the part of an entry that all kinds have.
const ENTRY: u64 = 60;
/// Bytes of an entry with data.
const DATA_ENTRY: u64 = ENTRY + 16;
/// Where entries begin.
const STEP: u64 = 16;
/// The kind of an entry that was erased, and of one with data.
const SKIPPED: u32 = 0;
const DATA: u32 = 2;
/// What data is aligned to, at least.
const LINE: u64 = 64;
/// What a description of a tensor begins with.
const TENSOR: &str = "PYTORCH:";

/// Types by the names that they have here and in a description.
const TYPES: [(&str, &str); 14] = [
    ("F64", "float64"),
    ("F32", "float32"),
    ("F16", "float16"),
    ("BF16", "bfloat16"),
    ("I64", "int64"),
    ("I32", "int32"),
    ("I16", "int16"),
    ("I8", "int8"),
    ("U8", "uint8"),
    ("BOOL", "bool"),
    ("F8_E4M3", "float8_e4m3fn"),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
    ("F8_E5M2", "float8_e5m2"),
    ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
];

/// What stands before the data of `tensors`, in whole pages; `places` are their bytes, counted from its end.
///
/// # Errors
/// If a type has no name in a description, or a tensor has no place.
pub(crate) fn head(tensors: &[TensorDecl], places: &BTreeMap<String, Range<u64>>) -> Result<Vec<u8>> {
    let (mut entries, mut texts) = (Vec::new(), Vec::new());
    for t in tensors {
        let place = places.get(&t.name).ok_or_else(|| Error::internal(format!("tensor `{}` has no place", t.name)))?;
        entries.extend(DATA_ENTRY.to_le_bytes());
        entries.extend(DATA.to_le_bytes());
        entries.extend(0_u64.to_le_bytes());
        for text in [t.name.clone(), description(t)?] {
            range(texts.len() as u64, text.len() as u64, &mut entries);
            texts.extend(text.into_bytes());
        }
        entries.extend(LINE.to_le_bytes());
        range(place.start, place.end - place.start, &mut entries);
        entries.resize(entries.len().next_multiple_of(STEP as usize), 0);
    }
    let table = HEADER.next_multiple_of(STEP);
    let after = table + entries.len() as u64;
    let data = (after + texts.len() as u64).next_multiple_of(PAGE);
    let mut out = MAGIC.to_vec();
    out.extend([0; 4]);
    for number in [HEADER, 0, 0, tensors.len() as u64] {
        out.extend(number.to_le_bytes());
    }
    range(table, entries.len() as u64, &mut out);
    range(after, texts.len() as u64, &mut out);
    range(data, places.values().map(|p| p.end).max().unwrap_or(0), &mut out);
    out.resize(table as usize, 0);
    out.extend(entries);
    out.extend(texts);
    out.resize(data as usize, 0);
    Ok(out)
}

/// What iree-turbine is told of a tensor.
fn description(t: &TensorDecl) -> Result<String> {
    let Some((_, dtype)) = TYPES.iter().find(|(ours, _)| *ours == t.dtype.name()) else {
        let what = format!("`{}` is of type {}, for which a parameter archive has no name", t.name, t.dtype.name());
        return Err(Error::plan("plan::container", what).hint("remove the tensor if the model does not read it, or use `--format qfw`"));
    };
    Ok(format!("{TENSOR}{}", json!({ "type": "Tensor", "dtype": dtype, "shape": t.shape })))
}

fn range(offset: u64, length: u64, out: &mut Vec<u8>) {
    out.extend(offset.to_le_bytes());
    out.extend(length.to_le_bytes());
}

/// What a description says of a tensor.
#[derive(Deserialize)]
struct Described {
    #[serde(rename = "type")]
    kind: String,
    dtype: String,
    shape: Vec<usize>,
}

/// The entries of the archive at `path`. No number in it is believed before it is checked against the length of the file.
///
/// # Errors
/// If it is no archive, damaged, or one of whose data is not all in it.
pub(crate) fn read_header(path: &Path) -> Result<Vec<TensorInfo>> {
    let archive = Archive::open(path)?;
    let (mut out, mut seen, mut at) = (Vec::new(), BTreeSet::new(), 0_u64);
    for i in 0..archive.count {
        let rest = usize::try_from(at).ok().and_then(|at| archive.table.get(at..)).unwrap_or_default();
        let size = u64_at(rest, 0);
        let entry = usize::try_from(size).ok().and_then(|n| rest.get(..n)).filter(|e| e.len() as u64 >= ENTRY);
        let missing = || archive.damaged(format!("entry {i} of {} has {size} bytes, and {} are left", archive.count, rest.len()));
        let info = archive.entry(i, entry.ok_or_else(missing)?)?;
        at += size.next_multiple_of(STEP);
        if let Some(twice) = info.as_ref().filter(|t| !seen.insert(t.name.clone())) {
            return Err(archive.damaged(format!("`{}` is in it twice", twice.name)));
        }
        out.extend(info);
    }
    Ok(out)
}

/// The parts of an archive that are not data.
struct Archive<'a> {
    path: &'a Path,
    count: u64,
    table: Vec<u8>,
    texts: Vec<u8>,
    /// Where the data lie in the file.
    data: Range<u64>,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        let read = |range: Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).map_err(|e| Error::io(path, "read", e))?;
            Ok::<_, Error>(bytes)
        };
        if length < HEADER {
            return Err(damaged(path, format!("{length} bytes are no parameter archive")));
        }
        let head = read(0..HEADER)?;
        check_version(path, &head)?;
        let inside = |what: &str, at: usize| {
            let (offset, n) = (u64_at(&head, at), u64_at(&head, at + 8));
            let range = offset.checked_add(n).filter(|end| *end <= length).map(|end| offset..end);
            range.ok_or_else(|| damaged(path, format!("{n} bytes of {what} at {offset} end outside of the {length} bytes of the file")))
        };
        let (count, table) = (u64_at(&head, 32), inside("entries", 40)?);
        if count.checked_mul(ENTRY).is_none_or(|least| least > table.end - table.start) {
            return Err(damaged(path, format!("{count} entries in a table of {} bytes", table.end - table.start)));
        }
        let texts = inside("texts", 56)?;
        let said = (table.end - table.start).saturating_add(texts.end - texts.start);
        if said > MAX_HEADER {
            return Err(damaged(path, format!("its entries and their texts have {said} bytes, above the limit of {MAX_HEADER}")));
        }
        Ok(Self { path, count, table: read(table)?, texts: read(texts)?, data: inside("data", 72)? })
    }

    fn damaged(&self, what: String) -> Error {
        damaged(self.path, what)
    }

    /// Number `i` of the table; `None` for one that was erased.
    fn entry(&self, i: u64, entry: &[u8]) -> Result<Option<TensorInfo>> {
        let kind = u32::from_le_bytes([entry[8], entry[9], entry[10], entry[11]]);
        if kind == SKIPPED {
            return Ok(None);
        }
        let text = |at: usize| text_at(&self.texts, u64_at(entry, at), u64_at(entry, at + 8));
        let name = text(20).ok_or_else(|| self.damaged(format!("entry {i} has no name that can be read")))?;
        if kind != DATA {
            let what = format!("the numbers of `{name}` are not in `{}`: its entry is of kind {kind}", self.path.display());
            return Err(Error::input("irpa::no-data", what).hint("it is an archive for trials of speed, or one that refers to another"));
        }
        if (entry.len() as u64) < DATA_ENTRY {
            return Err(self.damaged(format!("the entry of `{name}` has {} bytes", entry.len())));
        }
        let (offset, n) = (u64_at(entry, ENTRY as usize), u64_at(entry, ENTRY as usize + 8));
        let all = self.data.end - self.data.start;
        if offset.checked_add(n).is_none_or(|end| end > all) {
            return Err(self.damaged(format!("`{name}`, {n} bytes at {offset}, ends outside of {all} bytes of data")));
        }
        let description = text(36).ok_or_else(|| self.damaged(format!("what `{name}` is cannot be read")))?;
        let (dtype, shape) = described(description, n).map_err(|what| self.damaged(format!("`{name}` {what}")))?;
        let start = self.data.start + offset;
        Ok(Some(TensorInfo { name: name.to_owned(), dtype, shape, file: self.path.to_owned(), bytes: start..start + n }))
    }
}

fn damaged(path: &Path, what: String) -> Error {
    Error::input("irpa::malformed", format!("`{}`: {what}", path.display())).hint("the file is damaged or cut; get it again")
}

/// Refuses what is no archive, or one of another version, or several in one file.
fn check_version(path: &Path, head: &[u8]) -> Result<()> {
    let (magic, size) = (&head[..4], u64_at(head, 8));
    if magic != MAGIC {
        return Err(damaged(path, format!("it begins with `{}`, and a parameter archive with `IRPA`", magic.escape_ascii())));
    }
    let version = (u16::from_le_bytes([head[4], head[5]]), u16::from_le_bytes([head[6], head[7]]));
    if version != (0, 0) || size != HEADER {
        let (major, minor) = version;
        let what = format!("`{}` is of version {major}.{minor} with {size} bytes of header; 0.0 with {HEADER} is known", path.display());
        return Err(Error::input("irpa::version", what).hint("write it again with `iree-convert-parameters`"));
    }
    if u64_at(head, 16) != 0 {
        let what = format!("`{}` is several archives, one behind the other", path.display());
        return Err(Error::input("irpa::linked", what).hint("`iree-convert-parameters` makes one of them"));
    }
    Ok(())
}

/// Type and shape of an entry of `len` bytes.
fn described(description: &str, len: u64) -> std::result::Result<(StoredDtype, Vec<usize>), String> {
    if description.is_empty() {
        return Ok((StoredDtype::U8, vec![len as usize]));
    }
    let stated = description.strip_prefix(TENSOR).and_then(|d| serde_json::from_str::<Described>(d).ok()).filter(|d| d.kind == "Tensor");
    let Described { dtype, shape, .. } = stated.ok_or_else(|| format!("is described as `{description}`, which is no tensor"))?;
    let ours = TYPES.iter().find(|(_, theirs)| *theirs == dtype).map(|(ours, _)| StoredDtype::parse(ours));
    let ours = ours.ok_or_else(|| format!("is of type `{dtype}`, which is not known here"))?;
    let bytes = ours.size().and_then(|size| shape.iter().try_fold(size, |n, d| n.checked_mul(*d as u64)));
    if bytes != Some(len) {
        return Err(format!("is {dtype} {shape:?} in {len} bytes"));
    }
    Ok((ours, shape))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

fn text_at(texts: &[u8], offset: u64, length: u64) -> Option<&str> {
    let range = usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(length)?).ok()?;
    std::str::from_utf8(texts.get(range)?).ok()
}
