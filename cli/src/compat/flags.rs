//! What is given, checked against the rows of a system.

use std::collections::BTreeMap;

use qfw_core::error::did_you_mean;
use qfw_core::{Error, Result};

use super::draft::Draft;
use super::row::{Meaning, Row, Takes};
use super::words::Given;

/// A value that was read.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    On(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    List(Vec<String>),
}

/// Values by the name of their row. Absent, `None` and `null` are the same.
pub(super) struct Flags {
    values: BTreeMap<&'static str, (Value, Given)>,
    rows: &'static [Row],
}

impl Flags {
    /// Reads every value. Of what is given twice, the last counts.
    pub(super) fn read(given: Vec<Given>, rows: &'static [Row], system: &str) -> Result<Self> {
        let mut values = BTreeMap::new();
        for g in given {
            let row = rows.iter().find(|row| row.is(&g.name)).ok_or_else(|| unknown(&g, rows, system))?;
            match value(&g, row)? {
                Some(value) => values.insert(row.name, (value, g)),
                None => values.remove(row.name),
            };
        }
        Ok(Self { values, rows })
    }

    /// Notes what has no effect.
    ///
    /// # Errors
    /// What is not built yet, all at once.
    pub(super) fn judge(&self, draft: &mut Draft) -> Result<()> {
        let mut missing = Vec::new();
        for row in self.rows.iter().filter(|row| self.given(row.name)) {
            let (shown, in_file) = (self.shown(row.name), self.values.get(row.name).is_some_and(|(_, g)| g.in_file));
            match row.meaning {
                Meaning::NotYet(method) => missing.push(format!("{shown} asks for {method}")),
                Meaning::NoEffect(why) => draft.note(format!("{shown} has no effect: {why}")),
                Meaning::Of(owner) if !self.given(owner) && !in_file => {
                    draft.note(format!("{shown} has no effect without `{owner}`"));
                }
                _ => {}
            }
        }
        match missing.as_slice() {
            [] => Ok(()),
            list => Err(not_built(&list.join(", "), list.len())),
        }
    }

    /// Whether it is given, and not as `false` or an empty list.
    pub(super) fn given(&self, name: &str) -> bool {
        match self.values.get(name) {
            Some((Value::On(on), _)) => *on,
            Some((Value::List(list), _)) => !list.is_empty(),
            other => other.is_some(),
        }
    }

    /// A switch, or what it is without being given.
    pub(super) fn on(&self, name: &str, default: bool) -> bool {
        match self.values.get(name) {
            Some((Value::On(on), _)) => *on,
            _ => default,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.values.get(name) {
            Some((Value::Text(text), _)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn whole(&self, name: &str) -> Option<i64> {
        match self.values.get(name) {
            Some((Value::Whole(n), _)) => Some(*n),
            _ => None,
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        match self.values.get(name) {
            Some((Value::Number(n), _)) => Some(*n),
            _ => None,
        }
    }

    /// A list, where one is given, even an empty one.
    pub(super) fn list(&self, name: &str) -> Option<&[String]> {
        match self.values.get(name) {
            Some((Value::List(list), _)) => Some(list),
            _ => None,
        }
    }

    /// What messages call it: as it was written, or as it could be.
    pub(super) fn shown(&self, name: &str) -> String {
        self.values.get(name).map_or_else(|| format!("`{name}`"), |(_, g)| g.shown.clone())
    }

    /// The error for a value that cannot stand as it is.
    pub(super) fn wrong(&self, name: &str, why: impl std::fmt::Display) -> Error {
        Error::config("compat::value", format!("{}: {why}", self.shown(name)))
    }
}

/// The error for what has no counterpart yet; `what` names one thing or more.
pub(super) fn not_built(what: &str, count: usize) -> Error {
    let which = if count == 1 { "which is not built yet" } else { "none of which is built yet" };
    Error::config("compat::not-built", format!("{what}, {which}"))
        .hint("leave it out, or choose another method: `qfw list-plugins --kind algorithm` shows what there is")
}

fn unknown(given: &Given, rows: &[Row], system: &str) -> Error {
    let dashes = if given.shown.starts_with("`--") { "--" } else { "" };
    let known: Vec<String> = rows.iter().map(|row| format!("{dashes}{}", row.name)).collect();
    let wrong = format!("{dashes}{}", super::row::plain(&given.name));
    let nearest = did_you_mean(&wrong, known.iter().map(String::as_str));
    Error::config("compat::unknown-flag", format!("{} is not known of {system}{nearest}", given.shown))
        .hint("everything after `--` is read as the other system's command line; our own flags go before it")
}

/// The value of one row, or none where the word for "not given" is given.
fn value(given: &Given, row: &Row) -> Result<Option<Value>> {
    let wrong = |what: String| Error::config("compat::value", format!("{}: {what}", given.shown));
    if let Takes::List = row.takes {
        return Ok(Some(Value::List(elements(&given.values))));
    }
    let text = match (given.values.as_slice(), row.takes) {
        ([], Takes::Switch) => "true",
        ([], _) => return Err(wrong(format!("a value is missing; it takes {}", expected(row.takes)))),
        ([one], _) => one.trim(),
        (many, _) => return Err(wrong(format!("expected {}, got a list of {}", expected(row.takes), many.len()))),
    };
    if matches!(text, "None" | "none" | "null") {
        return Ok(None);
    }
    let failed = || wrong(format!("expected {}, got `{text}`", expected(row.takes)));
    let value = match row.takes {
        Takes::Switch => match text.to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Value::On(true),
            "false" | "0" | "no" | "off" => Value::On(false),
            _ => return Err(failed()),
        },
        Takes::Whole => Value::Whole(text.parse().map_err(|_| failed())?),
        Takes::Number => Value::Number(text.parse().ok().filter(|n: &f64| n.is_finite()).ok_or_else(failed)?),
        Takes::Choice(known) if !known.contains(&text) => {
            let nearest = did_you_mean(text, known.iter().copied());
            return Err(wrong(format!("unknown value `{text}`{nearest}; known: {}", known.join(", "))));
        }
        _ => Value::Text(text.to_owned()),
    };
    Ok(Some(value))
}

/// Elements of a list: words of their own, or one word such as `[a, b]` or `a,b`.
fn elements(words: &[String]) -> Vec<String> {
    let [one] = words else { return words.to_vec() };
    let quotes: &[char] = &['\'', '"', ' '];
    match one.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.split(',').map(|e| e.trim_matches(quotes).to_owned()).filter(|e| !e.is_empty()).collect(),
        None => vec![one.clone()],
    }
}

fn expected(takes: Takes) -> String {
    match takes {
        Takes::Switch => "`true` or `false`".to_owned(),
        Takes::Whole => "a whole number".to_owned(),
        Takes::Number => "a finite number".to_owned(),
        Takes::Choice(known) => format!("one of {}", known.join(", ")),
        Takes::Text => "a text".to_owned(),
        Takes::List => "a list".to_owned(),
    }
}
