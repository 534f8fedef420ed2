//! The `quantization_config` of `config.json`.
//!
//! What most modules have stands at the top; `dynamic` lists the others (`+:PATTERN` and what differs) and those that are kept
//! (`-:PATTERN`). transformers knows only `modules_in_block_to_quantize`, which is written too where blocks are alike.

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
        "desc_act": plan.passes.iter().any(|p| p.group_index),
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
    if !kept.is_empty()
        && let Some(list) = alike(plan)
    {
        config["modules_in_block_to_quantize"] = json!([list]);
    }
    config
}

/// The quantized modules of a block by their names inside it, if they are the same in every block.
fn alike(plan: &Plan) -> Option<Vec<String>> {
    let mut blocks: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for PlannedSite { site, module, weights, .. } in &plan.sites {
        let Some(block) = site.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) else { continue };
        let inside = module.split_once(&format!(".{block}.")).map(|(_, inside)| inside.to_owned());
        let list = blocks.entry(block).or_default();
        if weights.is_some() {
            list.push(inside?);
        }
    }
    let distinct: BTreeSet<&Vec<String>> = blocks.values().collect();
    let mut distinct = distinct.into_iter();
    match (distinct.next(), distinct.next()) {
        (Some(only), None) if !only.is_empty() => Some(only.clone()),
        _ => None,
    }
}
