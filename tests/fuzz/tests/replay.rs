//! Every input that was ever of interest, through the target it is for. Nothing here may panic, nor hold more than a target may.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::System;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cap::Cap;
use qfw_fuzz::{MEMORY, TARGETS, target};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// One target at a time, so that what it holds can be told.
static ALONE: Mutex<()> = Mutex::new(());

/// The inputs of a target, by name.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().map(|f| (f.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(f).unwrap())).collect()
}

#[track_caller]
fn replay(name: &str) {
    let target = target(name).unwrap();
    // The limit below is one of the whole process: whoever makes seeds, whole runs, makes them before or after.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (seeds, corpus) = ((target.seeds)(), corpus(name));
    assert!(!seeds.is_empty() && !corpus.is_empty(), "{name}: nothing to replay");
    // What is made once is made here, outside the limit: checkpoints, and the scratch of matrix products.
    seeds.iter().for_each(|(_, bytes)| (target.run)(bytes));
    ALLOCATOR.set_limit(ALLOCATOR.allocated() + MEMORY).unwrap();
    let mut failed = Vec::new();
    for (input, bytes) in seeds.iter().chain(&corpus) {
        // Cut too, as a copy that was interrupted is.
        for bytes in [&bytes[..], &bytes[..bytes.len() / 2]] {
            if std::panic::catch_unwind(|| (target.run)(bytes)).is_err() {
                failed.push(format!("{input} ({} bytes)", bytes.len()));
            }
        }
    }
    ALLOCATOR.set_limit(usize::MAX).unwrap();
    assert!(failed.is_empty(), "{name}: these inputs panic: {}", failed.join(", "));
}

macro_rules! replayed {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $test() { replay($name) })*
        const REPLAYED: &[&str] = &[$($name),*];
    };
}

replayed! {
    archive: "archive",
    config: "config",
    gguf: "gguf",
    index: "index",
    manifest: "manifest",
    onnx: "onnx",
    quantization: "quantization",
    run_toml: "run-toml",
    safetensors: "safetensors",
    shards: "shards",
    tokenizer: "tokenizer",
}

#[test]
fn every_target_is_replayed_and_every_corpus_has_one() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    let dirs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
    let dirs: BTreeSet<String> = dirs.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(targets, dirs);
    assert_eq!(targets, REPLAYED.iter().map(|n| (*n).to_owned()).collect());
}
