//! The GGUF container: what llama.cpp and those that read its files load.
//!
//! One file holds tensors, configuration and tokenizer. Each quantized matrix has the block format that its scheme maps to, with the codes
//! as they are: see the table in `block.rs`. Scales are f16 there, or powers of two. Matrices that are kept have the float type
//! they are stored in; vectors and learned positions are f32, which llama.cpp computes them in. Sources: llama.cpp's
//! `conversion/*.py`, `src/llama-arch.cpp` and `src/models/*.cpp`.

mod accept;
mod block;
mod family;
mod sentence_piece;
mod tensors;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::gguf::Value as Key;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{
    Checkpoint, Container, ContainerRecord, ContainerWriter, FileForm, Held, StoredDtype, TensorDecl, TensorSource, Verdict,
};
use qfw_core::plan::Plan;
use qfw_core::{Error, Result};
use serde_json::Value;

use family::Family;

struct Gguf;

impl Container for Gguf {
    fn accepts(&self, plan: &Plan) -> Verdict {
        accept::verdict(plan)
    }

    fn file_form(&self, plan: &Plan, checkpoint: &Checkpoint) -> Result<FileForm> {
        let family = Family::of(&checkpoint.config, &|name| checkpoint.tensors.info(name).is_some())?;
        for name in checkpoint.tensors.names() {
            family.place(&name)?;
        }
        let pair = |key: &str, value: Key| (key.to_owned(), value);
        let mut pairs = vec![
            pair("general.architecture", Key::Text(family.architecture.id.to_owned())),
            pair("general.type", Key::Text("model".to_owned())),
        ];
        pairs.extend(family.keys());
        pairs.push(pair("general.quantization_version", Key::Uint(2)));
        pairs.push(pair("general.file_type", Key::Uint(file_type(plan, checkpoint)?)));
        pairs.extend(tokenizer::keys(checkpoint, family.dims.vocab)?);
        Ok(FileForm::Gguf(pairs))
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        Ok(tensors::all(native)?.into_iter().map(|t| t.decl).collect())
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        tensors::all(native)?.iter().try_for_each(|t| t.write(native, out))
    }

    fn made(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<Vec<(String, Vec<usize>)>> {
        let made: Vec<tensors::Tensor> = tensors::all(native)?.into_iter().filter(tensors::Tensor::follows).collect();
        made.iter().try_for_each(|t| t.write(native, out))?;
        Ok(made.into_iter().map(|t| (t.decl.name, t.decl.shape)).collect())
    }

    fn held(&self, _: &NativeReader, site: &NativeSite, rounded: Rounded) -> Result<Held> {
        accept::block(&site.site, &site.spec)?.held(&site.spec.grid, site.spec.scale, rounded)
    }

    /// There is no `config.json`.
    fn quantization_config(&self, _: &Plan) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Files of this container are read as checkpoints of their own.
    fn claims(&self, _: &Value) -> bool {
        false
    }

    fn read(&self, _: &Value, _: &BTreeSet<String>, _: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        Err(Error::internal("a GGUF file has no `quantization_config`"))
    }
}

/// `general.file_type`: the type of most quantized weights, or else of most floats.
fn file_type(plan: &Plan, checkpoint: &Checkpoint) -> Result<u64> {
    let mut elements: BTreeMap<u64, usize> = BTreeMap::new();
    for s in &plan.sites {
        if let Some(spec) = &s.weights {
            *elements.entry(accept::block(&s.site, spec)?.file_type()).or_default() += s.shape.0 * s.shape.1;
        }
    }
    if elements.is_empty() {
        for info in checkpoint.tensors.names().iter().filter_map(|n| checkpoint.tensors.info(n)).filter(|i| i.shape.len() > 1) {
            let kind = match info.dtype {
                StoredDtype::F16 => 1,
                StoredDtype::BF16 => 32,
                _ => 0,
            };
            *elements.entry(kind).or_default() += info.shape.iter().product::<usize>();
        }
    }
    Ok(elements.into_iter().max_by_key(|(_, n)| *n).map_or(0, |(kind, _)| kind))
}

/// The container, for registries built by hand.
pub const RECORD: ContainerRecord = ContainerRecord {
    id: "gguf",
    summary: "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 and NVFP4 in one file, for llama.cpp",
    version: env!("CARGO_PKG_VERSION"),
    source: env!("CARGO_PKG_NAME"),
    container: &Gguf,
};

qfw_core::register_container!(RECORD);
