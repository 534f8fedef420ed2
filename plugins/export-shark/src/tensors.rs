//! The tensors of a dataset, and where their numbers come from.

use std::collections::{BTreeMap, BTreeSet};

use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{ContainerWriter, StoredDtype, TensorDecl};
use qfw_core::plan::PlannedActivation;
use qfw_core::{Error, Result};
use serde_json::{Map, Value, json};

use crate::activation::{self, INPUT};
use crate::layout::Layout;
use crate::model::Model;
use crate::{DATASET, INFERENCE_TENSORS, PREFIXES};

/// A tensor of the dataset.
struct Tensor {
    name: String,
    /// What stands in the archive for it; nothing where another tensor has it.
    parts: Vec<TensorDecl>,
    /// What it is, in JSON.
    said: Value,
    origin: Origin,
}

enum Origin {
    /// The codes of a module.
    Codes(NativeSite, Layout),
    /// The input of a module.
    Input(PlannedActivation),
    /// A tensor that is no codes, by its name in the checkpoint.
    Plain(String),
    /// What another one has.
    Shared,
}

/// All of it.
pub(crate) struct Dataset {
    tensors: Vec<Tensor>,
    /// The entries with JSON.
    texts: Vec<(String, String)>,
}

impl Dataset {
    /// What `native` becomes, in the order of execution.
    ///
    /// # Errors
    /// If a tensor has no place in a dataset.
    pub(crate) fn of(native: &NativeReader) -> Result<Self> {
        let weights = native.sites.iter().map(|s| format!("{}.weight", s.module));
        let names: BTreeSet<String> = native.plain().into_iter().map(|i| i.name.clone()).chain(weights).collect();
        let model = Model::of(&native.config, &|name| names.contains(name))?;
        let mut tensors = Vec::new();
        for site in &native.sites {
            let rounded = activation::rounded(&native.activations, &site.module);
            let layout = Layout::of(&site.site, &site.spec, site.shape, rounded)?;
            tensors.push(codes(weight(&model, &site.module)?, site, layout));
        }
        for a in &native.activations {
            for module in &a.modules {
                let weight = weight(&model, module)?;
                tensors.push(input(format!("{}{INPUT}", weight.trim_end_matches("weight")), a)?);
            }
        }
        for info in native.plain() {
            if let Some(name) = model.place(&info.name)? {
                tensors.push(plain(name, &info.name, info.dtype.clone(), info.shape.clone()));
            }
        }
        if model.dims.tied_head {
            tensors.push(tied(&tensors)?);
        }
        tensors.sort_by_cached_key(|t| (position(&t.name), t.name.clone()));
        let said: Map<String, Value> = tensors.iter().map(|t| (t.name.clone(), t.said.clone())).collect();
        let (properties, said) = (model.properties()?.to_string(), Value::Object(said).to_string());
        let texts = PREFIXES
            .iter()
            .flat_map(|p| [(format!("{p}{DATASET}"), properties.clone()), (format!("{p}{INFERENCE_TENSORS}"), said.clone())])
            .collect();
        Ok(Self { tensors, texts })
    }

    /// Every entry of the archive.
    pub(crate) fn declare(&self) -> Vec<TensorDecl> {
        let text = |(name, text): &(String, String)| TensorDecl { name: name.clone(), dtype: StoredDtype::U8, shape: vec![text.len()] };
        self.texts.iter().map(text).chain(self.tensors.iter().flat_map(|t| t.parts.iter().cloned())).collect()
    }

    /// Writes them.
    ///
    /// # Errors
    /// If numbers cannot be read, or the archive not written.
    pub(crate) fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        self.texts.iter().try_for_each(|(name, text)| out.write(name, text.as_bytes()))?;
        self.tensors.iter().try_for_each(|t| t.write(native, out).map_err(|e| e.within(format!("`{}`", t.name))))
    }
}

