//! Options of `gptq`.

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
    /// Most active input channel first; groups keep their stored columns and their scales are fixed before. Every container holds it.
    #[default]
    #[serde(alias = "true", alias = "weight")]
    Static,
    /// Most active first, and groups are runs of that order: needs a container with a group index per channel.
    #[serde(alias = "dynamic")]
    Group,
}

/// Options of `gptq`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Columns updated at once; changes speed, not the result beyond rounding.
    #[serde(alias = "blocksize", alias = "block_size")]
    #[schemars(range(min = 1, max = 65536))]
    pub block_size: usize,
    /// Damping relative to the mean of the diagonal.
    #[serde(alias = "percdamp", alias = "dampening-frac", alias = "dampening_frac")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub damp: f64,
    /// Order of the columns.
    #[serde(alias = "actorder", alias = "act_order", alias = "desc-act", alias = "desc_act", deserialize_with = "act_order")]
    pub act_order: ActOrder,
    /// Fix the scales of all groups before the first column is rounded. `false` fits each group when the sweep reaches it, on the
    /// weights as updated so far; not possible with `act-order = "static"`, implied by `"group"`.
    #[serde(alias = "static_groups")]
    pub static_groups: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { block_size: 128, damp: 0.01, act_order: ActOrder::Static, static_groups: true }
    }
}

/// A name, or the `true`/`false` of the seed systems.
fn act_order<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<ActOrder, D::Error> {
    match Value::deserialize(d)? {
        Value::Bool(on) => Ok(if on { ActOrder::Static } else { ActOrder::Off }),
        other => ActOrder::deserialize(other).map_err(serde::de::Error::custom),
    }
}

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let o: Self = serde_json::from_value(options.clone()).map_err(|e| {
            Error::config("config::invalid", format!("options of `gptq`: {e}"))
                .hint("its options: block-size, damp, act-order (off, static, group), static-groups")
        })?;
        if !(1..=65536).contains(&o.block_size) {
            return Err(Error::config("config::invalid", format!("option `block-size` of `gptq` is {}", o.block_size))
                .hint("it must be from 1 to 65536; 128 is usual"));
        }
        if !(0.0..=1.0).contains(&o.damp) {
            return Err(Error::config("config::invalid", format!("option `damp` of `gptq` is {}", o.damp))
                .hint("it must be from 0 to 1; 0.01 is usual"));
        }
        if o.act_order == ActOrder::Static && !o.static_groups {
            return Err(Error::config("config::invalid", "`static-groups = false` of `gptq` cannot go with `act-order = \"static\"`")
                .hint("use `act-order = \"group\"` for groups that follow the order, or `act-order = \"off\"`"));
        }
        Ok(o)
    }

    pub(crate) fn resolved(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::internal(e.to_string()))
    }

    /// Whether groups are fitted during the sweep. Scales of whole rows or of the whole tensor are always fixed before.
    pub(crate) fn refits(&self, tile_rows: usize, tile_columns: usize) -> bool {
        tile_rows == 1 && tile_columns > 1 && (self.act_order == ActOrder::Group || !self.static_groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_the_seed_systems_mean_the_same() {
        for options in [
            json!({ "block-size": 64, "damp": 0.1, "act-order": "off" }),
            json!({ "blocksize": 64, "percdamp": 0.1, "actorder": false }),
            json!({ "block_size": 64, "dampening_frac": 0.1, "desc_act": false }),
        ] {
            let o = Options::read(&options).unwrap();
            assert_eq!(o, Options { block_size: 64, damp: 0.1, act_order: ActOrder::Off, static_groups: true });
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert!(message(json!({ "dampp": 1 })).contains("unknown field `dampp`"));
        assert_eq!(message(json!({ "damp": 2.0 })), "option `damp` of `gptq` is 2");
        assert_eq!(message(json!({ "block-size": 0 })), "option `block-size` of `gptq` is 0");
        assert!(message(json!({ "static-groups": false })).contains("cannot go with"));
    }
}
