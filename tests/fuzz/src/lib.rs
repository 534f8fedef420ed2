//! Hostile input for every reader.
//!
//! A target is a function that takes bytes and drives them through an entry point that users reach: a checkpoint directory is opened, a
//! `run.toml` is planned. It panics if what comes back is neither a result nor an error with a name; a panic further down, an overflow, an
//! abort, too much memory or too much time is a finding too.
//!
//! ```text
//! cargo xtask fuzz                 libFuzzer, guided by coverage, on each target in turn
//! cargo test -p qfw-fuzz           every input under `corpus/`, and every seed, once
//! ```
//!
//! Seeds are made here, by the writers of the project itself; `corpus/` has what libFuzzer found beyond them, and an input for each bug that
//! was fixed.

mod bases;
mod dictionary;
mod frame;
mod stage;
mod targets;
mod verdict;

pub use dictionary::dictionary;

/// A reader and what it is fed.
pub struct Target {
    /// Its name, which is also that of its folders.
    pub name: &'static str,
    /// What it reads, in a line.
    pub about: &'static str,
    /// Feeds it one input.
    pub run: fn(&[u8]),
    /// Sound inputs, by name.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::archive::TARGET,
    targets::config::TARGET,
    targets::gguf::TARGET,
    targets::index::TARGET,
    targets::manifest::TARGET,
    targets::onnx::TARGET,
    targets::quantization::TARGET,
    targets::run_toml::TARGET,
    targets::safetensors::TARGET,
    targets::shards::TARGET,
    targets::tokenizer::TARGET,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|t| t.name == name)
}

/// What a target may hold at once, over all allocations: enough for any input of its size, and too little for a length that was believed.
pub const MEMORY: usize = 256 << 20;
