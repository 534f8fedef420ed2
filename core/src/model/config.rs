//! Typed access to the keys of a `config.json`, with errors that name the key.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Most decoder blocks of a model: eight times what the deepest have.
const BLOCKS: usize = 1024;

/// An object of a model configuration.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    map: &'a Map<String, Value>,
    path: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(config: &'a Value) -> Result<Self> {
        let map = config.as_object().ok_or_else(|| Error::input("model::config", "config.json is not a JSON object"))?;
        Ok(Self { map, path: "" })
    }

    /// The value of a key; `null` counts as absent.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether a key is there, if only with the value `null`: for keys where that differs from an absent one.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether the object holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value)
            .map(Some)
            .ok_or_else(|| Error::input("model::config", format!("`{}{key}` in config.json should be {what}, but is `{value}`", self.path)))
    }

    fn required<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::input("model::config", format!("config.json has no `{}{key}`", self.path)))
    }

    pub(super) fn usize_or_none(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A size: a positive whole number. Products of two fit in 64 bits.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.at_most(key, 1 << 30)
    }

    /// A number of decoder blocks. Lists have an entry for each, so that a number that is damaged must not get as far as those.
    pub(super) fn blocks(&self, key: &str) -> Result<usize> {
        self.at_most(key, BLOCKS)
    }

    fn at_most(&self, key: &str, most: usize) -> Result<usize> {
        let n = self.required(key, self.usize_or_none(key)?)?;
        if n == 0 || n > most {
            let what = if n == 0 { "no size".to_owned() } else { format!("more than {most}") };
            return Err(Error::input("model::config", format!("`{}{key}` in config.json is {n}, which is {what}", self.path))
                .hint("the file is damaged, or does not belong to these weights"));
        }
        Ok(n)
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.value(key).is_none() { Ok(default) } else { self.size(key) }
    }

    pub(super) fn f64_or_none(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    pub(super) fn f64(&self, key: &str) -> Result<f64> {
        self.required(key, self.f64_or_none(key)?)
    }

    /// A number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<f64> {
        let x = self.f64(key)?;
        if x > 0.0 { Ok(x) } else { Err(self.not_positive(key)) }
    }

    /// A list of numbers above zero.
    pub(super) fn positives(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.required(key, self.array(key)?)?;
        list.iter().map(|v| v.as_f64().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| self.not_positive(key))).collect()
    }

    fn not_positive(&self, key: &str) -> Error {
        Error::input("model::config", format!("`{}{key}` in config.json should be above zero", self.path))
            .hint("it divides or scales frequencies; does config.json belong to these weights?")
    }

    pub(super) fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.f64_or_none(key)?.unwrap_or(default))
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn str_or_none(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>> {
        let path = match key {
            "rope_scaling" => "rope_scaling.",
            "rope_parameters" => "rope_parameters.",
            _ => "",
        };
        Ok(self.typed(key, "an object", Value::as_object)?.map(|map| Keys { map, path }))
    }

    pub(super) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.typed(key, "a list", Value::as_array)
    }

    /// Refuses a key that asks for something the forward pass does not do.
    pub(super) fn refuse(&self, key: &str, unless: impl Fn(&Value) -> bool, why: &str) -> Result<()> {
        match self.value(key) {
            Some(v) if !unless(v) => {
                Err(Error::input("model::unsupported", format!("`{}{key}` in config.json is `{v}`: {why}", self.path)))
            }
            _ => Ok(()),
        }
    }
}

/// `a` divides `b`, or an error that names both keys.
pub(super) fn divides((a_name, a): (&str, usize), (b_name, b): (&str, usize)) -> Result<()> {
    if b % a == 0 {
        return Ok(());
    }
    Err(Error::input("model::config", format!("`{a_name}` ({a}) does not divide `{b_name}` ({b}) in config.json")))
}
