//! The compressed-tensors container: what vLLM and transformers load.
//!
//! A checkpoint has one or more *formats*, chosen for each module by what its weight and its input are (see `layout`):
//!
//! * `pack-quantized`, `int-quantized`: integers (`int`).
//! * `float-quantized`, `mxfp8-quantized`: OCP e4m3 (`fp8`), the latter in runs with powers of two.
//! * `nvfp4-pack-quantized`, `mxfp4-pack-quantized`: e2m1 in runs with small scales (`fp4`).
//!
//! Inputs of linears are rounded at each call, or by `M.input_scale` and `M.input_zero_point` of the module; keys and values by
//! `k_scale` and `v_scale` of the attention module (`activation`). Inputs may be rotated before (`transform`). Source: compressed-tensors 0.20, `compressors/` and
//! `quantization/`.

mod accept;
mod activation;
mod arguments;
mod config;
mod e8m0;
mod fp4;
mod fp8;
mod groups;
mod int;
mod layout;
mod pack;
mod read;
mod read_activation;
mod transform;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use qfw_core::Result;
use qfw_core::checkpoint::native::NativeReader;
use qfw_core::checkpoint::{BranchPlace, Container, ContainerRecord, ContainerWriter, StoredActivation, TensorDecl, TensorSource, Verdict};
use qfw_core::plan::Plan;
use qfw_core::topology::{OnlineStep, Topology};
use serde_json::Value;

use layout::Choice;

struct CompressedTensors {
    choice: Choice,
    /// It may ask loaders to rotate activations.
    online: bool,
}

impl Container for CompressedTensors {
    fn accepts(&self, plan: &Plan) -> Verdict {
        match accept::check(self.choice, plan).and_then(|()| transform::check(self.online, plan)) {
            Ok(()) => Verdict::Exact,
            Err(e) => Verdict::Refused(e),
        }
    }

    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Beside
    }

    /// Of rotations [`Container::accepts`] says more.
    fn carries(&self, step: &OnlineStep) -> bool {
        step.rotation().is_some()
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        write::declare(self.choice, native)
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        write::write(self.choice, native, out)
    }

    fn quantization_config(&self, plan: &Plan) -> Result<Value> {
        Ok(config::config(self.choice, plan))
    }

    fn claims(&self, config: &Value) -> bool {
        // One of the records answers for all.
        self.choice == Choice::Auto && !self.online && config.get("quant_method").and_then(Value::as_str) == Some("compressed-tensors")
    }

    fn read(&self, config: &Value, _: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        read::open(config, tensors)
    }

    fn activations(&self, config: &Value, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
        read_activation::activations(config, tensors, topology)
    }

    fn online(&self, config: &Value, topology: &Topology) -> Result<Vec<OnlineStep>> {
        Ok(transform::rotations(config, topology)?.into_iter().map(OnlineStep::Rotation).collect())
    }
}

/// The format that fits each module, for registries built by hand.
pub const AUTO: ContainerRecord = ContainerRecord {
    id: "compressed-tensors",
    summary: "integers, fp8, nvfp4 and mxfp4 for vLLM and transformers",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &CompressedTensors { choice: Choice::Auto, online: false },
};

/// `int-quantized`, for registries built by hand.
pub const INT8: ContainerRecord = ContainerRecord {
    id: "compressed-tensors-int8",
    summary: "plain 8-bit integers (int-quantized) for vLLM and transformers",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &CompressedTensors { choice: Choice::Int8, online: false },
};

/// The same with rotations for the loader to carry out, for registries built by hand.
pub const ONLINE: ContainerRecord = ContainerRecord {
    id: "compressed-tensors-online",
    summary: "with rotations that vLLM on a GPU carries out while the model runs; transformers reads over them",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &CompressedTensors { choice: Choice::Auto, online: true },
};

qfw_core::register_container!(AUTO, INT8, ONLINE);
