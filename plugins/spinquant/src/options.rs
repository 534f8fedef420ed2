//! Options of `spinquant`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options, unused_option};
use qfw_core::topology::RotationKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `spinquant`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// `fused`: in the weights wherever that can be; `layerwise`: in front of every layer, while the model runs.
    #[serde(alias = "rotation")]
    pub mode: Mode,
    /// Which rotations, of `r1`, `r2`, `r3`, `r4`.
    pub rotations: Vec<Which>,
    /// What is fused is rotated by: `hadamard`, `randomized-hadamard` or `orthogonal`.
    #[serde(alias = "rotation-mode", alias = "rotation_mode", alias = "rotate_mode")]
    pub matrix: Matrix,
    /// Rotate the inputs of layers that no fused rotation reaches while the model runs.
    #[serde(alias = "rotation-orphan-sink", alias = "rotation_orphan_sink", alias = "orphan_sink")]
    pub orphan_sink: bool,
    /// Rotate values (`r2`), queries and keys (`r3`) too.
    #[serde(alias = "rotation-sdpa-regions", alias = "rotation_sdpa_regions", alias = "sdpa_regions")]
    pub sdpa_regions: bool,
    /// Channels that are rotated together while the model runs; 0 takes all that a layer reads.
    #[serde(alias = "online_block")]
    pub online_block: usize,
    /// Layers whose input is padded with zeros to a size for which there is a better rotation, and rotated while the model runs: roles
    /// such as `mlp.down`, or names of modules.
    #[serde(
        alias = "rotation-layers-to-expand",
        alias = "rotation_layers_to_expand",
        alias = "layers_to_expand",
        alias = "layers-to-expand"
    )]
    pub expand: Vec<String>,
    /// How many sizes up.
    #[serde(alias = "expansion_step")]
    #[schemars(range(min = 1, max = 100))]
    pub expansion_step: usize,
    /// The seed of random rotations; that of the run if there is none.
    pub seed: Option<u64>,
    /// Learn the fused rotations, from where they are drawn: `true`, or a table of how.
    #[serde(alias = "optimize-rotations", alias = "optimize_rotations", alias = "train")]
    pub optimize: Switch,
    /// Short for the `variant` of `optimize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null))]
    pub variant: Option<Variant>,
}

/// Off, on, or on with options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Switch {
    /// Off, or on with the defaults.
    Is(bool),
    /// On.
    With(Learn),
}

/// What learned rotations are to make small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The loss of the quantized model on the calibration data.
    #[default]
    #[serde(alias = "network-loss", alias = "network_loss")]
    Network,
    /// What rounding does to the weights; reads no data.
    #[serde(alias = "weight_recon")]
    WeightRecon,
}

/// What steps are taken along the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Adam over planes of rotation.
    #[default]
    Adam,
    /// Steps along the gradient, with momentum, of at most about one radian: SpinQuant's own.
    #[serde(alias = "cayley_sgd", alias = "cayley", alias = "sgd")]
    CayleySgd,
}

/// How rotations are learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Learn {
    /// What they are to make small.
    pub variant: Variant,
    /// What steps are taken.
    pub optimizer: Optimizer,
    /// Steps.
    #[serde(alias = "max-steps", alias = "max_steps", alias = "iters")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub steps: usize,
    /// Calibration windows of a step, drawn without replacement. Left out: 8.
    #[serde(alias = "batch_size", alias = "per-device-train-batch-size", alias = "per_device_train_batch_size")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_size: Option<usize>,
    /// Calibration windows that take part, the first ones. Left out: all.
    #[serde(alias = "nsamples", alias = "nsamples-rot-calibration", alias = "nsamples_rot_calibration")]
    pub samples: Option<usize>,
    /// Step size at first; it goes down to nothing in a straight line. Left out: 1e-3 for `adam`, 1.5 for `cayley-sgd`.
    #[serde(alias = "learning-rate", alias = "learning_rate")]
    pub lr: Option<f64>,
    /// Momentum of `cayley-sgd`. Left out: 0.9.
    #[schemars(range(min = 0.0, max = 0.999))]
    pub momentum: Option<f64>,
    /// Whether weights are rounded, to nearest, while `network` learns, or activations only. Left out: yes.
    pub weights: Option<bool>,
}

impl Default for Learn {
    fn default() -> Self {
        Self {
            variant: Variant::Network,
            optimizer: Optimizer::Adam,
            steps: 100,
            batch_size: None,
            samples: None,
            lr: None,
            momentum: None,
            weights: None,
        }
    }
}

impl Learn {
    /// The step size when `done` of all steps are behind.
    pub(crate) fn lr_at(&self, done: f64) -> f64 {
        let lr = self.lr.unwrap_or(if self.optimizer == Optimizer::Adam { 1e-3 } else { 1.5 });
        lr * (1.0 - done)
    }

