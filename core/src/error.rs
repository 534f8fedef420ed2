//! The one error type of the library.
//!
//! `Display` is a lower-case fragment without a full stop. What the reader can do about it is a separate [`Error::hint`], which a
//! front end prints on a line of its own. Causes are reached through [`std::error::Error::source`] and never pasted into the message.

use std::fmt;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is; a front end maps it to an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The user's configuration, command line, or choice of options.
    Config,
    /// The plan cannot work: unsupported combination, unmatched selector, budget.
    Plan,
    /// A checkpoint, data file or other input is malformed, missing or contradictory.
    Input,
    /// Reading or writing files failed.
    Io,
    /// A plugin could not be found, loaded, or broke its contract.
    Plugin,
    /// Numbers went wrong: not finite, not positive definite.
    Numeric,
    /// The run was interrupted on request; it can be resumed.
    Interrupted,
    /// A bug in this program.
    Internal,
}

/// An error with a stable code, a message, and, where there is one, a hint.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    code: &'static str,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error. `code` is a stable kebab-case name such as `config::unknown-key`.
    pub fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { kind, code, message: message.into(), hint: None, source: None }) }
    }

    /// Wrong configuration (exit code 2).
    pub fn config(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, code, message)
    }

    /// A plan that cannot work (exit code 2).
    pub fn plan(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Plan, code, message)
    }

    /// Malformed or contradictory input (exit code 1).
    pub fn input(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, code, message)
    }

    /// Failed file operation on `path`.
    pub fn io(path: &std::path::Path, action: &str, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, "io", format!("cannot {action} `{}`", path.display())).with_source(source)
    }

    /// Numeric failure (exit code 4).
    pub fn numeric(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Numeric, code, message)
    }

    /// A run that was asked to stop; what is on disk can be gone on from (exit code 130).
    pub fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted", "interrupted")
            .hint("finished blocks are kept; run the same command with `--resume` to go on")
    }

    /// A bug in this program.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, "internal", message)
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// The cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// Puts `context` before the message: the site, file or pass in which the error arose.
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.inner.message = format!("{context}: {}", self.inner.message);
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.inner.code
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.inner.code, self.inner.message)?;
        if let Some(hint) = &self.inner.hint {
            write!(f, " (hint: {hint})")?;
        }
        if let Some(source) = &self.inner.source {
            write!(f, " (caused by: {source})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::new(ErrorKind::Internal, "tensor", format!("tensor operation failed: {source}"))
    }
}

/// ` (did you mean `x`?)` for the known name nearest to `wrong`, or an empty string.
pub fn did_you_mean<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min()
        .map_or_else(String::new, |(_, name)| format!(" (did you mean `{name}`?)"))
}
