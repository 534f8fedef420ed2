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
use crate::program::{Evaluation, children};

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
    /// Of all threads, for the whole `qfw apply`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cpu_seconds: Option<f64>,
}

/// What a row gave on the mean over seeds.
#[derive(Clone, Debug)]
pub(super) struct Mean {
    /// As of the first seed, with `windows_nll` the mean over seeds, and the perplexity that belongs to it.
    pub(super) all: Measured,
    /// Perplexity of each seed.
    pub(super) each: Vec<f64>,
}

impl Mean {
    /// The mean; none of nothing.
    pub(super) fn of(seeds: &[Measured]) -> Option<Self> {
        let n = seeds.len() as f64;
        let mut all = seeds.first()?.clone();
        if seeds.len() > 1 {
            let over_seeds = |w: usize| seeds.iter().filter_map(|m| m.windows_nll.get(w)).sum::<f64>() / n;
            all.windows_nll = (0..all.windows_nll.len()).map(over_seeds).collect();
            all.perplexity = (seeds.iter().map(|m| m.perplexity.ln()).sum::<f64>() / n).exp();
            all.perplexity_stderr = seeds.iter().map(|m| m.perplexity_stderr).sum::<f64>() / n;
        }
        Some(Self { all, each: seeds.iter().map(|m| m.perplexity).collect() })
    }
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
    fn key(&self, row: &Row, seed: u64) -> String {
        let Evaluation { data, seq_len, max_windows, products } = self.evaluation;
        let seed = row.seeded.then_some(seed);
        let calibration = (self.data, self.samples, seed);
        let all = (row.recipe.as_deref(), self.model, calibration, data, seq_len, max_windows, products, env!("CARGO_PKG_VERSION"));
        blake3::hash(format!("{all:?}").as_bytes()).to_hex().to_string()
    }

    /// Quantizes and measures.
    pub(super) fn run(&self, row: &Row, seed: u64) -> Result<Measured> {
        let Some(recipe) = &row.recipe else {
            return measured(None, &self.evaluation.of(self.qfw, self.model)?, None);
        };
        let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
        let (config, out) = (dir.path().join("run.toml"), dir.path().join("out"));
        std::fs::write(&config, recipe).map_err(|e| Error::io(&config, "write", e))?;
        let mut command = Command::new(self.qfw);
        command.arg("apply").arg(self.model).arg("--config").arg(&config).arg("--data").arg(self.data).arg("-o").arg(&out);
        command.arg("--format").arg("qfw").arg("--set").arg(format!("calibration.samples={}", self.samples));
        command.arg("--set").arg(format!("calibration.seq-len={}", self.evaluation.seq_len));
        command.arg("--set").arg(format!("calibration.seed={seed}"));
        command.arg("--set").arg(format!("harness.products={}", self.evaluation.products));
        let before = children().0;
        let output = command.output().map_err(|e| Error::io(self.qfw, "run", e))?;
        let seconds = children().0 - before;
        if !output.status.success() {
            return Err(Error::input("table::apply", format!("row `{}`: `qfw apply` failed: {}", row.id, output.status))
                .hint(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let record = out.join("qfw.json");
        let text = std::fs::read_to_string(&record).map_err(|e| Error::io(&record, "read", e))?;
        let plan = serde_json::from_str::<Value>(&text).and_then(|v| serde_json::from_value::<Plan>(v["plan"].clone()));
        let plan = plan.map_err(|e| Error::internal(format!("the record of row `{}` holds no plan: {e}", row.id)))?;
        measured(Some(&plan), &self.evaluation.of(self.qfw, &out)?, Some(seconds))
    }
}

fn measured(plan: Option<&Plan>, eval: &Value, cpu_seconds: Option<f64>) -> Result<Measured> {
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
        cpu_seconds,
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
    pub(super) fn find(&self, job: &Job<'_>, row: &Row, seed: u64) -> Result<Option<Measured>> {
        Ok(self.by_key.get(&job.key(row, seed)).cloned())
    }

    /// Keeps what `row` gave.
    pub(super) fn add(&mut self, job: &Job<'_>, row: &Row, seed: u64, measured: Measured) -> Result<Measured> {
        let line = Line { id: row.id.clone(), key: job.key(row, seed), measured: measured.clone() };
        let text = serde_json::to_string(&line).map_err(|e| Error::internal(e.to_string()))?;
        let mut file = std::fs::File::options().create(true).append(true).open(&self.path).map_err(|e| Error::io(&self.path, "open", e))?;
        // A new line first ends one that was cut short.
        write!(file, "\n{text}\n").map_err(|e| Error::io(&self.path, "write", e))?;
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_over_seeds_is_of_losses_window_by_window() {
        let of = |perplexity: f64, windows_nll: &[f64]| Measured {
            bits: None,
            weights: String::new(),
            inputs: None,
            perplexity,
            perplexity_stderr: 1.0,
            windows_nll: windows_nll.to_vec(),
            cpu_seconds: None,
        };
        let mean = Mean::of(&[of(4.0, &[1.0, 2.0]), of(9.0, &[3.0, 5.0])]).unwrap();
        assert_eq!(mean.all.windows_nll, [2.0, 3.5]);
        assert!((mean.all.perplexity - 6.0).abs() < 1e-12, "the geometric mean: {}", mean.all.perplexity);
        assert_eq!(mean.each, [4.0, 9.0]);
        assert!(Mean::of(&[]).is_none());
    }
}
