//! A graph in the making: nodes in order of execution, small constants within, large tensors beside the file.
//!
//! Names say where a node belongs: `blocks.0.attn.q/MatMul`, the second of its kind there `blocks.0.attn.q/MatMul_2`. Values are called
//! after the nodes that make them, stored tensors as in the checkpoint or after the layer they belong to.

use std::collections::BTreeMap;
use std::ops::Range;

use qfw_core::checkpoint::{StoredDtype, TensorDecl};
use qfw_core::{Error, Result};

use crate::data::Origin;
use crate::message::{
    Attribute, Dimension, Entry, GraphMessage, Kind, Model, Node, OperatorSet, Shape, TensorMessage, TensorType, TypeMessage, ValueInfo,
};

/// The intermediate representation that has integers of four bits, and the operators that came with it.
const IR: i64 = 10;
const OPSET: i64 = 21;

/// Where `MatMulNBits` is from.
const CONTRIB: &str = "com.microsoft";

/// The name of an input, of a tensor, or of what a node makes.
pub(crate) type Value = String;

/// A tensor beside the file.
#[derive(Clone)]
pub(crate) struct Stored {
    pub name: String,
    pub kind: Kind,
    pub dims: Vec<usize>,
    pub origin: Origin,
}

impl Stored {
    fn bytes(&self) -> usize {
        self.kind.bytes(self.dims.iter().product())
    }

    /// Its bytes, whatever they mean.
    pub(crate) fn decl(&self) -> TensorDecl {
        TensorDecl { name: self.name.clone(), dtype: StoredDtype::U8, shape: vec![self.bytes()] }
    }
}

/// An axis of an input or output.
#[derive(Clone, Copy)]
pub(crate) enum Axis {
    /// So many.
    Fixed(usize),
    /// As many as there are, by name.
    Open(&'static str),
}

#[derive(Default)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    constants: BTreeMap<String, TensorMessage>,
    stored: Vec<Stored>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// How often a name has been asked for.
    taken: BTreeMap<String, usize>,
    contrib: bool,
}

