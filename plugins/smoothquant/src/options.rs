//! Options of `smoothquant`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, Elsewhere, invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `smoothquant`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// How much of the range moves: 0 leaves the activations as they are, 1 gives all channels the same range.
    #[serde(
        alias = "smoothing-strength",
        alias = "smoothing_strength",
        alias = "act-equalization-alpha",
        alias = "act_equalization_alpha"
    )]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha: f64,
    /// Whose conventions: `reference`, `llm-compressor` or `brevitas`.
    pub variant: Variant,
    /// `s = a / log₂(2 + a)`, whatever the weights are; of llm-compressor.
    #[serde(alias = "log_equalization")]
    pub log_equalization: bool,
    /// Scale wherever it can be done, not behind norms only; `regions` of the pass says more.
    pub everywhere: bool,
    /// Where what writes the channels cannot be divided, such as behind GELU, divide by a multiplication of its own that runs with the
    /// model; few formats can hold one.
    pub stand_alone: bool,
}

/// Whose conventions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Those of the paper's code.
    #[default]
    Reference,
    /// Those of llm-compressor.
    LlmCompressor,
    /// Those of brevitas.
    Brevitas,
}

impl Default for Options {
    fn default() -> Self {
        Self { alpha: 0.5, variant: Variant::Reference, log_equalization: false, everywhere: false, stand_alone: false }
    }
}

const ELSEWHERE: &[Elsewhere] = &[Elsewhere {
    names: &["quant-out", "quant_out"],
    answer: Answer::Refused("what layers return is a part of the scheme", "set `scheme.outputs`"),
}];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let o: Self = read_options(
            "smoothquant",
            options,
            "alpha, variant (reference, llm-compressor, brevitas), log-equalization, everywhere, stand-alone",
            ELSEWHERE,
        )?;
        if !(0.0..=1.0).contains(&o.alpha) {
            return Err(invalid_option(
                "smoothquant",
                "alpha",
                o.alpha,
                "it must be from 0 to 1; 0.5 is usual, up to 0.9 for large models",
            ));
        }
        if o.log_equalization && o.variant != Variant::LlmCompressor {
            return Err(invalid_option(
                "smoothquant",
                "log-equalization",
                true,
                "set `variant = \"llm-compressor\"` with it, or leave it out",
            ));
        }
        Ok(o)
    }

    /// What a channel is divided by whose activations span `a` and whose weights span at most `w` to each side.
    pub(crate) fn factor(&self, a: f64, w: f64) -> f64 {
        let s = |a: f64, w: f64| a.powf(self.alpha) / w.powf(1.0 - self.alpha);
        match self.variant {
            Variant::Reference => s(a, w.max(1e-5)).max(1e-5),
            Variant::LlmCompressor if self.log_equalization => clamped(a / (2.0 + a).log2()),
            Variant::LlmCompressor => clamped(s(a, 2.0 * w)),
            Variant::Brevitas if a <= 1e-9 || w <= 1e-9 => 1.0,
            Variant::Brevitas => s(a, w),
        }
    }
}

/// Channels that never fire, or that nobody reads, stay.
fn clamped(s: f64) -> f64 {
    if s.is_finite() && s > 0.0 { s } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_the_seed_systems_mean_the_same() {
        for options in [json!({ "alpha": 0.7 }), json!({ "smoothing_strength": 0.7 }), json!({ "act-equalization-alpha": 0.7 })] {
            assert_eq!(Options::read(&options).unwrap().alpha, 0.7, "{options}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert_eq!(message(json!({ "alpha": 1.5 })), "option `alpha` of `smoothquant` is 1.5");
        assert_eq!(message(json!({ "log-equalization": true })), "option `log-equalization` of `smoothquant` is true");
        assert!(message(json!({ "beta": 1 })).contains("unknown field `beta`"));
        assert!(message(json!({ "quant-out": true })).contains("what layers return is a part of the scheme"));
    }

    /// `16^½ / 4^½ = 2`; with ranges, `16^½ / 8^½`; with logarithms, `14 / log₂ 16`.
    #[test]
    fn factors_are_those_of_the_formulas() {
        let of = |variant, log_equalization| Options { variant, log_equalization, ..Options::default() };
        assert_eq!(of(Variant::Reference, false).factor(16.0, 4.0), 2.0);
        assert!((of(Variant::LlmCompressor, false).factor(16.0, 4.0) - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(of(Variant::LlmCompressor, true).factor(14.0, 4.0), 3.5);
        assert_eq!(of(Variant::Brevitas, false).factor(1e-10, 4.0), 1.0);
        assert_eq!(of(Variant::Reference, false).factor(0.0, 4.0), 1e-5);
        let strong = Options { alpha: 1.0, ..Options::default() };
        assert_eq!(strong.factor(16.0, 4.0), 16.0);
    }
}
