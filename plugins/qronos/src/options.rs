//! Options of `qronos`.

use qfw_core::Result;
use qfw_core::algorithm::{Answer, ColumnOrder, Elsewhere, invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `qronos`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Order of the columns.
    #[serde(alias = "act_order", alias = "gpxq-act-order", alias = "gpxq_act_order", alias = "desc-act", alias = "desc_act")]
    pub act_order: ColumnOrder,
    /// Columns updated at once; changes speed, not the result beyond rounding.
    #[serde(alias = "blocksize", alias = "block_size")]
    #[schemars(range(min = 1, max = 65536))]
    pub block_size: usize,
    /// Damping relative to the largest eigenvalue of `H`. The paper runs weights and activations of 4 bits with 1e-3.
    #[serde(alias = "qronos-alpha", alias = "qronos_alpha")]
    #[schemars(range(min = 1e-12, max = 1.0))]
    pub alpha: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { act_order: ColumnOrder::Static, block_size: 128, alpha: 1e-6 }
    }
}

const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        names: &["create-weight-orig", "gpxq-create-weight-orig"],
        answer: Answer::Always(true, "the original weights are what the method aims at"),
    },
    Elsewhere {
        names: &["use-quant-activations", "gpxq-use-quant-activations"],
        answer: Answer::Always(true, "the method works on quantized activations"),
    },
    Elsewhere {
        names: &[
            "accumulator-bits",
            "accumulator-tile",
            "gpxq-max-accumulator-bit-width",
            "gpxq-max-accumulator-tile-size",
            "max-accumulator-bit-width",
            "max-accumulator-tile-size",
        ],
        answer: Answer::Refused("accumulators are for `gptq` and `gpfq`", "choose one of these, or leave it out"),
    },
];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let o: Self = read_options("qronos", options, "act-order (off, static), alpha, block-size", ELSEWHERE)?;
        if !(1..=65536).contains(&o.block_size) {
            return Err(invalid_option("qronos", "block-size", o.block_size, "it must be from 1 to 65536; 128 is usual"));
        }
        if !(o.alpha > 0.0 && o.alpha <= 1.0) {
            let hint = "it must be above 0 and at most 1; 1e-6 is usual, 1e-3 with activations of few bits";
            return Err(invalid_option("qronos", "alpha", o.alpha, hint));
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
        let expected = Options { act_order: ColumnOrder::Off, block_size: 64, alpha: 1e-3 };
        for options in [
            json!({ "act-order": "off", "block-size": 64, "alpha": 1e-3 }),
            json!({ "gpxq_act_order": false, "blocksize": 64, "qronos_alpha": 1e-3, "create_weight_orig": true }),
        ] {
            assert_eq!(Options::read(&options).unwrap(), expected);
        }
        assert_eq!(Options::read(&json!({ "gpxq-act-order": true })).unwrap(), Options::default());
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert!(message(json!({ "alphaa": 1 })).contains("unknown field `alphaa`"));
        assert_eq!(message(json!({ "alpha": 0.0 })), "option `alpha` of `qronos` is 0");
        assert_eq!(message(json!({ "block-size": 0 })), "option `block-size` of `qronos` is 0");
        assert_eq!(
            message(json!({ "accumulator-bits": 16 })),
            "`accumulator-bits` is no option of `qronos`: accumulators are for `gptq` and `gpfq`"
        );
        assert_eq!(
            message(json!({ "use_quant_activations": false })),
            "option `use_quant_activations` of `qronos` is false: the method works on quantized activations"
        );
    }
}
