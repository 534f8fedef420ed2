//! Options of `zeroquant`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `zeroquant`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Layer-by-layer distillation: `true`, or a table of how.
    pub lkd: Switch,
}

/// Off, on, or on with options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Switch {
    /// Off, or on with the defaults.
    Is(bool),
    /// On.
    With(Lkd),
}

impl Default for Switch {
    fn default() -> Self {
        Self::Is(false)
    }
}

/// How a block learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Lkd {
    /// Steps for each block; 0 rounds to nearest.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub iters: usize,
    /// Calibration windows of a step, drawn without replacement.
    #[serde(alias = "batch_size")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_size: usize,
    /// Step size at first, of AdamW; it goes down to nothing in a straight line.
    pub lr: f64,
    /// The share of a weight that a step of size 1 takes away.
    #[serde(alias = "weight_decay")]
    pub weight_decay: f64,
    /// The largest norm of a block's gradient; longer ones are shortened to it.
    #[serde(alias = "max_grad_norm", alias = "max-grad-norm")]
    pub clip: f64,
}

impl Default for Lkd {
    fn default() -> Self {
        Self { iters: 100, batch_size: 8, lr: 1e-4, weight_decay: 0.0, clip: 1.0 }
    }
}

const KNOWN: &str = "lkd: true, false, or a table of iters, batch-size, lr, weight-decay, clip";

const ELSEWHERE: &[Elsewhere] =
    &[Elsewhere { names: &["seed"], answer: Answer::Refused("random numbers have one seed", "set `calibration.seed`") }];

impl Options {
    /// Reads and checks the options of the pass.
    ///
    /// # Errors
    /// Unknown names, and values that cannot be.
    pub fn read(options: &Value) -> Result<Self> {
        // What is neither is told by what a table may hold.
        if let Some(table) = options.get("lkd").filter(|lkd| lkd.is_object()) {
            let lkd: Lkd = read_options("zeroquant", table, "iters, batch-size, lr, weight-decay, clip", ELSEWHERE)?;
            let bad = |name: &str, value: f64, hint: &str| Err(invalid_option("zeroquant", &format!("lkd.{name}"), value, hint));
            if lkd.batch_size == 0 {
                return bad("batch-size", 0.0, "a step needs a window to learn from");
            }
            for (name, value, most) in [("iters", lkd.iters, 1_000_000), ("batch-size", lkd.batch_size, 65_536)] {
                if value > most {
                    return bad(name, value as f64, &format!("it must be at most {most}"));
                }
            }
            for (name, value) in [("lr", lkd.lr), ("clip", lkd.clip)] {
                if !(value.is_finite() && value > 0.0) {
                    return bad(name, value, "it has to be above 0");
                }
            }
            if !(0.0..1.0).contains(&lkd.weight_decay) {
                return bad("weight-decay", lkd.weight_decay, "it has to lie between 0 and 1, without 1");
            }
        }
        read_options("zeroquant", options, KNOWN, ELSEWHERE)
    }

    /// How blocks learn, if they do.
    pub fn distillation(&self) -> Option<Lkd> {
        match &self.lkd {
            Switch::Is(on) => on.then(Lkd::default),
            Switch::With(lkd) => Some(lkd.clone()),
        }
    }
}
