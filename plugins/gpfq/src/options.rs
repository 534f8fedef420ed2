//! Options of `gpfq`.

use qfw_core::algorithm::{Answer, Elsewhere, read_options};
use qfw_core::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// In which order columns are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActOrder {
    /// As stored.
    #[serde(alias = "false")]
    Off,
    /// Most active input channel first; groups keep their stored columns.
    #[default]
    #[serde(alias = "true", alias = "weight")]
    Static,
}

/// Options of `gpfq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Order of the columns.
    #[serde(
        alias = "act_order",
        alias = "gpxq-act-order",
        alias = "gpxq_act_order",
        alias = "desc-act",
        alias = "desc_act",
        deserialize_with = "act_order"
    )]
    pub act_order: ActOrder,
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
    #[schemars(range(min = 3, max = 32))]
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
    #[schemars(range(min = 3, max = 65536))]
    pub accumulator_tile: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { act_order: ActOrder::Static, block_size: 128, accumulator_bits: None, accumulator_tile: None }
    }
}

/// A name, or the `true`/`false` of the seed systems.
fn act_order<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<ActOrder, D::Error> {
    match Value::deserialize(d)? {
        Value::Bool(on) => Ok(if on { ActOrder::Static } else { ActOrder::Off }),
        other => ActOrder::deserialize(other).map_err(serde::de::Error::custom),
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
        let wrong = |name: &str, value: usize, hint: &str| {
            Err(Error::config("config::invalid", format!("option `{name}` of `gpfq` is {value}")).hint(hint))
        };
        if !(1..=65536).contains(&o.block_size) {
            return wrong("block-size", o.block_size, "it must be from 1 to 65536; 128 is usual");
        }
        if let Some(bits) = o.accumulator_bits.filter(|b| !(3..=32).contains(b)) {
            return wrong("accumulator-bits", bits as usize, "it must be from 3 to 32; 16 is usual");
        }
        match (o.accumulator_tile, o.accumulator_bits) {
            (Some(tile), _) if !(3..=65536).contains(&tile) => wrong("accumulator-tile", tile, "it must be from 3 to 65536; 128 is usual"),
            (Some(_), None) => {
                Err(Error::config("config::invalid", "option `accumulator-tile` of `gpfq` says nothing without `accumulator-bits`")
                    .hint("set `accumulator-bits` too, or leave it out"))
            }
            _ => Ok(o),
        }
    }

    pub(crate) fn resolved(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::internal(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_the_seed_systems_mean_the_same() {
        let expected = Options { act_order: ActOrder::Off, block_size: 64, accumulator_bits: Some(16), accumulator_tile: Some(32) };
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
