//! The GPTQ container: what AutoGPTQ, GPTQModel, transformers and vLLM load.
//!
//! Per quantized module `M` of `n` inputs and `m` outputs, at `b` bits in groups of `g` inputs:
//!
//! | tensor | type and shape | holds |
//! |---|---|---|
//! | `M.qweight` | `I32 [n·b/32, m]` | codes `u = q + 2^(b−1)`: a bit stream down each column |
//! | `M.qzeros` | `I32 [⌈n/g⌉, m·b/32]` | zero points, shifted alike: a bit stream along each row |
//! | `M.scales` | `F16 [⌈n/g⌉, m]` | scales |
//! | `M.g_idx` | `I32 [n]` | the group of each input |
//!
//! `ŵ[o, i] = scales[g_idx[i], o] · (u[i, o] − z[g_idx[i], o])`. Streams are little-endian in 32-bit words, so that codes of three bits
//! lie across them. The first version of the format stores `z − 1`, which leaves no room for `z = 0`; the second stores `z`. Source:
//! GPTQModel 7.7, `nn_modules/qlinear` and `utils/model.py`.

mod accept;
mod config;
mod pattern;
mod read;
mod stored;
mod words;
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

/// What zero points are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Less one.
    One,
    /// As they are.
    Two,
}

impl Version {
    /// Its `checkpoint_format`.
    fn format(self) -> &'static str {
        match self {
            Self::One => "gptq",
            Self::Two => "gptq_v2",
        }
    }
}

struct Gptq {
    version: Version,
}

impl Container for Gptq {
    fn accepts(&self, plan: &Plan) -> Verdict {
        accept::verdict(self.version, plan)
    }

    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Beside
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        Ok(write::declare(native))
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        write::write(self.version, native, out)
    }

    fn held(&self, _: &NativeReader, site: &NativeSite, rounded: Rounded) -> Result<Held> {
        Held::exactly(rounded).scales_in(site.spec.scale, FloatKind::F16)
    }

    fn quantization_config(&self, plan: &Plan) -> Result<Value> {
        Ok(config::config(self.version, plan))
    }

    fn claims(&self, config: &Value) -> bool {
        // One of the records answers for both. Files of their own, as older tools wrote them, do not name the method.
        let method = config.get("quant_method").and_then(Value::as_str);
        let unnamed = method.is_none() && config.get("bits").is_some() && config.get("group_size").is_some();
        self.version == Version::One && (method == Some("gptq") || unnamed)
    }

    fn read(&self, config: &Value, transposed: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        read::open(config, transposed, tensors)
    }
}

/// The first version of the format, for registries built by hand.
pub const GPTQ: ContainerRecord = ContainerRecord {
    id: "gptq",
    summary: "integers of 2, 3, 4 and 8 bits, symmetric, for vLLM, transformers and GPTQModel",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &Gptq { version: Version::One },
};

/// The second version of the format, for registries built by hand.
pub const GPTQ_V2: ContainerRecord = ContainerRecord {
    id: "gptq-v2",
    summary: "the same with any zero points, for transformers and GPTQModel",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &Gptq { version: Version::Two },
};

qfw_core::register_container!(GPTQ, GPTQ_V2);
