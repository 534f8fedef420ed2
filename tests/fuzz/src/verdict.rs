//! What may come back from an entry point: a result, or an error that a user can act on.

use std::path::Path;

use qfw_core::checkpoint::Checkpoint;
use qfw_core::export::{Export, Request};
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::{Error, ErrorKind, evaluate};
use tempfile::TempDir;

use crate::bases;

/// The result, or nothing if it is an error with a name.
///
/// # Panics
/// If it is an internal error, or one that says nothing.
pub(crate) fn sound<T>(result: Result<T, Error>) -> Option<T> {
    let error = match result {
        Ok(done) => return Some(done),
        Err(error) => error,
    };
    assert!(error.kind() != ErrorKind::Internal, "an internal error for what was read: {error:?}");
    named(error.code(), &error.to_string());
    None
}

/// The same of the second reader's.
pub(crate) fn sound_second<T>(result: qfw_verify::Result<T>) -> Option<T> {
    result.map_err(|error| named(error.code, &error.message)).ok()
}

fn named(code: &str, message: &str) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == ':';
    assert!(!code.is_empty() && code.chars().all(plain), "`{code}` is no name of an error");
    assert!(!message.trim().is_empty(), "the error `{code}` says nothing");
}

/// Everything that reads a checkpoint.
pub(crate) struct Readers {
    registry: Registry,
    /// A sound checkpoint, which the second reader compares with.
    sound_one: TempDir,
}

impl Readers {
    pub(crate) fn new() -> Self {
        Self { registry: bases::registry(), sound_one: bases::float() }
    }

    /// The checkpoint at `path`: inspected, opened with its tokenizer, run on three tokens, read as an export does, and checked by the second
    /// reader. Whether it can be run.
    pub(crate) fn read(&self, path: &Path) -> bool {
        let verify = || sound_second(qfw_verify::verify(path, Some(self.sound_one.path())));
        let Some(checkpoint) = sound(Checkpoint::open(path)) else {
            verify();
            return false;
        };
        let mut row = Vec::new();
        for name in checkpoint.tensors.names() {
            let rows = checkpoint.tensors.info(&name).and_then(|i| i.shape.first().copied()).unwrap_or(1);
            sound(checkpoint.tensors.read_f32(&name, 0..rows.min(2), &mut row));
            let _ = checkpoint.tensors.coded(&name);
        }
        let runs = sound(Opened::of(checkpoint, &self.registry)).is_some_and(|opened| {
            if let Some(tokenizer) = sound(opened.tokenizer()).flatten() {
                sound(tokenizer.encode("a man", true));
            }
            sound(evaluate::logits(&opened.model, &[1, 2, 0])).is_some()
        });
        let request = Request { formats: vec!["qfw".to_owned()], target: None, dtype: None };
        sound(Export::open(path, &self.registry, &request));
        verify();
        runs
    }
}
