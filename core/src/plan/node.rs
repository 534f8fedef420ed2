//! The tree that layers are merged in: TOML values that remember where they were written.

use std::fmt;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// Where a value was written. Displays as `in run.toml line 12`, `` from `--seed` ``, or nothing when unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    label: Option<Arc<str>>,
    line: Option<usize>,
}

/// A value and its origin (the line of its key, where it has one).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What a [`Node`] holds. Tables keep the order in which keys were written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Array(Vec<Node>),
    Table(Vec<(String, Node)>),
}

impl Origin {
    /// `label` is a phrase such as `in run.toml` or `` from `--seed` ``.
    pub(super) fn new(label: impl Into<Arc<str>>) -> Self {
        Self { label: Some(label.into()), line: None }
    }

    fn at_line(&self, line: usize) -> Self {
        Self { label: self.label.as_ref().map(Arc::clone), line: Some(line) }
    }
}

impl Node {
    /// An empty table.
    pub(super) fn table() -> Self {
        Self { value: Value::Table(Vec::new()), origin: Origin::default() }
    }

    /// The tree of a TOML document. `origin` names the text; lines are counted in it.
    pub(super) fn parse_document(text: &str, origin: &Origin) -> Result<Self> {
        let parsed = DeTable::parse(text).map_err(|e| {
            let place = e.span().map_or_else(|| origin.clone(), |span| origin.at_line(line_of(text, span.start)));
            Error::config("config::toml-syntax", format!("TOML syntax {place}: {}", e.message().trim_end().replace('\n', ", ")))
        })?;
        from_table(parsed.get_ref(), text, origin, &mut Vec::new()).map(|value| Self { value, origin: origin.clone() })
    }

    /// The value of a flag: TOML if it is TOML, else the text itself. Dates, which no key takes, stay text.
    pub(super) fn parse_value(text: &str, origin: &Origin) -> Self {
        let value = DeValue::parse(text)
            .ok()
            .filter(|v| !v.get_ref().is_datetime())
            .and_then(|v| from_value(v.get_ref(), "", &Origin::default(), &mut Vec::new()).ok());
        let mut node = Self { value: value.unwrap_or_else(|| Value::Text(text.to_owned())), origin: Origin::default() };
        node.set_origin(origin);
        node
    }

    /// The tree of a plain TOML value. Dates become text.
    pub(super) fn from_toml(value: toml::Value, origin: &Origin) -> Self {
        let value = match value {
            toml::Value::String(s) => Value::Text(s),
            toml::Value::Integer(i) => Value::Integer(i),
            toml::Value::Float(f) => Value::Float(f),
            toml::Value::Boolean(b) => Value::Boolean(b),
            toml::Value::Datetime(d) => Value::Text(d.to_string()),
            toml::Value::Array(items) => Value::Array(items.into_iter().map(|v| Self::from_toml(v, origin)).collect()),
            toml::Value::Table(table) => Value::Table(table.into_iter().map(|(k, v)| (k, Self::from_toml(v, origin))).collect()),
        };
        Self { value, origin: origin.clone() }
    }

    /// The entry `key` of a table.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The entry `key` of a table.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Table(entries) => entries.iter_mut().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// Takes the entry `key` out of a table.
    pub(super) fn take(&mut self, key: &str) -> Option<Self> {
        match &mut self.value {
            Value::Table(entries) => entries.iter().position(|(k, _)| k == key).map(|i| entries.remove(i).1),
            _ => None,
        }
    }

    /// Sets the entry `key` of a table; what is no table becomes one.
    pub(super) fn insert(&mut self, key: &str, node: Self) {
        if let Some(old) = self.get_mut(key) {
            *old = node;
            return;
        }
        match &mut self.value {
            Value::Table(entries) => entries.push((key.to_owned(), node)),
            other => *other = Value::Table(vec![(key.to_owned(), node)]),
        }
    }

