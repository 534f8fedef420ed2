//! What makes checking impossible, and what checking finds.

use std::fmt;

use serde::Serialize;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something cannot be read: a stable kebab-case code, a message, and what the reader can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Such as `verify::no-config`.
    pub code: &'static str,
    /// A lower-case fragment without a full stop.
    pub message: String,
    /// The way out, where there is one.
    pub hint: Option<String>,
}

impl Error {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A file that cannot be read.
    pub(crate) fn file(path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new("verify::file", format!("cannot read `{}`: {error}", path.display())).hint("is it there, and may it be read?")
    }

    /// A tensor that is not what its format asks for.
    pub(crate) fn tensor(message: impl Into<String>) -> Self {
        Self::new("verify::tensor", message)
    }

    /// A configuration that is not what its format asks for.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new("verify::config", message).hint("the checkpoint is damaged, or written by a tool that is not known here")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name of the kind: `file`, `header`, `truncated`, `index`, `missing`, `extra`, `shape`, `config`, `not-finite`, `side-file`,
    /// `tensor`.
    pub code: &'static str,
    /// The tensor, where it is about one.
    pub tensor: Option<String>,
    /// What is wrong, with the file and the numbers.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, tensor: None, message: message.into() }
    }

    pub(crate) fn of(code: &'static str, tensor: &str, message: impl Into<String>) -> Self {
        Self { code, tensor: Some(tensor.to_owned()), message: message.into() }
    }
}
