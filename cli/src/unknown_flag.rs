//! What a flag that does not exist may have meant: most keys of the configuration have no flag of their own.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use qfw_core::plan::raw::run_schema;
use serde_json::Value;

/// Commands that read a configuration.
const CONFIGURED: [&str; 2] = ["plan", "apply"];

/// The same error; where the flag has the name of keys, with how these are set.
pub(crate) fn with_keys(mut error: clap::Error, command: &str) -> clap::Error {
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument && CONFIGURED.contains(&command) => flag.clone(),
        _ => return error,
    };
    let name = flag.trim_start_matches('-').replace('_', "-");
    let tips: Vec<StyledStr> = keys(&name).into_iter().map(|key| format!("`--set {key}=VALUE` sets it").into()).collect();
    // Words of another system are no flags of ours.
    error.remove(ContextKind::Suggested);
    if !tips.is_empty() {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

/// The paths of the keys of that name in the sections of a configuration.
fn keys(name: &str) -> Vec<String> {
    let schema = run_schema();
    let fields = |node: &Value| resolved(&schema, node)["properties"].as_object().cloned().unwrap_or_default();
    let sections = fields(&schema).into_iter().filter(|(_, section)| fields(section).contains_key(name));
    sections.map(|(section, _)| format!("{section}.{name}")).collect()
}

/// What a node of a schema refers to.
fn resolved<'a>(schema: &'a Value, node: &'a Value) -> &'a Value {
    let target = node["$ref"].as_str().and_then(|path| schema.pointer(path.trim_start_matches('#')));
    let inside = node["anyOf"].as_array().or(node["allOf"].as_array()).and_then(|all| all.first());
    target.or(inside).map_or(node, |node| resolved(schema, node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_name() {
        assert_eq!(keys("samples"), ["calibration.samples"]);
        assert_eq!(keys("seq-len"), ["calibration.seq-len", "eval.seq-len"]);
        assert_eq!(keys("weights"), ["scheme.weights"]);
        assert!(keys("nothing-of-that-name").is_empty());
    }
}
