//! Running one row.

use std::path::Path;

use qfw_core::plan::Plan;
use qfw_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Row;
use crate::program::{Evaluation, apply};

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

impl Job<'_> {
    /// Hash of what the result depends on. The files stand for what is in them, and the version for the program.
    pub(super) fn key(&self, row: &Row, seed: u64) -> String {
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
        let settings = [
            format!("calibration.samples={}", self.samples),
            format!("calibration.seq-len={}", self.evaluation.seq_len),
            format!("calibration.seed={seed}"),
            format!("harness.products={}", self.evaluation.products),
            "output.format=[\"qfw\"]".to_owned(),
        ];
        let out = dir.path().join("out");
        let took = apply(self.qfw, self.model, self.data, recipe, &settings, &out).map_err(|e| e.within(format!("row `{}`", row.id)))?;
        let record = out.join("qfw.json");
        let text = std::fs::read_to_string(&record).map_err(|e| Error::io(&record, "read", e))?;
        let plan = serde_json::from_str::<Value>(&text).and_then(|v| serde_json::from_value::<Plan>(v["plan"].clone()));
        let plan = plan.map_err(|e| Error::internal(format!("the record of row `{}` holds no plan: {e}", row.id)))?;
        measured(Some(&plan), &self.evaluation.of(self.qfw, &out)?, Some(took.cpu_seconds))
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
