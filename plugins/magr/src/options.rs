//! Options of `magr`.

use qfw_core::Result;
use qfw_core::algorithm::{invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What `alpha` is relative to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AlphaMode {
    /// To inputs whose largest singular value is 1, as in the paper.
    #[default]
    Paper,
    /// As brevitas: the paper's times `σ_max(H) / ‖H‖₁`, which is at most 1.
    Brevitas,
}

/// Over which weights the largest magnitude is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// Over the part of a row that shares a scale.
    #[default]
    Range,
    /// Over whole rows, whatever the scheme.
    Channel,
}

/// How steps are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// With momentum, restarted wherever the objective would rise (Beck and Teboulle 2009; O'Donoghue and Candès 2015).
    #[default]
    Accelerated,
    /// Without, as in the paper.
    Plain,
}

/// Options of `magr`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Weight of the largest magnitudes. Left out: 1e-3 for whole rows and 1e-4 for groups, as in the paper; 0.01 with `alpha-mode =
    /// "brevitas"`.
    #[serde(alias = "magr-alpha", alias = "magr_alpha")]
    pub alpha: Option<f64>,
    /// What `alpha` is relative to.
    #[serde(alias = "alpha_mode")]
    pub alpha_mode: AlphaMode,
    /// Over which weights the largest magnitude is taken.
    pub per: Per,
    /// Steps at most. 40 with momentum lower the objective at least as far as the paper's 200 without.
    #[schemars(range(min = 0, max = 100_000))]
    pub iterations: usize,
    /// A row is done when a step lowers its objective by less than this share; 0 takes all steps.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub tolerance: f64,
    /// How steps are taken.
    pub solver: Solver,
    /// The quantization step of these layers as a fraction of what their ranges say. The paper takes 0.8 to 0.85 at 2 bits, 0.9 at 3 bits
    /// (0.95 in groups) and 1 from 4 bits on.
    #[serde(alias = "step_shrink", alias = "beta")]
    #[schemars(range(min = 0.1, max = 1.0))]
    pub step_shrink: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            alpha: None,
            alpha_mode: AlphaMode::Paper,
            per: Per::Range,
            iterations: 40,
            tolerance: 1e-5,
            solver: Solver::Accelerated,
            step_shrink: 1.0,
        }
    }
}

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let known =
            "alpha, alpha-mode (paper, brevitas), per (range, channel), iterations, tolerance, solver (accelerated, plain), step-shrink";
        let o: Self = read_options("magr", options, known, &[])?;
        let wrong = |name: &str, value: String, hint: &str| Err(invalid_option("magr", name, value, hint));
        if let Some(alpha) = o.alpha.filter(|a| !(0.0..=1.0).contains(a)) {
            return wrong("alpha", alpha.to_string(), "it must be from 0 to 1; 0.001 is usual for whole rows, 0.0001 for groups");
        }
        if !(0.1..=1.0).contains(&o.step_shrink) {
            return wrong("step-shrink", o.step_shrink.to_string(), "it must be from 0.1 to 1; the paper uses 0.8 at 2 bits");
        }
        if !(0.0..=1.0).contains(&o.tolerance) {
            return wrong("tolerance", o.tolerance.to_string(), "it must be from 0 to 1; 0.00001 is usual");
        }
        if o.iterations > 100_000 {
            return wrong("iterations", o.iterations.to_string(), "it must be at most 100000; 40 is usual");
        }
        Ok(o)
    }

    /// The weight of the largest magnitudes, where ranges are parts of rows or not.
    pub(crate) fn alpha(&self, grouped: bool) -> f64 {
        self.alpha.unwrap_or(match (self.alpha_mode, grouped) {
            (AlphaMode::Brevitas, _) => 0.01,
            (AlphaMode::Paper, true) => 1e-4,
            (AlphaMode::Paper, false) => 1e-3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert!(message(json!({ "alhpa": 1 })).contains("unknown field `alhpa`"));
        assert_eq!(message(json!({ "alpha": -0.5 })), "option `alpha` of `magr` is -0.5");
        assert_eq!(message(json!({ "step-shrink": 0 })), "option `step-shrink` of `magr` is 0");
        assert_eq!(message(json!({ "tolerance": 2 })), "option `tolerance` of `magr` is 2");
    }

    #[test]
    fn alpha_means_what_its_source_means() {
        let read = |v| Options::read(&v).unwrap();
        assert_eq!(read(json!({})).alpha(true), 1e-4);
        assert_eq!(read(json!({})).alpha(false), 1e-3);
        assert_eq!(read(json!({ "alpha-mode": "brevitas" })).alpha(true), 0.01);
        assert_eq!(read(json!({ "magr_alpha": 0.5, "alpha_mode": "brevitas" })).alpha(false), 0.5);
    }
}
