//! Options of `learned-round`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options, unused_option};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is learned of each weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// An offset of at most half a step before rounding.
    #[default]
    #[serde(alias = "linear_round", alias = "auto-round", alias = "autoround", alias = "sign-round")]
    LinearRound,
    /// A number between 0 and 1 in place of the rounding, driven to either end.
    #[serde(alias = "adaround", alias = "hard-sigmoid", alias = "sigmoid_round")]
    Sigmoid,
}

/// How the step size goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Down to nothing in a straight line.
    #[default]
    Linear,
    /// As it is.
    Constant,
}

/// How ranges are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScaleOptimizer {
    /// By the sign of the gradient.
    Sign,
    /// By the gradient of the scale itself (of the ends of an affine range), with momentum.
    Sgd,
}

/// Options of `learned-round`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// What is learned of each weight.
    #[serde(alias = "learned-round", alias = "learned_round")]
    pub method: Method,
    /// Steps for each block; 0 rounds to nearest.
    #[serde(alias = "learned-round-iters", alias = "learned_round_iters", alias = "iterations")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub iters: usize,
    /// Calibration windows of a step, drawn without replacement.
    #[serde(alias = "batch_size")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_size: usize,
    /// Step size. Left out: 1/`iters` for offsets, which is 5e-3 for 200 and lets an offset cross its range; 1e-2 for `sigmoid`.
    #[serde(alias = "learned-round-lr", alias = "learned_round_lr")]
    pub lr: Option<f64>,
    /// How the step size goes on.
    #[serde(alias = "lr-scheduler")]
    pub schedule: Schedule,
    /// Whether the ranges of tiles are learned too. Left out: yes. Soft rounding leaves ranges alone.
    #[serde(alias = "learned-round-scale", alias = "learned_round_scale", alias = "enable-minmax-tuning", alias = "enable_minmax_tuning")]
    pub learn_scale: Option<bool>,
    /// Step size of ranges, for `sign` as a share of them. Left out: that of the offsets for `sign`, 1e-2 for `sgd`.
    #[serde(
        alias = "learned-round-scale-lr",
        alias = "learned_round_scale_lr",
        alias = "minmax-lr",
        alias = "minmax_lr",
        alias = "scale_lr"
    )]
    pub scale_lr: Option<f64>,
    /// How ranges are moved. Left out: `sign`.
    #[serde(alias = "scale_optimizer")]
    pub scale_optimizer: Option<ScaleOptimizer>,
    /// Momentum of `sgd` on ranges. Left out: 0.9.
    #[serde(alias = "learned-round-scale-momentum", alias = "learned_round_scale_momentum", alias = "scale_momentum")]
    #[schemars(range(min = 0.0, max = 0.999))]
    pub scale_momentum: Option<f64>,
    /// Whether a block reads what the rounded blocks before it put out, or what the original ones did.
    #[serde(alias = "enable_quanted_input")]
    pub enable_quanted_input: bool,
    /// Weight of what drives `sigmoid` to its ends. Left out: 0.01.
    #[serde(alias = "reg_weight")]
    pub regularization: Option<f64>,
    /// The share of the steps before that begins. Left out: 0.2.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::LinearRound,
            iters: 200,
            batch_size: 8,
            lr: None,
            schedule: Schedule::Linear,
            learn_scale: None,
            scale_lr: None,
            scale_optimizer: None,
            scale_momentum: None,
            enable_quanted_input: true,
            regularization: None,
            warmup: None,
        }
    }
}

const KNOWN: &str = "method, iters, batch-size, lr, schedule, learn-scale, scale-lr, scale-optimizer, scale-momentum, \
                     enable-quanted-input, regularization, warmup";

const ELSEWHERE: &[Elsewhere] = &[
    // Blocks are always learned on what the learned blocks before them put out, without running the model from its start again.
    Elsewhere {
        names: &["learned-round-fast-update", "fast-update"],
        answer: Answer::Always(true, "no block is run again once it is learned"),
    },
    Elsewhere { names: &["seed"], answer: Answer::Refused("random numbers have one seed", "set `calibration.seed`") },
];