    /// Windows of a step.
    pub(crate) fn batch(&self) -> usize {
        self.batch_size.unwrap_or(8)
    }

    pub(crate) fn momentum(&self) -> f64 {
        self.momentum.unwrap_or(0.9)
    }

    fn check(&self) -> Result<()> {
        let bad = |name: &str, value: f64, hint: &str| Err(invalid_option("spinquant", &format!("optimize.{name}"), value, hint));
        if self.batch_size == Some(0) {
            return bad("batch-size", 0.0, "a step needs a window to learn from");
        }
        if self.samples == Some(0) {
            return bad("samples", 0.0, "rotations need a window to learn from");
        }
        if let Some(lr) = self.lr.filter(|lr| !(lr.is_finite() && *lr > 0.0)) {
            return bad("lr", lr, "it has to be above 0");
        }
        if !(0.0..1.0).contains(&self.momentum()) {
            return bad("momentum", self.momentum(), "it has to lie between 0 and 1, without 1");
        }
        let blind = self.variant == Variant::WeightRecon;
        let given = [
            ("momentum", self.momentum.is_some() && self.optimizer == Optimizer::Adam, "`optimizer` = `adam` has averages of its own"),
            ("batch-size", self.batch_size.is_some() && blind, "`variant` = `weight-recon` reads no data"),
            ("samples", self.samples.is_some() && blind, "`variant` = `weight-recon` reads no data"),
            ("weights", self.weights.is_some() && blind, "`variant` = `weight-recon` is about nothing else"),
        ];
        if let Some((name, _, why)) = given.into_iter().find(|(_, idle, _)| *idle) {
            return Err(unused_option("spinquant", &format!("optimize.{name}"), why));
        }
        Ok(())
    }
}

/// Where rotations go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Into the weights.
    #[default]
    #[serde(alias = "fx", alias = "fused_no_fx", alias = "fused-no-fx")]
    Fused,
    /// In front of every layer.
    Layerwise,
}

/// One of the four rotations of QuaRot and SpinQuant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// The residual stream; fused.
    #[serde(alias = "R1")]
    R1,
    /// The values of each head; fused.
    #[serde(alias = "R2")]
    R2,
    /// Queries and keys; while the model runs.
    #[serde(alias = "R3")]
    R3,
    /// The input of the down projection; while the model runs.
    #[serde(alias = "R4")]
    R4,
}

/// What is fused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Matrix {
    /// A Hadamard matrix, the same in every run.
    #[serde(alias = "had")]
    Hadamard,
    /// A Hadamard matrix behind random signs.
    #[default]
    #[serde(alias = "random-hadamard", alias = "randomized")]
    RandomizedHadamard,
    /// Uniformly random.
    #[serde(alias = "ort", alias = "random")]
    Orthogonal,
}

impl Matrix {
    pub(crate) fn kind(self) -> RotationKind {
        match self {
            Self::Hadamard => RotationKind::Hadamard,
            Self::RandomizedHadamard => RotationKind::RandomizedHadamard,
            Self::Orthogonal => RotationKind::Orthogonal,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Fused,
            rotations: vec![Which::R1, Which::R2],
            matrix: Matrix::default(),
            orphan_sink: false,
            sdpa_regions: false,
            online_block: 0,
            expand: Vec::new(),
            expansion_step: 1,
            seed: None,
            optimize: Switch::Is(false),
            variant: None,
        }
    }
}

const KNOWN: &str = "mode (fused, layerwise), rotations (r1, r2, r3, r4), matrix (hadamard, randomized-hadamard, orthogonal), orphan-sink, \
                     sdpa-regions, online-block, expand, expansion-step, seed, optimize, variant (network, weight-recon)";

const KNOWN_OF_LEARNING: &str =
    "variant (network, weight-recon), optimizer (adam, cayley-sgd), steps, batch-size, samples, lr, momentum, weights";

