//! Options of algorithms that leave them to the host: checked by their JSON Schema, defaults filled in.
//!
//! Of the schema are read: `properties` with `type`, `enum`, `minimum`, `maximum` and `default`, and `required`. Options that a schema does
//! not list are refused. That is what flat tables of options need; an algorithm that wants more checks its options itself.

use qfw_core::error::did_you_mean;
use qfw_core::{Error, Result};
use serde_json::{Map, Value};

/// The options with defaults filled in.
///
/// # Errors
/// If one is unknown, missing or out of range, naming it.
pub(crate) fn filled(algo: &str, schema: &Value, options: &Value) -> Result<Value> {
    let none = Map::new();
    let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let invalid = |message: String| Err(Error::config("config::invalid", message));
    let Some(given) = options.as_object() else { return invalid(format!("options of `{algo}` are no table")) };
    for (name, value) in given {
        let Some(property) = known.get(name) else {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let nearest = did_you_mean(name, names.iter().copied());
            let list = if names.is_empty() { format!("`{algo}` has no options") } else { format!("its options: {}", names.join(", ")) };
            return invalid(format!("options of `{algo}`: unknown field `{name}`{nearest}")).map_err(|e| e.hint(list));
        };
        if let Err(why) = allowed(property, value) {
            return invalid(format!("option `{name}` of `{algo}` is {value}")).map_err(|e| e.hint(why));
        }
    }
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !given.contains_key(name) {
            return invalid(format!("option `{name}` of `{algo}` is missing"));
        }
    }
    let mut all = given.clone();
    for (name, property) in known {
        if let Some(default) = property.get("default") {
            all.entry(name.clone()).or_insert_with(|| default.clone());
        }
    }
    all.sort_keys();
    Ok(Value::Object(all))
}

/// Why a value cannot be, if it cannot.
fn allowed(property: &Value, value: &Value) -> std::result::Result<(), String> {
    if let Some(values) = property.get("enum").and_then(Value::as_array)
        && !values.contains(value)
    {
        let list: Vec<String> = values.iter().map(Value::to_string).collect();
        return Err(format!("it must be one of {}", list.join(", ")));
    }
    let is = |kind: &str| match kind {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    };
    let kinds: Vec<&str> = match property.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|k| is(k)) {
        return Err(format!("it must be of type {}", kinds.join(" or ")));
    }
    if let Some(x) = value.as_f64() {
        let bound = |name: &str| property.get(name).and_then(Value::as_f64);
        match (bound("minimum"), bound("maximum")) {
            (Some(lo), Some(hi)) if x < lo || x > hi => return Err(format!("it must be from {lo} to {hi}")),
            (Some(lo), None) if x < lo => return Err(format!("it must be at least {lo}")),
            (None, Some(hi)) if x > hi => return Err(format!("it must be at most {hi}")),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_checked_and_completed() {
        let schema = json!({ "properties": {
            "damp": { "type": "number", "minimum": 0, "maximum": 1, "default": 0.01 },
            "order": { "enum": ["off", "static"], "default": "static" },
        } });
        let of = |options: Value| filled("x", &schema, &options);
        assert_eq!(of(json!({ "damp": 0.5 })).unwrap(), json!({ "damp": 0.5, "order": "static" }));
        let told = |options: Value| {
            let e = of(options).unwrap_err();
            (e.to_string(), e.hint_text().unwrap_or_default().to_owned())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            told(json!({ "dampp": 1 })),
            pair("options of `x`: unknown field `dampp` (did you mean `damp`?)", "its options: damp, order")
        );
        assert_eq!(told(json!({ "damp": 2 })), pair("option `damp` of `x` is 2", "it must be from 0 to 1"));
        assert_eq!(told(json!({ "damp": "a" })), pair("option `damp` of `x` is \"a\"", "it must be of type number"));
        assert_eq!(told(json!({ "order": "on" })), pair("option `order` of `x` is \"on\"", "it must be one of \"off\", \"static\""));
    }
}
