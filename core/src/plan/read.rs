//! The strict reader: a serde deserializer over [`Node`] that reports every problem with path, origin, and what was expected.
//!
//! Unknown keys are found in `deserialize_struct`, which is told the field names, so one reading finds all of them. A wrong type ends a
//! reading; the value is then taken out and the rest read again, so that those are reported together too.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};

use super::node::{Node, Origin, Value, place};
use crate::error::{Error, Result, did_you_mean};

/// One thing that is wrong, and where.
#[derive(Debug, PartialEq)]
struct Problem {
    path: Vec<String>,
    origin: Origin,
    message: String,
}

/// The error inside a reading: a message that gets its place where the failing value is read.
#[derive(Debug)]
struct Failure {
    message: String,
    place: Option<(Vec<String>, Origin)>,
}

#[derive(Clone)]
struct Reader<'a> {
    node: &'a Node,
    path: Vec<String>,
    unknown: &'a RefCell<Vec<Problem>>,
}

/// Entries of a table, or elements of an array, still to be read.
struct Entries<'a> {
    rest: std::vec::IntoIter<(String, &'a Node)>,
    value: Option<Reader<'a>>,
    parent: Reader<'a>,
}

/// A choice written as a string (no payload) or as a table with one key (payload).
struct Choice<'a> {
    name: String,
    payload: Option<Reader<'a>>,
}

impl<'a> Reader<'a> {
    fn child(&self, key: &str, node: &'a Node) -> Self {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        Self { node, path, unknown: self.unknown }
    }

    fn entries(self, rest: Vec<(String, &'a Node)>) -> Entries<'a> {
        Entries { rest: rest.into_iter(), value: None, parent: self }
    }

    /// Gives a failure that has no place yet this reader's.
    fn placed<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        result.map_err(|mut failure| {
            failure.place.get_or_insert_with(|| (self.path.clone(), self.node.origin.clone()));
            failure
        })
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Text(s) => visitor.visit_str(s),
            Value::Integer(i) => match u64::try_from(*i) {
                Ok(unsigned) => visitor.visit_u64(unsigned),
                Err(_) => visitor.visit_i64(*i),
            },
            Value::Float(f) if !f.is_finite() => Err(de::Error::custom(format!("`{f}` is not a finite number"))),
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Boolean(b) => visitor.visit_bool(*b),
            Value::Array(items) => {
                let rest = items.iter().enumerate().map(|(i, node)| (i.to_string(), node)).collect();
                visitor.visit_seq(self.entries(rest))
            }
            Value::Table(entries) => {
                let rest = entries.iter().map(|(k, node)| (k.clone(), node)).collect();
                visitor.visit_map(self.entries(rest))
            }
        }
    }

    fn visit_fields<'de, V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        let Value::Table(entries) = &self.node.value else { return self.visit(visitor) };
        let mut rest = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            if fields.contains(&key.as_str()) {
                rest.push((key.clone(), node));
                continue;
            }
            let suggestion = did_you_mean(key, fields.iter().copied());
            let message =
                if suggestion.is_empty() { format!("unknown key; known: {}", list(fields)) } else { format!("unknown key{suggestion}") };
            let path = self.child(key, node).path;
            self.unknown.borrow_mut().push(Problem { path, origin: node.origin.clone(), message });
        }
        visitor.visit_map(self.entries(rest))
    }

    fn visit_choice<'de, V: Visitor<'de>>(self, variants: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        match &self.node.value {
            Value::Text(name) => visitor.visit_enum(Choice { name: name.clone(), payload: None }),
            Value::Table(entries) if entries.len() == 1 => {
                let (name, node) = &entries[0];
                visitor.visit_enum(Choice { name: name.clone(), payload: Some(self.child(name, node)) })
            }
            Value::Table(entries) => {
                let keys = entries.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>();
                Err(de::Error::custom(format!("expected a table with one key, got {}: {}", keys.len(), list(&keys))))
            }
            _ => Err(de::Error::custom(format!("expected one of {}, got {}", list(variants), self.node.describe()))),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.placed(self.clone().visit(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], v: V) -> Result<V::Value, Failure> {
        self.placed(self.clone().visit_fields(fields, v))
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, variants: &'static [&'static str], v: V) -> Result<V::Value, Failure> {
        self.placed(self.clone().visit_choice(variants, v))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map identifier ignored_any
    }
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failure> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        let reader = self.parent.child(&key, node);
        let name: de::value::StringDeserializer<Failure> = key.into_deserializer();
        let result = reader.placed(seed.deserialize(name));
        self.value = Some(reader);
        result.map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let reader = self.value.take().ok_or_else(|| <Failure as de::Error>::custom("value asked for before its key"))?;
        reader.placed(seed.deserialize(reader.clone()))
    }
}

