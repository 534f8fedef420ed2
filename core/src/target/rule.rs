//! A file of rules, and when a rule fits.
//!
//! ```toml
//! about = "what the engine is"
//! versions = ["0.32"]                  # what was tried or read, newest first
//! tensor-parallel = true               # it splits layers over devices
//!
//! [[rule]]
//! name = "gptq-affine"
//! outcome = "refused"                  # loads, wrong or refused
//! when = { container = "gptq-v2", symmetric = false }   # all of these; a list is any of its values
//! reason = "why, as a clause"
//! recipe = "--format awq"              # arguments that give something that loads; or `no-recipe = "why there is none"`
//! since = "0.30"                       # the first version that this is so in, if it is known of others than those above
//! until = "0.32"                       # the last
//! source = "how that is known"
//! yes = [{ container = "gptq-v2", symmetric = false }]  # plans that this rule decides
//! no = [{ container = "gptq-v2" }]                      # and plans that it does not
//! ```
//!
//! Rules are tried in their order. One that says that something loads speaks of plans with `branches` or `multipliers`
//! only if it names them. Without `since` and `until` a rule is about the `versions` of its file alone. `yes` and `no` differ in what they say from an ordinary plan: 4-bit symmetric integers in groups of 128 of
//! a `llama` model, for the newest version; `version` is another one.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Outcome;
use super::facts::{Facts, KEYS, Kind, Value};
use super::version::{Range, Version};
use crate::error::{Error, Result, did_you_mean};

/// Facts that a rule which says `loads` has to name to speak of plans with them: branches are an adapter of its own that has to be loaded
/// too, and of multipliers most rules were made without knowing.
const NAMED: [&str; 2] = ["branches", "multipliers"];

/// An engine.
#[derive(Debug)]
pub(super) struct Engine {
    pub id: String,
    pub about: String,
    pub versions: Vec<Version>,
    pub tensor_parallel: bool,
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub name: String,
    pub outcome: Outcome,
    pub when: BTreeMap<String, Vec<Value>>,
    pub reason: String,
    pub recipe: Option<String>,
    /// Why there is no recipe.
    pub no_recipe: Option<String>,
    /// The versions that it is about.
    pub range: Range,
    pub source: String,
    /// What it decides, and what it does not: held by a test.
    #[cfg_attr(not(test), expect(dead_code, reason = "examples are for the test of the rules"))]
    pub yes: Vec<Example>,
    #[cfg_attr(not(test), expect(dead_code, reason = "examples are for the test of the rules"))]
    pub no: Vec<Example>,
}

