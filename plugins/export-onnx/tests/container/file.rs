//! An ONNX file as its specification describes it, and the values that its operators make of stored tensors.
//!
//! Numbers of fields: `onnx/onnx.proto` of ONNX 1.16. A field that it does not have, or that this does not expect, fails.

use std::collections::BTreeMap;
use std::path::Path;

use super::wire::Wire;

/// Numbers of `TensorProto.DataType`.
pub(crate) const FLOAT: i32 = 1;
pub(crate) const UINT8: i32 = 2;
pub(crate) const INT8: i32 = 3;
pub(crate) const INT64: i32 = 7;
pub(crate) const FLOAT16: i32 = 10;
pub(crate) const E4M3FN: i32 = 17;
pub(crate) const E5M2: i32 = 19;
pub(crate) const UINT4: i32 = 21;
pub(crate) const INT4: i32 = 22;

pub(crate) struct File {
    pub ir_version: i64,
    pub producer: String,
    /// Versions of operator sets, by domain.
    pub opsets: BTreeMap<String, i64>,
    pub metadata: BTreeMap<String, String>,
    pub nodes: Vec<Node>,
    pub tensors: Vec<Tensor>,
    pub inputs: Vec<Described>,
    pub outputs: Vec<Described>,
    data: Vec<u8>,
}

pub(crate) struct Node {
    pub input: Vec<String>,
    pub output: Vec<String>,
    pub name: String,
    pub op_type: String,
    pub domain: String,
    ints: BTreeMap<String, i64>,
}

pub(crate) struct Tensor {
    pub name: String,
    pub kind: i32,
    pub dims: Vec<usize>,
    pub raw: Vec<u8>,
    /// Location, offset and length of bytes that are elsewhere.
    pub place: Option<(String, usize, usize)>,
}

/// Name, type and axes of an input or output.
pub(crate) type Described = (String, i32, Vec<String>);

