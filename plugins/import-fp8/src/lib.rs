//! Checkpoints in fp8 as DeepSeek and ModelOpt write them: read, and not written.
//!
//! Per quantized module `M`, `[out, in]`:
//!
//! | kind | tensor | type and shape | |
//! |---|---|---|---|
//! | e4m3 | `M.weight` | `F8_E4M3 [out, in]` | codes |
//! | | `M.weight_scale_inv` | `F32 [⌈out/r⌉, ⌈in/c⌉]` | for each block `r × c`; multiplies |
//! | | `M.weight_scale` | `F32`, one or `[out]` or `[out, 1]` | for all or for each output |
//! | e2m1 | `M.weight` | `U8 [out, in/2]` | codes, the first of two in the low half |
//! | | `M.weight_scale` | `F8_E4M3 [out, in/16]` | for each run of 16 |
//! | | `M.weight_scale_2` | `F32`, one | for all; multiplies too |
//!
//! `M.input_scale` is that of static inputs. Sources are in the README.

mod activation;
mod said;
mod weight;

use std::collections::BTreeSet;
use std::sync::Arc;

use qfw_core::checkpoint::native::NativeReader;
use qfw_core::checkpoint::{Container, ContainerRecord, ContainerWriter, StoredActivation, TensorDecl, TensorSource, Verdict};
use qfw_core::plan::Plan;
use qfw_core::topology::Topology;
use qfw_core::{Error, Result};
use serde_json::Value;

use said::{Dialect, Said};

struct Fp8(Dialect);

fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

impl Container for Fp8 {
    fn is_written(&self) -> bool {
        false
    }

    fn accepts(&self, _: &Plan) -> Verdict {
        let why = format!("`{}` is read, and not written", self.0.id());
        Verdict::Refused(Error::plan("plan::container", why).hint("use `--format compressed-tensors`, which holds the same numbers"))
    }

    fn declare(&self, _: &NativeReader) -> Result<Vec<TensorDecl>> {
        Err(Error::internal("this format is not written"))
    }

    fn write(&self, _: &NativeReader, _: &mut dyn ContainerWriter) -> Result<()> {
        Err(Error::internal("this format is not written"))
    }

    fn quantization_config(&self, _: &Plan) -> Result<Value> {
        Err(Error::internal("this format is not written"))
    }

    fn claims(&self, config: &Value) -> bool {
        self.0.claims(config)
    }

    fn read(&self, config: &Value, _: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        weight::open(&Said::parse(self.0, config)?, tensors)
    }

    fn activations(&self, config: &Value, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
        activation::all(&Said::parse(self.0, config)?, tensors, topology)
    }
}

const fn record(id: &'static str, summary: &'static str, container: &'static dyn Container) -> ContainerRecord {
    ContainerRecord { id, summary, version: env!("CARGO_PKG_VERSION"), source: env!("CARGO_PKG_NAME"), container }
}

/// `quant_method = "fp8"`, for registries built by hand.
pub const FP8: ContainerRecord = record("fp8", "e4m3 as DeepSeek and Qwen have it; read only", &Fp8(Dialect::Fp8));

/// What ModelOpt writes, for registries built by hand.
pub const MODELOPT: ContainerRecord = record("modelopt", "e4m3 and nvfp4 of NVIDIA's ModelOpt; read only", &Fp8(Dialect::ModelOpt));

qfw_core::register_container!(FP8, MODELOPT);
