//! A second reader of quantized checkpoints.
//!
//! Who writes a file and reads it back with the same code proves that he agrees with himself. This crate decodes what is on disk with code of
//! its own, written from the formats' descriptions; it depends on nothing else of this project, and a test holds it to that. It compares the
//! values with the hashes that a run recorded of what it meant to write ([`record`](self) in `qfw.json`), or with another checkpoint
//! tensor by tensor, and checks what lies around them: shards, index and configuration agree, no tensor is missing, left over, of the
//! wrong shape or not finite, the quantization configuration says what is there, side files are there byte for byte.
//!
//! Containers: `compressed-tensors`, `gptq`, `awq`, `gguf`, the native `qfw`, and plain floats. One tensor is in memory at a time.
//!
//! Nothing that a file says is believed before it is checked: damaged and hostile files are errors or findings, not panics.

mod bits;
mod check;
mod checkpoint;
mod container;
mod dtype;
mod error;
mod family;
mod gguf_file;
mod matrix;
mod record;
mod report;
mod rows;
mod safetensors_file;
mod store;

use std::path::{Path, PathBuf};

use checkpoint::Checkpoint;
pub use error::{Error, Finding, Result};
use family::{BUFFERS, short};
use record::Record;
pub use report::{Difference, Position, Report, TensorReport};

/// The directories to be checked where `path` is what a run wrote: one for each format if there are several, else `path` itself.
///
/// # Errors
/// If there is a record of a run, but it cannot be read.
pub fn parts(path: &Path) -> Result<Vec<PathBuf>> {
    let several = record::several(path)?;
    Ok(if several.is_empty() { vec![path.to_owned()] } else { several })
}

/// Checks a checkpoint: against the record of the run that wrote it, where there is one, and against another checkpoint, where one is given.
///
/// # Errors
/// If nothing of it can be read, or there is nothing to compare it with. What can be read and is wrong is in the report.
pub fn verify(path: &Path, against: Option<&Path>) -> Result<Report> {
    let mut here = Checkpoint::open(path)?;
    let there = against.map(Checkpoint::open).transpose().map_err(|e| Error { message: format!("`--against`: {}", e.message), ..e })?;
    let recorded = record::find(&here.dir)?;
    if recorded.is_none() && there.is_none() {
        return Err(Error::new("verify::nothing-to-compare", format!("`{}` has no `qfw.json` that says what was written", path.display()))
            .hint("give the checkpoint that it should equal: `--against MODEL`"));
    }
    let (record, file) = recorded.unzip();
    let mut findings = std::mem::take(&mut here.findings);
    let (mut tensors, mut unchecked) = (Vec::new(), here.aside.clone());
    for (name, entry) in here.entries.iter().filter(|(n, _)| !here.aside.contains(n)) {
        let said = record.as_ref().and_then(|r| {
            let exact = r.tensors.get(name);
            exact.or_else(|| r.tensors.iter().find(|(k, _)| short(k) == short(name)).map(|(_, f)| f))
        });
        let other = there.as_ref().and_then(|t| t.find(name).map(|n| (&t.entries[n], t)));
        if said.is_none() && record.is_some() {
            findings.push(Finding::of("extra", name, format!("`{name}` is there, and the run did not write it")));
        }
        if other.is_none() && there.is_some() {
            findings.push(Finding::of("extra", name, format!("`{name}` is here, and not in the other checkpoint")));
        }
        if said.is_none() && other.is_none() {
            unchecked.push(name.clone());
        }
        if let Some(said) = said.filter(|s| s.shape != entry.shape) {
            findings.push(Finding::of("shape", name, format!("`{name}` is {:?}, and the run wrote {:?}", entry.shape, said.shape)));
        }
        match check::pass(name, entry, &here, other) {
            Ok(pass) => {
                findings.extend(pass.findings);
                tensors.push(TensorReport {
                    name: name.clone(),
                    shape: entry.shape.clone(),
                    quantized: matches!(entry.form, checkpoint::Form::Coded(_)),
                    as_recorded: said.map(|s| s.values == pass.values),
                    codes_as_recorded: said.and_then(|s| Some(*s.codes.as_ref()? == pass.codes?)),
                    against: pass.against,
                });
            }
            Err(e) => findings.push(Finding::of(if e.code == "shape" { "shape" } else { "tensor" }, name, e.message)),
        }
    }
    let mut left_out = Vec::new();
    let known: Vec<&String> = record.iter().flat_map(|r| r.tensors.keys()).chain(there.iter().flat_map(|t| t.entries.keys())).collect();
    for name in known {
        if here.find(name).is_some() || left_out.contains(name) {
            continue;
        }
        if here.container == "gguf" && BUFFERS.iter().any(|b| name.ends_with(b)) {
            left_out.push(name.clone());
        } else if !here.broken(name) && !findings.iter().any(|f| f.tensor.as_ref() == Some(name)) {
            findings.push(Finding::of("missing", name, format!("`{name}` is missing")));
        }
    }
    if let Some(record) = &record {
        activations(&here, record, &mut findings);
        files(&here, record, &mut findings);
    }
    let codes: Vec<bool> =
        tensors.iter().flat_map(|t| [t.codes_as_recorded, t.against.as_ref().and_then(|d| d.codes_equal)]).flatten().collect();
    Ok(Report {
        path: path.to_owned(),
        container: here.container.clone(),
        record: file,
        equal: findings.is_empty() && !tensors.iter().any(TensorReport::differs),
        codes_equal: (!codes.is_empty()).then(|| codes.into_iter().all(|c| c)),
        tensors,
        findings,
        unchecked,
        left_out,
        known_architecture: here.known,
    })
}

/// Scales of activations.
fn activations(here: &Checkpoint, record: &Record, findings: &mut Vec<Finding>) {
    for (name, said) in &record.activations {
        match here.activations.get(name) {
            Some(numbers) if check::hash(numbers) == *said => {}
            Some(_) => {
                findings.push(Finding::of("activation", name, format!("the scales of `{name}` are not those that the run recorded")))
            }
            None => findings.push(Finding::of("activation", name, format!("the scales of `{name}` are missing"))),
        }
    }
    for name in here.activations.keys().filter(|n| !record.activations.contains_key(*n)) {
        findings.push(Finding::of("activation", name, format!("the scales of `{name}` are there, and the run did not write them")));
    }
}

/// Files beside the weights.
fn files(here: &Checkpoint, record: &Record, findings: &mut Vec<Finding>) {
    for (name, said) in &record.files {
        // A name, not a way out of the directory.
        let path = here.dir.join(name);
        if Path::new(name).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            findings.push(Finding::new("side-file", format!("`{name}` in the record is no file beside it")));
            continue;
        }
        match std::fs::read(&path) {
            Ok(bytes) if blake3::hash(&bytes).to_hex().as_str() == said => {}
            Ok(_) => findings.push(Finding::new("side-file", format!("`{name}` is not what the run wrote"))),
            Err(e) => findings.push(Finding::new("side-file", format!("`{name}` cannot be read: {e}"))),
        }
    }
}