    /// The elements of an array.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::Array(items) => items,
            _ => &[],
        }
    }

    /// The text of a string.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(s) => Some(s),
            _ => None,
        }
    }

    /// What it is, for messages: ``integer `5` ``, `a table`.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Text(s) => format!("string {s:?}"),
            Value::Integer(i) => format!("integer `{i}`"),
            Value::Float(f) => format!("float `{f}`"),
            Value::Boolean(b) => format!("boolean `{b}`"),
            Value::Array(_) => "an array".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        }
    }

    /// Removes the value at `path`, or, where that is an element of an array, the nearest key above it. False if there is nothing.
    pub(super) fn remove(&mut self, path: &[String]) -> bool {
        let Some((last, parents)) = path.split_last() else { return false };
        let mut node = &mut *self;
        for segment in parents {
            let next = match &mut node.value {
                Value::Table(entries) => entries.iter_mut().find(|(k, _)| k == segment).map(|(_, v)| v),
                Value::Array(items) => segment.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return false,
            }
        }
        match node.value {
            Value::Table(_) => node.take(last).is_some(),
            Value::Array(_) => self.remove(parents),
            _ => false,
        }
    }

    /// Lays `over` over this node: tables key by key, everything else is replaced. Inside a scheme, `granularity` and `range` are
    /// choices with one key: the same choice is merged, another one replaces. `path` is where this node stands.
    pub(super) fn merge(&mut self, over: Self, path: &mut Vec<String>) {
        match (&self.value, over.value) {
            (Value::Table(_), Value::Table(entries)) if !self.is_other_choice(entries.first().map(|(k, _)| k.as_str()), path) => {
                for (key, node) in entries {
                    path.push(key.clone());
                    match self.get_mut(&key) {
                        Some(old) => old.merge(node, path),
                        None => self.insert(&key, node),
                    }
                    path.pop();
                }
            }
            (_, value) => *self = Self { value, origin: over.origin },
        }
    }

    /// Whether this node is a choice (see [`Self::merge`]) that does not have `key` as its one key.
    pub(super) fn is_other_choice(&self, key: Option<&str>, path: &[String]) -> bool {
        let in_scheme = path.first().is_some_and(|s| s == "scheme" || s == "override");
        let is_choice = in_scheme && path.last().is_some_and(|s| s == "granularity" || s == "range");
        is_choice && key.is_some_and(|key| self.get(key).is_none())
    }

    /// Calls `visit` with the dotted path and origin of every value below this one.
    pub(super) fn walk(&self, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Origin)) {
        let mut child = |key: String, node: &Self| {
            path.push(key);
            visit(path, &node.origin);
            node.walk(path, visit);
            path.pop();
        };
        match &self.value {
            Value::Table(entries) => entries.iter().for_each(|(k, v)| child(k.clone(), v)),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| child(i.to_string(), v)),
            _ => {}
        }
    }

    fn set_origin(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.value {
            Value::Table(entries) => entries.iter_mut().for_each(|(_, v)| v.set_origin(origin)),
            Value::Array(items) => items.iter_mut().for_each(|v| v.set_origin(origin)),
            _ => {}
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.label, self.line) {
            (Some(label), Some(line)) => write!(f, "{label} line {line}"),
            (Some(label), None) => f.write_str(label),
            (None, _) => Ok(()),
        }
    }
}

/// `scheme.weights`, with keys quoted where TOML needs it.
pub(super) fn dotted(path: &[String]) -> String {
    let bare = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    path.iter().map(|s| if bare(s) { s.clone() } else { format!("{s:?}") }).collect::<Vec<_>>().join(".")
}

/// `` `scheme.weights` in run.toml line 3 ``.
pub(super) fn place(path: &[String], origin: &Origin) -> String {
    format!("`{}` {origin}", dotted(path)).trim_end().to_owned()
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

fn from_table(table: &DeTable<'_>, text: &str, origin: &Origin, path: &mut Vec<String>) -> Result<Value> {
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        let origin = origin.at_line(line_of(text, key.span().start));
        let value = from_value(value.get_ref(), text, &origin, path)?;
        path.pop();
        entries.push((key.get_ref().to_string(), Node { value, origin }));
    }
    Ok(Value::Table(entries))
}

fn from_value(value: &DeValue<'_>, text: &str, origin: &Origin, path: &mut Vec<String>) -> Result<Value> {
    let fail = |what: String| Error::config("config::type", format!("{}: {what}", place(path, origin)));
    Ok(match value {
        DeValue::String(s) => Value::Text(s.to_string()),
        DeValue::Integer(i) => Value::Integer(
            i64::from_str_radix(i.as_str(), i.radix()).map_err(|_| fail(format!("integer `{i}` does not fit into 64 bits")))?,
        ),
        DeValue::Float(x) => Value::Float(x.as_str().parse().map_err(|_| fail(format!("`{x}` is not a number")))?),
        DeValue::Boolean(b) => Value::Boolean(*b),
        DeValue::Datetime(d) => return Err(fail(format!("no key takes a date, got `{d}`")).hint("quote it to make it a string")),
        DeValue::Array(items) => {
            let mut nodes = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                path.push(i.to_string());
                let origin = origin.at_line(line_of(text, item.span().start));
                let value = from_value(item.get_ref(), text, &origin, path)?;
                path.pop();
                nodes.push(Node { value, origin });
            }
            Value::Array(nodes)
        }
        DeValue::Table(table) => from_table(table, text, origin, path)?,
    })
}
