//! The key-value part of a GGUF file: typed values, and getters that say what was expected.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// A metadata value. Integers of every width are widened, since writers differ in the width they choose.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unsigned, 8 to 64 bits in the file.
    Uint(u64),
    /// Signed, 8 to 64 bits in the file.
    Int(i64),
    /// 32-bit float.
    F32(f32),
    /// 64-bit float.
    F64(f64),
    /// Truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// List of values of one type; arrays of arrays are refused when the file is opened.
    List(List),
}

/// The list in [`Value::List`], by element type.
#[derive(Clone, Debug, PartialEq)]
pub enum List {
    /// Unsigned, 8 to 64 bits in the file.
    Uint(Vec<u64>),
    /// Signed, 8 to 64 bits in the file.
    Int(Vec<i64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Truth values.
    Bool(Vec<bool>),
    /// Texts.
    Text(Vec<String>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Uint(_) => "an unsigned integer",
            Self::Int(_) => "a signed integer",
            Self::F32(_) | Self::F64(_) => "a float",
            Self::Bool(_) => "a truth value",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
        }
    }
}

/// Metadata by key. Every getter gives `None` for an absent key and an error for a value of another type.
#[derive(Clone, Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    /// Keeps `value`; false when the key was there already.
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        self.0.insert(key, value).is_none()
    }

    /// All keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A non-negative integer.
    pub fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |v| match v {
            Value::Uint(v) => Some(*v),
            Value::Int(v) => u64::try_from(*v).ok(),
            _ => None,
        })
    }

    /// A finite float; an integer passes too. The shortest decimal of an f32 is kept (`1e-5`, not `9.999999747e-6`).
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |v| match v {
            Value::F32(v) => shortest(*v),
            Value::F64(v) => v.is_finite().then_some(*v),
            Value::Uint(v) => Some(*v as f64),
            Value::Int(v) => Some(*v as f64),
            _ => None,
        })
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |v| if let Value::Bool(v) = v { Some(*v) } else { None })
    }

    /// Text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |v| if let Value::Text(v) = v { Some(v.as_str()) } else { None })
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of texts", |v| if let Value::List(List::Text(v)) = v { Some(v.as_slice()) } else { None })
    }

    /// A list of f32.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "a list of 32-bit floats", |v| if let Value::List(List::F32(v)) = v { Some(v.as_slice()) } else { None })
    }

    /// A list of integers.
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "a list of integers", |v| match v {
            Value::List(List::Int(v)) => Some(v.clone()),
            Value::List(List::Uint(v)) => v.iter().map(|v| i64::try_from(*v).ok()).collect(),
            _ => None,
        })
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, get: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        match get(value) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::input("gguf::metadata-type", format!("metadata `{key}` should be {expected} and is {}", value.kind()))
                .hint("the file was written by a faulty converter; convert the model again")),
        }
    }
}

/// The f64 whose shortest decimal is that of `v`.
pub(super) fn shortest(v: f32) -> Option<f64> {
    v.to_string().parse().ok().filter(|v: &f64| v.is_finite())
}
