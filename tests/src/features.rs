//! `features.toml`: what the project owes, what stands, and which test proves it.
//!
//! A row is done when a named test exists in a named file. That the test *passes* is the business of `cargo test`; that it runs at all
//! is checked here, so an ignored test proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path};

use qfw_core::{Error, Result};
use serde::Deserialize;

/// Where the list lies, relative to the workspace root.
pub const FILE: &str = "tests/features.toml";

/// Series of row numbers: letter and how many there are, counted from 1.
const SERIES: [(&str, usize); 2] = [("S", 236), ("B", 16)];

/// Whether a feature stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not yet, or not wholly.
    Open,
    /// It works and a test says so.
    Done,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Done => "done",
        })
    }
}

/// One feature.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Whether it stands.
    pub state: State,
    /// Where a user meets it: configuration key, flag or command.
    pub key: String,
    /// What it is, in a few words.
    pub what: String,
    /// What proves it: `path/from/the/root.rs::test_name`.
    #[serde(default)]
    pub test: Vec<String>,
}

/// The whole list.
#[derive(Clone, Debug)]
pub struct Features {
    rows: BTreeMap<String, Row>,
}

impl Features {
    /// Parses the list.
    ///
    /// # Errors
    /// `features::syntax` for anything but rows of the known fields.
    pub fn parse(text: &str) -> Result<Self> {
        let rows = toml::from_str(text).map_err(|e| {
            Error::input("features::syntax", format!("`{FILE}` does not parse: {}", e.message()))
                .hint("a row is `S1 = { state = \"open\", key = \"…\", what = \"…\" }`, with `test = [\"…\"]` once it is done")
        })?;
        Ok(Self { rows })
    }

    /// Reads the list of the workspace at `root`.
    ///
    /// # Errors
    /// `io` if it cannot be read, `features::syntax` if it does not parse.
    pub fn read(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        Self::parse(&std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?)
    }

    /// How many rows of a series (`"S"` or `"B"`) are in `state`.
    pub fn count(&self, series: &str, state: State) -> usize {
        self.rows.iter().filter(|(id, row)| id.starts_with(series) && row.state == state).count()
    }

    /// Everything wrong with the list in the workspace at `root`, one sentence each; empty if all is well.
    pub fn problems(&self, root: &Path) -> Vec<String> {
        let owed: BTreeSet<String> = SERIES.iter().flat_map(|(letter, n)| (1..=*n).map(move |i| format!("{letter}{i}"))).collect();
        let mut problems: Vec<String> =
            owed.iter().filter(|id| !self.rows.contains_key(*id)).map(|id| format!("row {id} is missing")).collect();
        for (id, row) in &self.rows {
            if !owed.contains(id) {
                problems.push(format!("row {id} is unknown"));
            }
            if row.key.is_empty() || row.what.is_empty() {
                problems.push(format!("row {id} has an empty `key` or `what`"));
            }
            if row.state == State::Done && row.test.is_empty() {
                problems.push(format!("row {id} is done but names no test"));
            }
            problems.extend(row.test.iter().filter_map(|test| missing(root, test)).map(|why| format!("row {id}: {why}")));
        }
        problems
    }
}

/// Series letters, in the order of the file.
pub fn series() -> impl Iterator<Item = &'static str> {
    SERIES.iter().map(|(letter, _)| *letter)
}

/// Why `path.rs::name` under `root` is not a test that runs, if it is not.
fn missing(root: &Path, test: &str) -> Option<String> {
    let Some((file, name)) = test.rsplit_once("::") else {
        return Some(format!("`{test}` is not of the form `path/from/the/root.rs::test_name`"));
    };
    // Joined to the root, a path that is absolute or climbs would prove things with somebody else's file.
    if !Path::new(file).components().all(|part| matches!(part, Component::Normal(_))) {
        return Some(format!("`{file}` leads out of the workspace"));
    }
    match std::fs::read_to_string(root.join(file)) {
        Err(error) => Some(format!("cannot read `{file}`: {error}")),
        Ok(text) if tests(&text).contains(name) => None,
        Ok(_) => Some(format!("`{file}` has no `#[test] fn {name}` that is not ignored")),
    }
}

/// Names of the tests in a Rust source that run by default. A line scan: `#[test]`, any attributes and comments, `fn name`.
fn tests(text: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let (mut marked, mut ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") {
            marked = true;
        }
        if line.starts_with("#[ignore") {
            ignored = true;
        }
        if line.is_empty() || line.starts_with("#[") && !line.contains("fn ") || line.starts_with("//") {
            continue;
        }
        let name = line.split_once("fn ").and_then(|(_, rest)| rest.split(['(', '<']).next());
        names.extend(name.filter(|_| marked && !ignored).map(str::trim));
        (marked, ignored) = (false, false);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "S1 = { state = \"open\", key = \"a\", what = \"b\" }\n";

    #[test]
    fn ignored_and_unmarked_functions_are_no_tests() {
        let text = "#[test]\nfn a() {}\nfn b() {}\n#[test]\n#[ignore = \"slow\"]\nfn c() {}\n    #[test]\n    // why\n    fn d() -> Result<()> {\n";
        assert_eq!(tests(text).into_iter().collect::<Vec<_>>(), ["a", "d"]);
    }

    #[test]
    fn unknown_fields_and_states_do_not_parse() {
        for bad in
            ["S1 = { state = \"half\", key = \"a\", what = \"b\" }", "S1 = { state = \"open\", key = \"a\", what = \"b\", tests = [] }"]
        {
            assert_eq!(Features::parse(bad).expect_err("must not parse").code(), "features::syntax");
        }
    }

    #[test]
    fn problems_name_the_row_and_the_reason() {
        let root = crate::workspace::root();
        let problems = |text: &str| Features::parse(text).expect("parses").problems(&root);
        assert!(problems(GOOD).contains(&"row S2 is missing".to_owned()));
        assert!(!problems(GOOD).iter().any(|p| p.starts_with("row S1 ") || p.starts_with("row S1:")));
        assert!(problems("S237 = { state = \"open\", key = \"a\", what = \"b\" }").contains(&"row S237 is unknown".to_owned()));
        assert!(problems("S1 = { state = \"done\", key = \"a\", what = \"b\" }").contains(&"row S1 is done but names no test".to_owned()));
        let named = |test: &str| problems(&format!("S1 = {{ state = \"done\", key = \"a\", what = \"b\", test = [\"{test}\"] }}"));
        assert!(named("nowhere").contains(&"row S1: `nowhere` is not of the form `path/from/the/root.rs::test_name`".to_owned()));
        assert!(
            named("tests/src/features.rs::nothing")
                .contains(&"row S1: `tests/src/features.rs` has no `#[test] fn nothing` that is not ignored".to_owned())
        );
        assert!(named("no/file.rs::x").iter().any(|p| p.starts_with("row S1: cannot read `no/file.rs`: ")));
        for outside in ["../else.rs", "/else.rs", "tests/../../else.rs"] {
            assert!(named(&format!("{outside}::x")).contains(&format!("row S1: `{outside}` leads out of the workspace")));
        }
        let this = "tests/src/features.rs::problems_name_the_row_and_the_reason";
        assert!(!named(this).iter().any(|p| p.starts_with("row S1:")));
    }
}
