//! An ONNX model: its graph, and where the bytes of its tensors lie, in the file itself or beside it.
//!
//! Messages and their field numbers: `onnx/onnx.proto3` of ONNX 1.16. Four-bit integers lie two in a byte, the first low, in one run whatever
//! the shape.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use prost::Message;

use crate::dtype::Dtype;
use crate::error::{Error, Finding, Result};
use crate::store::{Store, Tensor};

/// Largest file that a protocol buffer can be.
const LARGEST: u64 = 1 << 31;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
}

/// An operation.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "4")]
    pub op: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    i: i64,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", optional, tag = "9")]
    raw: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "13")]
    external: Vec<EntryProto>,
    /// 1: the bytes are where `external` says.
    #[prost(int32, tag = "14")]
    location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct EntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

impl Node {
    /// An attribute that is an integer, if it is stated.
    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.attribute.iter().find(|a| a.name == name).map(|a| a.i)
    }

    /// An input, if there is one at this place.
    pub(crate) fn input(&self, i: usize) -> Option<&str> {
        self.input.get(i).map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Uint4,
    Int4,
    Uint8,
    Int8,
    E4m3,
    E5m2,
    E4m3Fnuz,
    E5m2Fnuz,
    /// Something that no code is stored in.
    Other,
}

fn kind(number: i32) -> (Kind, Dtype, Option<u64>) {
    let other = |name: &str, bits: u64| (Kind::Other, Dtype::Other(name.to_owned(), None), Some(bits));
    match number {
        1 => (Kind::Other, Dtype::F32, Some(32)),
        2 => (Kind::Uint8, Dtype::Uint(1), Some(8)),
        3 => (Kind::Int8, Dtype::Int(1), Some(8)),
        4 => (Kind::Other, Dtype::Uint(2), Some(16)),
        5 => (Kind::Other, Dtype::Int(2), Some(16)),
        6 => (Kind::Other, Dtype::Int(4), Some(32)),
        7 => (Kind::Other, Dtype::Int(8), Some(64)),
        9 => (Kind::Other, Dtype::Bool, Some(8)),
        10 => (Kind::Other, Dtype::F16, Some(16)),
        11 => (Kind::Other, Dtype::F64, Some(64)),
        12 => (Kind::Other, Dtype::Uint(4), Some(32)),
        13 => (Kind::Other, Dtype::Uint(8), Some(64)),
        16 => (Kind::Other, Dtype::Bf16, Some(16)),
        17 => (Kind::E4m3, Dtype::E4m3, Some(8)),
        18 => (Kind::E4m3Fnuz, other("FLOAT8E4M3FNUZ", 8).1, Some(8)),
        19 => (Kind::E5m2, other("FLOAT8E5M2", 8).1, Some(8)),
        20 => (Kind::E5m2Fnuz, other("FLOAT8E5M2FNUZ", 8).1, Some(8)),
        21 => (Kind::Uint4, other("UINT4", 4).1, Some(4)),
        22 => (Kind::Int4, other("INT4", 4).1, Some(4)),
        n => (Kind::Other, Dtype::Other(format!("type {n}"), None), None),
    }
}

/// A graph: its operations, and what they read.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    /// Of each stored tensor.
    kinds: BTreeMap<String, Kind>,
    readers: BTreeMap<String, Vec<usize>>,
    makers: BTreeMap<String, usize>,
}

impl Graph {
    /// The type of a stored tensor.
    pub(crate) fn kind(&self, name: &str) -> Option<Kind> {
        self.kinds.get(name).copied()
    }

    /// The operations that read a value.
    pub(crate) fn readers(&self, value: &str) -> impl ExactSizeIterator<Item = &Node> {
        self.readers.get(value).map(Vec::as_slice).unwrap_or_default().iter().map(|i| &self.nodes[*i])
    }

    /// The only operation that reads a value.
    ///
    /// # Errors
    /// If there is none, or several.
    pub(crate) fn reader(&self, value: &str) -> Result<&Node> {
        let mut readers = self.readers(value);
        match (readers.len(), readers.next()) {
            (1, Some(node)) => Ok(node),
            (n, _) => Err(Error::tensor(format!("`{value}` is read by {n} operations, and weights are by one"))),
        }
    }

    /// The operation that makes a value.
    pub(crate) fn maker(&self, value: &str) -> Option<&Node> {
        self.makers.get(value).map(|i| &self.nodes[*i])
    }
}

