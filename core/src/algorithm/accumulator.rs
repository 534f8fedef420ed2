//! Accumulators that codes are to be held to, as options of a pass and for one site of a plan.

use super::options::invalid_option;
use super::{PlanContext, SiteContext};
use crate::error::{Error, Result};
use crate::numeric::AccumulatorLimit;
use crate::scheme::{Grid, QuantSpec, Zero};

/// `accumulator-bits` and `accumulator-tile` of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accumulator {
    bits: u32,
    tile: Option<usize>,
}

impl Accumulator {
    /// From the two options of `algo`; `None` where there is no accumulator to hold to.
    ///
    /// # Errors
    /// If one is out of range, or a tile has no width.
    pub fn of(algo: &str, bits: Option<u32>, tile: Option<usize>) -> Result<Option<Self>> {
        let Some(bits) = bits else {
            return match tile {
                None => Ok(None),
                Some(_) => Err(Error::config(
                    "config::invalid",
                    format!("option `accumulator-tile` of `{algo}` says nothing without `accumulator-bits`"),
                )
                .hint("set `accumulator-bits` too, or leave it out")),
            };
        };
        if !(3..=32).contains(&bits) {
            return Err(invalid_option(algo, "accumulator-bits", bits, "it must be from 3 to 32; 16 is usual"));
        }
        if let Some(tile) = tile.filter(|t| !(3..=65536).contains(t)) {
            return Err(invalid_option(algo, "accumulator-tile", tile, "it must be from 3 to 65536; 128 is usual"));
        }
        Ok(Some(Self { bits, tile }))
    }

    /// Whether the codes of every site of a pass can be held to it.
    ///
    /// # Errors
    /// For the first site where not, naming it.
    pub fn check(&self, cx: &PlanContext<'_>) -> Result<()> {
        for ((site, weights), input) in cx.sites.iter().zip(cx.weights).zip(cx.inputs) {
            limit(self.bits, self.tile, weights, *input, site.shape.1).map_err(|e| e.within(format!("`{}`", site.site)))?;
        }
        Ok(())
    }

    /// What it leaves room for at a site.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn limit(&self, cx: &SiteContext<'_>) -> Result<AccumulatorLimit> {
        limit(self.bits, self.tile, cx.spec, cx.input, cx.linear.shape.1)
    }
}

/// The limit of an accumulator of `bits` bits over tiles of `tile` input channels (all of them, if `None`) of a site with `cols` channels.
/// Refused where sums of codes are not what such an accumulator would hold: weights other than symmetric integers, inputs that are not
/// integers or not known, groups that are not the tiles.
fn limit(bits: u32, tile: Option<usize>, weights: &QuantSpec, input: Option<&QuantSpec>, cols: usize) -> Result<AccumulatorLimit> {
    let refuse = |what: String, hint: &str| Err(Error::plan("plan::accumulator", format!("`accumulator-bits` {what}")).hint(hint));
    if !matches!(weights.grid, Grid::Int { zero: Zero::None, .. }) {
        return refuse(
            format!("wants weights of symmetric integers, and they are `{weights}`"),
            "set `scheme.weights.format = \"int4\"` (or another `intN`) and `scheme.weights.symmetric = true`",
        );
    }
    let Some(input) = input else {
        return refuse(
            "needs to know the inputs, and the scheme rounds none".to_owned(),
            "set `scheme.inputs`, for example `{ format = \"int8\", timing = \"dynamic\", granularity = \"token\" }`",
        );
    };
    let Grid::Int { lo, .. } = input.grid else {
        return refuse(format!("wants inputs of integers, and they are `{input}`"), "set `scheme.inputs.format = \"int8\"`");
    };
    let tile = tile.unwrap_or(cols).min(cols);
    for (what, key, group) in [
        ("weights", "weights", weights.granularity.layout(1, cols).tile_cols),
        ("inputs", "inputs", input.granularity.layout(1, cols).tile_cols),
    ] {
        if group < cols && group != tile {
            return refuse(
                format!("sums {tile} channels, but {what} have one scale for {group}"),
                if key == "weights" {
                    "set `accumulator-tile` to the group of `scheme.weights`"
                } else {
                    "set `accumulator-tile` to the group of `scheme.inputs`"
                },
            );
        }
    }
    Ok(AccumulatorLimit::new(bits, tile, u32::from(input.bits), lo < 0))
}
