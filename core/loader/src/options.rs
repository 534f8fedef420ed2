//! Options of algorithms that leave them to the host: checked by their JSON Schema, defaults filled in.
//!
//! Read are `properties` with `type`, `enum`, bounds and `default`, and `required`: what flat tables of options need. A schema that says more is
//! refused, as nothing would hold it to that; the algorithm then checks its options itself (`QFW_CHECKS_OPTIONS`). Options that a schema does
//! not list are refused too.

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

/// What may stand in a schema, and in what it says of an option. Of the words that only explain, none is checked.
const OF_SCHEMAS: [&str; 9] =
    ["type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$id", "$comment"];
const OF_OPTIONS: [&str; 13] = [
    "type",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "default",
    "description",
    "title",
    "format",
    "examples",
    "deprecated",
    "$comment",
];
const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "string", "integer"];

/// Whether the host can hold options to a schema, word by word.
///
/// # Errors
/// The first word that it cannot, or that is used otherwise than JSON Schema has it.
pub(crate) fn readable(schema: &Value) -> std::result::Result<(), String> {
    let schema = schema.as_object().ok_or("it is no object")?;
    known(schema, &OF_SCHEMAS, "it")?;
    if schema.get("type").is_some_and(|t| t != "object") {
        return Err("its `type` is not `object`".to_owned());
    }
    if schema.get("additionalProperties").is_some_and(|a| !a.is_boolean()) {
        return Err("its `additionalProperties` is neither true nor false".to_owned());
    }
    let properties = match schema.get("properties") {
        Some(properties) => properties.as_object().ok_or("its `properties` are no object")?,
        None => &Map::new(),
    };
    let words = |list: &Value| list.as_array().is_some_and(|l| l.iter().all(|w| w.as_str().is_some_and(|w| properties.contains_key(w))));
    if schema.get("required").is_some_and(|list| !words(list)) {
        return Err("its `required` is no list of its properties".to_owned());
    }
    properties.iter().try_for_each(|(name, property)| option(name, property))
}

fn known(object: &Map<String, Value>, words: &[&str], what: &str) -> std::result::Result<(), String> {
    match object.keys().find(|word| !words.contains(&word.as_str())) {
        Some(word) => Err(format!("{what} has `{word}`, which the host does not check")),
        None => Ok(()),
    }
}

/// What a schema says of one option.
fn option(name: &str, property: &Value) -> std::result::Result<(), String> {
    let object = property.as_object().ok_or_else(|| format!("what it says of `{name}` is no object"))?;
    known(object, &OF_OPTIONS, &format!("what it says of `{name}`"))?;
    let is_type = |t: &Value| t.as_str().is_some_and(|t| TYPES.contains(&t));
    let fits = |word: &str, value: &Value| match word {
        "type" => is_type(value) || value.as_array().is_some_and(|all| !all.is_empty() && all.iter().all(is_type)),
        "enum" => value.as_array().is_some_and(|all| !all.is_empty()),
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => value.is_number(),
        "description" | "title" => value.is_string(),
        _ => true,
    };
    match object.iter().find(|(word, value)| !fits(word, value)) {
        Some((word, value)) => Err(format!("the `{word}` of `{name}` is {value}")),
        None => Ok(()),
    }
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
        match (bound("exclusiveMinimum"), bound("exclusiveMaximum")) {
            (Some(lo), _) if x <= lo => return Err(format!("it must be above {lo}")),
            (_, Some(hi)) if x >= hi => return Err(format!("it must be below {hi}")),
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

    #[test]
    fn bounds_may_be_exclusive() {
        let schema = json!({ "properties": { "step": { "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2 } } });
        let of = |x: f64| filled("x", &schema, &json!({ "step": x })).map_err(|e| e.hint_text().unwrap_or_default().to_owned());
        assert!(of(0.5).is_ok());
        assert_eq!(of(0.0).unwrap_err(), "it must be above 0");
        assert_eq!(of(2.0).unwrap_err(), "it must be below 2");
    }

    #[test]
    fn schemas_that_say_more_than_is_checked_are_refused() {
        assert_eq!(readable(&json!({})), Ok(()));
        let of = |property: Value| readable(&json!({ "type": "object", "properties": { "a": property } }));
        assert_eq!(of(json!({ "type": ["integer", "null"], "minimum": 1, "default": null, "description": "how many" })), Ok(()));
        for (property, why) in [
            (json!({ "pattern": "x*" }), "what it says of `a` has `pattern`, which the host does not check"),
            (json!({ "type": "nmber" }), "the `type` of `a` is \"nmber\""),
            (json!({ "enum": [] }), "the `enum` of `a` is []"),
            (json!({ "minimum": "1" }), "the `minimum` of `a` is \"1\""),
            (json!(3), "what it says of `a` is no object"),
        ] {
            assert_eq!(of(property).unwrap_err(), why);
        }
        for (schema, why) in [
            (json!([]), "it is no object"),
            (json!({ "type": "array" }), "its `type` is not `object`"),
            (json!({ "required": ["a"] }), "its `required` is no list of its properties"),
            (json!({ "allOf": [] }), "it has `allOf`, which the host does not check"),
        ] {
            assert_eq!(readable(&schema).unwrap_err(), why);
        }
    }
}
