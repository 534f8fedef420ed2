//! Chat templates: the Jinja dialect that checkpoints carry, with the surroundings their authors rely on.
//!
//! Blocks are trimmed, Python's string and dictionary methods exist, `raise_exception` refuses a conversation, and `tojson` writes what
//! Python's `json.dumps` does, where the engine's own filter would escape for HTML. `strftime_now` is left undefined on purpose: data
//! must not depend on the day, and templates that know the function fall back to a fixed date without it.

use minijinja::value::{Kwargs, Value as Jinja, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Number, Value};

use crate::error::{Error, Result};

/// A chat template, compiled when used.
#[derive(Clone, Debug)]
pub(super) struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    pub(super) fn new(source: String) -> Self {
        Self { source }
    }

    /// Text of `messages`, without a generation prompt.
    pub(super) fn render(&self, messages: &Value, bos_token: &str, eos_token: &str) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        let unset = Jinja::from(());
        let context = context! {
            messages => to_jinja(messages),
            bos_token,
            eos_token,
            add_generation_prompt => false,
            // Templates test `tools is not none`, which an undefined name would pass.
            tools => unset,
            documents => unset,
        };
        environment.template_from_str(&self.source).and_then(|template| template.render(context)).map_err(|e| {
            Error::input("tokenizer::chat-template", format!("the chat template failed: {e}"))
                .with_source(e)
                .hint("check that `messages` is a list of {\"role\": …, \"content\": …} in an order the template allows")
        })
    }
}

fn raise_exception(message: String) -> Result<Jinja, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Converts by hand: the generic path would show numbers of arbitrary precision as maps.
fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(flag) => Jinja::from(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => Jinja::from(number),
            (_, Some(number), _) => Jinja::from(number),
            (.., number) => Jinja::from(number.unwrap_or(f64::NAN)),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => items.iter().map(to_jinja).collect(),
        Value::Object(entries) => entries.iter().map(|(key, value)| (key.as_str(), to_jinja(value))).collect(),
    }
}

fn from_jinja(value: &Jinja) -> Result<Value, minijinja::Error> {
    Ok(match value.kind() {
        ValueKind::None | ValueKind::Undefined => Value::Null,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number => match (i64::try_from(value.clone()), u64::try_from(value.clone()), f64::try_from(value.clone())) {
            _ if !value.is_integer() => f64::try_from(value.clone()).ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
            (Ok(number), ..) => Value::from(number),
            (_, Ok(number), _) => Value::from(number),
            (.., number) => number.ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
        },
        ValueKind::String => Value::String(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Seq | ValueKind::Iterable => Value::Array(value.try_iter()?.map(|item| from_jinja(&item)).collect::<Result<_, _>>()?),
        ValueKind::Map => {
            let entry = |key: Jinja| Ok((key.to_string(), from_jinja(&value.get_item(&key)?)?));
            Value::Object(value.try_iter()?.map(entry).collect::<Result<_, minijinja::Error>>()?)
        }
        kind => return Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson cannot write a value of kind {kind}"))),
    })
}

/// The filter `tojson(indent=None)`.
fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let value = from_jinja(value)?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(64)];
            value.serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(&spaces)))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Jinja::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Python's default separators, `", "` and `": "`.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
