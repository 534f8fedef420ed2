//! The tensors of a GGUF file under their Hugging Face names and in their Hugging Face layout.
//!
//! Rows are fetched with positioned reads, decoded, and dropped: what is in memory is the caller's buffer and a scratch of at most
//! [`SCRATCH`] bytes or one row.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::codes;
use super::ggml_type;
use super::header::{GgufFile, StoredTensor};
use super::names::{Architecture, Layout};
use super::shape::Sizes;
use crate::algorithm::Rounded;
use crate::checkpoint::native::NativeSite;
use crate::checkpoint::{StoredDtype, TensorInfo, TensorSource};
use crate::error::{Error, Result};

/// Stored bytes that are read at once.
const SCRATCH: usize = 1 << 20;

/// [`TensorSource`] over a GGUF file.
#[derive(Debug)]
pub struct GgufTensors {
    file: Arc<GgufFile>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    stored: StoredTensor,
    order: Order,
    /// What all of its numbers are multiplied with, for formats whose scales need one for the whole tensor.
    factor: Option<f32>,
    /// How it is quantized, if a grid of ours holds its numbers.
    site: Option<NativeSite>,
}

/// Where row `i` of the Hugging Face tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Plain,
    /// In heads of `head_dim` rows, in which row `2j + s` of the file is row `s · head_dim / 2 + j`.
    Interleaved {
        head_dim: usize,
    },
    Transposed,
}

impl Order {
    /// The row of the file that is row `i` of the Hugging Face tensor.
    fn stored_row(self, i: usize) -> usize {
        match self {
            Self::Interleaved { head_dim } => {
                let (head, within) = (i / head_dim, i % head_dim);
                let (second_half, j) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * j + second_half
            }
            Self::Plain | Self::Transposed => i,
        }
    }
}