/// A plan that a rule decides or not.
#[derive(Clone, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "examples are for the test of the rules"))]
pub(super) struct Example {
    pub facts: Facts,
    /// Of the engine; nothing is the newest.
    pub version: Option<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawEngine {
    about: String,
    versions: Vec<String>,
    #[serde(default)]
    tensor_parallel: bool,
    rule: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawRule {
    name: String,
    outcome: Outcome,
    when: toml::Table,
    reason: String,
    recipe: Option<String>,
    no_recipe: Option<String>,
    since: Option<String>,
    until: Option<String>,
    source: String,
    yes: Vec<toml::Table>,
    no: Vec<toml::Table>,
}

impl Engine {
    /// Reads a file of rules.
    ///
    /// # Errors
    /// If a key is unknown, or cannot be what a rule asks it to be: such a rule would never fit.
    pub(super) fn parse(id: &str, text: &str) -> Result<Self> {
        let bad = |e: String| Error::config("target::bad-rules", format!("the rules of `{id}`: {e}"));
        let raw: RawEngine = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        let version = |text: &String| Version::parse(text).ok_or_else(|| bad(format!("`{text}` is no version")));
        let versions = raw.versions.iter().map(version).collect::<Result<Vec<_>>>()?;
        if versions.is_empty() {
            return Err(bad("`versions` is empty".to_owned()));
        }
        let mut rules = Vec::new();
        for r in raw.rule {
            let within = |e: String| bad(format!("rule `{}`: {e}", r.name));
            let when = r.when.iter().map(|(k, v)| Ok((k.clone(), values(k, v)?))).collect::<Result<_, String>>().map_err(within)?;
            let examples = |list: &[toml::Table]| -> Result<Vec<Example>> { list.iter().map(|t| example(t).map_err(within)).collect() };
            if r.outcome == Outcome::Unknown {
                return Err(within("what is unknown has no rule".to_owned()));
            }
            if r.recipe.is_some() == r.no_recipe.is_some() {
                return Err(within("it has to have either `recipe` or `no-recipe`".to_owned()));
            }
            let end = |text: &Option<String>| text.as_ref().map(&version).transpose();
            let range = Range { since: end(&r.since)?, until: end(&r.until)? };
            if !versions.iter().any(|v| range.holds(v, true)) {
                return Err(within("it is about none of the `versions`".to_owned()));
            }
            let (yes, no) = (examples(&r.yes)?, examples(&r.no)?);
            let (recipe, no_recipe, source) = (r.recipe, r.no_recipe, r.source);
            rules.push(Rule { name: r.name, outcome: r.outcome, when, reason: r.reason, recipe, no_recipe, range, source, yes, no });
        }
        Ok(Self { id: id.to_owned(), about: raw.about, versions, tensor_parallel: raw.tensor_parallel, rules })
    }
}

impl Engine {
    /// Whether `version` is one that the rules are about.
    pub(super) fn tried(&self, version: &Version) -> bool {
        self.versions.iter().any(|v| version.is(v))
    }

    /// Those versions, newest first.
    pub(super) fn in_words(&self) -> String {
        self.versions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The rule that decides a case in a version.
    pub(super) fn deciding(&self, version: &Version, facts: &Facts) -> Option<&Rule> {
        let tried = self.tried(version);
        self.rules.iter().find(|r| r.range.holds(version, tried) && r.fits(facts))
    }
}

impl Rule {
    /// Whether it speaks of a case.
    fn fits(&self, facts: &Facts) -> bool {
        let unnamed = |key: &&str| facts.get(*key) == Some(&Value::Flag(true)) && !self.when.contains_key(*key);
        if self.outcome == Outcome::Loads && NAMED.iter().any(unnamed) {
            return false;
        }
        self.when.iter().all(|(key, any)| facts.get(key).is_some_and(|fact| any.contains(fact)))
    }

    /// Whether it can speak of models of an architecture.
    pub(super) fn speaks_of(&self, architecture: &str) -> bool {
        self.when.get("architecture").is_none_or(|any| any.contains(&Value::Text(architecture.to_owned())))
    }
}

/// The values that a rule allows for `key`.
fn values(key: &str, value: &toml::Value) -> Result<Vec<Value>, String> {
    match value {
        toml::Value::Array(list) if list.is_empty() => Err(format!("`{key}` is an empty list, which nothing is in")),
        toml::Value::Array(list) => list.iter().map(|v| one(key, v)).collect(),
        one_value => Ok(vec![one(key, one_value)?]),
    }
}

/// A value that the fact `key` can have.
fn one(key: &str, value: &toml::Value) -> Result<Value, String> {
    let Some((_, kind, _)) = KEYS.iter().find(|(k, ..)| *k == key) else {
        let known = KEYS.map(|(k, ..)| k);
        return Err(format!("`{key}` is nothing that rules can speak of{}; those are {}", did_you_mean(key, known), known.join(", ")));
    };
    match (kind, value) {
        (Kind::Flag, toml::Value::Boolean(b)) => Ok(Value::Flag(*b)),
        (Kind::Number, toml::Value::Integer(n)) => Ok(Value::Number(*n)),
        (Kind::Name, toml::Value::String(s)) => Ok(Value::Text(s.clone())),
        (Kind::One(names), toml::Value::String(s)) if names.contains(&s.as_str()) => Ok(Value::Text(s.clone())),
        (Kind::One(names), _) => Err(format!("`{key}` is never {value}; it is one of {}", names.join(", "))),
        (kind, _) => Err(format!("`{key}` is never {value}: {kind:?}")),
    }
}

/// The facts of an example: an ordinary plan, but for what it says.
fn example(changes: &toml::Table) -> Result<Example, String> {
    let text = |s: &str| Value::Text(s.to_owned());
    let ordinary = |key: &str, kind: Kind| match (key, kind) {
        ("container", _) => text("compressed-tensors"),
        ("architecture", _) => text("llama"),
        ("weights", _) => text("int"),
        ("granularity", _) => text("group"),
        ("role", _) => text("layer"),
        ("bits", _) => Value::Number(4),
        ("group", _) => Value::Number(128),
        ("symmetric", _) => Value::Flag(true),
        (_, Kind::Flag) => Value::Flag(false),
        (_, Kind::Number) => Value::Number(0),
        (_, Kind::One(names)) => text(names.first().unwrap_or(&"")),
        (_, Kind::Name) => text(""),
    };
    let mut facts: Facts = KEYS.iter().map(|(key, kind, _)| ((*key).to_owned(), ordinary(key, *kind))).collect();
    let mut version = None;
    for (key, value) in changes {
        if key == "version" {
            version = Some(value.as_str().and_then(Version::parse).ok_or_else(|| format!("`version` is never {value}"))?);
        } else {
            facts.insert(key.clone(), one(key, value)?);
        }
    }
    Ok(Example { facts, version })
}
