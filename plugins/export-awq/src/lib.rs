//! The AWQ container (its `gemm` layout): what AutoAWQ, transformers, GPTQModel and vLLM load.
//!
//! Per quantized module `M` of `n` inputs and `m` outputs, at 4 bits in groups of `g` inputs:
//!
//! | tensor | type and shape | holds |
//! |---|---|---|
//! | `M.qweight` | `I32 [n, m/8]` | codes `u = q + 8`, eight outputs to a word |
//! | `M.qzeros` | `I32 [n/g, m/8]` | zero points, likewise |
//! | `M.scales` | `F16 [n/g, m]` | scales |
//!
//! `ŵ[o, i] = scales[i/g, o] · (u[i, o] − z[i/g, o])`. Bits `4k ‥ 4k+3` of a word hold output `[0, 2, 4, 6, 1, 3, 5, 7][k]` of its eight.
//! Symmetric weights have zero points of 8: readers know no others. Nothing is left of the search of scales that the format is named
//! after; they are in the weights. Source: AutoAWQ 0.2.9, `modules/linear/gemm.py` and `utils/packing_utils.py`.

mod accept;
mod config;
mod nibbles;
mod read;
mod turn;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use qfw_core::Result;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{BranchPlace, Container, ContainerRecord, ContainerWriter, Held, TensorDecl, TensorSource, Verdict};
use qfw_core::plan::Plan;
use qfw_core::scheme::FloatKind;
use serde_json::Value;

struct Awq;

impl Container for Awq {
    fn accepts(&self, plan: &Plan) -> Verdict {
        accept::verdict(plan)
    }

    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Beside
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        Ok(write::declare(native))
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        write::write(native, out)
    }

    fn held(&self, _: &NativeReader, site: &NativeSite, rounded: Rounded) -> Result<Held> {
        Held::exactly(rounded).scales_in(site.spec.scale, FloatKind::F16)
    }

    fn quantization_config(&self, plan: &Plan) -> Result<Value> {
        Ok(config::config(plan))
    }

    fn claims(&self, config: &Value) -> bool {
        // Files of their own, as older tools wrote them, do not name the method, but have other keys than the next format's.
        let method = config.get("quant_method").and_then(Value::as_str);
        method == Some("awq") || method.is_none() && config.get("w_bit").is_some()
    }

    fn read(&self, config: &Value, transposed: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        read::open(config, transposed, tensors)
    }
}

/// The container, for registries built by hand.
pub const AWQ: ContainerRecord = ContainerRecord {
    id: "awq",
    summary: "integers of 4 bits, symmetric or affine, for vLLM, transformers and GPTQModel",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &Awq,
};

qfw_core::register_container!(AWQ);
