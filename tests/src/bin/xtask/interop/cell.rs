//! What is known of one model, recipe and container in one engine.

use std::path::{Path, PathBuf};

use qfw_core::target::Outcome;
use qfw_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::engine::{Engine, Limits, Way};
use super::measure::Distance;

/// What an engine made of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Found {
    /// It computed logits.
    Logits(Distance),
    /// It did not, with its words.
    Refused(String),
}

/// A run of an engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ran {
    /// The engine and what it stands on, with versions.
    pub(super) engine: String,
    /// The day.
    pub(super) date: String,
    pub(super) found: Found,
}

impl Ran {
    /// What that is in the words of `--target`.
    pub(super) fn outcome(&self, limits: &Limits) -> Outcome {
        match &self.found {
            Found::Refused(_) => Outcome::Refused,
            Found::Logits(d) if d.within(limits) => Outcome::Loads,
            Found::Logits(_) => Outcome::Wrong,
        }
    }
}

/// What a cell of the matrix holds.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// `qfw plan` refuses to write such a file; its reason, and its hint.
    NotWritten(String, String),
    /// The engine is not here; why.
    NotHere(String),
    /// It was not done after so many seconds.
    Late(u64),
    /// It was run.
    Ran(Ran),
}

/// A cell of the matrix.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) family: String,
    pub(super) recipe: &'static str,
    pub(super) format: &'static str,
    pub(super) engine: &'static str,
    pub(super) way: Way,
    pub(super) limits: Limits,
    pub(super) state: State,
    /// What `--target` says of it.
    pub(super) said: Option<Outcome>,
}

impl Cell {
    /// What is not as it should be. As an engine comes, the rules have to say what it does; in a way of its own, it has to compute what it
    /// should.
    pub(super) fn wrong(&self) -> Option<String> {
        let ran = match &self.state {
            State::NotWritten(..) | State::NotHere(_) => return None,
            State::Late(seconds) => return Some(format!("it took longer than {seconds} s")),
            State::Ran(ran) => ran,
        };
        let outcome = ran.outcome(&self.limits);
        match (self.way.option, self.said) {
            (None, Some(said)) if said != outcome => Some(format!("`--target` says `{said}`, it is `{outcome}`")),
            (Some(_), _) if outcome != Outcome::Loads => Some(format!("it is `{outcome}`")),
            _ => None,
        }
    }

    /// Where it is, for people.
    pub(super) fn place(&self) -> String {
        let way = self.way.option.map_or_else(String::new, |o| format!(" ({o})"));
        format!("{}{way}: {}, {}, {}", self.engine, self.family, self.recipe, self.format)
    }
}

/// Hash of what a run depends on: the files, the engine with its script, and how it is run.
pub(super) fn key(checkpoint: &Path, engine: &Engine, script: &str, way: &Way, windows: &[Vec<u32>]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    // The log of the run has times in it.
    for path in files(checkpoint)?.iter().filter(|p| p.file_name().is_some_and(|n| n != "qfw-run.jsonl")) {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes()).update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    let rest = (engine.name, engine.packages, engine.on_its_own, engine.variables, script, way.option, windows);
    hasher.update(format!("{rest:?}").as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}

/// The files in `dir` and in the directories in it, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, "list", e))? {
        let path = entry.map_err(|e| Error::io(dir, "list", e))?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interop::engine::ENGINES;

    fn cell(option: Option<&'static str>, said: Outcome, found: Found) -> Cell {
        let way = Way { option, ..ENGINES[0].ways[0] };
        let state = State::Ran(Ran { engine: String::new(), date: String::new(), found });
        let (family, said, limits) = ("f".to_owned(), Some(said), Limits::F32);
        Cell { family, recipe: "r", format: "c", engine: "e", way, limits, state, said }
    }

    #[test]
    fn what_the_rules_say_has_to_be_what_is_found() {
        let near = Found::Logits(Distance { cosine: 1.0, mean: 1.0, largest: 0.0, ours: 20.0, theirs: 20.0 });
        let far = Found::Logits(Distance { cosine: 1.0, mean: 1.0, largest: 0.0, ours: 20.0, theirs: 21.0 });
        let refused = || Found::Refused("no".to_owned());
        for (said, found, fine) in [
            (Outcome::Loads, near.clone(), true),
            (Outcome::Loads, far.clone(), false),
            (Outcome::Loads, refused(), false),
            (Outcome::Wrong, far.clone(), true),
            (Outcome::Wrong, near.clone(), false),
            (Outcome::Refused, refused(), true),
            (Outcome::Refused, near.clone(), false),
            (Outcome::Unknown, near.clone(), false),
            (Outcome::Unknown, refused(), false),
        ] {
            assert_eq!(cell(None, said, found.clone()).wrong().is_none(), fine, "{said} {found:?}");
        }
        // In a way of its own, an engine computes what it should, whatever the rules say of it as it comes.
        assert!(cell(Some("exact"), Outcome::Wrong, near).wrong().is_none());
        assert!(
            cell(Some("exact"), Outcome::Wrong, far).wrong().is_some()
                && cell(Some("exact"), Outcome::Refused, refused()).wrong().is_some()
        );
    }
}
