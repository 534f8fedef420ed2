//! Reading the options of a pass: what several passes say alike, and an answer for names that other systems have and that mean something
//! elsewhere here.

use std::fmt::Display;

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{BuiltAlgorithm, PtqAlgorithm};
use crate::error::{Error, Result, did_you_mean};

/// A name that is an option in another system, but none here.
pub struct Elsewhere {
    /// Its spellings, with `-` for `_`.
    pub names: &'static [&'static str],
    /// What is to be done with it.
    pub answer: Answer,
}

/// See [`Elsewhere`].
#[derive(Clone, Copy)]
pub enum Answer {
    /// It is refused: why, and what to set instead.
    Refused(&'static str, &'static str),
    /// It is accepted, as nothing follows from it.
    Nothing,
    /// It is accepted with this value, which is how things are, and refused with the other, for this reason.
    Always(bool, &'static str),
}

/// Names that belong to the scheme, the calibration and the order of the run.
pub const KEYS: &[Elsewhere] = &[
    Elsewhere {
        names: &["mse"],
        answer: Answer::Refused("how ranges are chosen is set elsewhere", "set `scheme.weights.range = \"mse\"`"),
    },
    Elsewhere {
        names: &["sym"],
        answer: Answer::Refused("whether weights have zero points is set elsewhere", "set `scheme.weights.symmetric`"),
    },
    Elsewhere {
        names: &["groupsize", "group-size", "w-groupsize"],
        answer: Answer::Refused("the size of groups is set elsewhere", "set `scheme.weights.granularity.group`"),
    },
    Elsewhere {
        names: &["wbits", "w-bits", "bits"],
        answer: Answer::Refused("the format of weights is set elsewhere", "set `scheme.weights.format`"),
    },
    Elsewhere {
        names: &["true-sequential", "layer-sequential"],
        answer: Answer::Refused(
            "the order inside a block is set elsewhere",
            "set `harness.sequence` to \"layer\" for true, to \"block\" for false",
        ),
    },
    Elsewhere {
        names: &["block-sequential"],
        answer: Answer::Refused(
            "what the next block reads is set elsewhere",
            "set `harness.propagate` to \"quantized\" for true, to \"reference\" for false",
        ),
    },
    Elsewhere { names: &["nsamples"], answer: Answer::Refused("the calibration data is set elsewhere", "set `calibration.samples`") },
    Elsewhere { names: &["seqlen"], answer: Answer::Refused("the calibration data is set elsewhere", "set `calibration.seq-len`") },
    Elsewhere { names: &["group-of-parallel-layers"], answer: Answer::Nothing },
];

/// The options of `algo`. `known` lists them for the hint; names of `elsewhere` and [`KEYS`] are answered as they say.
///
/// # Errors
/// For names and values that mean nothing.
pub fn read_options<T: DeserializeOwned>(algo: &str, options: &Value, known: &str, elsewhere: &[Elsewhere]) -> Result<T> {
    let mut options = options.clone();
    if let Some(map) = options.as_object_mut() {
        for name in map.keys().cloned().collect::<Vec<_>>() {
            let plain = name.replace('_', "-");
            let Some(entry) = elsewhere.iter().chain(KEYS).find(|e| e.names.contains(&plain.as_str())) else { continue };
            match entry.answer {
                Answer::Refused(why, hint) => {
                    return Err(Error::config("config::elsewhere", format!("`{name}` is no option of `{algo}`: {why}")).hint(hint));
                }
                Answer::Always(value, why) if map[&name] != Value::Bool(value) => {
                    return Err(Error::config("config::invalid", format!("option `{name}` of `{algo}` is {}: {why}", map[&name]))
                        .hint("leave it out"));
                }
                Answer::Always(..) | Answer::Nothing => map.remove(&name),
            };
        }
    }
    serde_json::from_value(options.clone()).map_err(|e| {
        if let Some((one, other)) = two_names::<T>(&options) {
            return Error::config("config::invalid", format!("`{one}` and `{other}` are two names of one option of `{algo}`"))
                .hint("keep one of them; a preset or a file may have set the other");
        }
        // Serde says what is wrong with a value, and not whose it is: the option that fails alike on its own.
        let alike = |name: &str, value: &Value| {
            let alone = serde_json::from_value::<T>(Value::Object([(name.to_owned(), value.clone())].into_iter().collect()));
            alone.is_err_and(|alone| alone.to_string() == e.to_string())
        };
        let named = options.as_object().into_iter().flatten().find(|(name, value)| alike(name, value)).map(|(name, _)| name);
        let of = match named.filter(|name| !e.to_string().contains(&format!("`{name}`"))) {
            Some(name) => format!("option `{name}` of `{algo}`"),
            None => format!("options of `{algo}`"),
        };
        Error::config("config::invalid", format!("{of}: {}", briefly(&e.to_string()))).hint(format!("its options: {known}"))
    })
}

/// Two keys that are names of one option.
fn two_names<T: DeserializeOwned>(options: &Value) -> Option<(&str, &str)> {
    let all: Vec<(&String, &Value)> = options.as_object()?.iter().collect();
    let pairs = all.iter().enumerate().flat_map(|(i, one)| all[i + 1..].iter().map(move |other| (one, other)));
    let alone = |map: &[(&String, &Value)]| {
        let map = map.iter().map(|(name, value)| ((*name).clone(), (*value).clone())).collect();
        serde_json::from_value::<T>(Value::Object(map)).err().map(|e| e.to_string())
    };
    let twice = |(one, other): &(&(&String, &Value), &(&String, &Value))| {
        alone(&[**one, **other]).is_some_and(|e| e.starts_with("duplicate field"))
    };
    pairs.into_iter().find(twice).map(|((one, _), (other, _))| (one.as_str(), other.as_str()))
}

/// What serde says, the nearest name in place of all that there are with their spellings in other systems.
fn briefly(said: &str) -> String {
    match said.split_once(", expected one of ") {
        Some((what, names)) if what.starts_with("unknown field") => {
            let wrong = what.split('`').nth(1).unwrap_or_default();
            format!("{what}{}", did_you_mean(wrong, names.split(", ").map(|name| name.trim_matches('`'))))
        }
        _ => said.to_owned(),
    }
}

/// The algorithm over options that were read, and these written out with their defaults, as the plan records them.
///
/// # Errors
/// An internal error if they cannot be written.
pub fn built<O: Serialize, A: PtqAlgorithm + 'static>(options: O, make: impl FnOnce(O) -> A) -> Result<BuiltAlgorithm> {
    let resolved = serde_json::to_value(&options).map_err(|e| Error::internal(e.to_string()))?;
    Ok((Box::new(make(options)), resolved))
}

