//! One file per subcommand.

pub(crate) mod adapter;
pub(crate) mod apply;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod list_plugins;
pub(crate) mod plan;
pub(crate) mod plugin;
pub(crate) mod quickstart;
pub(crate) mod record;
pub(crate) mod schema;
mod scoring;
pub(crate) mod target;
pub(crate) mod topology;
pub(crate) mod verify;

use qfw_core::{Error, Result};

/// Sets the number of worker threads, once.
fn use_threads(threads: Option<usize>) -> Result<()> {
    if threads == Some(0) {
        return Err(Error::config("config::invalid", "`--threads` is 0").hint("give at least 1"));
    }
    let n = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build_global()
        .map_err(|e| Error::internal("the worker threads could not be started").with_source(e))
}

/// A JSON document on stdout.
fn say_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    crate::terminal::say(&text);
    Ok(())
}
