//! Options of `gptq`.

use qfw_core::algorithm::{Accumulator, Answer, Elsewhere, SiteContext, invalid_option, name_or_switch, read_options};
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
    /// Instead of `block-size`: in how many blocks to update the columns.
    #[serde(alias = "num_blocks", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536), extend("default" = null))]
    pub num_blocks: Option<usize>,
    /// Damping relative to the mean of the diagonal.
    #[serde(alias = "percdamp", alias = "dampening-frac", alias = "dampening_frac")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub damp: f64,
    /// Order of the columns.
    #[serde(
        alias = "actorder",
        alias = "act_order",
        alias = "desc-act",
        alias = "desc_act",
        alias = "gpxq-act-order",
        alias = "gpxq_act_order",
        deserialize_with = "act_order"
    )]
    pub act_order: ActOrder,
    /// Fix the scales of all groups before the first column is rounded. `false` fits each group when the sweep reaches it, on the
    /// weights as updated so far; not possible with `act-order = "static"` or `accumulator-bits`, implied by `act-order = "group"`, and
    /// what `"off"` does unless told otherwise, as in the paper: weights outgrow scales that were fixed before.
    #[serde(alias = "static_groups", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null))]
    pub static_groups: Option<bool>,
    /// Take the inputs as they will be: rounded, where the scheme rounds them. The statistics are then those of the rounded activations.
    #[serde(alias = "use_quant_activations", alias = "gpxq-use-quant-activations", alias = "gpxq_use_quant_activations")]
    pub use_quant_activations: bool,
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
        Self {
            block_size: 128,
            num_blocks: None,
            damp: 0.01,
            act_order: ActOrder::Static,
            static_groups: None,
            use_quant_activations: false,
            accumulator_bits: None,
            accumulator_tile: None,
        }
    }
}

/// A name, or the `true`/`false` of the seed systems.
fn act_order<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<ActOrder, D::Error> {
    name_or_switch(d, ActOrder::Static, ActOrder::Off)
}

const ELSEWHERE: &[Elsewhere] = &[Elsewhere { names: &["create-weight-orig", "gpxq-create-weight-orig"], answer: Answer::Nothing }];

const KNOWN: &str = "block-size, num-blocks, damp, act-order (off, static, group), static-groups, use-quant-activations, accumulator-bits, \
                     accumulator-tile";

impl Options {
    pub(crate) fn read(options: &Value) -> Result<Self> {
        let o: Self = read_options("gptq", options, KNOWN, ELSEWHERE)?;
        if !(1..=65536).contains(&o.block_size) {
            return Err(invalid_option("gptq", "block-size", o.block_size, "it must be from 1 to 65536; 128 is usual"));
        }
        if let Some(n) = o.num_blocks.filter(|n| !(1..=65536).contains(n)) {
            return Err(invalid_option("gptq", "num-blocks", n, "it must be from 1 to 65536"));
        }
        if !(0.0..=1.0).contains(&o.damp) {
            return Err(invalid_option("gptq", "damp", o.damp, "it must be from 0 to 1; 0.01 is usual"));
        }
        if o.act_order == ActOrder::Static && o.static_groups == Some(false) {
            return Err(Error::config("config::invalid", "`static-groups = false` of `gptq` cannot go with `act-order = \"static\"`")
                .hint("use `act-order = \"group\"` for groups that follow the order, or `act-order = \"off\"`"));
        }
        o.accumulator()?;
        Ok(o)
    }

    pub(crate) fn accumulator(&self) -> Result<Option<Accumulator>> {
        let accumulator = Accumulator::of("gptq", self.accumulator_bits, self.accumulator_tile)?;
        let invalid = |what: &str, hint: &str| {
            Err(Error::config("config::invalid", format!("option `accumulator-bits` of `gptq` {what}")).hint(hint))
        };
        if accumulator.is_some() && !self.use_quant_activations {
            return invalid("is about rounded inputs, and it takes them unrounded", "set `use-quant-activations = true` too");
        }
        if accumulator.is_some() && (self.act_order == ActOrder::Group || self.static_groups == Some(false)) {
            return invalid("wants scales that are fixed before", "leave `static-groups` and `act-order = \"group\"` out");
        }
        Ok(accumulator)
    }

    /// Columns updated at once in a layer with `cols` of them.
    pub(crate) fn block(&self, cols: usize) -> usize {
        self.num_blocks.map_or(self.block_size, |n| cols.div_ceil(n).max(1))
    }