impl Graph {
    /// A node with one output.
    pub(crate) fn op(&mut self, at: &str, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> Value {
        self.push(at, op, "", inputs, 1, attributes).swap_remove(0)
    }

    /// A node with several.
    pub(crate) fn ops(&mut self, at: &str, op: &str, inputs: &[&str], outputs: usize, attributes: Vec<Attribute>) -> Vec<Value> {
        self.push(at, op, "", inputs, outputs, attributes)
    }

    /// A node of onnxruntime's own operators.
    pub(crate) fn contrib(&mut self, at: &str, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> Value {
        self.contrib = true;
        self.push(at, op, CONTRIB, inputs, 1, attributes).swap_remove(0)
    }

    fn push(&mut self, at: &str, op: &str, domain: &str, inputs: &[&str], outputs: usize, attribute: Vec<Attribute>) -> Vec<Value> {
        let name = self.fresh(&format!("{at}/{op}"));
        let output: Vec<Value> = (0..outputs).map(|i| if outputs == 1 { name.clone() } else { format!("{name}.{i}") }).collect();
        self.nodes.push(Node {
            input: inputs.iter().map(|i| (*i).to_owned()).collect(),
            output: output.clone(),
            name,
            op_type: op.to_owned(),
            attribute,
            domain: domain.to_owned(),
        });
        output
    }

    fn fresh(&mut self, base: &str) -> String {
        let n = self.taken.entry(base.to_owned()).or_default();
        *n += 1;
        if *n == 1 { base.to_owned() } else { format!("{base}_{n}") }
    }

    /// Integers, as a vector.
    pub(crate) fn ints(&mut self, values: &[i64]) -> Value {
        let name = format!("constant.{values:?}").replace(' ', "");
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, Kind::Int64, &[values.len()], raw)
    }

    /// An integer, as a scalar.
    pub(crate) fn int(&mut self, value: i64) -> Value {
        self.constant(format!("constant.{value}"), Kind::Int64, &[], value.to_le_bytes().to_vec())
    }

    /// A number, as a scalar.
    pub(crate) fn float(&mut self, value: f32) -> Value {
        self.constant(format!("constant.{value:?}.f32"), Kind::Float, &[], value.to_le_bytes().to_vec())
    }

    /// Bytes, as a vector.
    pub(crate) fn bytes(&mut self, values: &[u8]) -> Value {
        self.constant(format!("constant.{values:?}.u8").replace(' ', ""), Kind::Uint8, &[values.len()], values.to_vec())
    }

    /// A tensor that is small enough to lie within, under a name that says what it is: the same name is the same tensor.
    pub(crate) fn constant(&mut self, name: String, kind: Kind, dims: &[usize], raw: Vec<u8>) -> Value {
        let make = || TensorMessage {
            dims: dims.iter().map(|d| *d as i64).collect(),
            data_type: kind as i32,
            name: name.clone(),
            raw_data: Some(raw),
            ..TensorMessage::default()
        };
        self.constants.entry(name.clone()).or_insert_with(make);
        name
    }

    /// A tensor beside the file. Asked for again it is the same.
    pub(crate) fn stored(&mut self, name: &str, kind: Kind, dims: &[usize], origin: Origin) -> Value {
        if !self.stored.iter().any(|s| s.name == name) {
            self.stored.push(Stored { name: name.to_owned(), kind, dims: dims.to_vec(), origin });
        }
        name.to_owned()
    }

    pub(crate) fn input(&mut self, name: &str, kind: Kind, axes: &[Axis]) -> Value {
        self.inputs.push(value_info(name, kind, axes));
        name.to_owned()
    }

    /// Makes the output of the last node one of the graph's own.
    ///
    /// # Errors
    /// If it is not the last node's.
    pub(crate) fn publish(&mut self, value: &str, name: &str, kind: Kind, axes: &[Axis]) -> Result<Value> {
        match self.nodes.last_mut().map(|n| &mut n.output[..]) {
            Some([last]) if *last == value => name.clone_into(last),
            _ => return Err(Error::internal(format!("`{value}` is not what was made last"))),
        }
        self.outputs.push(value_info(name, kind, axes));
        Ok(name.to_owned())
    }

    /// The tensors beside the file, in order of execution.
    pub(crate) fn beside(&self) -> &[Stored] {
        &self.stored
    }

    /// The file, given where the bytes of each tensor lie in `data`.
    ///
    /// # Errors
    /// If a tensor has no place.
    pub(crate) fn model(
        self,
        data: &str,
        places: &BTreeMap<String, Range<u64>>,
        provenance: &BTreeMap<String, String>,
        version: &str,
    ) -> Result<Model> {
        let entry = |key: &str, value: String| Entry { key: key.to_owned(), value };
        let outside = |s: &Stored| {
            let place = places.get(&s.name).ok_or_else(|| Error::internal(format!("`{}` has no place in `{data}`", s.name)))?;
            Ok(TensorMessage {
                dims: s.dims.iter().map(|d| *d as i64).collect(),
                data_type: s.kind as i32,
                name: s.name.clone(),
                external_data: vec![
                    entry("location", data.to_owned()),
                    entry("offset", place.start.to_string()),
                    entry("length", (place.end - place.start).to_string()),
                ],
                data_location: 1,
                ..TensorMessage::default()
            })
        };
        let beside: Vec<TensorMessage> = self.stored.iter().map(outside).collect::<Result<_>>()?;
        let mut opset_import = vec![OperatorSet { domain: String::new(), version: OPSET }];
        if self.contrib {
            opset_import.push(OperatorSet { domain: CONTRIB.to_owned(), version: 1 });
        }
        Ok(Model {
            ir_version: IR,
            producer_name: "qfw".to_owned(),
            producer_version: version.to_owned(),
            graph: Some(GraphMessage {
                node: self.nodes,
                name: "decoder".to_owned(),
                initializer: self.constants.into_values().chain(beside).collect(),
                input: self.inputs,
                output: self.outputs,
            }),
            opset_import,
            metadata_props: provenance.iter().map(|(key, value)| entry(key, value.clone())).collect(),
        })
    }
}

fn value_info(name: &str, kind: Kind, axes: &[Axis]) -> ValueInfo {
    let dimension = |axis: &Axis| match axis {
        Axis::Fixed(n) => Dimension { dim_value: Some(*n as i64), dim_param: None },
        Axis::Open(name) => Dimension { dim_value: None, dim_param: Some((*name).to_owned()) },
    };
    let shape = Some(Shape { dim: axes.iter().map(dimension).collect() });
    let tensor_type = Some(TensorType { elem_type: kind as i32, shape });
    ValueInfo { name: name.to_owned(), kind: Some(TypeMessage { tensor_type }) }
}
