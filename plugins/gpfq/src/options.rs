//! Options of `gpfq`.

use qfw_core::Result;
use qfw_core::algorithm::{Accumulator, Answer, ColumnOrder, Elsewhere, invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `gpfq`.
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
    /// Width of the accumulator that sums of products have to fit, whatever the inputs.
    #[serde(
        alias = "accumulator_bits",
        alias = "gpxq-max-accumulator-bit-width",
        alias = "gpxq_max_accumulator_bit_width",
        alias = "max-accumulator-bit-width",
        alias = "max_accumulator_bit_width",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 3, max = 32), extend("default" = null))]
    pub accumulator_bits: Option<u32>,
    /// Input channels summed in one accumulator; all of them if left out.
    #[serde(
        alias = "accumulator_tile",
        alias = "tile-size",
        alias = "tile_size",
        alias = "gpxq-max-accumulator-tile-size",
        alias = "gpxq_max_accumulator_tile_size",
        alias = "max-accumulator-tile-size",
        alias = "max_accumulator_tile_size",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 3, max = 65536), extend("default" = null))]
    pub accumulator_tile: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { act_order: ColumnOrder::Static, block_size: 128, accumulator_bits: None, accumulator_tile: None }
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
];

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let known = "act-order (off, static), block-size, accumulator-bits, accumulator-tile";
        let o: Self = read_options("gpfq", options, known, ELSEWHERE)?;
        if !(1..=65536).contains(&o.block_size) {
            return Err(invalid_option("gpfq", "block-size", o.block_size, "it must be from 1 to 65536; 128 is usual"));
        }
        o.accumulator()?;
        Ok(o)
    }

    pub(crate) fn accumulator(&self) -> Result<Option<Accumulator>> {
        Accumulator::of("gpfq", self.accumulator_bits, self.accumulator_tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_the_seed_systems_mean_the_same() {
        let expected = Options { act_order: ColumnOrder::Off, block_size: 64, accumulator_bits: Some(16), accumulator_tile: Some(32) };
        for options in [
            json!({ "act-order": "off", "block-size": 64, "accumulator-bits": 16, "accumulator-tile": 32 }),
            json!({ "gpxq_act_order": false, "block_size": 64, "gpxq_max_accumulator_bit_width": 16, "gpxq_max_accumulator_tile_size": 32,
                "create_weight_orig": true, "use_quant_activations": true, "group_of_parallel_layers": null }),
        ] {
            assert_eq!(Options::read(&options).unwrap(), expected);
        }
        assert_eq!(Options::read(&json!({ "gpxq-act-order": true })).unwrap(), Options::default());
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert!(message(json!({ "damp": 1 })).contains("unknown field `damp`"));
        assert_eq!(message(json!({ "block-size": 0 })), "option `block-size` of `gpfq` is 0");
        assert_eq!(message(json!({ "accumulator-bits": 2 })), "option `accumulator-bits` of `gpfq` is 2");
        assert_eq!(message(json!({ "accumulator-bits": 9, "accumulator-tile": 2 })), "option `accumulator-tile` of `gpfq` is 2");
        assert!(message(json!({ "accumulator-tile": 8 })).ends_with("says nothing without `accumulator-bits`"));
        assert_eq!(
            message(json!({ "create_weight_orig": false })),
            "option `create_weight_orig` of `gpfq` is false: the original weights are what the method aims at"
        );
    }
}