impl<'de> de::SeqAccess<'de> for Entries<'_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let reader = self.parent.child(&index, node);
        reader.placed(seed.deserialize(reader.clone())).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

impl<'de> de::EnumAccess<'de> for Choice<'_> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Failure> {
        let name: de::value::StrDeserializer<'_, Failure> = self.name.as_str().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl Choice<'_> {
    fn with_payload<T>(self, read: impl FnOnce(Reader<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        match self.payload {
            Some(reader) => reader.placed(read(reader.clone())),
            None => Err(de::Error::custom(format!("`{0}` needs a value: `{{ {0} = … }}`", self.name))),
        }
    }
}

impl<'de> de::VariantAccess<'de> for Choice<'_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.payload {
            None => Ok(()),
            Some(_) => Err(de::Error::custom(format!("`{0}` takes no value: write `\"{0}\"`", self.name))),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        self.with_payload(|reader| seed.deserialize(reader))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Failure> {
        self.with_payload(|reader| reader.deserialize_any(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Failure> {
        self.with_payload(|reader| reader.deserialize_struct("", fields, visitor))
    }
}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), place: None }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let got = match unexpected {
            Unexpected::Seq => "an array".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            other => other.to_string(),
        };
        Self::custom(format!("expected {}, got {got}", in_words(&expected.to_string())))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format!("unknown value `{variant}`{}; known: {}", did_you_mean(variant, expected.iter().copied()), list(expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("`{field}` is missing"))
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Reads `root`, which stands at `base`, as a `T`, or reports everything that is wrong with it.
pub(super) fn read<T: DeserializeOwned>(mut root: Node, base: &[String]) -> Result<T> {
    let mut problems: Vec<Problem> = Vec::new();
    let mut removed: Vec<Vec<String>> = Vec::new();
    loop {
        let unknown = RefCell::new(Vec::new());
        let result = T::deserialize(Reader { node: &root, path: base.to_vec(), unknown: &unknown });
        for problem in unknown.into_inner() {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        let failure = match result {
            Ok(value) if problems.is_empty() => return Ok(value),
            Ok(_) => return Err(report(&problems)),
            Err(failure) => failure,
        };
        let (path, origin) = failure.place.unwrap_or_else(|| (base.to_vec(), root.origin.clone()));
        // A table that lacks what was taken out of it is no news.
        if !removed.iter().any(|gone| gone.starts_with(&path)) {
            let message = match path.as_slice() {
                // The commonest slip with arrays of tables is a single pair of brackets.
                [key] => failure.message.replace("expected an array,", &format!("expected an array of tables, written `[[{key}]]`,")),
                _ => failure.message,
            };
            problems.push(Problem { path: path.clone(), origin, message });
        }
        if !root.remove(path.get(base.len()..).unwrap_or_default()) {
            return Err(report(&problems));
        }
        removed.push(path);
    }
}

/// The keys that a struct reads, in the order of its fields, with aliases.
pub(super) fn fields_of<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Probe<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = Failure;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Failure> {
            Err(de::Error::custom("a probe holds no value"))
        }
        fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], _: V) -> Result<V::Value, Failure> {
            *self.0 = fields;
            Err(de::Error::custom("a probe holds no value"))
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
            seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut fields: &'static [&'static str] = &[];
    // The outcome is always the probe's own error; the fields are what was wanted.
    let _ = T::deserialize(Probe(&mut fields));
    fields
}

/// `` `a`, `b` ``.
pub(super) fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Serde's words for types, in the user's words.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0",
        "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => "a whole number of at least 1",
        "i32" | "i64" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a sequence" => "an array",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

fn report(problems: &[Problem]) -> Error {
    let lines = problems.iter().map(|p| {
        let place = if p.path.is_empty() { format!("the configuration {}", p.origin) } else { place(&p.path, &p.origin) };
        format!("{}: {}", place.trim_end(), p.message)
    });
    let lines = lines.collect::<Vec<_>>();
    let only_unknown = problems.iter().all(|p| p.message.starts_with("unknown key"));
    let code = if only_unknown { "config::unknown-key" } else { "config::invalid" };
    match (lines.as_slice(), problems) {
        ([one], [problem]) => Error::config(code, one.clone()).hint(hint(problem)),
        (many, _) => Error::config(code, format!("{} problems in the configuration:\n  {}", many.len(), many.join("\n  "))).hint(SCHEMA),
    }
}

const SCHEMA: &str = "`qfw schema` describes every key and its values";

/// What to do about one problem.
fn hint(problem: &Problem) -> &'static str {
    if problem.message.starts_with("unknown key") {
        return SCHEMA;
    }
    match problem.path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["harness", "budget"] | ["output", "max-shard"] => "write a number and a unit, such as `8GiB` or `1.5GB`",
        ["harness", "threads"] => "leave it out for one thread per core; the result does not depend on it",
        _ => SCHEMA,
    }
}
