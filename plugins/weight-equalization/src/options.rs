//! Options of `weight-equalization`.

use std::borrow::Cow;

use qfw_core::Result;
use qfw_core::algorithm::{invalid_option, read_options};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Options of `weight-equalization`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// How often at most ranges are made equal. More than once matters only where biases count differently after it.
    #[schemars(range(min = 1, max = 1000))]
    pub iterations: usize,
    /// Stop once no factor is further from 1 than this.
    #[schemars(range(min = 0.0))]
    pub threshold: f64,
    /// What the range of a channel is: `range` or `maxabs`.
    #[serde(alias = "scale_computation", alias = "scale-computation-type", alias = "scale_computation_type")]
    pub scale_computation: Scale,
    /// What the biases of the layer that writes are divided by before they count to its range: a number, `vaiq` for the rule of Vitis AI,
    /// or `none` for biases that do not count.
    #[serde(alias = "bias_shrinkage")]
    pub bias_shrinkage: BiasShrinkage,
}

/// What the range of a channel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Greatest less smallest value.
    #[default]
    Range,
    /// Largest magnitude.
    #[serde(rename = "maxabs")]
    MaxAbs,
}

/// How much of a bias counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum BiasShrinkage {
    /// By the rule of Vitis AI's quantizer, from the sizes of biases and weights.
    #[default]
    Vaiq,
    /// Nothing.
    None,
    /// It is divided by this.
    By(f64),
}

impl Serialize for BiasShrinkage {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Vaiq => s.serialize_str("vaiq"),
            Self::None => s.serialize_str("none"),
            Self::By(by) => s.serialize_f64(*by),
        }
    }
}

impl<'de> Deserialize<'de> for BiasShrinkage {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let value = Value::deserialize(d)?;
        match (value.as_str(), value.as_f64()) {
            (Some("vaiq"), _) => Ok(Self::Vaiq),
            (Some("none"), _) => Ok(Self::None),
            (_, Some(by)) => Ok(Self::By(by)),
            _ => Err(D::Error::custom(format!("`bias-shrinkage` is {value}; it should be a number, \"vaiq\" or \"none\""))),
        }
    }
}

impl JsonSchema for BiasShrinkage {
    fn schema_name() -> Cow<'static, str> {
        "BiasShrinkage".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "enum": ["vaiq", "none"] }, { "type": "number", "exclusiveMinimum": 0 }] })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { iterations: 10, threshold: 0.05, scale_computation: Scale::Range, bias_shrinkage: BiasShrinkage::Vaiq }
    }
}

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let algo = crate::RECORD.id;
        let known = "iterations, threshold, scale-computation (range, maxabs), bias-shrinkage (vaiq, none, a number)";
        let o: Self = read_options(algo, options, known, &[])?;
        if !(1..=1000).contains(&o.iterations) {
            return Err(invalid_option(algo, "iterations", o.iterations, "it must be from 1 to 1000; 10 is usual"));
        }
        if !(o.threshold.is_finite() && o.threshold >= 0.0) {
            return Err(invalid_option(algo, "threshold", o.threshold, "it must not be below 0; 0.05 is usual"));
        }
        match o.bias_shrinkage {
            BiasShrinkage::By(by) if !(by.is_finite() && by > 0.0) => {
                Err(invalid_option(algo, "bias-shrinkage", by, "it must be above 0, \"vaiq\" or \"none\""))
            }
            _ => Ok(o),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_come_back_as_they_were_given() {
        for (given, expected) in [
            (json!({}), BiasShrinkage::Vaiq),
            (json!({ "bias-shrinkage": "none" }), BiasShrinkage::None),
            (json!({ "bias_shrinkage": 3 }), BiasShrinkage::By(3.0)),
        ] {
            let o = Options::read(&given).unwrap();
            assert_eq!(o.bias_shrinkage, expected);
            assert_eq!(Options::read(&serde_json::to_value(&o).unwrap()).unwrap(), o);
        }
        assert_eq!(Options::read(&json!({ "scale_computation_type": "maxabs" })).unwrap().scale_computation, Scale::MaxAbs);
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert_eq!(message(json!({ "iterations": 0 })), "option `iterations` of `weight-equalization` is 0");
        assert_eq!(message(json!({ "threshold": -1 })), "option `threshold` of `weight-equalization` is -1");
        assert_eq!(message(json!({ "bias-shrinkage": 0 })), "option `bias-shrinkage` of `weight-equalization` is 0");
        assert_eq!(
            message(json!({ "bias-shrinkage": "vitis" })),
            "options of `weight-equalization`: `bias-shrinkage` is \"vitis\"; it should be a number, \"vaiq\" or \"none\""
        );
        assert!(message(json!({ "alpha": 1 })).contains("unknown field `alpha`"));
    }
}
