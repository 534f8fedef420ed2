//! The header of a GGUF file, read so that no byte of it is trusted: every count and length is checked against what is left of the
//! file before anything is allocated for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::ggml_type::GgmlType;
use super::metadata::{List, Metadata, Value};
use crate::error::{Error, ErrorKind, Result};

/// Elements that a metadata list may have; vocabularies, the longest lists there are, stay far below.
const LONGEST_LIST: u64 = 1 << 24;

/// A GGUF file with its header read; the tensors stay on disk.
#[derive(Debug)]
pub struct GgufFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its key-value part.
    pub metadata: Metadata,
    /// Its tensors by their names in the file.
    pub tensors: BTreeMap<String, StoredTensor>,
    pub(super) file: File,
}

/// Where a tensor lies in the file.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Its number format.
    pub format: &'static GgmlType,
    /// Lengths of its dimensions, slowest first (a file lists them the other way round).
    pub shape: Vec<usize>,
    /// First byte, from the beginning of the file.
    pub offset: u64,
    /// Bytes of one row, a row running along the last dimension.
    pub row_bytes: usize,
}

impl StoredTensor {
    /// Rows of the tensor, all dimensions but the last taken together.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

impl GgufFile {
    /// Opens `path` and reads its header.
    ///
    /// Errors name the file, the tensor or key, and what is wrong with it: not a GGUF file, another version or byte order, truncated,
    /// duplicated names, formats that are unknown, data outside of the file.
    pub fn open(path: &Path) -> Result<Self> {
        // Failed file operations name the file themselves.
        Self::read(path).map_err(|e| if e.kind() == ErrorKind::Io { e } else { e.within(format_args!("`{}`", path.display())) })
    }

    fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let length = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        let mut cursor = Cursor { path, from: BufReader::new(&file), at: 0, length };
        let (tensor_count, pair_count) = cursor.preamble()?;
        let metadata = cursor.metadata(pair_count)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = cursor.tensors(tensor_count)?;
        let data = cursor.at.next_multiple_of(alignment);
        for (name, tensor) in &mut tensors {
            place(tensor, data, alignment, length).map_err(|e| e.within(format_args!("tensor `{name}`")))?;
        }
        Ok(Self { path: path.to_path_buf(), metadata, tensors, file })
    }
}

/// `general.alignment`, 32 when absent.
fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.uint("general.alignment")?.unwrap_or(32);
    if alignment.is_power_of_two() && alignment <= 1 << 20 {
        return Ok(alignment);
    }
    Err(Error::input("gguf::alignment", format!("`general.alignment` is {alignment} and has to be a power of two up to 1048576"))
        .hint("the header is damaged; get the file again"))
}

/// Turns the offset of a tensor into one from the beginning of the file, after checking that all of it is inside.
fn place(tensor: &mut StoredTensor, data: u64, alignment: u64, length: u64) -> Result<()> {
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(Error::input(
            "gguf::unaligned",
            format!("its offset {} is not a multiple of the alignment {alignment}", tensor.offset),
        )
        .hint("the header is damaged; get the file again"));
    }
    let bytes = tensor.rows().checked_mul(tensor.row_bytes).and_then(|b| u64::try_from(b).ok());
    let start = data.checked_add(tensor.offset);
    match start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes)).filter(|end| *end <= length) {
        Some(_) => tensor.offset = start.unwrap_or_default(),
        None => {
            let bytes = bytes.map_or_else(|| "more than 2^64".to_owned(), |b| b.to_string());
            let message = format!("its {bytes} bytes at data offset {} end outside of the file, which has {length} bytes", tensor.offset);
            return Err(Error::input("gguf::truncated", message).hint("the file is truncated or its header is damaged; get it again"));
        }
    }
    Ok(())
}

/// Reads forward, knowing how much of the file is left.
struct Cursor<'a> {
    path: &'a Path,
    from: BufReader<&'a File>,
    at: u64,
    length: u64,
}

