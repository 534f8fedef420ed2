//! Options of `clip`.

use qfw_core::Result;
use qfw_core::algorithm::{invalid_option, read_options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Options of `clip`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Limits lie `1/grid` of the largest magnitude apart.
    #[serde(alias = "n-grid", alias = "n_grid")]
    #[schemars(range(min = 1, max = 1000))]
    pub grid: usize,
    /// The share of the largest magnitude that may be clipped away, itself excluded.
    #[serde(alias = "max_shrink")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_shrink: f64,
    /// Also clip the projections of queries and keys, which AWQ and brevitas leave alone: their errors meet in a product.
    #[serde(alias = "queries_keys")]
    pub queries_keys: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { grid: 20, max_shrink: 0.5, queries_keys: false }
    }
}

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let o: Self = read_options("clip", options, "grid, max-shrink, queries-keys", &[])?;
        if !(1..=1000).contains(&o.grid) {
            return Err(invalid_option("clip", "grid", o.grid, "it must be from 1 to 1000; 20 is usual"));
        }
        if !(0.0..=1.0).contains(&o.max_shrink) {
            return Err(invalid_option("clip", "max-shrink", o.max_shrink, "it must be from 0 to 1; 0.5 is usual"));
        }
        Ok(o)
    }

    /// The limits to try, as shares of the largest magnitude; the first is 1.
    pub(crate) fn shares(&self) -> Vec<f32> {
        let n = ((self.max_shrink * self.grid as f64) as usize).max(1);
        (0..n).map(|i| (1.0 - i as f64 / self.grid as f64) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// AWQ tries 1, 0.95, …, 0.55.
    #[test]
    fn the_limits_are_those_of_awq() {
        let shares = Options::default().shares();
        assert_eq!(shares.len(), 10);
        assert_eq!((shares[0], shares[1], shares[9]), (1.0, 0.95, 0.55));
        assert_eq!(Options::read(&json!({ "n_grid": 4, "max_shrink": 0.0 })).unwrap().shares(), [1.0]);
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert!(message(json!({ "gird": 1 })).contains("unknown field `gird`"));
        assert_eq!(message(json!({ "grid": 0 })), "option `grid` of `clip` is 0");
        assert_eq!(message(json!({ "max-shrink": 1.5 })), "option `max-shrink` of `clip` is 1.5");
    }
}
