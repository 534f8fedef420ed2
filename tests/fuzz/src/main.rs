//! libFuzzer over the target that `QFW_FUZZ_TARGET` names; `cargo xtask fuzz` runs it. Before it begins, the seeds are put into
//! `QFW_FUZZ_DIR/seeds`, and the dictionary beside them.
#![no_main]

use std::alloc::System;
use std::path::Path;
use std::sync::OnceLock;

use cap::Cap;
use qfw_fuzz::{MEMORY, Target, dictionary, target};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

static CHOSEN: OnceLock<&Target> = OnceLock::new();

#[allow(clippy::expect_used, reason = "`cargo xtask fuzz` sets both")]
fn choose() {
    let name = std::env::var("QFW_FUZZ_TARGET").expect("`QFW_FUZZ_TARGET` names a target");
    let chosen = CHOSEN.get_or_init(|| target(&name).expect("`QFW_FUZZ_TARGET` names a target"));
    let dir = std::env::var("QFW_FUZZ_DIR").expect("`QFW_FUZZ_DIR` names a directory");
    let put = |name: &str, bytes: &[u8]| std::fs::write(Path::new(&dir).join(name), bytes).expect("a file can be written");
    let seeds = (chosen.seeds)();
    put("words.dict", dictionary(&seeds).as_bytes());
    seeds.iter().for_each(|(name, bytes)| put(&format!("seeds/{name}"), bytes));
    contain();
    // What is made once is made here, outside the limits: checkpoints, and the scratch of matrix products.
    seeds.iter().for_each(|(_, bytes)| (chosen.run)(bytes));
}

/// A panic ends the fuzzer before anything can catch it. Those of the tokenizer's library are turned into errors where it is called, so they
/// may unwind to there; if nothing catches them, the fuzzer does.
fn contain() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|l| l.file().contains("/tokenizers-")) {
            end(panic);
        }
    }));
}

libfuzzer_sys::fuzz_target!(init: choose(), |data: &[u8]| {
    // The fuzzer's own memory, which grows, does not count.
    let _ = ALLOCATOR.set_limit(ALLOCATOR.allocated() + MEMORY);
    if let Some(chosen) = CHOSEN.get() {
        (chosen.run)(data);
    }
    let _ = ALLOCATOR.set_limit(usize::MAX);
});
