//! Running one row, and keeping what it gave.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use qfw_core::plan::Plan;
use qfw_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Row;
use crate::program::Evaluation;

/// What a row is run with.
pub(super) struct Job<'a> {
    pub(super) qfw: &'a Path,
    pub(super) model: &'a Path,
    pub(super) data: &'a Path,
    pub(super) samples: usize,
    pub(super) evaluation: &'a Evaluation,
}

/// What a row gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Bits per quantized weight, scales and zero points included; none for the float model.
    pub(super) bits: Option<f64>,
    /// How weights are quantized.
    pub(super) weights: String,
    /// How the inputs of linear layers are, if at all.
    pub(super) inputs: Option<String>,
    pub(super) perplexity: f64,
    pub(super) perplexity_stderr: f64,
    /// Nats per token.
    pub(super) windows_nll: Vec<f64>,
}

/// A line of the file of finished rows.
#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    /// Hash of everything the result depends on.
    key: String,
    measured: Measured,
}

/// The rows that are finished.
pub(super) struct Kept {
    path: PathBuf,
    by_key: BTreeMap<String, Measured>,
}

impl Job<'_> {
    /// Hash of what the result depends on. The files stand for what is in them, and the version for the program.
    fn key(&self, row: &Row) -> String {
        let Evaluation { data, seq_len, max_windows } = self.evaluation;
        let all = (row.recipe.as_deref(), self.model, self.data, self.samples, data, seq_len, max_windows, env!("CARGO_PKG_VERSION"));
        blake3::hash(format!("{all:?}").as_bytes()).to_hex().to_string()
    }

    /// Quantizes and measures.
    pub(super) fn run(&self, row: &Row) -> Result<Measured> {
        let Some(recipe) = &row.recipe else {
            return measured(None, &self.evaluation.of(self.qfw, self.model)?);
        };
        let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
        let (config, out) = (dir.path().join("run.toml"), dir.path().join("out"));
        std::fs::write(&config, recipe).map_err(|e| Error::io(&config, "write", e))?;
        let mut command = Command::new(self.qfw);
        command.arg("apply").arg(self.model).arg("--config").arg(&config).arg("--data").arg(self.data).arg("-o").arg(&out);
        command.arg("--format").arg("qfw").arg("--set").arg(format!("calibration.samples={}", self.samples));
        let output = command.output().map_err(|e| Error::io(self.qfw, "run", e))?;
        if !output.status.success() {
            return Err(Error::input("table::apply", format!("row `{}`: `qfw apply` failed: {}", row.id, output.status))
                .hint(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let record = out.join("qfw.json");
        let text = std::fs::read_to_string(&record).map_err(|e| Error::io(&record, "read", e))?;
        let plan = serde_json::from_str::<Value>(&text).and_then(|v| serde_json::from_value::<Plan>(v["plan"].clone()));
        let plan = plan.map_err(|e| Error::internal(format!("the record of row `{}` holds no plan: {e}", row.id)))?;
        measured(Some(&plan), &self.evaluation.of(self.qfw, &out)?)
    }
}

fn measured(plan: Option<&Plan>, eval: &Value) -> Result<Measured> {
    let number = |key: &str| eval[key].as_f64().ok_or_else(|| Error::internal(format!("`qfw eval --json` has no `{key}`")));
    let windows_nll: Option<Vec<f64>> = eval["windows_nll"].as_array().and_then(|a| a.iter().map(Value::as_f64).collect());
    let weights = plan.and_then(|p| p.sites.iter().find_map(|s| s.weights.as_ref()));
    Ok(Measured {
        bits: plan.and_then(Plan::bits_per_weight),
        weights: weights.map_or_else(|| "float".to_owned(), ToString::to_string),
        inputs: plan.and_then(|p| p.activations.first()).map(|a| a.spec.to_string()),
        perplexity: number("perplexity")?,
        perplexity_stderr: number("perplexity_stderr")?,
        windows_nll: windows_nll.ok_or_else(|| Error::internal("`qfw eval --json` has no `windows_nll`"))?,
    })
}

impl Kept {
    /// The rows in the file at `path`, if there is one. A line that was cut short by a kill does not count.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))? } else { String::new() };
        let lines = text.lines().filter_map(|l| serde_json::from_str::<Line>(l).ok());
        Ok(Self { path: path.to_owned(), by_key: lines.map(|l| (l.key, l.measured)).collect() })
    }

    /// What `row` gave, if it is finished.
    pub(super) fn find(&self, job: &Job<'_>, row: &Row) -> Result<Option<Measured>> {
        Ok(self.by_key.get(&job.key(row)).cloned())
    }

    /// Keeps what `row` gave.
    pub(super) fn add(&mut self, job: &Job<'_>, row: &Row, measured: Measured) -> Result<Measured> {
        let line = Line { id: row.id.clone(), key: job.key(row), measured: measured.clone() };
        let text = serde_json::to_string(&line).map_err(|e| Error::internal(e.to_string()))?;
        let mut file = std::fs::File::options().create(true).append(true).open(&self.path).map_err(|e| Error::io(&self.path, "open", e))?;
        // A new line first ends one that was cut short.
        write!(file, "\n{text}\n").map_err(|e| Error::io(&self.path, "write", e))?;
        Ok(measured)
    }
}
