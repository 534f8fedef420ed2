//! Command lines and configuration files of other systems, read as a `run.toml` of ours.
//!
//! [`translate`] decides nothing about quantization: it spells what the other system was told in our words, with that system's
//! defaults where they differ from ours. Whether the result can be planned is the planner's business.

mod brevitas;
mod document;
mod draft;
mod flags;
mod mi_optimize;
mod row;
#[cfg(test)]
mod tests;
mod words;

use qfw_core::Result;

/// A system whose command line or configuration file is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum System {
    /// The LLM entry point of Brevitas: its flags, and the YAML file of its `--config`.
    Brevitas,
    /// A configuration file of MI-optimize, or `key=value` words with its keys.
    MiOptimize,
}

/// What a command line of another system means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Translation {
    /// A `run.toml`.
    pub(crate) toml: String,
    /// What has no effect here, or is done differently: one sentence each.
    pub(crate) notes: Vec<String>,
}

impl System {
    /// Its name on our command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Brevitas => "brevitas",
            Self::MiOptimize => "mi-optimize",
        }
    }
}

/// The run that `words` of `system` describe. Files that the words name are read; nothing else is looked at.
///
/// # Errors
/// Words that the system does not know, values that cannot be read or contradict each other, and methods that are not built yet.
pub(crate) fn translate(system: System, words: &[String]) -> Result<Translation> {
    match system {
        System::Brevitas => brevitas::translate(words),
        System::MiOptimize => mi_optimize::translate(words),
    }
}
