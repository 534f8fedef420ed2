//! The `quantization_config` of `config.json`.
//!
//! What most modules have stands at the top; `dynamic` lists the others (`+:PATTERN` and what differs) and those that are kept
//! (`-:PATTERN`). transformers knows only which modules are quantized, from `modules_in_block_to_quantize`, by what their names end in.

use std::collections::{BTreeMap, BTreeSet};

use qfw_core::plan::{Plan, PlannedSite};
use qfw_core::scheme::{Extent, QuantSpec, Zero};
use qfw_core::topology::{Role, SiteId};
use serde_json::{Map, Value, json};

use crate::Version;
use crate::pattern::pattern;

/// How a module is quantized, as far as the configuration says it: bits, group size, symmetric.
type Said = (u8, i64, bool);

fn said(spec: &QuantSpec) -> Said {
    let group = match spec.granularity.cols {
        Extent::All => -1,
        Extent::Of(g) => i64::from(g),
    };
    (spec.bits, group, spec.grid.zero() != Zero::Integer)
}

pub(crate) fn config(version: Version, plan: &Plan) -> Value {
    let mut by: BTreeMap<Said, Vec<&str>> = BTreeMap::new();
    for s in &plan.sites {
        if let Some(spec) = &s.weights {
            by.entry(said(spec)).or_default().push(&s.module);
        }
    }
    // Of equals the one with the fewest bits, which is the first.
    let base = by.iter().rev().max_by_key(|(_, modules)| modules.len()).map_or((4, -1, true), |(said, _)| *said);
    let mut dynamic = Map::new();
    for ((bits, group_size, sym), modules) in by.iter().filter(|(said, _)| **said != base) {
        let changed = json!({ "bits": bits, "group_size": group_size, "sym": sym });
        dynamic.insert(format!("+:{}", pattern(modules, plan.blocks)), changed);
    }
    let head = SiteId::global(Role::Head).to_string();
    let kept: Vec<&str> = plan.sites.iter().filter(|s| s.weights.is_none() && s.site != head).map(|s| s.module.as_str()).collect();
    if !kept.is_empty() {
        dynamic.insert(format!("-:{}", pattern(&kept, plan.blocks)), json!({}));
    }
    let mut config = json!({
        "quant_method": "gptq",
        "bits": base.0,
        "group_size": base.1,
        "desc_act": plan.unordered().is_some(),
        "sym": base.2,
        "lm_head": plan.sites.iter().any(|s| s.site == head && s.weights.is_some()),
        "checkpoint_format": version.format(),
        "pack_dtype": "int32",
        "true_sequential": true,
        "meta": { "quantizer": [format!("qfw:{}", plan.qfw)] },
    });
    if !dynamic.is_empty() {
        config["dynamic"] = Value::Object(dynamic);
    }
    if !kept.is_empty() {
        config["modules_in_block_to_quantize"] = json!([quantized(plan)]);
    }
    config
}

/// The quantized modules of all blocks: by their names inside a block where those of all are the same, else in full.
fn quantized(plan: &Plan) -> Vec<String> {
    let mut blocks: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut all = Vec::new();
    for PlannedSite { site, module, weights, .. } in &plan.sites {
        let Some(block) = site.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) else { continue };
        let list = blocks.entry(block).or_default();
        if weights.is_some() {
            list.push(module.split_once(&format!(".{block}.")).map_or(module.clone(), |(_, inside)| inside.to_owned()));
            all.push(module.clone());
        }
    }
    let distinct: BTreeSet<Vec<String>> = blocks.into_values().collect();
    if distinct.len() == 1 { distinct.into_iter().flatten().collect() } else { all }
}
