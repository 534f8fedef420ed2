//! A PEFT adapter beside the weights: low-rank branches, as tensors of the model that runs.
//!
//! `adapter/adapter_config.json` is that of a LoRA: rank `r`, scale `lora_alpha / r`, and for single modules `rank_pattern` and
//! `alpha_pattern`. `adapter/adapter_model.safetensors` has `base_model.model.MODULE.lora_A.weight` `[rank, inputs]` and
//! `….lora_B.weight` `[outputs, rank]` in f32, f16 or bf16. What is added to a layer is `alpha / rank · B·(A·x)`; only a factor of one is what
//! was written. Here the factors are `MODULE.branch_a` and `MODULE.branch_b`, with the checkpoint's name of the module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Entry, Form, object, plain};
use crate::error::{Finding, Result};
use crate::store::Store;

/// The directory.
const DIR: &str = "adapter";

/// What is read of one.
#[derive(Default)]
pub(crate) struct Branches {
    /// The factors, by their names here.
    pub entries: BTreeMap<String, Entry>,
    /// Of each `A` the others with the same bytes: a LoRA repeats what layers share.
    pub copies: BTreeMap<String, Vec<String>>,
}

/// Adds the adapter beside the weights in `dir`, if there is one. `linears` are the names that the checkpoint has for the model's linears.
///
/// # Errors
/// If there is one that cannot be read at all.
pub(crate) fn read(dir: &Path, linears: &[String], store: &mut Store, findings: &mut Vec<Finding>) -> Result<Branches> {
    let mut branches = Branches::default();
    let dir = dir.join(DIR);
    let Some(config) = object(&dir.join("adapter_config.json"))? else { return Ok(branches) };
    if config["peft_type"] != "LORA" {
        findings.push(Finding::new("adapter", format!("it is a {}, and not a \"LORA\"", config["peft_type"])));
    }
    let names: BTreeSet<String> = store.add(&dir.join("adapter_model.safetensors"), findings)?.into_iter().collect();
    let targets: BTreeSet<&str> = config["target_modules"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut modules = BTreeSet::new();
    for name in &names {
        let Some((module, suffix)) = parts(name) else {
            findings.push(Finding::of("adapter", name, format!("`{name}` of the adapter is no factor of a branch")));
            continue;
        };
        let ours =
            linears.iter().find(|l| module == l.as_str() || module.strip_suffix(l.as_str()).is_some_and(|front| front.ends_with('.')));
        if let (None, false) = (ours, linears.is_empty()) {
            findings.push(Finding::of("adapter", name, format!("the model has no linear layer `{module}` for `{name}` of the adapter")));
        }
        let Some(tensor) = store.get(name) else { continue };
        branches.entries.insert(format!("{}.{suffix}", ours.map_or(module, String::as_str)), plain(tensor, false));
        modules.insert(module);
    }
    for module in &modules {
        let shape = |factor: &str| store.get(&format!("base_model.model.{module}.{factor}.weight")).map(|t| t.shape.clone());
        let (a, b) = (shape("lora_A"), shape("lora_B"));
        let rank = match (a.as_deref(), b.as_deref()) {
            (Some([rank, _]), Some([_, same])) if rank == same => *rank,
            _ => {
                findings.push(Finding::new("adapter", format!("the factors of `{module}` are {a:?} and {b:?}, which are no `A` and `B`")));
                continue;
            }
        };
        let of = |pattern: &str, all: &str| config[pattern].get(module).unwrap_or(&config[all]);
        let (stated, alpha) = (of("rank_pattern", "r"), of("alpha_pattern", "lora_alpha"));
        if [stated, alpha].iter().any(|n| n.as_f64() != Some(rank as f64)) {
            let message =
                format!("`{module}` has a branch of rank {rank}, and the configuration states {stated} with a `lora_alpha` of {alpha}");
            findings.push(Finding::new("adapter", message));
        }
        if !targets.contains(module) {
            findings.push(Finding::new("adapter", format!("`target_modules` does not name `{module}`, which has a branch")));
        }
    }
    for target in targets.iter().filter(|t| !modules.contains(*t)) {
        findings.push(Finding::new("adapter", format!("`target_modules` names `{target}`, which has no branch")));
    }
    for key in ["use_rslora", "use_dora", "lora_bias"] {
        if config[key] == true {
            findings.push(Finding::new("adapter", format!("with `{key}` it computes something else than what was written")));
        }
    }
    copies(store, &mut branches)?;
    Ok(branches)
}

/// The module and the name here of a factor's suffix.
fn parts(name: &str) -> Option<(&str, &'static str)> {
    let inside = name.strip_prefix("base_model.model.")?;
    let first = inside.strip_suffix(".lora_A.weight").map(|module| (module, "branch_a"));
    first.or_else(|| inside.strip_suffix(".lora_B.weight").map(|module| (module, "branch_b")))
}

fn copies(store: &Store, branches: &mut Branches) -> Result<()> {
    let mut alike: BTreeMap<[u8; 32], Vec<&String>> = BTreeMap::new();
    for (name, entry) in branches.entries.iter().filter(|(name, _)| name.ends_with(".branch_a")) {
        let (Form::Floats { tensor, .. } | Form::Bytes(tensor)) = &entry.form else { continue };
        let bytes = store.bytes(store.require(tensor)?)?;
        alike.entry(*blake3::hash(&bytes).as_bytes()).or_default().push(name);
    }
    for group in alike.into_values().filter(|g| g.len() > 1) {
        for name in &group {
            let others = group.iter().filter(|n| n != &name).map(|n| (*n).clone()).collect();
            branches.copies.insert((*name).clone(), others);
        }
    }
    Ok(())
}