/// An option whose value cannot be.
pub fn invalid_option(algo: &str, name: &str, value: impl Display, hint: &str) -> Error {
    Error::config("config::invalid", format!("option `{name}` of `{algo}` is {value}")).hint(hint)
}

/// An option that would change nothing beside the others.
pub fn unused_option(algo: &str, name: &str, why: &str) -> Error {
    let message = format!("option `{name}` of `{algo}` would change nothing: {why}");
    Error::config("config::unused-option", message).hint("leave it out, or change what makes it idle")
}

/// In which order columns are rounded, where groups keep their stored columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ColumnOrder {
    /// As stored.
    Off,
    /// Most active input channel first.
    #[default]
    Static,
}

impl<'de> Deserialize<'de> for ColumnOrder {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Name {
            Off,
            #[serde(alias = "weight")]
            Static,
        }
        Ok(match name_or_switch(d, Name::Static, Name::Off)? {
            Name::Off => Self::Off,
            Name::Static => Self::Static,
        })
    }
}

/// A name, or the `true`/`false` of systems that know no more than on and off.
///
/// # Errors
/// If it is neither.
pub fn name_or_switch<'de, D: Deserializer<'de>, T: DeserializeOwned>(d: D, on: T, off: T) -> std::result::Result<T, D::Error> {
    match Value::deserialize(d)? {
        Value::Bool(switch) => Ok(if switch { on } else { off }),
        other => serde_json::from_value(other).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_other_systems_are_answered() {
        #[derive(serde::Deserialize, Debug)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        struct Options {
            damp: f64,
        }
        let always = [Elsewhere { names: &["keep-copies"], answer: Answer::Always(true, "they are always kept") }];
        let read = |options| read_options::<Options>("m", &options, "damp", &always);
        assert_eq!(read(json!({ "damp": 1.0, "group_of_parallel_layers": ["q"], "keep_copies": true })).unwrap().damp, 1.0);
        let e = read(json!({ "damp": 1.0, "keep-copies": false })).unwrap_err();
        assert_eq!(e.to_string(), "option `keep-copies` of `m` is false: they are always kept");
        let e = read(json!({ "damp": 1.0, "true_sequential": true })).unwrap_err();
        assert_eq!(e.to_string(), "`true_sequential` is no option of `m`: the order inside a block is set elsewhere");
        assert_eq!(e.hint_text(), Some("set `harness.sequence` to \"layer\" for true, to \"block\" for false"));
        let e = read(json!({ "damp": "much" })).unwrap_err();
        assert_eq!(e.to_string(), "option `damp` of `m`: invalid type: string \"much\", expected f64");
        let e = read(json!({ "dampp": 1.0 })).unwrap_err();
        assert_eq!(
            (e.to_string().as_str(), e.hint_text()),
            ("options of `m`: unknown field `dampp`, expected `damp`", Some("its options: damp"))
        );
    }

    #[test]
    fn two_spellings_and_misspellings_are_named() {
        #[derive(serde::Deserialize, Debug, Default)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        #[allow(dead_code, reason = "only read")]
        struct Options {
            #[serde(alias = "act_order", alias = "desc-act")]
            act_order: bool,
            damp: f64,
        }
        let read = |options| {
            let e = read_options::<Options>("m", &options, "act-order, damp", &[]).unwrap_err();
            (e.to_string(), e.hint_text().unwrap_or_default().to_owned())
        };
        let (message, hint) = read(json!({ "act-order": true, "damp": 0.1, "desc-act": false }));
        assert_eq!(message, "`act-order` and `desc-act` are two names of one option of `m`");
        assert!(hint.contains("a preset or a file may have set the other"), "{hint}");
        let (message, hint) = read(json!({ "act-ordr": true }));
        assert_eq!(
            (message.as_str(), hint.as_str()),
            ("options of `m`: unknown field `act-ordr` (did you mean `act-order`?)", "its options: act-order, damp")
        );
        assert_eq!(read(json!({ "other": 1 })).0, "options of `m`: unknown field `other`");
        assert_eq!(read(json!({ "damp": "x", "act_order": true })).0, "option `damp` of `m`: invalid type: string \"x\", expected f64");
    }
}
