//! Models and data by name: the only place that reads the environment for the Hub.

use std::path::{Path, PathBuf};

use qfw_core::calibration::{DataFile, NamedSet, Part, Source};
use qfw_core::checkpoint::hub::{HubOptions, looks_like_hub_id, resolve_model};
use qfw_core::plan::raw::RawCalibration;
use qfw_core::{Error, Result};

use crate::terminal::note;

/// Settings under the names that Hugging Face's own tools use.
fn options() -> HubOptions {
    HubOptions::from_lookup(&|name| std::env::var(name).ok())
}

/// Where the model called `name` lies here: a local path as it is, a Hub id as its cached snapshot, fetched if need be.
pub(crate) fn model(name: &Path) -> Result<PathBuf> {
    match name.to_str() {
        Some(id) if looks_like_hub_id(id) => resolve_model(id, &options(), &mut |line| note(&format!("`{id}`: {line}"))),
        _ => Ok(name.to_owned()),
    }
}

/// The data to calibrate on. `named`: the user chose it, it is not the default.
pub(crate) fn calibration(c: &RawCalibration, named: bool) -> Result<DataFile> {
    let column = c.text_column.as_deref();
    let set = match Source::find(&c.source)? {
        Source::File(path) => return Ok(DataFile::local(&path, column)),
        Source::Named(set) => set,
    };
    let fetched = fetch(set, set.calibration(c.split.as_deref())?);
    let data = if named { fetched } else { fetched.map_err(|e| no_data(set, e)) }?;
    Ok(DataFile { text_column: column.map_or(data.text_column, ToOwned::to_owned), ..data })
}

/// The data to evaluate on; of a named set the validation split if the protocol prefers it, else the test split.
pub(crate) fn evaluation(source: &str, prefer_validation: bool) -> Result<DataFile> {
    match Source::find(source)? {
        Source::File(path) => Ok(DataFile::local(&path, None)),
        Source::Named(set) => fetch(set, set.evaluation(prefer_validation)?),
    }
}

fn fetch(set: &NamedSet, part: &Part) -> Result<DataFile> {
    let name = set.name;
    set.fetch(part, &options(), &mut |line| note(&format!("`{name}`: {line}"))).map_err(|e| e.within(format_args!("data set `{name}`")))
}

/// Nobody asked for the default by name, so the way out is to give a file.
fn no_data(set: &NamedSet, cause: Error) -> Error {
    let what = format!("a pass reads activations, no `--data` was given, and the default `{}` cannot be fetched", set.name);
    Error::config("calibration::no-data", what)
        .with_source(cause)
        .hint("give a text or token file with `--data FILE` (.txt, .jsonl, .parquet, .safetensors, .npy)")
}
