//! A `run.toml` under construction.

use qfw_core::{Error, Result};
use toml::{Table, Value};

use super::Translation;

/// Keys set so far, and what there is to say about them.
#[derive(Debug)]
pub(super) struct Draft {
    root: Table,
    passes: Vec<Value>,
    notes: Vec<String>,
}

impl Draft {
    pub(super) fn new() -> Self {
        let root = Table::from_iter([("schema".to_owned(), Value::Integer(i64::from(qfw_core::plan::raw::SCHEMA)))]);
        Self { root, passes: Vec::new(), notes: Vec::new() }
    }

    /// Sets the value at a dotted path.
    pub(super) fn set(&mut self, path: &str, value: impl Into<Value>) {
        put(&mut self.root, path, value.into());
    }

    /// Sets it where there is one.
    pub(super) fn set_some(&mut self, path: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(path, value);
        }
    }

    /// Adds a pass at the end.
    pub(super) fn pass(&mut self, algo: &str, options: Table) {
        let mut pass = Table::from_iter([("algo".to_owned(), Value::from(algo))]);
        if !options.is_empty() {
            pass.insert("options".to_owned(), Value::Table(options));
        }
        self.passes.push(Value::Table(pass));
    }

    /// Adds a sentence, once.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// The text.
    pub(super) fn finish(mut self) -> Result<Translation> {
        if !self.passes.is_empty() {
            self.root.insert("pass".to_owned(), Value::Array(self.passes));
        }
        let toml = toml::to_string(&self.root).map_err(|e| Error::internal("the translation cannot be written as TOML").with_source(e))?;
        Ok(Translation { toml, notes: self.notes })
    }
}

/// `{ KEY = VALUE }`.
pub(super) fn table(key: &str, value: impl Into<Value>) -> Value {
    Value::Table(Table::from_iter([(key.to_owned(), value.into())]))
}

fn put(table: &mut Table, path: &str, value: Value) {
    let Some((first, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), value);
        return;
    };
    let inner = table.entry(first.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(inner) = inner {
        put(inner, rest, value);
    }
}
