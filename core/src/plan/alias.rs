//! Spellings of other systems that are read as ours, in one table.
//!
//! They are rewritten in each layer before layers are merged, so that `group-size = 64` of a file replaces the `granularity` of a preset.

use super::node::{Node, Value, place};
use crate::error::{Error, Result};

/// Keys of a spec: (canonical key, other spellings), compared with `_` read as `-`.
const KEYS: [(&str, &[&str]); 2] = [
    ("group-size", &["group-size", "groupsize", "w-groupsize", "q-group-size", "per-group"]),
    ("min-threshold", &["min-threshold", "scaling-min-val"]),
];

/// Names of granularities: (canonical name, other spellings), compared with `_` read as `-`.
const GRANULARITIES: [(&str, &[&str]); 5] = [
    ("tensor", &["per-tensor"]),
    ("channel", &["per-channel"]),
    ("token", &["per-token", "per-row"]),
    ("head", &["per-head"]),
    ("group", &["per-group", "groupsize", "group-size", "w-groupsize", "q-group-size"]),
];

/// The parts of a scheme that hold a spec.
pub(super) const SITES: [&str; 9] = ["weights", "inputs", "outputs", "queries", "keys", "values", "probs", "embed", "head"];

/// The canonical key for an aliased key of a spec; `group-size` is no field but short for `granularity = { group = … }`.
pub(super) fn spec_key(key: &str) -> Option<&'static str> {
    find(&KEYS, key)
}

/// Rewrites the aliases in every spec of one layer. Notes say what is read differently from how it is written.
pub(super) fn normalize(layer: &mut Node, notes: &mut Vec<String>) -> Result<()> {
    let mut path = vec!["scheme".to_owned()];
    if let Some(scheme) = layer.get_mut("scheme") {
        normalize_sites(scheme, &mut path, notes)?;
    }
    if let Some(Node { value: Value::Array(overrides), .. }) = layer.get_mut("override") {
        for (i, entry) in overrides.iter_mut().enumerate() {
            path = vec!["override".to_owned(), i.to_string()];
            normalize_sites(entry, &mut path, notes)?;
        }
    }
    Ok(())
}

fn find(table: &[(&'static str, &[&str])], spelling: &str) -> Option<&'static str> {
    let spelling = spelling.replace('_', "-");
    table.iter().find(|(_, others)| others.contains(&spelling.as_str())).map(|(name, _)| *name)
}

fn normalize_sites(sites: &mut Node, path: &mut Vec<String>, notes: &mut Vec<String>) -> Result<()> {
    for site in SITES {
        if let Some(spec) = sites.get_mut(site) {
            path.push(site.to_owned());
            normalize_keys(spec, path)?;
            if let Some(size) = spec.take("group-size") {
                let granularity = join_group(spec.take("granularity"), size, path)?;
                spec.insert("granularity", granularity);
            }
            if let Some(granularity) = spec.get_mut("granularity") {
                path.push("granularity".to_owned());
                normalize_granularity(granularity, path, notes);
                path.pop();
            }
            path.pop();
        }
    }
    Ok(())
}

fn normalize_keys(spec: &mut Node, path: &[String]) -> Result<()> {
    let Value::Table(entries) = &mut spec.value else { return Ok(()) };
    for i in 0..entries.len() {
        let Some(canonical) = spec_key(&entries[i].0) else { continue };
        if let Some((other, _)) = entries.iter().enumerate().find(|(j, (k, _))| *j != i && spec_key(k) == Some(canonical)).map(|(_, e)| e) {
            let (mut path, key) = (path.to_vec(), &entries[i].0);
            path.push(other.clone());
            return Err(Error::config("config::alias", format!("{}: `{key}` says the same", place(&path, &entries[i].1.origin)))
                .hint(format!("keep one of `{key}` and `{other}`")));
        }
        canonical.clone_into(&mut entries[i].0);
    }
    Ok(())
}

/// `granularity` and a separate group size, as one value.
fn join_group(granularity: Option<Node>, size: Node, path: &[String]) -> Result<Node> {
    let fits = match &granularity {
        None => true,
        Some(g) => g.text().is_some_and(|name| name == "group" || find(&GRANULARITIES, name) == Some("group")),
    };
    // With -1 ("no groups") the granularity may also say so itself.
    let no_groups = size.value == Value::Integer(-1);
    match granularity {
        Some(g) if !fits && no_groups && g.text().is_some() => Ok(g),
        Some(g) if !fits => {
            let (mut path, origin) = (path.to_vec(), size.origin);
            path.push("group-size".to_owned());
            Err(Error::config("config::alias", format!("{}: `granularity` is {} already", place(&path, &origin), g.describe()))
                .hint("write `granularity = { group = … }` alone"))
        }
        _ => {
            let origin = size.origin.clone();
            Ok(Node { value: Value::Table(vec![("group".to_owned(), size)]), origin })
        }
    }
}

fn normalize_granularity(node: &mut Node, path: &[String], notes: &mut Vec<String>) {
    match &mut node.value {
        Value::Text(name) => {
            if let Some(canonical) = find(&GRANULARITIES, name) {
                canonical.clone_into(name);
            }
        }
        Value::Table(entries) => {
            let [(name, payload)] = entries.as_mut_slice() else { return };
            if let Some(canonical) = find(&GRANULARITIES, name) {
                canonical.clone_into(name);
            }
            if name == "group" && payload.value == Value::Integer(-1) {
                notes.push(format!("{}: a group size of -1 is read as `granularity = \"channel\"`", place(path, &payload.origin)));
                node.value = Value::Text("channel".to_owned());
            }
        }
        _ => {}
    }
}
