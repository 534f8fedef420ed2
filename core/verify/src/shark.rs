//! A checkpoint that is a dataset of sharktank: which entries of the archive are tensors of the model.
//!
//! `__SHARK_INFERENCE_TENSORS__` says of each tensor, by its name in GGUF, what it is and which entries it is made of; the later package reads
//! the same under `__AMD_SHARK_…`. The input of a layer has its scale as `rscale`, and the inverse as `scale`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Activation, CONFIG, Checkpoint, Entry, Form, Names, beside, object, plain};
use crate::container::shark::Planar;
use crate::dtype::Dtype;
use crate::error::{Error, Finding, Result};
use crate::family::{self, Expected};
use crate::matrix::Load;
use crate::store::Store;

const TENSORS: &str = "__SHARK_INFERENCE_TENSORS__";
/// The same for the later package.
const AS_WELL: &str = "__AMD_SHARK_INFERENCE_TENSORS__";

/// Entries that are no numbers of the model: what the dataset says of itself, and of the run that wrote it.
const SAID: [&str; 6] = [TENSORS, AS_WELL, "__SHARK_DATASET__", "__AMD_SHARK_DATASET__", "qfw_version", "qfw_plan"];

impl Checkpoint {
    /// Opens an `.irpa` file; what lies beside it says what model it is.
    ///
    /// # Errors
    /// If it is no dataset.
    pub(crate) fn of_irpa(file: &Path) -> Result<Self> {
        let mut findings = Vec::new();
        let store = Store::open_irpa(file, &mut findings)?;
        let dir = beside(file);
        let expected = object(&dir.join(CONFIG))?.as_ref().and_then(family::of_config);
        let by_name: BTreeMap<&str, &Expected> = expected.iter().flatten().map(|e| (e.gguf.as_str(), e)).collect();
        let in_model = |name: &str| by_name.get(name).map_or_else(|| name.to_owned(), |e| e.name.clone());
        let said = said(&store, TENSORS)?;
        if let Some(other) =
            store.get(AS_WELL).filter(|other| store.bytes(other).ok() != store.require(TENSORS).and_then(|t| store.bytes(t)).ok())
        {
            findings.push(Finding::new("config", format!("`{TENSORS}` and `{}` say different things", other.name)));
        }
        let mut found = Found::default();
        for (name, what) in &said {
            // A head that is tied is made of what the embedding is made of.
            if name == "output.weight" && said.get("token_embd.weight").is_some_and(|e| e["raw_tensors"] == what["raw_tensors"]) {
                continue;
            }
            let ours = match name.strip_suffix(".q_input") {
                Some(stem) => in_model(&format!("{stem}.weight")).replace(".weight", " inputs"),
                None => in_model(name),
            };
            if let Err(e) = found.add(name, &ours, what, &store) {
                found.parts.extend(entries(what));
                findings.push(Finding::of("tensor", &ours, e.message));
            }
        }
        for tensor in store.tensors().filter(|t| !found.parts.contains(&t.name) && !SAID.contains(&t.name.as_str())) {
            findings.push(Finding::of("extra", &tensor.name, format!("no tensor of the dataset is made of `{}`", tensor.name)));
        }
        let known = expected.is_some();
        let Found { entries, activations, .. } = found;
        if let Some(expected) = &expected {
            Names::of(expected, &store).check(&entries, &store, &mut findings);
        }
        let (aside, copies, container) = (Vec::new(), BTreeMap::new(), "shark".to_owned());
        Ok(Self { dir: dir.to_owned(), container, store, entries, activations, findings, aside, copies, known })
    }
}

/// What an entry with JSON says of each tensor.
fn said(store: &Store, name: &str) -> Result<BTreeMap<String, Value>> {
    let bytes = store.bytes(store.require(name)?)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::config(format!("`{name}` in the archive: {e}")))
}

/// The entries that a tensor is made of.
fn entries(said: &Value) -> Vec<String> {
    said["raw_tensors"].as_object().into_iter().flat_map(|o| o.values()).filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect()
}

/// What was found of a model.
#[derive(Default)]
struct Found {
    entries: BTreeMap<String, Entry>,
    activations: BTreeMap<String, Activation>,
    parts: BTreeSet<String>,
}

impl Found {
    /// Adds a tensor of the dataset, which the model, or the record of an input, calls `ours`.
    fn add(&mut self, name: &str, ours: &str, said: &Value, store: &Store) -> Result<()> {
        match said["type_name"].as_str() {
            Some("PlanarQuantizedTensor") => {
                let planar = Planar::of(name, said)?;
                let (rows, cols) = planar.shape();
                self.parts.extend(planar.parts(store));
                self.entries.insert(ours.to_owned(), Entry { shape: vec![rows, cols], form: Form::Coded(Box::new(planar)) });
            }
            Some("PrimitiveTensor") => {
                let entry = entries(said).pop().unwrap_or_default();
                self.entries.insert(ours.to_owned(), plain(store.require(&entry)?, false));
                self.parts.insert(entry);
            }
            Some("StaticScaledQuantizer") if name.ends_with(".q_input") => self.input(name, ours, said, store)?,
            other => return Err(Error::tensor(format!("`{name}` is {}, which is not known here", other.unwrap_or("nothing")))),
        }
        Ok(())
    }

    fn input(&mut self, name: &str, ours: &str, said: &Value, store: &Store) -> Result<()> {
        let number = |part: &str| {
            let entry = said["raw_tensors"][part].as_str().unwrap_or_default();
            store.expect(entry, &Dtype::F32, &[])?;
            Ok::<_, Error>(store.floats(entry)?[0])
        };
        let (inverse, scale) = (number("scale")?, number("rscale")?);
        if inverse != 1.0 / scale {
            return Err(Error::tensor(format!("`{name}` has {inverse} where 1/{scale} belongs")));
        }
        self.parts.extend(entries(said));
        self.activations.insert(ours.to_owned(), vec![scale].into());
        Ok(())
    }
}