impl Cursor<'_> {
    fn preamble(&mut self) -> Result<(u64, u64)> {
        let magic: [u8; 4] = self.bytes("the magic number")?;
        if &magic != b"GGUF" {
            let shown: String = magic.escape_ascii().to_string();
            return Err(Error::input("gguf::magic", format!("not a GGUF file: it begins with `{shown}` instead of `GGUF`"))
                .hint("files of the older formats GGML, GGMF and GGJT have to be converted with llama.cpp"));
        }
        let version = self.u32("the version")?;
        if version != 0 && version & 0xffff == 0 {
            return Err(Error::input("gguf::byte-order", "a big-endian GGUF file is not supported")
                .hint("convert it with `gguf-convert-endian FILE little`"));
        }
        if !(2..=3).contains(&version) {
            return Err(Error::input("gguf::version", format!("GGUF version {version} is not supported; versions 2 and 3 are"))
                .hint("convert the model again with a current llama.cpp"));
        }
        let tensors = self.count("the number of tensors", 8 + 4 + 8 + 4 + 8)?;
        let pairs = self.count("the number of metadata keys", 8 + 4 + 1)?;
        Ok((tensors, pairs))
    }

    fn metadata(&mut self, pairs: u64) -> Result<Metadata> {
        let mut metadata = Metadata::default();
        for i in 0..pairs {
            let key = self.text(&format!("metadata key {i}"))?;
            let what = format!("metadata `{key}`");
            let kind = self.u32(&what)?;
            let value = if kind == 9 { self.list(&what)? } else { self.value(kind, &what)? };
            if !metadata.insert(key, value) {
                return Err(Error::input("gguf::duplicate", format!("{what} appears twice")).hint("the file is damaged; get it again"));
            }
        }
        Ok(metadata)
    }

    fn tensors(&mut self, count: u64) -> Result<BTreeMap<String, StoredTensor>> {
        let mut tensors = BTreeMap::new();
        for i in 0..count {
            let name = self.text(&format!("the name of tensor {i}"))?;
            let tensor = self.tensor(&format!("the description of tensor `{name}`"))?;
            let tensor = tensor.map_err(|e| e.within(format_args!("tensor `{name}`")))?;
            if tensors.contains_key(&name) {
                return Err(
                    Error::input("gguf::duplicate", format!("tensor `{name}` appears twice")).hint("the file is damaged; get it again")
                );
            }
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }

    /// The outer error is about reading, the inner one about what was read.
    fn tensor(&mut self, what: &str) -> Result<Result<StoredTensor>> {
        let dimensions = self.u32(what)?;
        if !(1..=4).contains(&dimensions) {
            return Ok(Err(Error::input("gguf::shape", format!("it has {dimensions} dimensions and should have 1 to 4"))
                .hint("the header is damaged; get the file again")));
        }
        let mut lengths = Vec::with_capacity(4);
        for _ in 0..dimensions {
            lengths.push(self.u64(what)?);
        }
        let (id, offset) = (self.u32(what)?, self.u64(what)?);
        Ok(described(&lengths, id, offset))
    }

    fn value(&mut self, kind: u32, what: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Uint(u64::from(u8::from_le_bytes(self.bytes(what)?))),
            1 => Value::Int(i64::from(i8::from_le_bytes(self.bytes(what)?))),
            2 => Value::Uint(u64::from(u16::from_le_bytes(self.bytes(what)?))),
            3 => Value::Int(i64::from(i16::from_le_bytes(self.bytes(what)?))),
            4 => Value::Uint(u64::from(self.u32(what)?)),
            5 => Value::Int(i64::from(i32::from_le_bytes(self.bytes(what)?))),
            6 => Value::F32(f32::from_le_bytes(self.bytes(what)?)),
            7 => Value::Bool(self.bytes::<1>(what)? != [0]),
            8 => Value::Text(self.text(what)?),
            10 => Value::Uint(self.u64(what)?),
            11 => Value::Int(i64::from_le_bytes(self.bytes(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes(what)?)),
            9 => {
                return Err(Error::input("gguf::nested-list", format!("{what} is a list of lists, which is not supported"))
                    .hint("no known model needs one; the file may be damaged"));
            }
            _ => {
                return Err(Error::input("gguf::metadata-type", format!("{what} has the unknown value type {kind}"))
                    .hint("the file is damaged, or newer than this program"));
            }
        })
    }

    fn list(&mut self, what: &str) -> Result<Value> {
        let kind = self.u32(what)?;
        let smallest = match kind {
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => 1,
        };
        let count = self.count(&format!("the length of {what}"), smallest)?;
        if count > LONGEST_LIST {
            return Err(Error::input("gguf::too-long", format!("{what} has {count} elements; at most {LONGEST_LIST} are supported"))
                .hint("the header is damaged; get the file again"));
        }
        let mut list = match kind {
            1 | 3 | 5 | 11 => List::Int(Vec::new()),
            6 => List::F32(Vec::new()),
            7 => List::Bool(Vec::new()),
            8 => List::Text(Vec::new()),
            12 => List::F64(Vec::new()),
            0 | 2 | 4 | 10 => List::Uint(Vec::new()),
            // An empty list of an unknown type is refused as well.
            _ => return self.value(kind, what),
        };
        for _ in 0..count {
            match (&mut list, self.value(kind, what)?) {
                (List::Uint(l), Value::Uint(v)) => l.push(v),
                (List::Int(l), Value::Int(v)) => l.push(v),
                (List::F32(l), Value::F32(v)) => l.push(v),
                (List::F64(l), Value::F64(v)) => l.push(v),
                (List::Bool(l), Value::Bool(v)) => l.push(v),
                (List::Text(l), Value::Text(v)) => l.push(v),
                _ => return Err(Error::internal(format!("{what}: list of type {kind} read as another type"))),
            }
        }
        Ok(Value::List(list))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        let length = self.count(&format!("the length of {what}"), 1)?;
        let length = usize::try_from(length).map_err(|_| self.too_long(what, length))?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|e| {
            Error::input("gguf::not-utf8", format!("{what} is not valid UTF-8")).hint("the file is damaged; get it again").with_source(e)
        })
    }

    /// A count of things that take at least `smallest` bytes each.
    fn count(&mut self, what: &str, smallest: u64) -> Result<u64> {
        let count = self.u64(what)?;
        if count.checked_mul(smallest).is_none_or(|bytes| bytes > self.length - self.at) {
            return Err(self.too_long(what, count));
        }
        Ok(count)
    }

    fn too_long(&self, what: &str, count: u64) -> Error {
        let message = format!("{what} is {count}, more than the remaining {} bytes of the file can hold", self.length - self.at);
        Error::input("gguf::truncated", message).hint("the file is truncated or its header is damaged; get it again")
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        if bytes.len() as u64 > self.length - self.at {
            return Err(Error::input("gguf::truncated", format!("the file ends at byte {} inside {what}", self.length))
                .hint("the file is truncated; get it again"));
        }
        self.from.read_exact(bytes).map_err(|e| Error::io(self.path, "read", e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// A tensor from its lengths (fastest first), format number and offset in the data section.
fn described(lengths: &[u64], id: u32, offset: u64) -> Result<StoredTensor> {
    let damaged = "the header is damaged; get the file again";
    let format = GgmlType::by_id(id).ok_or_else(|| {
        Error::input("gguf::unknown-type", format!("its number format {id} is unknown"))
            .hint("the file is damaged, or newer than this program")
    })?;
    let shape: Option<Vec<usize>> = lengths.iter().rev().map(|l| usize::try_from(*l).ok()).collect();
    let elements = shape.as_ref().and_then(|s| s.iter().try_fold(1_usize, |product, l| product.checked_mul(*l)));
    let Some((shape, _)) = shape.zip(elements).filter(|(_, elements)| *elements > 0) else {
        return Err(Error::input("gguf::shape", format!("its lengths {lengths:?} have a product of zero or beyond 2^64")).hint(damaged));
    };
    let columns = shape.last().copied().unwrap_or(1);
    let Some(row_bytes) = format.row_bytes(columns) else {
        let message =
            format!("its rows of {columns} elements are not whole blocks of {}, which has {} elements a block", format.name, format.block);
        return Err(Error::input("gguf::block-size", message).hint(damaged));
    };
    Ok(StoredTensor { format, shape, offset, row_bytes })
}
