//! Options of `svdquant`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options};
use qfw_core::scheme::FloatKind;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What branches are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// The float type of the weight in the source.
    #[default]
    Auto,
    /// Brain float.
    #[serde(alias = "bf16")]
    Bfloat16,
    /// IEEE half.
    #[serde(alias = "fp16", alias = "f16")]
    Float16,
    /// IEEE single.
    #[serde(alias = "fp32", alias = "f32")]
    Float32,
}

/// Options of `svdquant`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Rank of the branch; where a layer has fewer channels, theirs.
    #[serde(alias = "svd-quant-rank", alias = "svd_quant_rank")]
    #[schemars(range(min = 1, max = 65536))]
    pub rank: usize,
    /// How often the branch is fitted, each time but the first to what rounding to nearest has left of the weight; the best is kept.
    #[serde(alias = "svd-quant-iters", alias = "svd_quant_iters", alias = "num-iters", alias = "num_iters")]
    #[schemars(range(min = 1, max = 1000))]
    pub iters: usize,
    /// Layers that read the same input (q, k and v; gate and up) share the half of the branch that reads it.
    pub shared: bool,
    /// Round the weight as it is, by whatever method, and fit the branch to the error (LoRC; with `gram` EoRA).
    #[serde(alias = "lorc")]
    pub compensate: bool,
    /// Weigh errors by the Gram matrix of the calibration inputs: what counts is the error of outputs, not of weights.
    pub gram: bool,
    /// Damping of the Gram matrix, relative to the mean of its diagonal.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub damp: f64,
    /// What branches are stored in.
    pub dtype: Dtype,
}

impl Default for Options {
    fn default() -> Self {
        Self { rank: 32, iters: 1, shared: false, compensate: false, gram: false, damp: 0.01, dtype: Dtype::Auto }
    }
}

const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        names: &["exclusive"],
        answer: Answer::Refused("it is said the other way round", "set `shared` to false for true, to true for false"),
    },
    Elsewhere {
        names: &["smooth", "smoothing", "alpha", "beta"],
        answer: Answer::Refused("smoothing is a pass of its own", "put `smoothquant` or `awq` before it"),
    },
];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let known = "rank, iters, shared, compensate, gram, damp, dtype (auto, bfloat16, float16, float32)";
        let o: Self = read_options("svdquant", options, known, ELSEWHERE)?;
        if !(1..=65536).contains(&o.rank) {
            return Err(invalid_option("svdquant", "rank", o.rank, "it must be from 1 to 65536; 16 to 128 are usual"));
        }
        if !(1..=1000).contains(&o.iters) {
            return Err(invalid_option("svdquant", "iters", o.iters, "it must be from 1 to 1000; without the pass there is no branch"));
        }
        if o.compensate && o.iters > 1 {
            return Err(invalid_option("svdquant", "iters", o.iters, "with `compensate` the codes stay, and one fit is the best one"));
        }
        if !(0.0..=1.0).contains(&o.damp) {
            return Err(invalid_option("svdquant", "damp", o.damp, "it must be from 0 to 1; 0.01 is usual"));
        }
        Ok(o)
    }

    /// What branches are stored in; `None` for the type of the weight.
    pub(crate) fn stored(&self) -> Option<FloatKind> {
        match self.dtype {
            Dtype::Auto => None,
            Dtype::Bfloat16 => Some(FloatKind::Bf16),
            Dtype::Float16 => Some(FloatKind::F16),
            Dtype::Float32 => Some(FloatKind::F32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_brevitas_mean_the_same() {
        let o = Options::read(&json!({ "svd_quant_rank": 8, "svd-quant-iters": 3, "dtype": "bf16" })).unwrap();
        assert_eq!(o, Options { rank: 8, iters: 3, dtype: Dtype::Bfloat16, ..Options::default() });
        assert_eq!((Options::default().rank, Options::default().iters), (32, 1));
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| {
            let e = Options::read(&v).unwrap_err();
            (e.to_string(), e.hint_text().unwrap_or_default().to_owned())
        };
        assert!(message(json!({ "rnak": 1 })).0.contains("unknown field `rnak`"));
        assert_eq!(message(json!({ "rank": 0 })).0, "option `rank` of `svdquant` is 0");
        assert_eq!(message(json!({ "iters": 0 })).0, "option `iters` of `svdquant` is 0");
        assert_eq!(message(json!({ "damp": 2 })).0, "option `damp` of `svdquant` is 2");
        let (what, hint) = message(json!({ "iters": 2, "compensate": true }));
        assert_eq!(what, "option `iters` of `svdquant` is 2");
        assert_eq!(hint, "with `compensate` the codes stay, and one fit is the best one");
        let (what, hint) = message(json!({ "exclusive": true }));
        assert_eq!(what, "`exclusive` is no option of `svdquant`: it is said the other way round");
        assert_eq!(hint, "set `shared` to false for true, to true for false");
        assert!(message(json!({ "smooth": true })).1.contains("`smoothquant`"));
    }
}
