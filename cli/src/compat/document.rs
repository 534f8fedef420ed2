//! Configuration files of other systems: YAML, of which JSON is a part.

use qfw_core::{Error, Result};
use serde_norway::Value;

use super::words::Given;

/// Every key with a value, in order. Tables only group keys, so that nested ones count by their last name.
pub(super) fn read(file: &str, text: &str) -> Result<Vec<Given>> {
    let root: Value = serde_norway::from_str(text)
        .map_err(|e| Error::config("compat::file", format!("`{file}` is neither YAML nor JSON")).with_source(e))?;
    let mut given = Vec::new();
    match root {
        Value::Null => {}
        Value::Mapping(_) => walk(file, "", root, &mut given)?,
        other => return Err(Error::config("compat::file", format!("`{file}` holds {}, not keys with values", kind(&other)))),
    }
    Ok(given)
}

fn walk(file: &str, name: &str, value: Value, given: &mut Vec<Given>) -> Result<()> {
    let shown = format!("`{name}` of `{file}`");
    let values = match value {
        Value::Mapping(entries) => {
            for (key, value) in entries {
                let Some(key) = scalar(&key) else {
                    return Err(Error::config("compat::file", format!("{shown}: a key is {}", kind(&key))));
                };
                walk(file, &key, value, given)?;
            }
            return Ok(());
        }
        Value::Sequence(items) => {
            let words = items
                .iter()
                .map(|item| scalar(item).ok_or_else(|| Error::config("compat::file", format!("{shown}: an element is {}", kind(item)))));
            words.collect::<Result<_>>()?
        }
        Value::Null => return Ok(()),
        Value::Tagged(tagged) => return walk(file, name, tagged.value, given),
        other => scalar(&other).into_iter().collect(),
    };
    given.push(Given { name: name.to_owned(), shown, values, in_file: true });
    Ok(())
}

/// A scalar as the word that a command line would have.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(on) => Some(on.to_string()),
        Value::Number(n) => Some(n.to_string()),
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a table",
        _ => "a single value",
    }
}
