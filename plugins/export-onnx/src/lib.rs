//! ONNX models: what onnxruntime loads, and what else reads the format.
//!
//! `model.onnx` is the whole decoder as a graph, with keys and values as inputs and outputs; the numbers lie beside it in
//! `model.onnx.data`, which has no limit of two gigabytes. Codes are those of the run. The operators are those of ONNX's opset 21, and
//! onnxruntime's `MatMulNBits` where that is asked for. See `form.rs` for what is stored where.

mod accept;
mod data;
mod decoder;
mod dynamic;
mod form;
mod graph;
mod message;
mod rounding;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use prost::Message;
use qfw_core::checkpoint::native::NativeReader;
use qfw_core::checkpoint::{
    BranchPlace, Checkpoint, Container, ContainerRecord, ContainerWriter, FileForm, TensorDecl, TensorSource, Verdict,
};
use qfw_core::plan::Plan;
use qfw_core::topology::OnlineStep;
use qfw_core::{Error, Result};
use serde_json::Value;

use form::Form;

const FILE: &str = "model.onnx";
const DATA: &str = "model.onnx.data";

/// Buffers that older checkpoints store, and that no graph has.
const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

struct Onnx(Form);

impl Container for Onnx {
    fn accepts(&self, plan: &Plan) -> Verdict {
        accept::verdict(self.0, plan)
    }

    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Inside
    }

    fn carries(&self, _: &OnlineStep) -> bool {
        true
    }

    fn file_form(&self, plan: &Plan, checkpoint: &Checkpoint) -> Result<FileForm> {
        let model = decoder::Model::of(&checkpoint.config, &plan.online(), &|name| checkpoint.tensors.info(name).is_some())?;
        let read: BTreeSet<&str> = model.topology.params.iter().map(|p| p.tensor.as_str()).collect();
        // A head that is stored beside the embedding it is tied to is not read by anyone.
        let unread = |name: &String| {
            let tied = model.topology.tied_head && name == "lm_head.weight";
            !(read.contains(name.as_str()) || BUFFERS.iter().any(|b| name.ends_with(b)) || tied)
        };
        if let Some(name) = checkpoint.tensors.names().into_iter().find(unread) {
            return Err(Error::plan("plan::container", format!("`{name}` has no place in the graph of this model"))
                .hint("remove the tensor if the model does not read it, or use `--format qfw`"));
        }
        Ok(FileForm::Described { file: FILE, data: DATA })
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        Ok(decoder::graph(native, self.0)?.beside().iter().map(graph::Stored::decl).collect())
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        decoder::graph(native, self.0)?.beside().iter().try_for_each(|s| s.write(native, out))
    }

    fn describe(
        &self,
        native: &NativeReader,
        places: &BTreeMap<String, Range<u64>>,
        provenance: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>> {
        let model = decoder::graph(native, self.0)?.model(DATA, places, provenance, env!("CARGO_PKG_VERSION"))?;
        Ok(model.encode_to_vec())
    }

    fn made(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<Vec<(String, Vec<usize>)>> {
        let graph = decoder::graph(native, self.0)?;
        let made: Vec<&graph::Stored> = graph.beside().iter().filter(|s| s.origin.follows()).collect();
        made.iter().try_for_each(|s| s.write(native, out))?;
        Ok(made.into_iter().map(|s| (s.name.clone(), s.dims.clone())).collect())
    }

    /// The graph says it all; `config.json` stays as it is.
    fn quantization_config(&self, _: &Plan) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Graphs are written, and not read.
    fn claims(&self, _: &Value) -> bool {
        false
    }

    fn read(&self, _: &Value, _: &BTreeSet<String>, _: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        Err(Error::internal("an ONNX model has no `quantization_config`"))
    }
}

const fn record(id: &'static str, summary: &'static str, container: &'static dyn Container) -> ContainerRecord {
    ContainerRecord { id, summary, version: env!("CARGO_PKG_VERSION"), source: env!("CARGO_PKG_NAME"), container }
}

/// `onnx`, for registries built by hand.
pub const ONNX: ContainerRecord =
    record("onnx", "the decoder as an ONNX graph, each layer behind the operator that suits it", &Onnx(Form::Best));

/// `onnx-qdq`, for registries built by hand.
pub const QDQ: ContainerRecord = record("onnx-qdq", "the decoder as an ONNX graph, weights behind DequantizeLinear", &Onnx(Form::Qdq));

/// `onnx-qcdq`, for registries built by hand.
pub const QCDQ: ContainerRecord =
    record("onnx-qcdq", "the same with integers in bytes and narrower ranges clipped, as Brevitas writes it", &Onnx(Form::Qcdq));

/// `onnx-matmulnbits`, for registries built by hand.
pub const MATMULNBITS: ContainerRecord =
    record("onnx-matmulnbits", "the decoder as an ONNX graph, layers as MatMulNBits of onnxruntime", &Onnx(Form::MatMulNBits));

qfw_core::register_container!(ONNX, QDQ, QCDQ, MATMULNBITS);
