//! Tests of the raw configuration as a whole: examples, layers, messages, round trip.

mod errors;
mod examples;
mod layering;
mod roundtrip;

use super::layer::Layers;
use super::raw::RawRun;

/// The run of one file called `run.toml`.
fn run(text: &str) -> RawRun {
    Layers::new().file("run.toml", text).finish().unwrap().0
}

/// The message of the error that the layers end in.
fn error(layers: Layers) -> String {
    layers.finish().unwrap_err().to_string()
}

/// A file with a model, and `text` below it.
fn with_model(text: &str) -> String {
    format!("schema = 1\nmodel.path = \"m\"\n{text}")
}