    /// Whether groups are fitted during the sweep. Scales of whole rows or of the whole tensor are always fixed before, and so are ranges
    /// that a condition chose, unless the groups are other ones than it saw.
    pub(crate) fn refits(&self, cx: &SiteContext<'_>) -> bool {
        let layout = cx.layout();
        let groups = layout.tile_rows == 1 && layout.grid().1 > 1;
        groups && (self.act_order == ActOrder::Group || (!self.fixes_groups() && cx.ranged.is_none()))
    }

    fn fixes_groups(&self) -> bool {
        match self.act_order {
            ActOrder::Static => true,
            ActOrder::Group => false,
            ActOrder::Off => self.static_groups.unwrap_or(self.accumulator_bits.is_some()),
        }
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
            assert_eq!(o, Options { block_size: 64, damp: 0.1, act_order: ActOrder::Off, ..Options::default() });
        }
        let brevitas = json!({ "num_blocks": 100, "gpxq_act_order": true, "gpxq_use_quant_activations": true, "create_weight_orig": false,
            "group_of_parallel_layers": null, "gpxq_max_accumulator_bit_width": 16, "gpxq_max_accumulator_tile_size": 64 });
        let o = Options::read(&brevitas).unwrap();
        assert_eq!((o.block(576), o.block(90), o.block_size), (6, 1, 128));
        let accumulator = Options { accumulator_bits: Some(16), accumulator_tile: Some(64), ..Options::default() };
        assert_eq!(o, Options { num_blocks: Some(100), use_quant_activations: true, ..accumulator });
    }

    /// Weights of a group have moved by the time that it is reached, and a scale that was fixed before clips them.
    #[test]
    fn groups_are_fixed_before_where_columns_come_in_another_order() {
        let fixed = |v| Options::read(&v).unwrap().fixes_groups();
        assert!(fixed(json!({})) && fixed(json!({ "act-order": "off", "static-groups": true })));
        assert!(!fixed(json!({ "act-order": "off" })) && !fixed(json!({ "act-order": "group" })));
        assert!(fixed(json!({ "act-order": "off", "accumulator-bits": 16, "use-quant-activations": true })));
    }

    #[test]
    fn options_that_live_elsewhere_are_answered_with_where() {
        let of = |name: &str| {
            let e = Options::read(&json!({ name: true })).unwrap_err();
            (e.to_string(), e.hint_text().unwrap_or_default().to_owned())
        };
        let (message, hint) = of("sym");
        assert_eq!(message, "`sym` is no option of `gptq`: whether weights have zero points is set elsewhere");
        assert_eq!(hint, "set `scheme.weights.symmetric`");
        for (name, key) in [
            ("mse", "scheme.weights.range"),
            ("groupsize", "scheme.weights.granularity.group"),
            ("wbits", "scheme.weights.format"),
            ("true_sequential", "harness.sequence"),
            ("layer_sequential", "harness.sequence"),
            ("block_sequential", "harness.propagate"),
            ("nsamples", "calibration.samples"),
        ] {
            let (message, hint) = of(name);
            assert!(message.starts_with(&format!("`{name}` is no option of `gptq`")) && hint.contains(key), "{message}; {hint}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let message = |v| Options::read(&v).unwrap_err().to_string();
        assert!(message(json!({ "dampp": 1 })).contains("unknown field `dampp`"));
        assert_eq!(message(json!({ "damp": 2.0 })), "option `damp` of `gptq` is 2");
        assert_eq!(message(json!({ "block-size": 0 })), "option `block-size` of `gptq` is 0");
        assert!(message(json!({ "static-groups": false })).contains("cannot go with"));
        assert_eq!(message(json!({ "num-blocks": 0 })), "option `num-blocks` of `gptq` is 0");
        assert_eq!(
            message(json!({ "accumulator-bits": 16 })),
            "option `accumulator-bits` of `gptq` is about rounded inputs, and it takes them unrounded"
        );
        assert_eq!(message(json!({ "accumulator-bits": 2 })), "option `accumulator-bits` of `gptq` is 2");
        assert!(message(json!({ "accumulator-tile": 64 })).ends_with("says nothing without `accumulator-bits`"));
        let moving = json!({ "accumulator-bits": 16, "use-quant-activations": true, "act-order": "group" });
        assert_eq!(message(moving), "option `accumulator-bits` of `gptq` wants scales that are fixed before");
    }
}
