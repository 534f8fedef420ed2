//! Low-rank branches beside a checkpoint whose format has no room for them: a PEFT adapter in the directory `adapter`.
//!
//! ```text
//! adapter/adapter_config.json          LoRA of rank r with lora_alpha = r, so that what is added is B·(A·x) itself
//! adapter/adapter_model.safetensors    base_model.model.MODULE.lora_A.weight [r, in], ….lora_B.weight [out, r]
//! ```
//!
//! `MODULE` is the layer's name in the model's class, whose outermost module a checkpoint may leave out of its names. Ranks that are not `r`
//! are in `rank_pattern`, and again in `alpha_pattern`. An `A` that several layers share is stored with each of them: a LoRA has no other way
//! to say it. Source: PEFT 0.21, `tuners/lora/config.py` (`LoraConfig`) and `utils/save_and_load.py`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::files::{json_object, replace_file};
use super::native::NativeReader;
use super::{ContainerWriter, SafetensorsWriter, TensorDecl, TensorInfo, TensorSource, open_tensors};
use crate::error::{Error, Result};
use crate::model::StoredBranch;
use crate::plan::PlannedBranch;
use crate::topology::Topology;

/// The directory, beside the weights.
pub(crate) const DIR: &str = "adapter";

/// What model cards say of it.
pub(crate) const CARD: &str = "Low-rank branches lie in the directory `adapter`, as a LoRA: loaded without it, this is another model. PEFT puts them over \
                               layers whose weights are there: what transformers keeps packed has to be dequantized on loading.\n\n";

/// What says what it is.
const CONFIG: &str = "adapter_config.json";

/// The name of its weights without ending, and their path from the model.
const STEM: &str = "adapter_model";
#[cfg(feature = "hub")]
pub(super) const WEIGHTS: &str = "adapter/adapter_model.safetensors";

/// What PEFT puts before the names of a model's modules.
const WRAPPED: &str = "base_model.model.";

/// What PEFT calls `A` and `B`.
const FACTORS: [&str; 2] = ["lora_A", "lora_B"];

/// The name of a module in a class that calls its body `body`, from its stored name.
fn in_class(body: &str, module: &str) -> String {
    let inside = module.strip_prefix(body).is_some_and(|rest| rest.starts_with('.'));
    if inside { module.to_owned() } else { format!("{body}.{module}") }
}

/// The names of `A` and `B` beside a module.
fn names(body: &str, module: &str) -> [String; 2] {
    let module = in_class(body, module);
    FACTORS.map(|factor| format!("{WRAPPED}{module}.{factor}.weight"))
}

/// The tensors of the branch of a finished model, with their values. `body` is what the model's class calls its body.
///
/// # Errors
/// If the branch cannot be read.
fn tensors(body: &str, branch: &PlannedBranch, native: &NativeReader) -> Result<[(TensorDecl, Vec<f32>); 2]> {
    let [a, b] = native.branch(branch)?;
    let [first, second] = declared(body, branch);
    Ok([(first, a), (second, b)])
}

fn declared(body: &str, branch: &PlannedBranch) -> [TensorDecl; 2] {
    let [a, b] = names(body, &branch.module);
    let decl = |name, shape: [usize; 2]| TensorDecl { name, dtype: branch.stored.into(), shape: shape.to_vec() };
    [decl(a, [branch.rank, branch.shape.1]), decl(b, [branch.shape.0, branch.rank])]
}

/// Writes the branches of a finished model beside the weights in `dir`, one at a time. Returns the path of the configuration there, and its
/// text.
///
/// # Errors
/// If a branch cannot be read, or a file cannot be written.
pub(crate) fn write(dir: &Path, body: &str, native: &NativeReader, provenance: &BTreeMap<String, String>) -> Result<(String, String)> {
    let dir = dir.join(DIR);
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
    let all: Vec<TensorDecl> = native.branches.iter().flat_map(|b| declared(body, b)).collect();
    let mut writer = SafetensorsWriter::create(&dir, STEM, &all, u64::MAX, provenance)?;
    for branch in &native.branches {
        for (decl, values) in tensors(body, branch, native)? {
            writer.write(&decl.name, &branch.stored.bytes(&values))?;
        }
    }
    writer.finish()?;
    let text = serde_json::to_string_pretty(&config(body, &native.branches)).map_err(|e| Error::internal(e.to_string()))? + "\n";
    replace_file(&dir.join(CONFIG), text.as_bytes())?;
    Ok((format!("{DIR}/{CONFIG}"), text))
}

