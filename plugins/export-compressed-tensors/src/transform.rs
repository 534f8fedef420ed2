//! Rotations of inputs that a loader carries out: `transform_config`.
//!
//! A group states a matrix and where it is applied. `hadamard` is Sylvester's of a power of two, divided by `√n`; with `head_dim` it turns
//! that many channels at a time. `input` is for the loader to do; `weight_input` has been done. vLLM on a GPU honours it; transformers reads
//! over it and computes something else, so writing it is for a format of its own. Source: compressed-tensors 0.20, `transform/`.

use qfw_core::plan::Plan;
use qfw_core::topology::{OnlineRotation, OnlineStep, Place, PortName, Rotation, RotationKind, Topology};
use qfw_core::{Error, Result};
use regex::Regex;
use serde_json::{Value, json};

use crate::read::bad;

/// Why the rotations of a plan cannot be stated, if they cannot; `online` says the format may state any.
pub(crate) fn check(online: bool, plan: &Plan) -> Result<()> {
    let steps = plan.online();
    let mut rotations = steps.iter().filter_map(OnlineStep::rotation);
    if !online {
        let Some(first) = rotations.next() else { return Ok(()) };
        let why =
            format!("`{}` is rotated while the model runs, which transformers reads over: it would compute something else", first.place);
        return Err(Error::plan("plan::container", why).hint(
            "leave `r3`, `r4`, `orphan-sink` and `layerwise` out, use `--format qfw`, or for vLLM on a GPU `--format compressed-tensors-online`",
        ));
    }
    for OnlineRotation { place, rotation, padded_from } in rotations {
        let refuse = |why: String, hint: String| Err(Error::plan("plan::container", format!("`{place}`: {why}")).hint(hint));
        if padded_from.is_some() {
            return refuse("loaders do not pad what they rotate".to_owned(), "leave `expand` out, or use `--format qfw`".to_owned());
        }
        if readers(*place).is_empty() {
            return refuse(
                "loaders rotate the inputs of linear layers only".to_owned(),
                "leave `r3` out, or use `--format qfw`".to_owned(),
            );
        }
        if rotation.kind != RotationKind::Hadamard || !rotation.size.is_power_of_two() {
            let fits = 1usize << rotation.size.trailing_zeros();
            let why = format!("it states Hadamard matrices of powers of two, not {rotation}");
            return refuse(why, format!("set `online-block = {fits}`, or use `--format qfw`"));
        }
    }
    Ok(())
}

/// Roles of the linears that read a place.
fn readers(place: Place) -> &'static [&'static str] {
    match place.port.name {
        PortName::AttnIn => &["attn.q", "attn.k", "attn.v"],
        PortName::Ctx => &["attn.o"],
        PortName::MlpIn => &["mlp.gate", "mlp.up"],
        PortName::DownIn => &["mlp.down"],
        PortName::FinalOut => &["head"],
        _ => &[],
    }
}

/// The `transform_config`, if there is anything to state.
pub(crate) fn config(plan: &Plan) -> Option<Value> {
    let mut groups: Vec<(String, Rotation, bool, Vec<&str>)> = Vec::new();
    for OnlineRotation { place, rotation, .. } in plan.online().iter().filter_map(OnlineStep::rotation) {
        let place = *place;
        let name = place.port.to_string().replace('.', "_");
        let block = place.block.map_or_else(String::new, |b| format!("blocks.{b}."));
        for s in plan.sites.iter().filter(|s| readers(place).iter().any(|role| s.site == format!("{block}{role}"))) {
            let whole = s.shape.1 == rotation.size;
            match groups.iter_mut().find(|g| g.0 == name && g.1 == *rotation && g.2 == whole) {
                Some(group) => group.3.push(&s.module),
                None => groups.push((name.clone(), rotation.clone(), whole, vec![&s.module])),
            }
        }
    }
    if groups.is_empty() {
        return None;
    }
    let entry = |(name, rotation, whole, modules): (String, Rotation, bool, Vec<&str>)| {
        let apply = |location: &str, inverse: bool| json!({ "targets": modules, "location": location, "inverse": inverse, "ignore": [] });
        let value = json!({
            "type": "hadamard",
            "apply": [apply("input", false), apply("weight_input", true)],
            "randomize": false,
            "requires_grad": false,
            "head_dim": if whole { Value::Null } else { json!(rotation.size) },
            "precision": "torch.float32",
        });
        (name, value)
    };
    Some(json!({ "config_groups": groups.into_iter().map(entry).collect::<serde_json::Map<_, _>>() }))
}

/// The rotations that a checkpoint asks for.
///
/// # Errors
/// If one is of a kind that is not carried out here.
pub(crate) fn rotations(config: &Value, topology: &Topology) -> Result<Vec<OnlineRotation>> {
    let mut out: Vec<OnlineRotation> = Vec::new();
    let groups = config.get("transform_config").and_then(|t| t.get("config_groups")).and_then(Value::as_object);
    for (name, group) in groups.into_iter().flatten() {
        for apply in group["apply"].as_array().into_iter().flatten() {
            let location = apply["location"].as_str().unwrap_or_default();
            if location.starts_with("weight_") {
                continue;
            }
            let randomized = group["randomize"].as_bool().unwrap_or(false);
            if group["type"] != "hadamard" || randomized || location != "input" {
                let what = format!(
                    "`transform_config.config_groups.{name}` is a {} at `{location}`, which is not carried out here",
                    group["type"]
                );
                return Err(bad(what).hint("rotations by plain Hadamard matrices at the inputs of linear layers are"));
            }
            let (targets, ignored) = (Targets::of(&apply["targets"])?, Targets::of(&apply["ignore"])?);
            for l in topology.linears.iter().filter(|l| targets.hit(&l.module) && !ignored.hit(&l.module)) {
                let size = group["head_dim"].as_u64().map_or(l.shape.1, |n| n as usize);
                let place = Place { block: l.site.block, port: l.input };
                let rotation = Rotation { kind: RotationKind::Hadamard, size, seed: 0, keeps_mean: false };
                match out.iter().find(|o| o.place == place) {
                    Some(there) if there.rotation == rotation => {}
                    Some(_) => return Err(bad(format!("`transform_config` rotates the input of `{}` in two ways", l.module))),
                    None if !size.is_power_of_two() || !l.shape.1.is_multiple_of(size) => {
                        return Err(bad(format!(
                            "`transform_config` rotates {size} of the {} inputs of `{}` at a time",
                            l.shape.1, l.module
                        )));
                    }
                    None => out.push(OnlineRotation { place, rotation, padded_from: None }),
                }
            }
        }
    }
    Ok(out)
}

/// Modules by name, by regular expression, or all.
struct Targets {
    names: Vec<String>,
    patterns: Vec<Regex>,
}

impl Targets {
    fn of(list: &Value) -> Result<Self> {
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        for text in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
            match text.strip_prefix("re:") {
                Some(pattern) => patterns
                    .push(Regex::new(&format!("^(?:{pattern})")).map_err(|e| bad(format!("`{text}` is no regular expression: {e}")))?),
                None => names.push(text.to_owned()),
            }
        }
        Ok(Self { names, patterns })
    }

    fn hit(&self, module: &str) -> bool {
        self.names.iter().any(|n| n == module || n == "Linear") || self.patterns.iter().any(|p| p.is_match(module))
    }
}