/// The trainer's, which other systems pass through.
const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere { names: &["weight-decay"], answer: Answer::Refused("rotations have no length that could decay", "leave it out") },
    Elsewhere { names: &["seed"], answer: Answer::Refused("random numbers have one seed", "set `calibration.seed`") },
];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        if let Some(table) = ["optimize", "optimize-rotations", "optimize_rotations", "train"]
            .iter()
            .find_map(|name| options.get(name))
            .filter(|t| t.is_object())
        {
            read_options::<Learn>("spinquant", table, KNOWN_OF_LEARNING, ELSEWHERE)?;
        }
        let mut o: Self = read_options("spinquant", options, KNOWN, &[])?;
        if o.sdpa_regions {
            o.rotations.extend([Which::R2, Which::R3]);
        }
        o.rotations.sort_by_key(|w| *w as u8);
        o.rotations.dedup();
        if !(1..=100).contains(&o.expansion_step) {
            return Err(invalid_option("spinquant", "expansion-step", o.expansion_step, "it must be from 1 to 100"));
        }
        let nothing = o.rotations.is_empty() && !o.orphan_sink && o.expand.is_empty();
        if nothing && o.mode == Mode::Fused {
            return Err(invalid_option("spinquant", "rotations", "[]", "name at least one of r1, r2, r3, r4"));
        }
        o.settle_learning()?;
        if o.mode == Mode::Layerwise && (o.orphan_sink || !o.expand.is_empty() || options.get("rotations").is_some()) {
            let hint = "every layer's input is rotated by itself: leave `rotations`, `orphan-sink` and `expand` out";
            return Err(invalid_option("spinquant", "mode", "layerwise", hint));
        }
        Ok(o)
    }

    /// Takes `variant` into `optimize`, and refuses what cannot be learned.
    fn settle_learning(&mut self) -> Result<()> {
        let mut learn = self.learn().cloned().or_else(|| (self.optimize == Switch::Is(true)).then(Learn::default));
        if let Some(variant) = self.variant.take() {
            if self.optimize == Switch::Is(false) && variant == Variant::Network {
                return Err(invalid_option("spinquant", "variant", "network", "set `optimize = true` to learn rotations"));
            }
            learn = Some(Learn { variant, ..learn.unwrap_or_default() });
        }
        let Some(learn) = learn else { return Ok(()) };
        let fused = self.rotations.iter().any(|w| matches!(w, Which::R1 | Which::R2));
        if self.mode == Mode::Layerwise || !fused {
            return Err(invalid_option("spinquant", "optimize", true, "only fused rotations, `r1` and `r2`, are learned"));
        }
        learn.check()?;
        self.optimize = Switch::With(learn);
        Ok(())
    }

    /// How rotations are learned, if they are.
    pub(crate) fn learn(&self) -> Option<&Learn> {
        if let Switch::With(learn) = &self.optimize { Some(learn) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_the_seed_systems_mean_the_same() {
        let read = |v| Options::read(&v).unwrap();
        assert_eq!(read(json!({ "rotation": "fused_no_fx", "rotation-mode": "ort" })).matrix, Matrix::Orthogonal);
        assert_eq!(read(json!({ "rotation": "layerwise" })).mode, Mode::Layerwise);
        assert_eq!(read(json!({ "rotations": ["R4", "r1"] })).rotations, [Which::R1, Which::R4]);
        assert_eq!(read(json!({ "rotations": ["r1"], "rotation-sdpa-regions": true })).rotations, [Which::R1, Which::R2, Which::R3]);
        assert_eq!(read(json!({})).rotations, [Which::R1, Which::R2]);
        assert_eq!(read(json!({})).learn(), None);
        let learned = read(json!({ "optimize-rotations": { "learning_rate": 0.5, "max_steps": 7, "per_device_train_batch_size": 2 } }));
        let expected = Learn { lr: Some(0.5), steps: 7, batch_size: Some(2), ..Learn::default() };
        assert_eq!(learned.learn(), Some(&expected));
        assert_eq!(read(json!({ "variant": "weight_recon" })).learn().map(|l| l.variant), Some(Variant::WeightRecon));
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert_eq!(message(json!({ "rotations": [] })), "option `rotations` of `spinquant` is []");
        assert_eq!(message(json!({ "mode": "layerwise", "rotations": ["r1"] })), "option `mode` of `spinquant` is layerwise");
        assert_eq!(message(json!({ "expand": ["mlp.down"], "expansion-step": 0 })), "option `expansion-step` of `spinquant` is 0");
        assert!(message(json!({ "rotation": "eager" })).contains("unknown variant `eager`"));
        assert_eq!(message(json!({ "optimize": { "lr": 0.0 } })), "option `optimize.lr` of `spinquant` is 0");
        assert!(message(json!({ "train": { "weight_decay": 0.1 } })).contains("rotations have no length that could decay"));
        assert_eq!(message(json!({ "mode": "layerwise", "optimize": true })), "option `optimize` of `spinquant` is true");
        assert_eq!(message(json!({ "rotations": ["r4"], "optimize": true })), "option `optimize` of `spinquant` is true");
        for (option, variant) in
            [("momentum", "network"), ("batch-size", "weight-recon"), ("samples", "weight-recon"), ("weights", "weight-recon")]
        {
            let value = if option == "weights" { json!(true) } else { json!(if option == "momentum" { 0.5 } else { 2.0 }) };
            let value = if ["batch-size", "samples"].contains(&option) { json!(2) } else { value };
            let told = message(json!({ "optimize": { "variant": variant, option: value } }));
            assert!(told.contains(&format!("option `optimize.{option}` of `spinquant` would change nothing")), "{told}");
        }
        assert_eq!(message(json!({ "variant": "network" })), "option `variant` of `spinquant` is network");
        assert!(message(json!({ "angle": 1 })).contains("unknown field `angle`"));
    }
}
