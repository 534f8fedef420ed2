//! Words of a command line, split into names and values.

use std::path::Path;

use qfw_core::{Error, Result};

use super::document;
use super::row::{Row, Takes};

/// A name and its value as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Given {
    /// As written, without dashes in front.
    pub(super) name: String,
    /// What messages call it.
    pub(super) shown: String,
    /// The values; none for a switch.
    pub(super) values: Vec<String>,
    /// Whether it stands in a file, where everything is often written out with its default.
    pub(super) in_file: bool,
}

/// How a command line of a system is written.
pub(super) struct Manner {
    /// The rows that say which flags take values.
    pub(super) rows: &'static [Row],
    /// The flag whose value is a configuration file.
    pub(super) file_flag: &'static str,
    /// Whether a bare word is a configuration file too.
    pub(super) bare_files: bool,
}

/// Everything that is given: what files say first, so that the command line has the last word.
pub(super) fn read(words: &[String], manner: &Manner) -> Result<Vec<Given>> {
    let (mut files, mut given) = (Vec::new(), Vec::new());
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        let Some(flag) = word.strip_prefix("--") else {
            match word.split_once('=') {
                Some((name, value)) => given.push(one(name, format!("`{name}`"), value)),
                None if manner.bare_files => files.push(word),
                None => return Err(usage(format!("`{word}` is neither a flag nor the value of one"))),
            }
            continue;
        };
        let (name, inline) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let is_file = super::row::plain(name) == manner.file_flag;
        let takes = manner.rows.iter().find(|row| row.is(name)).map(|row| row.takes);
        let mut values: Vec<&str> = inline.into_iter().collect();
        match takes {
            Some(Takes::Switch) if !is_file => {}
            Some(Takes::List) => values.extend(std::iter::from_fn(|| rest.next_if(|word| !word.starts_with("--")))),
            _ if values.is_empty() => values.extend(rest.next_if(|word| !word.starts_with("--"))),
            _ => {}
        }
        let shown = format!("`--{name}`");
        if is_file {
            files.push(values.first().ok_or_else(|| usage(format!("{shown} needs a file")))?);
        } else {
            given.push(Given { name: name.to_owned(), shown, values: values.into_iter().map(str::to_owned).collect(), in_file: false });
        }
    }
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).map_err(|e| Error::io(Path::new(file), "read", e))?;
        all.extend(document::read(file, &text)?);
    }
    all.extend(given);
    Ok(all)
}

fn one(name: &str, shown: String, value: &str) -> Given {
    // A list may be written `[a, b]` or `a,b`; whether it is one is for its row to say.
    Given { name: name.to_owned(), shown, values: vec![value.to_owned()], in_file: false }
}

fn usage(message: String) -> Error {
    Error::config("compat::usage", message)
        .hint("everything after `--` is read as the other system's command line; our own flags go before it")
}
