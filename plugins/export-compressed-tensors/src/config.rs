//! The `quantization_config` of `config.json`.

use qfw_core::plan::{Plan, PlannedSite};
use serde_json::{Map, Value, json};

use crate::layout::{Choice, Layout};
use crate::{activation, arguments, transform};

/// The version of the format written: the oldest release whose readers were checked to load these files.
const VERSION: &str = "0.17.0";
/// That of widths which do not divide a word: the first release that packs them without gaps.
const VERSION_OF_WIDTHS: &str = "0.18.0";

/// Modules that are stored alike.
struct Group<'a> {
    format: &'static str,
    weights: Value,
    input: Option<Value>,
    modules: Vec<&'a str>,
}

pub(crate) fn config(choice: Choice, plan: &Plan) -> Value {
    let groups = groups(choice, plan);
    let ignore: Vec<&str> = plan.sites.iter().filter(|s| s.weights.is_none()).map(|s| s.module.as_str()).collect();
    let format = match &groups[..] {
        [] => "dense",
        [first, rest @ ..] if rest.iter().all(|g| g.format == first.format) => first.format,
        _ => "mixed-precision",
    };
    let gaps = |g: &Group<'_>| g.format == Layout::Packed.format() && g.weights["num_bits"].as_u64().is_some_and(|b| 32 % b != 0);
    let version = if groups.iter().any(gaps) { VERSION_OF_WIDTHS } else { VERSION };
    // Where the architecture is unknown there may be linears (a tied head) that no list here names.
    let one = groups.len() == 1 && !plan.tensorwise;
    let mut map = Map::new();
    for (i, g) in groups.into_iter().enumerate() {
        let group = json!({
            "targets": if one { json!(["Linear"]) } else { json!(g.modules) },
            "format": g.format,
            "weights": g.weights,
            "input_activations": g.input,
            "output_activations": null,
        });
        map.insert(format!("group_{i}"), group);
    }
    let mut config = json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "version": version,
        "config_groups": map,
        "ignore": ignore,
        "kv_cache_scheme": plan.activations.iter().find(|a| activation::cache_letter(a).is_some()).map(|a| arguments::cache(&a.spec)),
        "global_compression_ratio": null,
    });
    if let Some(transforms) = transform::config(plan) {
        config["transform_config"] = transforms;
    }
    config
}

fn groups(choice: Choice, plan: &Plan) -> Vec<Group<'_>> {
    let inputs = activation::inputs(&plan.activations);
    let mut groups: Vec<Group<'_>> = Vec::new();
    for PlannedSite { module, weights, .. } in &plan.sites {
        let Some(spec) = weights else { continue };
        let input = inputs.get(module.as_str()).copied();
        let format = Layout::of(choice, spec, input).format();
        let (weights, input) = (arguments::weight(spec), input.map(arguments::input));
        match groups.iter_mut().find(|g| g.format == format && g.weights == weights && g.input == input) {
            Some(group) => group.modules.push(module),
            None => groups.push(Group { format, weights, input, modules: vec![module] }),
        }
    }
    groups
}
