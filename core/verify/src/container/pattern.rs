//! Names and regular expressions that configurations match modules with.

use std::collections::BTreeMap;

use regex::Regex;

use crate::error::{Error, Result};

/// Largest compiled pattern, in bytes: configurations come from anywhere.
const LARGEST: usize = 1 << 20;

/// A pattern that matches from the start of a name, as Python's `re.match` does.
///
/// # Errors
/// If it is none.
pub(crate) fn from_start(pattern: &str) -> Result<Regex> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})"))
        .size_limit(LARGEST)
        .build()
        .map_err(|_| Error::config(format!("`{pattern}` in `quantization_config` is no regular expression that can be read here")))
}

/// The first of `by` that speaks of a module: by its exact name, then by an expression (`re:…`), then by the class `Linear`.
pub(crate) struct Targets {
    exact: BTreeMap<String, usize>,
    patterns: Vec<(Regex, usize)>,
    class: Option<usize>,
}

impl Targets {
    pub(crate) fn new<'a>(targets: impl Iterator<Item = (&'a str, usize)>) -> Result<Self> {
        let mut out = Self { exact: BTreeMap::new(), patterns: Vec::new(), class: None };
        for (target, which) in targets {
            if let Some(pattern) = target.strip_prefix("re:") {
                out.patterns.push((from_start(pattern)?, which));
            } else if target == "Linear" {
                out.class = out.class.or(Some(which));
            } else {
                out.exact.entry(target.to_owned()).or_insert(which);
            }
        }
        Ok(out)
    }

    /// By name or expression.
    pub(crate) fn named(&self, module: &str) -> Option<usize> {
        let by_pattern = || self.patterns.iter().find(|(p, _)| p.is_match(module)).map(|(_, which)| *which);
        self.exact.get(module).copied().or_else(by_pattern)
    }

    /// By any of the three.
    pub(crate) fn of(&self, module: &str) -> Option<usize> {
        self.named(module).or(self.class)
    }
}
