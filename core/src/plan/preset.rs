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
const PRESETS: [Preset; 18] = [
    Preset { name: "fp8", text: include_str!("presets/fp8.toml") },
    Preset { name: "fp8-block", text: include_str!("presets/fp8-block.toml") },
    Preset { name: "fp8-dynamic", text: include_str!("presets/fp8-dynamic.toml") },
    Preset { name: "mxfp4", text: include_str!("presets/mxfp4.toml") },
    Preset { name: "nvfp4", text: include_str!("presets/nvfp4.toml") },
    Preset { name: "ternary", text: include_str!("presets/ternary.toml") },
    Preset { name: "w2a16", text: include_str!("presets/w2a16.toml") },
    Preset { name: "w3a16", text: include_str!("presets/w3a16.toml") },
    Preset { name: "w4a16", text: include_str!("presets/w4a16.toml") },
    Preset { name: "w4a16kv8", text: include_str!("presets/w4a16kv8.toml") },
    Preset { name: "w4a4", text: include_str!("presets/w4a4.toml") },
    Preset { name: "w4a4kv4", text: include_str!("presets/w4a4kv4.toml") },
    Preset { name: "w4a8", text: include_str!("presets/w4a8.toml") },
    Preset { name: "w8a16", text: include_str!("presets/w8a16.toml") },
    Preset { name: "w8a8", text: include_str!("presets/w8a8.toml") },
    Preset { name: "w8a8-static", text: include_str!("presets/w8a8-static.toml") },
    Preset { name: "zeroquant-mixed", text: include_str!("presets/zeroquant-mixed.toml") },
    Preset { name: "zeroquant-w8a8", text: include_str!("presets/zeroquant-w8a8.toml") },
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
