//! Datasets of sharktank: what its paged language models load, and what Brevitas writes with `--export-target shark`.
//!
//! `dataset.irpa` is one parameter archive of IREE. Its tensors are the *planes* of the dataset's tensors; two entries with JSON say the rest:
//!
//! | entry | holds |
//! |---|---|
//! | `__SHARK_DATASET__` | the properties: hyper-parameters by the names of GGUF's keys |
//! | `__SHARK_INFERENCE_TENSORS__` | for each tensor of the dataset what it is (`type_name`), and the entries that it is made of (`raw_tensors`) |
//!
//! In its last version the package is called `amdsharktank`, and looks for the same two under `__AMD_SHARK_…`: they are written under both
//! names. Tensors have GGUF's names (`blk.0.attn_q.weight`), and their rows the order of the checkpoint, since the property
//! `rope.interleave_emb` says so. How weights are held stands in `layout.rs`, and how inputs are in `activation.rs`. A head that is tied
//! refers to the entries of the embedding. Sources: sharktank 3.8.0 and amdsharktank 3.9.0, `types/theta.py`, `types/layouts.py`,
//! `types/quantizers.py`, `layers/configs/llm_configs.py`; Brevitas, `export/shark/handler.py`.

mod accept;
mod activation;
mod layout;
mod model;
mod read;
mod renamed;
mod stored;
mod tensors;

use std::collections::BTreeSet;
use std::sync::Arc;

use qfw_core::Result;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{
    Checkpoint, Container, ContainerRecord, ContainerWriter, FileForm, Held, StoredActivation, TensorDecl, TensorSource, Verdict,
};
use qfw_core::plan::Plan;
use qfw_core::topology::Topology;
use serde_json::Value;

use layout::Layout;
use model::Model;

/// What Brevitas calls the file.
const FILE: &str = "dataset.irpa";

/// What the two entries with JSON begin with, in each version of the package.
const PREFIXES: [&str; 2] = ["__SHARK_", "__AMD_SHARK_"];
/// How their names go on.
const DATASET: &str = "DATASET__";
const INFERENCE_TENSORS: &str = "INFERENCE_TENSORS__";

struct Shark;

impl Container for Shark {
    fn accepts(&self, plan: &Plan) -> Verdict {
        accept::verdict(plan)
    }

    fn file_form(&self, _: &Plan, checkpoint: &Checkpoint) -> Result<FileForm> {
        let model = Model::of(&checkpoint.config, &|name| checkpoint.tensors.info(name).is_some())?;
        for name in checkpoint.tensors.names() {
            model.place(&name)?;
        }
        Ok(FileForm::Archive { file: FILE })
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        Ok(tensors::Dataset::of(native)?.declare())
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        tensors::Dataset::of(native)?.write(native, out)
    }

    fn held(&self, native: &NativeReader, site: &NativeSite, rounded: Rounded) -> Result<Held> {
        let layout = Layout::of(&site.site, &site.spec, site.shape, activation::rounded(&native.activations, &site.module))?;
        Ok(layout.held(&site.spec, rounded))
    }

    /// The archive says it all; `config.json` stays as it is.
    fn quantization_config(&self, _: &Plan) -> Result<Value> {
        Ok(Value::Null)
    }

    fn claims(&self, config: &Value) -> bool {
        config.get("archive").and_then(Value::as_str) == Some("irpa")
    }

    fn read(&self, _: &Value, _: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        read::open(tensors)
    }

    fn activations(&self, _: &Value, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
        activation::read(tensors, topology)
    }
}

/// The container, for registries built by hand.
pub const SHARK: ContainerRecord = ContainerRecord {
    id: "shark",
    summary: "integers of up to 8 bits, fp8 and mxfp4, and static inputs, for sharktank's LLaMA",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &Shark,
};

qfw_core::register_container!(SHARK);