impl GgufTensors {
    /// Names every tensor of `file`. An output matrix with the bytes of the embedding is left out: the head is tied then.
    pub(super) fn new(file: Arc<GgufFile>) -> Result<Self> {
        let architecture = Architecture::of(&file)?;
        let sizes = Sizes::of(&file, architecture)?;
        let blocks = usize::try_from(sizes.blocks).unwrap_or(usize::MAX);
        let tied = head_is_tied(&file)?;
        let mut tensors = BTreeMap::new();
        for (name, stored) in &file.tensors {
            // The factors of LLaMA 3's rotary positions are part of the configuration.
            if name == "rope_freqs.weight" || (tied && name == "output.weight") || factor_of(&file, name).is_some() {
                continue;
            }
            let (hf_name, layout) = architecture.rename(name, blocks)?;
            let order = order(name, stored, layout, &sizes)?;
            let mut shape = stored.shape.clone();
            if order == Order::Transposed {
                shape.reverse();
            }
            let mut info = TensorInfo::new(hf_name.clone(), dtype(stored), shape, file.path.clone());
            info.bytes = stored.offset..stored.offset + (stored.rows() * stored.row_bytes) as u64;
            let factor = factor(&file, name).map_err(|e| e.within(format_args!("tensor `{name}`")))?;
            let site = coded(&hf_name, stored, order);
            tensors.insert(hf_name, Entry { info, stored: stored.clone(), order, factor, site });
        }
        Ok(Self { file, tensors })
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| {
            let near = crate::error::did_you_mean(name, self.tensors.keys().map(String::as_str));
            Error::input("gguf::missing-tensor", format!("tensor `{name}` is not in `{}`{near}", self.file.path.display()))
                .hint("the file is incomplete, or its metadata describe another model")
        })
    }

    fn fetch(&self, at: u64, bytes: usize, into: &mut Vec<u8>) -> Result<()> {
        into.resize(bytes, 0);
        self.file.file.read_exact_at(into, at).map_err(|e| Error::io(&self.file.path, "read", e))
    }

    /// Decodes `columns` of the stored row `row` into `out`, fetching the blocks that they touch.
    fn part_of_row(&self, part: Part<'_>, row: usize, columns: Range<usize>, scratch: &mut Scratch, out: &mut Vec<f32>) -> Result<()> {
        let format = part.stored.format;
        let (first, last) = (columns.start / format.block, columns.end.div_ceil(format.block));
        let at = part.stored.offset + (row * part.stored.row_bytes + first * format.bytes) as u64;
        self.fetch(at, (last - first) * format.bytes, &mut scratch.bytes)?;
        scratch.values.resize((last - first) * format.block, 0.0);
        (part.decode)(&scratch.bytes, &mut scratch.values);
        let skipped = first * format.block;
        out.extend_from_slice(&scratch.values[columns.start - skipped..columns.end - skipped]);
        Ok(())
    }

    /// Consecutive stored rows, in pieces of at most [`SCRATCH`] bytes.
    fn rows_in_order(&self, part: Part<'_>, rows: Range<usize>, scratch: &mut Scratch, out: &mut Vec<f32>) -> Result<()> {
        let (row_bytes, columns) = (part.stored.row_bytes, part.stored.columns());
        let step = (SCRATCH / row_bytes).max(1);
        let mut row = rows.start;
        while row < rows.end {
            let count = step.min(rows.end - row);
            self.fetch(part.stored.offset + (row * row_bytes) as u64, count * row_bytes, &mut scratch.bytes)?;
            let filled = out.len();
            out.resize(filled + count * columns, 0.0);
            (part.decode)(&scratch.bytes, &mut out[filled..]);
            row += count;
        }
        Ok(())
    }

    /// Rows of the transposed tensor: a strip of columns from every stored row.
    fn columns_as_rows(&self, part: Part<'_>, rows: Range<usize>, scratch: &mut Scratch, out: &mut Vec<f32>) -> Result<()> {
        let width = part.stored.rows();
        out.resize(rows.len() * width, 0.0);
        let mut strip = Vec::with_capacity(rows.len());
        for column in 0..width {
            strip.clear();
            self.part_of_row(part, column, rows.clone(), scratch, &mut strip)?;
            for (row, value) in strip.iter().enumerate() {
                out[row * width + column] = *value;
            }
        }
        Ok(())
    }

    fn decode(&self, entry: &Entry, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let format = entry.stored.format;
        let decode = format.decode.ok_or_else(|| {
            Error::input("gguf::format", format!("numbers of format {} cannot be read", format.name))
                .hint(format!("readable are {}; give a file in one of these, best the original in F16 or BF16", ggml_type::decodable()))
        })?;
        let part = Part { stored: &entry.stored, decode };
        let mut scratch = Scratch::default();
        let columns = entry.stored.columns();
        match (entry.order, entry.stored.shape.len()) {
            (Order::Transposed, _) => self.columns_as_rows(part, rows, &mut scratch, out),
            (Order::Plain, 1) => self.part_of_row(part, 0, rows, &mut scratch, out),
            (Order::Plain, _) => {
                // With more than two dimensions, a row along the first is several stored rows.
                let each = entry.stored.rows() / entry.stored.shape[0];
                self.rows_in_order(part, rows.start * each..rows.end * each, &mut scratch, out)
            }
            (Order::Interleaved { .. }, 1) => {
                let mut all = Vec::with_capacity(columns);
                self.part_of_row(part, 0, 0..columns, &mut scratch, &mut all)?;
                out.extend(rows.map(|i| all[entry.order.stored_row(i)]));
                Ok(())
            }
            (Order::Interleaved { .. }, _) => {
                rows.into_iter().try_for_each(|i| self.part_of_row(part, entry.order.stored_row(i), 0..columns, &mut scratch, out))
            }
        }
    }

    /// Puts stored elements of `unit` bytes where the Hugging Face layout has them.
    fn reorder(entry: &Entry, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let format = entry.stored.format;
        let (unit, from): (usize, Box<dyn Fn(usize) -> usize>) = match (entry.order, entry.stored.shape.len()) {
            (Order::Plain, _) => return Ok(bytes),
            (order, 1) if format.block == 1 => (format.bytes, Box::new(move |i| order.stored_row(i))),
            (order @ Order::Interleaved { .. }, 2..) => (entry.stored.row_bytes, Box::new(move |i| order.stored_row(i))),
            (Order::Transposed, 2) if format.block == 1 => {
                let (rows, columns) = (entry.stored.rows(), entry.stored.columns());
                (format.bytes, Box::new(move |i| i % rows * columns + i / rows))
            }
            _ => {
                return Err(Error::input("gguf::format", format!("blocks of {} cannot be rearranged without decoding them", format.name))
                    .hint("read the tensor as f32"));
            }
        };
        let mut out = Vec::with_capacity(bytes.len());
        for i in 0..bytes.len() / unit {
            out.extend_from_slice(&bytes[from(i) * unit..][..unit]);
        }
        Ok(out)
    }
}

impl TensorSource for GgufTensors {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|e| &e.info)
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        let entry = self.entry(name)?;
        let count = entry.info.shape[0];
        if rows.start > rows.end || rows.end > count {
            return Err(Error::internal(format!("rows {rows:?} of tensor `{name}` were asked for, which has {count}")));
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.decode(entry, rows, out).map_err(|e| e.within(format_args!("`{}`: tensor `{name}`", self.file.path.display())))?;
        if let Some(factor) = entry.factor {
            out.iter_mut().for_each(|x| *x *= factor);
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entry(name)?;
        if entry.factor.is_some() {
            let what = format!(
                "the bytes of tensor `{name}` in `{}` say its numbers without the factor that it has beside it",
                self.file.path.display()
            );
            return Err(Error::input("gguf::format", what).hint("read the tensor as f32"));
        }
        let mut bytes = Vec::new();
        self.fetch(entry.stored.offset, entry.stored.rows() * entry.stored.row_bytes, &mut bytes)?;
        Self::reorder(entry, bytes).map_err(|e| e.within(format_args!("`{}`: tensor `{name}`", self.file.path.display())))
    }

    fn coded(&self, name: &str) -> Option<&NativeSite> {
        self.tensors.get(name)?.site.as_ref()
    }

    fn rounded(&self, name: &str) -> Result<Rounded> {
        let entry = self.entry(name)?;
        let site = entry.site.as_ref().ok_or_else(|| Error::internal(format!("`{name}` has no codes")))?;
        let mut bytes = Vec::new();
        self.fetch(entry.stored.offset, entry.stored.rows() * entry.stored.row_bytes, &mut bytes)?;
        // A transposed tensor lies in the file as codes do, `[out, in]`.
        if let Order::Interleaved { .. } = entry.order {
            bytes = Self::reorder(entry, bytes)?;
        }
        codes::rounded(site, entry.stored.format, entry.factor, &bytes)
    }
}