/// A stored tensor.
pub(crate) struct Stored {
    pub kind: i32,
    pub dims: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl File {
    pub(crate) fn read(bytes: &[u8], data: &Path) -> Self {
        // 1 ir_version, 2 producer_name, 3 producer_version, 7 graph, 8 opset_import, 14 metadata_props
        let model = Wire::parse(bytes, &[1, 2, 3, 7, 8, 14]);
        // 1 node, 2 name, 5 initializer, 11 input, 12 output
        let graph = Wire::parse(model.bytes(7), &[1, 2, 5, 11, 12]);
        let opset = |b: &[u8]| {
            let set = Wire::parse(b, &[1, 2]);
            (set.text(1), set.int(2))
        };
        Self {
            ir_version: model.int(1),
            producer: model.text(2),
            opsets: model.each(8).map(opset).collect(),
            metadata: model.each(14).map(entry).collect(),
            nodes: graph.each(1).map(Node::read).collect(),
            tensors: graph.each(5).map(Tensor::read).collect(),
            inputs: graph.each(11).map(described).collect(),
            outputs: graph.each(12).map(described).collect(),
            data: std::fs::read(data).unwrap(),
        }
    }

    /// The nodes of an operator whose name begins so.
    pub(crate) fn nodes(&self, op: &str, name: &str) -> Vec<&Node> {
        self.nodes.iter().filter(|n| n.op_type == op && n.name.starts_with(name)).collect()
    }

    pub(crate) fn data_len(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn stored(&self, name: &str) -> Stored {
        let tensor = self.tensors.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}"));
        let bytes = match &tensor.place {
            Some((_, offset, length)) => self.data[*offset..offset + length].to_vec(),
            None => tensor.raw.clone(),
        };
        Stored { kind: tensor.kind, dims: tensor.dims.clone(), bytes }
    }

    /// The weight `[out, in]` that a layer multiplies with, whatever operator holds it.
    pub(crate) fn weight(&self, site: &str) -> Vec<f32> {
        match self.nodes("MatMulNBits", &format!("{site}/"))[..] {
            [node] => self.blocks(node),
            _ => self.dequantized(self.nodes("DequantizeLinear", &format!("{site}/"))[0]),
        }
    }

    /// `MatMulNBits`: weight `[N, blocks, bytes]`, `s·(u − p)` with `p = 2^(bits−1)` where none is given.
    fn blocks(&self, node: &Node) -> Vec<f32> {
        let [k, n, bits, size] = ["K", "N", "bits", "block_size"].map(|name| node.int(name) as usize);
        let (codes, scales) = (self.stored(&node.input[1]), self.stored(&node.input[2]));
        let blocks = k.div_ceil(size);
        assert_eq!((codes.kind, &codes.dims[..]), (UINT8, &[n, blocks, size * bits / 8][..]));
        assert_eq!((scales.kind, &scales.dims[..]), (FLOAT, &[n, blocks][..]));
        let (scales, units) = (scales.floats(), unpacked(&codes.bytes, bits));
        let row = (blocks * bits).div_ceil(8);
        let zeros: Vec<f32> = match node.input.get(3).map(|name| self.stored(name)) {
            None => vec![(1 << (bits - 1)) as f32; n * blocks],
            Some(z) if z.kind == FLOAT => z.floats(),
            Some(z) => {
                assert_eq!((z.kind, &z.dims[..]), (UINT8, &[n, row][..]));
                let of_row = |row: &[u8]| unpacked(row, bits).into_iter().take(blocks).map(f32::from).collect::<Vec<_>>();
                z.bytes.chunks(row).flat_map(of_row).collect()
            }
        };
        let at = |i: usize| {
            let (r, c) = (i / k, i % k);
            scales[r * blocks + c / size] * (f32::from(units[r * blocks * size + c]) - zeros[r * blocks + c / size])
        };
        (0..n * k).map(at).collect()
    }

    /// `DequantizeLinear` of `[K, N]`: one scale, one for each of an axis, or one for each run of an axis. `Clip` before it changes
    /// nothing: all codes are within.
    fn dequantized(&self, node: &Node) -> Vec<f32> {
        let clip = self.nodes.iter().find(|n| n.op_type == "Clip" && n.output[0] == node.input[0]);
        let codes = self.stored(clip.map_or(&node.input[0], |clip| &clip.input[0]));
        let (k, n) = (codes.dims[0], codes.dims[1]);
        let scale = self.stored(&node.input[1]);
        let zero = node.input.get(2).map(|name| self.stored(name));
        if let Some(zero) = &zero {
            assert_eq!((zero.kind, &zero.dims), (codes.kind, &scale.dims));
        }
        let (scales, zeros) = (scale.floats(), zero.map(|z| z.numbers()));
        let numbers = codes.numbers();
        assert_eq!(numbers.len(), k * n);
        if let Some(clip) = clip {
            let bound = |i: usize| self.stored(&clip.input[i]).numbers()[0];
            assert!(numbers.iter().all(|x| (bound(1)..=bound(2)).contains(x)), "{} changes codes", clip.name);
        }
        let at = |r: usize, c: usize| match scale.dims.len() {
            0 => 0,
            1 => [r, c][node.int("axis") as usize],
            _ => {
                assert_eq!(node.int("axis"), 0);
                let size = node.int("block_size") as usize;
                assert_eq!(scale.dims, [k.div_ceil(size), n]);
                r / size * n + c
            }
        };
        let value = |r: usize, c: usize| scales[at(r, c)] * (numbers[r * n + c] - zeros.as_ref().map_or(0.0, |z| z[at(r, c)]));
        (0..n).flat_map(|c| (0..k).map(move |r| (r, c))).map(|(r, c)| value(r, c)).collect()
    }
}

impl Stored {
    pub(crate) fn floats(&self) -> Vec<f32> {
        assert_eq!(self.kind, FLOAT);
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// What its elements are.
    fn numbers(&self) -> Vec<f32> {
        let n = self.dims.iter().product();
        let nibbles = || unpacked(&self.bytes, 4).into_iter().take(n);
        match self.kind {
            UINT8 => self.bytes.iter().map(|b| f32::from(*b)).collect(),
            INT8 => self.bytes.iter().map(|b| f32::from(*b as i8)).collect(),
            UINT4 => nibbles().map(f32::from).collect(),
            INT4 => nibbles().map(|u| f32::from((u << 4) as i8 >> 4)).collect(),
            E4M3FN => self.bytes.iter().map(|b| small_float(*b, 4, 3)).collect(),
            E5M2 => self.bytes.iter().map(|b| small_float(*b, 5, 2)).collect(),
            kind => panic!("type {kind}"),
        }
    }
}

/// A finite number of the OCP 8-bit floating point specification.
fn small_float(byte: u8, exp: i32, man: i32) -> f32 {
    let (e, m) = (i32::from(byte >> man) & ((1 << exp) - 1), f32::from(byte & ((1 << man) - 1)) / 2_f32.powi(man));
    let bias = (1 << (exp - 1)) - 1;
    let value = if e == 0 { m * 2_f32.powi(1 - bias) } else { (1.0 + m) * 2_f32.powi(e - bias) };
    if byte >> 7 == 1 { -value } else { value }
}

/// Codes of a stream, the first in the low bits.
fn unpacked(bytes: &[u8], bits: usize) -> Vec<u8> {
    let each = 8 / bits;
    bytes.iter().flat_map(|b| (0..each).map(move |i| ((u16::from(*b) >> (i * bits)) & ((1 << bits) - 1)) as u8)).collect()
}

fn entry(bytes: &[u8]) -> (String, String) {
    let entry = Wire::parse(bytes, &[1, 2]);
    (entry.text(1), entry.text(2))
}

impl Node {
    /// 1 input, 2 output, 3 name, 4 op_type, 5 attribute, 7 domain
    fn read(bytes: &[u8]) -> Self {
        let node = Wire::parse(bytes, &[1, 2, 3, 4, 5, 7]);
        let ints = node.each(5).filter_map(attribute).collect();
        let texts = |field| node.each(field).map(|b| String::from_utf8(b.to_vec()).unwrap()).collect();
        Self { input: texts(1), output: texts(2), name: node.text(3), op_type: node.text(4), domain: node.text(7), ints }
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        self.ints[name]
    }
}

/// 1 name, 2 f, 3 i, 4 s, 8 ints, 20 type; the value that the type names is there, and no other.
fn attribute(bytes: &[u8]) -> Option<(String, i64)> {
    let attribute = Wire::parse(bytes, &[1, 2, 3, 4, 8, 20]);
    let there: Vec<u32> = [2, 3, 4, 8].into_iter().filter(|f| attribute.has(*f)).collect();
    let field = match attribute.int(20) {
        1 => 2,
        2 => 3,
        3 => 4,
        7 => 8,
        kind => panic!("attribute of type {kind}"),
    };
    assert_eq!(there, [field], "{}", attribute.text(1));
    (field == 3).then(|| (attribute.text(1), attribute.int(3)))
}

impl Tensor {
    /// 1 dims, 2 data_type, 8 name, 9 raw_data, 13 external_data, 14 data_location
    fn read(bytes: &[u8]) -> Self {
        let tensor = Wire::parse(bytes, &[1, 2, 8, 9, 13, 14]);
        let entries: BTreeMap<String, String> = tensor.each(13).map(entry).collect();
        assert_eq!(tensor.int(14), i64::from(!entries.is_empty()));
        assert_eq!(entries.is_empty(), tensor.has(9));
        let number = |key: &str| entries[key].parse().unwrap();
        let place = (!entries.is_empty()).then(|| (entries["location"].clone(), number("offset"), number("length")));
        Self {
            name: tensor.text(8),
            kind: tensor.int(2) as i32,
            dims: tensor.ints(1).into_iter().map(|d| d as usize).collect(),
            raw: tensor.bytes(9).to_vec(),
            place,
        }
    }
}

/// `ValueInfoProto`: 1 name, 2 type; `TypeProto`: 1 tensor_type; there: 1 elem_type, 2 shape; there: 1 dim, of 1 dim_value or 2 dim_param.
fn described(bytes: &[u8]) -> Described {
    let value = Wire::parse(bytes, &[1, 2]);
    let tensor = Wire::parse(value.bytes(2), &[1]);
    let tensor = Wire::parse(tensor.bytes(1), &[1, 2]);
    let axis = |b: &[u8]| {
        let axis = Wire::parse(b, &[1, 2]);
        if axis.has(2) { axis.text(2) } else { axis.int(1).to_string() }
    };
    (value.text(1), tensor.int(1) as i32, Wire::parse(tensor.bytes(2), &[1]).each(1).map(axis).collect())
}