impl Tensor {
    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        match &self.origin {
            Origin::Codes(site, layout) => {
                let planes = layout.encode(&site.spec, &native.rounded(site)?)?;
                self.parts.iter().zip(&planes).try_for_each(|(decl, bytes)| out.write(&decl.name, bytes))
            }
            Origin::Input(a) => {
                let params = native.activation_params(a)?.ok_or_else(|| Error::internal("an input without a fixed scale"))?;
                let numbers = activation::numbers(&params)?;
                self.parts.iter().zip(numbers).try_for_each(|(decl, (_, number))| out.write(&decl.name, &number.to_le_bytes()))
            }
            Origin::Plain(name) => {
                let [decl] = &self.parts[..] else { return Err(Error::internal("a tensor of several parts")) };
                out.write(&decl.name, &native.plain_source(name)?.read_bytes(name)?)
            }
            Origin::Shared => Ok(()),
        }
    }
}

/// What is read first stands first.
fn position(name: &str) -> usize {
    match name.split('.').collect::<Vec<_>>()[..] {
        ["token_embd", ..] => 0,
        ["blk", n, ..] => n.parse().map_or(1, |n: usize| n + 1),
        _ => usize::MAX,
    }
}

/// The name in the dataset of the weight of a module.
fn weight(model: &Model, module: &str) -> Result<String> {
    let tensor = format!("{module}.weight");
    model.place(&tensor)?.ok_or_else(|| Error::internal(format!("`{tensor}` is no tensor of a dataset")))
}

/// The entries that a tensor is made of, by what they are called in it.
fn raw(name: &str, parts: &[(&str, StoredDtype, Vec<usize>)]) -> (Vec<TensorDecl>, Value) {
    let full = |part: &str| format!("{name}:{part}");
    let decls = parts.iter().map(|(part, dtype, shape)| TensorDecl { name: full(part), dtype: dtype.clone(), shape: shape.clone() });
    let names: BTreeMap<&str, String> = parts.iter().map(|(part, ..)| (*part, full(part))).collect();
    (decls.collect(), json!(names))
}

fn codes(name: String, site: &NativeSite, layout: Layout) -> Tensor {
    let (rows, cols) = site.shape;
    let (parts, raw_tensors) = raw(&name, &layout.planes(&site.spec, site.shape));
    let (layout_type, metadata) = layout.said();
    let mut said =
        json!({ "type_name": "PlanarQuantizedTensor", "raw_tensors": raw_tensors, "shape": [rows, cols], "layout_type": layout_type });
    if let Some(metadata) = metadata {
        said["layout_metadata"] = metadata;
    }
    Tensor { name, parts, said, origin: Origin::Codes(site.clone(), layout) }
}

fn input(name: String, a: &PlannedActivation) -> Result<Tensor> {
    let dtype = activation::dtype(&a.spec).ok_or_else(|| Error::internal(format!("`{}` is rounded to {}", a.place, a.spec)))?;
    let (parts, raw_tensors) = raw(&name, &["scale", "rscale"].map(|part| (part, StoredDtype::F32, Vec::new())));
    let said = json!({ "type_name": "StaticScaledQuantizer", "raw_tensors": raw_tensors, "dtype": dtype });
    Ok(Tensor { name, parts, said, origin: Origin::Input(a.clone()) })
}

fn plain(name: String, from: &str, dtype: StoredDtype, shape: Vec<usize>) -> Tensor {
    let said = json!({ "type_name": "PrimitiveTensor", "raw_tensors": { "": name } });
    let parts = vec![TensorDecl { name: name.clone(), dtype, shape }];
    Tensor { name, parts, said, origin: Origin::Plain(from.to_owned()) }
}

/// The head, of what the embedding is made of.
fn tied(tensors: &[Tensor]) -> Result<Tensor> {
    let embedding = tensors.iter().find(|t| t.name == "token_embd.weight").ok_or_else(|| Error::internal("no embedding"))?;
    Ok(Tensor { name: "output.weight".to_owned(), parts: Vec::new(), said: embedding.said.clone(), origin: Origin::Shared })
}