impl Options {
    /// Reads and checks the options of the pass.
    ///
    /// # Errors
    /// Unknown names, and values that cannot be.
    pub fn read(options: &Value) -> Result<Self> {
        let read: Self = read_options("learned-round", options, KNOWN, ELSEWHERE)?;
        let bad = |name: &str, value: &dyn std::fmt::Display, hint: &str| Err(invalid_option("learned-round", name, value, hint));
        let positive = |x: Option<f64>| x.is_none_or(|x| x.is_finite() && x > 0.0);
        if read.batch_size == 0 {
            return bad("batch-size", &0, "a step needs a window to learn from");
        }
        for (name, value, most) in [("iters", read.iters, 1_000_000), ("batch-size", read.batch_size, 65_536)] {
            if value > most {
                return bad(name, &value, &format!("it must be at most {most}"));
            }
        }
        for (name, lr) in [("lr", read.lr), ("scale-lr", read.scale_lr)] {
            if !positive(lr) {
                return bad(name, &lr.unwrap_or_default(), "it has to be above 0");
            }
        }
        if !(0.0..1.0).contains(&read.momentum()) {
            return bad("scale-momentum", &read.momentum(), "it has to lie between 0 and 1, without 1");
        }
        if !(0.0..=1.0).contains(&read.warmup()) {
            return bad("warmup", &read.warmup(), "it has to lie between 0 and 1");
        }
        if !(read.lambda().is_finite() && read.lambda() >= 0.0) {
            return bad("regularization", &read.lambda(), "it has to be a number, and not below 0");
        }
        read.check_effect()?;
        Ok(read)
    }

    /// Refuses what would change nothing.
    fn check_effect(&self) -> Result<()> {
        let soft = self.method == Method::Sigmoid;
        let fixed = soft || !self.learns_scale();
        let given = [
            ("learn-scale", soft && self.learn_scale == Some(true), "`method` = `sigmoid` leaves ranges alone"),
            ("scale-lr", fixed && self.scale_lr.is_some(), "no ranges are learned"),
            ("scale-optimizer", fixed && self.scale_optimizer.is_some(), "no ranges are learned"),
            ("scale-momentum", fixed && self.scale_momentum.is_some(), "no ranges are learned"),
            ("scale-momentum", self.optimizer() == ScaleOptimizer::Sign && self.scale_momentum.is_some(), "steps by the sign have none"),
            ("regularization", !soft && self.regularization.is_some(), "`method` = `linear-round` has none"),
            ("warmup", !soft && self.warmup.is_some(), "`method` = `linear-round` has none"),
        ];
        match given.into_iter().find(|(_, idle, _)| *idle) {
            Some((name, _, why)) => Err(unused_option("learned-round", name, why)),
            None => Ok(()),
        }
    }

    /// Options of `adaround`, which is soft rounding under its own name.
    ///
    /// # Errors
    /// As [`Options::read`], and another method.
    pub fn adaround(options: &Value) -> Result<Self> {
        let mut options = options.clone();
        if let Some(options) = options.as_object_mut() {
            options.entry("method").or_insert_with(|| "sigmoid".into());
        }
        let read = Self::read(&options)?;
        if read.method != Method::Sigmoid {
            return Err(invalid_option("adaround", "method", "linear-round", "AdaRound is `sigmoid`; the other one is `learned-round`"));
        }
        Ok(read)
    }

    pub(crate) fn learns_scale(&self) -> bool {
        self.method == Method::LinearRound && self.learn_scale.unwrap_or(true)
    }

    pub(crate) fn optimizer(&self) -> ScaleOptimizer {
        self.scale_optimizer.unwrap_or(ScaleOptimizer::Sign)
    }

    pub(crate) fn momentum(&self) -> f64 {
        self.scale_momentum.unwrap_or(0.9)
    }

    /// The weight of the regularizer.
    pub(crate) fn lambda(&self) -> f64 {
        self.regularization.unwrap_or(0.01)
    }

    pub(crate) fn warmup(&self) -> f64 {
        self.warmup.unwrap_or(0.2)
    }

    /// The step size when `done` of all steps are behind.
    pub(crate) fn lr_at(&self, done: f64) -> f64 {
        let lr = self.lr.unwrap_or(if self.method == Method::Sigmoid { 1e-2 } else { self.per_step() });
        lr * self.decay(done)
    }

    /// The step size of ranges, as a share of them.
    pub(crate) fn scale_lr_at(&self, done: f64) -> f64 {
        let lr = self.scale_lr.or(match self.optimizer() {
            ScaleOptimizer::Sgd => Some(1e-2),
            // The step of `sigmoid` has another unit.
            ScaleOptimizer::Sign => self.lr.filter(|_| self.method == Method::LinearRound),
        });
        lr.unwrap_or(self.per_step()) * self.decay(done)
    }

    fn per_step(&self) -> f64 {
        1.0 / self.iters.max(1) as f64
    }

    fn decay(&self, done: f64) -> f64 {
        if self.schedule == Schedule::Linear { 1.0 - done } else { 1.0 }
    }
}
