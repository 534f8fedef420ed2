//! `qfw inspect`

use std::collections::BTreeMap;

use qfw_core::Result;
use qfw_core::checkpoint::Checkpoint;
use qfw_core::registry::Registry;
use serde_json::json;

use super::{record, say_json, target};
use crate::arguments::Inspect;
use crate::hub;
use crate::terminal::{say, size};

pub(crate) fn run(a: &Inspect) -> Result<()> {
    let path = hub::model(&a.path)?;
    let checkpoint = Checkpoint::open(&path)?;
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let (mut elements, mut bytes) = (0u64, 0u64);
    let names = checkpoint.tensors.names();
    for name in &names {
        let Some(info) = checkpoint.tensors.info(name) else { continue };
        let entry = types.entry(info.dtype.name().to_owned()).or_default();
        let n = info.shape.iter().product::<usize>() as u64;
        *entry = (entry.0 + 1, entry.1 + n);
        elements += n;
        bytes += info.byte_len();
    }
    let quantization = &checkpoint.config["quantization_config"];
    let record = record::of(&path)?;
    let blocks = names.iter().filter_map(|n| checkpoint.tensors.info(n)).any(|i| i.dtype.is_blocks());
    let quantized = record.is_some() || !quantization.is_null() || blocks;
    let schemes = schemes(&checkpoint)?;
    let architecture = checkpoint.config["model_type"].as_str().unwrap_or("").to_owned();
    let judged = a.target.as_ref().filter(|_| quantized).map(|t| target::judged(t, &path)).transpose()?;
    let recipes = match a.target.as_ref().filter(|_| !quantized) {
        Some(t) => Some(qfw_core::target::recipes(t, &architecture)?),
        None => None,
    };
    if a.json {
        return say_json(&json!({
            "path": a.path, "model_type": checkpoint.config["model_type"], "tensors": names.len(), "elements": elements, "bytes": bytes,
            "types": types.iter().map(|(t, (n, e))| json!({ "type": t, "tensors": n, "elements": e })).collect::<Vec<_>>(),
            "quantization_config": quantization, "schemes": schemes.iter().map(|(scheme, n)| json!({ "scheme": scheme, "layers": n })).collect::<Vec<_>>(), "plan": record.as_ref().map(|r| r["plan"].clone()),
            "target": judged, "recipes": recipes,
        }));
    }
    say(&format!("model type    {}", checkpoint.config["model_type"].as_str().unwrap_or("(none)")));
    say(&format!("tensors       {} ({} elements, {})", names.len(), elements, size(bytes)));
    for (t, (n, e)) in &types {
        say(&format!("  {t:<10} {n:>6} tensors {e:>14} elements"));
    }
    match quantization.get("quant_method").and_then(|m| m.as_str()) {
        Some(method) => say(&format!("quantized     {method} {}", quantization["format"].as_str().unwrap_or(""))),
        // The types of a GGUF file are listed above.
        None if blocks => say("quantized     gguf"),
        // What an archive says of itself is no configuration.
        None if !quantization.is_null() && !schemes.is_empty() => {
            let registry = Registry::linked()?;
            say(&format!("quantized     {}", checkpoint.container(&registry).map_or("(unknown)", |r| r.id)));
        }
        None => say("quantized     no"),
    }
    for (scheme, n) in &schemes {
        say(&format!("  {n:>6} layers as {scheme}"));
    }
    if let (Some(target), Some(recipes)) = (&a.target, &recipes) {
        target::say_recipes(target, &architecture, recipes);
    }
    if let Some(judgement) = &judged {
        say(judgement.to_string().trim_end());
    }
    if let Some(plan) = record.as_ref().map(|r| record::plan(&path, r)).transpose()? {
        say(&format!("\nmade by qfw {} with this plan:\n{}", plan.qfw, plan.to_string().trim_end()));
    }
    Ok(())
}

/// How many layers have codes of each scheme. A checkpoint in a format that nothing here reads has none that are known.
fn schemes(checkpoint: &Checkpoint) -> Result<BTreeMap<String, usize>> {
    let registry = Registry::linked()?;
    let mut found = BTreeMap::new();
    let Ok(tensors) = checkpoint.float_tensors(&registry) else { return Ok(found) };
    for site in tensors.names().iter().filter_map(|name| tensors.coded(name)) {
        *found.entry(site.spec.to_string()).or_default() += 1;
    }
    Ok(found)
}