fn config(body: &str, branches: &[PlannedBranch]) -> Value {
    let rank = branches.iter().map(|b| b.rank).max().unwrap_or(0);
    // Layers that are smaller than the rank have one of their own.
    let others: Map<String, Value> =
        branches.iter().filter(|b| b.rank != rank).map(|b| (in_class(body, &b.module), json!(b.rank))).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others.clone(),
        "alpha_pattern": others,
        "target_modules": branches.iter().map(|b| in_class(body, &b.module)).collect::<Vec<_>>(),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": false,
    })
}

/// The part of an adapter's configuration that says what it computes.
#[derive(Deserialize)]
struct Stated {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

/// Keys with which a LoRA is something else than `B·(A·x)`, unless they are null, false or empty.
const OTHERWISE: [&str; 9] = [
    "use_rslora",
    "use_dora",
    "use_qalora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
];

/// An adapter beside a checkpoint.
pub struct Adapter {
    stated: Stated,
    tensors: Arc<dyn TensorSource>,
}

impl Adapter {
    /// The adapter beside the weights in `dir`, if there is one.
    ///
    /// # Errors
    /// If it is no LoRA, or one that adds something else than `B·(A·x)`.
    pub(super) fn beside(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(DIR).join(CONFIG);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let bad = |what: String| {
            Error::input("checkpoint::adapter", format!("`{}`: {what}", path.display()))
                .hint("what lies in `adapter` runs beside the model; move the directory away to leave it out")
        };
        let value = json_object(&path, &text)?;
        let off = |v: &Value| match v {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            other => other.is_null() || *other == false,
        };
        if let Some(key) = OTHERWISE.into_iter().find(|key| !off(&value[*key])) {
            return Err(bad(format!("with `{key}` it is more than `B·(A·x)`, which is all that is run here")));
        }
        let stated: Stated = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
        if stated.peft_type != "LORA" {
            return Err(bad(format!("it is a `{}`, and only a `LORA` is run here", stated.peft_type)));
        }
        Ok(Some(Self { stated, tensors: open_tensors(&dir.join(DIR).join(format!("{STEM}.safetensors")))? }))
    }

    /// Its branches, by the names of their tensors here. `body` is what the model's class calls its body.
    ///
    /// # Errors
    /// If a tensor is none of a branch beside a layer of the model, or a branch is scaled.
    pub(super) fn branches(&self, body: &str, topology: &Topology) -> Result<Vec<StoredBranch>> {
        let bad = |what: String| Error::input("checkpoint::adapter", format!("`{DIR}`: {what}"));
        let mut left = self.tensors.names();
        let mut branches = Vec::new();
        for linear in topology.linears.iter().filter(|l| l.site.block.is_some()) {
            let [a, b] = names(body, &linear.module);
            let Some(info) = self.tensors.info(&a) else { continue };
            let rank = info.shape.first().copied().unwrap_or(0);
            let alpha = self.stated.alpha_pattern.get(&in_class(body, &linear.module)).copied().unwrap_or(self.stated.lora_alpha);
            if alpha != rank as f64 || rank > self.stated.r {
                let message =
                    format!("the branch of `{}` is of rank {rank}, with `r` {} and `lora_alpha` {alpha}", linear.module, self.stated.r);
                return Err(bad(message).hint("only branches whose `lora_alpha` is their rank are run here, which are added as they are"));
            }
            left.retain(|name| *name != a && *name != b);
            branches.push(StoredBranch { module: linear.module.clone(), rank, a, b });
        }
        match left.first() {
            None => Ok(branches),
            Some(name) => {
                Err(bad(format!("`{name}` is no part of a branch beside a layer of this model"))
                    .hint("is it the adapter of another model?"))
            }
        }
    }

    /// `model` with the adapter's tensors behind it: they are found by name, and are not among the model's own.
    pub(super) fn behind(&self, model: Arc<dyn TensorSource>) -> Arc<dyn TensorSource> {
        Arc::new(Behind { model, adapter: Arc::clone(&self.tensors) })
    }

    /// What it is, for a hash of the checkpoint.
    pub(super) fn tensors(&self) -> &dyn TensorSource {
        &*self.tensors
    }
}

struct Behind {
    model: Arc<dyn TensorSource>,
    adapter: Arc<dyn TensorSource>,
}

impl Behind {
    fn holder(&self, name: &str) -> &dyn TensorSource {
        if name.starts_with(WRAPPED) && self.adapter.info(name).is_some() { &*self.adapter } else { &*self.model }
    }
}

impl TensorSource for Behind {
    fn names(&self) -> Vec<String> {
        self.model.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.holder(name).info(name)
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        self.holder(name).read_f32(name, rows, out)
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.holder(name).read_bytes(name)
    }

    fn coded(&self, name: &str) -> Option<&super::native::NativeSite> {
        self.model.coded(name)
    }

    fn rounded(&self, name: &str) -> Result<crate::algorithm::Rounded> {
        self.model.rounded(name)
    }
}