/// How a matrix is quantized, if a grid of ours holds its numbers.
fn coded(name: &str, stored: &StoredTensor, order: Order) -> Option<NativeSite> {
    let module = name.strip_suffix(".weight")?;
    let [rows, cols] = stored.shape[..] else { return None };
    let site = module.to_owned();
    let transposed = order == Order::Transposed;
    Some(NativeSite { module: site.clone(), site, shape: (rows, cols), transposed, spec: codes::spec(stored.format)? })
}

/// A tensor with the decoder of its format.
#[derive(Clone, Copy)]
struct Part<'a> {
    stored: &'a StoredTensor,
    decode: ggml_type::Decode,
}

#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

/// The matrix that the number called `name` is a factor of.
fn factor_of<'a>(file: &'a GgufFile, name: &str) -> Option<&'a StoredTensor> {
    file.tensors.get(&format!("{}.weight", name.strip_suffix(".scale")?))
}

/// The factor of the matrix called `name`, if it has one.
fn factor(file: &GgufFile, name: &str) -> Result<Option<f32>> {
    let stored = name.strip_suffix(".weight").and_then(|stem| file.tensors.get(&format!("{stem}.scale")));
    let Some(stored) = stored else { return Ok(None) };
    let damaged = |what: String| Err(Error::input("gguf::factor", what).hint("the file is damaged; get it again"));
    if stored.format.name != "F32" || stored.shape != [1] {
        return damaged(format!("its factor is {} {:?} and should be F32 [1]", stored.format.name, stored.shape));
    }
    let mut bytes = [0; 4];
    file.file.read_exact_at(&mut bytes, stored.offset).map_err(|e| Error::io(&file.path, "read", e))?;
    let factor = f32::from_le_bytes(bytes);
    if factor.is_finite() { Ok(Some(factor)) } else { damaged(format!("its factor is {factor}")) }
}

fn dtype(stored: &StoredTensor) -> StoredDtype {
    match stored.format.name {
        "F64" => StoredDtype::F64,
        "F32" => StoredDtype::F32,
        "F16" => StoredDtype::F16,
        "BF16" => StoredDtype::BF16,
        "I64" => StoredDtype::I64,
        "I32" => StoredDtype::I32,
        "I16" => StoredDtype::I16,
        "I8" => StoredDtype::I8,
        name => StoredDtype::Ggml(name),
    }
}

/// The order of a tensor's rows, after checking that its shape allows it.
fn order(name: &str, stored: &StoredTensor, layout: Layout, sizes: &Sizes) -> Result<Order> {
    let heads = match layout {
        Layout::Plain => return Ok(Order::Plain),
        _ if stored.shape.len() > 2 || (layout == Layout::Transposed && stored.shape.len() == 1) => {
            return Err(Error::input("gguf::shape", format!("tensor `{name}` has {} dimensions and should have 2", stored.shape.len()))
                .hint("the file is damaged; get it again"));
        }
        Layout::Transposed => return Ok(Order::Transposed),
        Layout::Queries => sizes.heads,
        Layout::Keys => sizes.kv_heads,
    };
    let (rows, heads) = (stored.shape[0], usize::try_from(heads).unwrap_or(usize::MAX));
    if rows % heads != 0 || !(rows / heads).is_multiple_of(2) {
        return Err(Error::input(
            "gguf::shape",
            format!("tensor `{name}` has {rows} rows, which {heads} heads of an even size cannot share"),
        )
        .hint("the file is damaged; get it again"));
    }
    Ok(Order::Interleaved { head_dim: rows / heads })
}

/// Whether the output matrix is absent, or a copy of the embedding as converters write one for GPT-2.
pub(super) fn head_is_tied(file: &GgufFile) -> Result<bool> {
    let (Some(output), Some(embedding)) = (file.tensors.get("output.weight"), file.tensors.get("token_embd.weight")) else {
        return Ok(!file.tensors.contains_key("output.weight"));
    };
    if output.format.id != embedding.format.id || output.shape != embedding.shape || file.tensors.contains_key("output.scale") {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; SCRATCH], vec![0; SCRATCH]);
    let mut left = output.rows() * output.row_bytes;
    let mut at = 0;
    while left > 0 {
        let step = left.min(SCRATCH);
        for (bytes, tensor) in [(&mut a, output), (&mut b, embedding)] {
            file.file.read_exact_at(&mut bytes[..step], tensor.offset + at).map_err(|e| Error::io(&file.path, "read", e))?;
        }
        if a[..step] != b[..step] {
            return Ok(false);
        }
        left -= step;
        at += step as u64;
    }
    Ok(true)
}
