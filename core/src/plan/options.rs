//! Where each key of a run came from, and the strict reading of a pass's options with the same errors as the run's own keys.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::node::{Node, Origin, Value, dotted};
use super::read::read;
use super::set_path::split_path;
use crate::error::Result;

/// Where each key of a run was written; keys that were never written have no entry.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    pub(super) fn of(root: &Node) -> Self {
        let mut origins = BTreeMap::new();
        root.walk(&mut Vec::new(), &mut |path, origin| {
            origins.insert(dotted(path), origin.clone());
        });
        Self(origins)
    }

    /// Where the key at a dotted path was written: `in run.toml line 12`, `` from `--seed` ``; none for a default.
    pub fn get(&self, path: &str) -> Option<String> {
        self.0.get(path).map(ToString::to_string).filter(|text| !text.is_empty())
    }

    fn mark(&self, node: &mut Node, path: &mut Vec<String>) {
        if let Some(origin) = self.0.get(&dotted(path)) {
            node.origin = origin.clone();
        }
        let mut child = |key: String, node: &mut Node| {
            path.push(key);
            self.mark(node, path);
            path.pop();
        };
        match &mut node.value {
            Value::Table(entries) => entries.iter_mut().for_each(|(k, v)| child(k.clone(), v)),
            Value::Array(items) => items.iter_mut().enumerate().for_each(|(i, v)| child(i.to_string(), v)),
            _ => {}
        }
    }
}

/// Reads the table that stands at `path` of the run (such as `pass.0.options`) as a `T`.
///
/// # Errors
/// All unknown keys and wrong types at once, each with path, origin and what was expected.
pub fn read_options<T: DeserializeOwned>(options: &toml::Table, path: &str, origins: &Origins) -> Result<T> {
    let mut base = split_path(path)?;
    let mut node = Node::from_toml(toml::Value::Table(options.clone()), &Origin::default());
    origins.mark(&mut node, &mut base);
    read(node, &base)
}
