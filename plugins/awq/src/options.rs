//! Options of `awq`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `awq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Exponents tried: `0, 1/grid, …, (grid − 1)/grid`.
    #[serde(alias = "n-grid", alias = "n_grid")]
    #[schemars(range(min = 1, max = 1000))]
    pub grid: usize,
    /// Whether weights have a say in the scales too: `false`, `true`, or `both`, which tries half of the exponents with and half without.
    #[serde(alias = "duo_scaling")]
    pub duo_scaling: Duo,
    /// What is compared: what each layer puts out (`linear`), known from its Gram matrix; that part of it which rounding with
    /// error feedback cannot make up for in other channels (`compensated`); of these two the one that fits how the layer is rounded (`auto`);
    /// or what the whole module behind the region does (`module`), which is run again for every exponent, on as many windows as it takes to
    /// tell exponents apart.
    pub loss: Loss,
}

/// What is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// `compensated` for layers whose rounding feeds errors back, `linear` for others.
    #[default]
    Auto,
    /// The layers' outputs.
    Linear,
    /// The part of them that no other channel can stand in for.
    Compensated,
    /// The module's output, where a region is read by more than one layer.
    Module,
}

/// Whether weights have a say in the scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Said", into = "Said")]
#[schemars(with = "Said")]
pub enum Duo {
    /// They have not.
    #[default]
    Off,
    /// They have.
    On,
    /// Both are tried.
    Both,
}

/// As it is written.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Said {
    Switch(bool),
    Word(Word),
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Both,
}

impl From<Said> for Duo {
    fn from(said: Said) -> Self {
        match said {
            Said::Switch(false) => Self::Off,
            Said::Switch(true) => Self::On,
            Said::Word(Word::Both) => Self::Both,
        }
    }
}

impl From<Duo> for Said {
    fn from(duo: Duo) -> Self {
        match duo {
            Duo::Off => Self::Switch(false),
            Duo::On => Self::Switch(true),
            Duo::Both => Self::Word(Word::Both),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { grid: 20, duo_scaling: Duo::Off, loss: Loss::Auto }
    }
}

const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        names: &["w-groupsize", "w_groupsize", "group-size", "q-group-size"],
        answer: Answer::Refused("groups are a part of the scheme", "set `scheme.weights.granularity.group`"),
    },
    Elsewhere {
        names: &["w-qtype", "w_qtype"],
        answer: Answer::Refused("granularity is a part of the scheme", "set `scheme.weights.granularity`"),
    },
    Elsewhere {
        names: &["block-sequential", "block_sequential", "layer-sequential", "layer_sequential"],
        answer: Answer::Refused("the order is the same for all passes", "set `harness.sequence`"),
    },
];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let o: Self =
            read_options("awq", options, "grid, duo-scaling (false, true, both), loss (auto, linear, compensated, module)", ELSEWHERE)?;
        if !(1..=1000).contains(&o.grid) {
            return Err(invalid_option("awq", "grid", o.grid, "it must be from 1 to 1000; 20 is usual"));
        }
        Ok(o)
    }

    /// The candidates: an exponent, and whether weights have a say.
    pub(crate) fn candidates(&self) -> Vec<(f64, bool)> {
        let steps = |n: usize, duo: bool| (0..n).map(move |k| (k as f64 / n as f64, duo));
        match self.duo_scaling {
            Duo::Off => steps(self.grid, false).collect(),
            // The first of these is no longer 1: nothing must be lost by asking.
            Duo::On => [(0.0, false)].into_iter().chain(steps(self.grid, true)).collect(),
            Duo::Both => steps(self.grid.div_ceil(2), false).chain(steps(self.grid / 2, true)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_and_switches_are_read() {
        for (said, meant) in [(json!(false), Duo::Off), (json!(true), Duo::On), (json!("both"), Duo::Both)] {
            let options = Options::read(&json!({ "duo_scaling": said })).unwrap();
            assert_eq!(options.duo_scaling, meant);
            assert_eq!(serde_json::to_value(&options).unwrap()["duo-scaling"], said);
        }
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert_eq!(message(json!({ "n_grid": 0 })), "option `grid` of `awq` is 0");
        assert!(message(json!({ "w_groupsize": 128 })).contains("groups are a part of the scheme"));
        assert!(message(json!({ "nn": 1 })).contains("unknown field `nn`"));
    }

    /// AWQ tries 0, 0.05, …, 0.95.
    #[test]
    fn doing_nothing_is_always_a_candidate() {
        for duo_scaling in [Duo::Off, Duo::On, Duo::Both] {
            let candidates = Options { duo_scaling, ..Options::default() }.candidates();
            assert_eq!(candidates[0], (0.0, false));
        }
        assert_eq!(Options::default().candidates()[19], (0.95, false));
        assert_eq!(Options { duo_scaling: Duo::Both, ..Options::default() }.candidates().len(), 20);
    }
}
