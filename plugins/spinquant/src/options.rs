//! Options of `spinquant`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options};
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
        }
    }
}

const ELSEWHERE: &[Elsewhere] = &[Elsewhere {
    names: &["optimize", "optimize-rotations", "optimize_rotations"],
    answer: Answer::Refused("rotations are drawn, not learned", "leave it out; another `seed` is another rotation"),
}];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let mut o: Self = read_options(
            "spinquant",
            options,
            "mode (fused, layerwise), rotations (r1, r2, r3, r4), matrix (hadamard, randomized-hadamard, orthogonal), orphan-sink, \
             sdpa-regions, online-block, expand, expansion-step, seed",
            ELSEWHERE,
        )?;
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
        if o.mode == Mode::Layerwise && (o.orphan_sink || !o.expand.is_empty() || options.get("rotations").is_some()) {
            let hint = "every layer's input is rotated by itself: leave `rotations`, `orphan-sink` and `expand` out";
            return Err(invalid_option("spinquant", "mode", "layerwise", hint));
        }
        Ok(o)
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
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert_eq!(message(json!({ "rotations": [] })), "option `rotations` of `spinquant` is []");
        assert_eq!(message(json!({ "mode": "layerwise", "rotations": ["r1"] })), "option `mode` of `spinquant` is layerwise");
        assert_eq!(message(json!({ "expand": ["mlp.down"], "expansion-step": 0 })), "option `expansion-step` of `spinquant` is 0");
        assert!(message(json!({ "rotation": "eager" })).contains("unknown variant `eager`"));
        assert!(message(json!({ "optimize-rotations": true })).contains("rotations are drawn, not learned"));
        assert!(message(json!({ "angle": 1 })).contains("unknown field `angle`"));
    }
}
