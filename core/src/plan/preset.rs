//! Presets: a `run.toml` without a model, compiled in.

use crate::error::{Error, Result, did_you_mean};

/// A preset as it is listed.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Its text, a `run.toml` without a model.
    pub text: &'static str,
}

/// All presets, by name.
const PRESETS: [Preset; 4] = [
    Preset { name: "w2a16", text: include_str!("presets/w2a16.toml") },
    Preset { name: "w3a16", text: include_str!("presets/w3a16.toml") },
    Preset { name: "w4a16", text: include_str!("presets/w4a16.toml") },
    Preset { name: "w8a16", text: include_str!("presets/w8a16.toml") },
];

impl Preset {
    /// What it is for: the comment in its first line.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().map(|line| line.trim_start_matches(['#', ' '])).unwrap_or_default()
    }
}

/// All presets, sorted by name.
pub fn presets() -> &'static [Preset] {
    &PRESETS
}

/// The preset called `name`.
///
/// # Errors
/// An unknown name; the error lists the known ones.
pub fn preset(name: &str) -> Result<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let names = PRESETS.map(|preset| preset.name);
        Error::config("config::unknown-preset", format!("unknown preset `{name}`{}", did_you_mean(name, names)))
            .hint(format!("known presets: {}; `--config FILE` takes one of your own", names.join(", ")))
    })
}
