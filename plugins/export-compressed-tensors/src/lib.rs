//! The compressed-tensors container: what vLLM and transformers load.
//!
//! * `pack-quantized`: per module `weight_packed` `I32 [out, ⌈in·b/32⌉]`, `weight_scale` `[out, tiles]`, `weight_shape` `I64 [2]`; affine
//!   also `weight_zero_point` `I32 [⌈out·b/32⌉, tiles]`. Codes and zero points are stored as `q + 2^(b−1)`, little-endian bit streams in
//!   32-bit words, codes along the row, zero points *down the column*. `ŵ = (q − z)·s`.
//! * `int-quantized`: `weight` `I8 [out, in]` and `weight_scale`, affine also `weight_zero_point` `I8`.
//!
//! Written for 2, 4 and 8 bits: for other widths readers before and after compressed-tensors 0.18 pack differently. Read for all
//! widths, both ways. Source: compressed-tensors 0.20, `compressors/` and `quantization/quant_args.py`.

mod pack;
mod read;
mod write;

use std::sync::Arc;

use qfw_core::Result;
use qfw_core::checkpoint::native::NativeReader;
use qfw_core::checkpoint::{Container, ContainerRecord, ContainerWriter, TensorDecl, TensorSource, Verdict};
use qfw_core::plan::Plan;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Packed,
    Int8,
}

struct CompressedTensors(Layout);

impl Container for CompressedTensors {
    fn accepts(&self, plan: &Plan) -> Verdict {
        match write::check(self.0, plan) {
            Ok(()) => Verdict::Exact,
            Err(e) => Verdict::Refused(e),
        }
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        write::declare(self.0, native)
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        write::write(self.0, native, out)
    }

    fn quantization_config(&self, plan: &Plan) -> Result<Value> {
        write::config(self.0, plan)
    }

    fn claims(&self, config: &Value) -> bool {
        // One of the two records answers for both layouts.
        self.0 == Layout::Packed && config.get("quant_method").and_then(Value::as_str) == Some("compressed-tensors")
    }

    fn read(&self, config: &Value, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        read::open(config, tensors)
    }
}

/// `pack-quantized`, for registries built by hand.
pub const PACKED: ContainerRecord = ContainerRecord {
    id: "compressed-tensors",
    summary: "packed integers (pack-quantized) for vLLM and transformers",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &CompressedTensors(Layout::Packed),
};

/// `int-quantized`, for registries built by hand.
pub const INT8: ContainerRecord = ContainerRecord {
    id: "compressed-tensors-int8",
    summary: "plain 8-bit integers (int-quantized) for vLLM and transformers",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &CompressedTensors(Layout::Int8),
};

inventory::submit! { PACKED }
inventory::submit! { INT8 }