/// Reads a model: its graph and its tensors.
///
/// # Errors
/// If it is no ONNX model. What is wrong with single tensors is a finding.
pub(crate) fn read(path: &Path, findings: &mut Vec<Finding>) -> Result<(Graph, Store)> {
    let damaged = |what: String| {
        Error::new("verify::header", format!("`{}`: {what}", path.display())).hint("the file is truncated or damaged, or no ONNX model")
    };
    let length = std::fs::metadata(path).map_err(|e| Error::file(path, &e))?.len();
    if length >= LARGEST {
        return Err(damaged(format!("it has {length} bytes, and ONNX models are smaller than {LARGEST}")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::file(path, &e))?;
    let model = ModelProto::decode(&bytes[..]).map_err(|e| damaged(format!("it is no ONNX model: {e}")))?;
    drop(bytes);
    let proto = model.graph.ok_or_else(|| damaged("it has no graph".to_owned()))?;
    let mut graph = Graph::default();
    for (i, node) in proto.node.iter().enumerate() {
        // A value that is read twice by one operation is read by one.
        let mut inputs: Vec<&String> = node.input.iter().collect();
        inputs.sort_unstable();
        inputs.dedup();
        inputs.into_iter().for_each(|name| graph.readers.entry(name.clone()).or_default().push(i));
        graph.makers.extend(node.output.iter().map(|name| (name.clone(), i)));
    }
    graph.nodes = proto.node;
    let mut store = Store::decoded(path);
    let mut adding = Adding { path, store: &mut store, files: BTreeMap::new(), inside: Vec::new() };
    for tensor in proto.initializer {
        let name = tensor.name.clone();
        graph.kinds.insert(name.clone(), kind(tensor.kind).0);
        if let Err((code, what)) = adding.add(tensor) {
            findings.push(Finding::of(code, &name, format!("`{name}`: {what}")));
            adding.store.broken.insert(name);
        }
    }
    let inside = std::mem::take(&mut adding.inside);
    store.set_decoded(inside);
    findings.extend(store.overlaps());
    Ok((graph, store))
}

/// Tensors on their way into a store.
struct Adding<'a> {
    path: &'a Path,
    store: &'a mut Store,
    /// Files beside the model: their number and length.
    files: BTreeMap<String, (usize, u64)>,
    /// The bytes of tensors that lie in the model.
    inside: Vec<u8>,
}

impl Adding<'_> {
    fn add(&mut self, tensor: TensorProto) -> Result<(), (&'static str, String)> {
        let (_, dtype, bits) = kind(tensor.kind);
        let shape: Option<Vec<usize>> = tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let elements = |shape: &[usize]| shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64));
        let needs = |shape: &[usize]| elements(shape)?.checked_mul(bits?).map(|n| n.div_ceil(8));
        let Some((shape, bytes)) = shape.and_then(|s| needs(&s).map(|n| (s, n))) else {
            return Err(("header", format!("{dtype} {:?} is nothing that can be read here", tensor.dims)));
        };
        let (file, start, has) = match (tensor.raw, tensor.location) {
            (Some(raw), 0) => {
                let start = self.inside.len() as u64;
                self.inside.extend(&raw);
                (0, start, raw.len() as u64)
            }
            (_, 1) => self.beside(&tensor.external)?,
            _ => return Err(("header", "its numbers are not in `raw_data`, nor in a file beside the model".to_owned())),
        };
        if has != bytes {
            return Err(("header", format!("{dtype} {shape:?} takes {bytes} bytes, and it has {has}")));
        }
        if self.store.insert(Tensor { name: tensor.name, dtype, shape, file, start, bytes }) {
            return Err(("header", "the file announces it twice".to_owned()));
        }
        Ok(())
    }

    /// File, first byte and length of a tensor beside the model.
    fn beside(&mut self, entries: &[EntryProto]) -> Result<(usize, u64, u64), (&'static str, String)> {
        let get = |key: &str| entries.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| get(key).and_then(|v| v.parse::<u64>().ok());
        // A name, not a way out of the directory.
        let name = get("location").filter(|n| !n.is_empty() && *n != ".." && !n.contains(['/', '\\']));
        let (Some(name), Some(start), Some(length)) = (name, number("offset").or(Some(0)), number("length")) else {
            return Err(("header", "it does not say which bytes of which file beside the model it is".to_owned()));
        };
        let (file, all) = match self.files.get(name) {
            Some(known) => *known,
            None => {
                let path = self.path.with_file_name(name);
                let open = File::open(&path).and_then(|f| f.metadata().map(|m| (f, m.len())));
                let (file, all) = open.map_err(|e| ("missing", format!("`{}` cannot be read: {e}", path.display())))?;
                let number = self.store.add_file(&path, file);
                self.files.insert(name.to_owned(), (number, all));
                (number, all)
            }
        };
        if start.checked_add(length).is_none_or(|end| end > all) {
            return Err(("truncated", format!("it takes {length} bytes from byte {start} of `{name}`, which has {all}")));
        }
        Ok((file, start, length))
    }
}
