//! Whether codes can be held to an accumulator, for one site of a plan.

use crate::error::{Error, Result};
use crate::numeric::AccumulatorLimit;
use crate::scheme::{Grid, QuantSpec, Zero};

/// The limit of an accumulator of `bits` bits over tiles of `tile` input channels (all of them, if `None`) of a site with `cols` channels.
///
/// # Errors
/// If sums of codes are not what such an accumulator would hold: weights other than symmetric integers, inputs that are not integers or
/// not known, groups that are not the tiles.
pub fn accumulator_limit(
    bits: u32,
    tile: Option<usize>,
    weights: &QuantSpec,
    input: Option<&QuantSpec>,
    cols: usize,
) -> Result<AccumulatorLimit> {
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
