//! The cases of options: the schema, and that the algorithm does what it says.

use qfw_core::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

use super::shapes::plain;
use super::{Outcome, Try};
use crate::options::readable;

/// Names of the cases.
pub(super) const CASES: [&str; 6] = ["schema", "defaults", "defaults-given", "unknown", "range", "reads"];

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    if name == "schema" {
        return schema(on);
    }
    let text = on.schema()?;
    // What is wrong with the text is for the case above.
    let properties = serde_json::from_str(&text).map(|schema| properties(&schema)).unwrap_or_default();
    Ok(match name {
        "defaults" => on.build(&json!({})).map_or_else(|e| Outcome::of(&e), |_| Outcome::Success),
        "defaults-given" => defaults_given(on, &properties),
        "unknown" => unknown(on),
        "reads" => reads(on)?,
        _ => range(on, &properties),
    })
}

fn properties(schema: &Value) -> Map<String, Value> {
    schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default()
}

/// A schema by the rules for schemas, that describes every option and says its default.
fn schema(on: &Try) -> Result<Outcome> {
    let schema: Value = match serde_json::from_str(&on.schema()?) {
        Ok(schema) => schema,
        Err(e) => return Ok(Outcome::Failed(format!("the schema is no JSON: {e}"))),
    };
    if !schema.is_object() {
        return Ok(Outcome::Failed("the schema is no object".to_owned()));
    }
    // One that checks its options itself may say more than the host can read.
    if !on.checks_options()?
        && let Err(why) = readable(&schema)
    {
        return Ok(Outcome::Failed(format!("the schema cannot be held to: {why}")));
    }
    let required: Vec<&str> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(name) = required.first() {
        return Ok(Outcome::Failed(format!("option `{name}` has to be given, and every option needs a default")));
    }
    for (name, property) in properties(&schema) {
        if property.get("description").and_then(Value::as_str).is_none_or(str::is_empty) {
            return Ok(Outcome::Warning(format!("option `{name}` has no description")));
        }
        if property.get("default").is_none() {
            return Ok(Outcome::Warning(format!("option `{name}` has no default")));
        }
    }
    Ok(Outcome::Success)
}

/// Defaults that are given are the same as those that are left out: each alone, and all.
fn defaults_given(on: &Try, properties: &Map<String, Value>) -> Outcome {
    let defaults: Map<String, Value> =
        properties.iter().filter_map(|(name, p)| p.get("default").map(|d| (name.clone(), d.clone()))).collect();
    if defaults.is_empty() {
        return Outcome::Skipped("it has no defaults".to_owned());
    }
    let left_out = match on.build(&json!({})) {
        Ok((_, options)) => options,
        Err(e) => return Outcome::of(&e),
    };
    let alone = defaults.iter().map(|(name, value)| Map::from_iter([(name.clone(), value.clone())]));
    for given in alone.chain([defaults.clone()]) {
        let given = Value::Object(given);
        match on.build(&given) {
            Ok((_, options)) if same(&options, &left_out) => {}
            Ok((_, options)) => return Outcome::Failed(format!("with {given} the options are {options}, and {left_out} without")),
            Err(e) => return Outcome::Failed(format!("it refuses its own default {given}: {e}")),
        }
    }
    Outcome::Success
}

/// Equal, however numbers are spelled.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| same(a, b))),
        _ => a == b,
    }
}

/// How an option was refused that cannot be; `None` where that was done well.
fn refused(built: Result<impl Sized, Error>, name: &str, what: &str) -> Option<Outcome> {
    match built {
        Ok(_) => Some(Outcome::Failed(format!("{what} is accepted"))),
        Err(e) if e.kind() != ErrorKind::Config => Some(Outcome::Failed(format!("{what} is no error of the options: {e}"))),
        Err(e) if e.to_string().contains(name) => None,
        Err(e) => Some(Outcome::Failed(format!("{what} is refused without the option's name: {e}"))),
    }
}

fn unknown(on: &Try) -> Outcome {
    let name = "no-such-option-is-there";
    refused(on.build(&json!({ name: 1 })), name, &format!("the unknown option `{name}`")).unwrap_or(Outcome::Success)
}

/// Values just beyond what the schema allows, and of no type that any option has.
fn range(on: &Try, properties: &Map<String, Value>) -> Outcome {
    if properties.is_empty() {
        return Outcome::Skipped("it has no options".to_owned());
    }
    for (name, property) in properties {
        let bound = |key: &str, beyond: f64| property.get(key).and_then(Value::as_f64).map(|x| number(x + beyond));
        let beyond = [
            bound("minimum", -1.0),
            bound("maximum", 1.0),
            bound("exclusiveMinimum", 0.0),
            bound("exclusiveMaximum", 0.0),
            property.get("enum").map(|_| json!("no-such-word-is-there")),
            Some(json!([[{ "of": "no type" }]])),
        ];
        for value in beyond.into_iter().flatten() {
            if let Some(outcome) = refused(on.build(&json!({ name: value })), name, &format!("`{name}` = {value}")) {
                return outcome;
            }
        }
    }
    Outcome::Success
}

/// With its default options it reads activations if it says so, and not otherwise.
fn reads(on: &Try) -> Result<Outcome> {
    let needs = plain(on.seed)?.collect(&*on.instance()?)?;
    let reads = !needs.inputs.is_empty() || needs.replay || needs.training.is_some() || needs.network > 0;
    Ok(match (on.weight_only()?, reads) {
        (true, true) => Outcome::Failed("it says that it reads no activations, and asks for statistics of them".to_owned()),
        (false, false) => {
            Outcome::Warning("it says that it reads activations, and asks for no statistics of them on an ordinary site".to_owned())
        }
        _ => Outcome::Success,
    })
}

/// Whole where it is: an option may want an integer.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}
