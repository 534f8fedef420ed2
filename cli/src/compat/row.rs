//! One row per flag of another system: its name, what it takes, and what becomes of it here.

/// One flag or key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Numbers in the list of features, such as `S145`; a key that several methods share has several.
    #[cfg_attr(not(test), expect(dead_code, reason = "it ties a row to the list of features; the tests read it"))]
    pub(super) number: &'static str,
    /// Name without dashes in front and with `-` for `_`.
    pub(super) name: &'static str,
    /// Other names of the same.
    pub(super) also: &'static [&'static str],
    /// Its value.
    pub(super) takes: Takes,
    /// What it means here.
    pub(super) meaning: Meaning,
}

/// The value of a flag.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    /// None on a command line, `true` or `false` in a file.
    Switch,
    /// A whole number.
    Whole,
    /// A number.
    Number,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Any text.
    Text,
    /// Any number of words.
    List,
}

/// What a flag means here.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// It becomes part of the run.
    Used,
    /// It is accepted and noted, with the reason why nothing follows from it.
    NoEffect(&'static str),
    /// It belongs to another flag, by whose absence it has no effect.
    Of(&'static str),
    /// It asks for this, which is not built yet. To be replaced by [`Meaning::Used`] when it is.
    NotYet(&'static str),
}

impl Row {
    /// A row with one name.
    pub(super) const fn new(number: &'static str, name: &'static str, takes: Takes, meaning: Meaning) -> Self {
        Self { number, name, also: &[], takes, meaning }
    }

    /// The same row, with other names.
    pub(super) const fn or(mut self, also: &'static [&'static str]) -> Self {
        self.also = also;
        self
    }

    /// Whether `name`, written with `-` or `_`, means this row.
    pub(super) fn is(&self, name: &str) -> bool {
        let name = plain(name);
        self.name == name || self.also.contains(&name.as_str())
    }
}

/// A name as rows have it.
pub(super) fn plain(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}
