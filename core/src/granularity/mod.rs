//! Rules from a name to the tiles of a tensor. What they yield, [`Granularity`], is all that the rest of the program knows.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::scheme::{Extent, Granularity};

/// The tensor that is cut into tiles, as a `[rows, cols]` matrix.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Output channels of a weight; `None` for the tokens of an activation.
    pub rows: Option<usize>,
    /// Input channels of a weight, channels of an activation.
    pub cols: usize,
    /// Channels of an attention head, where the columns are heads side by side.
    pub head: Option<usize>,
    /// Parameters are computed at each call.
    pub dynamic: bool,
}

/// The record of a granularity in the registry.
pub struct GranularityRecord {
    /// Its id.
    pub id: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// The tiles for a shape; the value is what stands behind the name, `null` if it stands alone.
    pub tiles: fn(&Shape, &Value) -> Result<Granularity>,
}

inventory::collect!(GranularityRecord);

macro_rules! records {
    ($($id:literal $summary:literal $tiles:expr;)*) => {
        /// The granularities of this crate.
        pub const BUILTIN: &[GranularityRecord] = &[$(GranularityRecord {
            id: $id,
            summary: $summary,
            version: env!("CARGO_PKG_VERSION"),
            source: "qfw-core",
            tiles: $tiles,
        }),*];
    };
}

records! {
    "tensor" "one scale" |_, v| alone("tensor", v, Extent::All, Extent::All);
    "channel" "one scale for each output channel of a weight, or row" |s, v| weight("channel", s, v, Extent::Of(1), Extent::All);
    "token" "one scale for each token of an activation" |s, v| activation("token", s, v, Extent::Of(1), Extent::All);
    "dimension" "one scale for each channel of an activation, or input channel of a weight" |_, v| alone("dimension", v, Extent::All, Extent::Of(1));
    "head" "one scale for each attention head; dynamic: and token" head;
    "group" "one scale for each run of N input channels: { group = 64 }" |_, v| Ok(Granularity::new("group", Extent::Of(1), size("group", v)?));
    "group-out" "one scale for each run of N output channels: { group-out = 64 }" |s, v| {
        let rows = size("group-out", v)?;
        weight("group-out", s, &Value::Null, rows, Extent::Of(1))
    };
    "block" "one scale for each block: { block = [128, 128] }" block;
}

fn alone(id: &str, value: &Value, rows: Extent, cols: Extent) -> Result<Granularity> {
    if value.is_null() {
        return Ok(Granularity::new(id, rows, cols));
    }
    Err(Error::config("config::invalid", format!("granularity `{id}` has no size, got {value}")).hint(format!("write \"{id}\"")))
}

fn weight(id: &str, shape: &Shape, value: &Value, rows: Extent, cols: Extent) -> Result<Granularity> {
    if shape.rows.is_none() {
        return Err(Error::plan("plan::unsupported", format!("activations have no granularity `{id}`: their rows are tokens"))
            .hint("use token, group, head, dimension or tensor"));
    }
    alone(id, value, rows, cols)
}

fn activation(id: &str, shape: &Shape, value: &Value, rows: Extent, cols: Extent) -> Result<Granularity> {
    if shape.rows.is_some() {
        return Err(Error::plan("plan::unsupported", format!("weights have no granularity `{id}`: they have no tokens"))
            .hint("use channel, group, block or tensor"));
    }
    if !shape.dynamic {
        return Err(Error::plan("plan::unsupported", format!("granularity `{id}` cannot be static: tokens are not known beforehand"))
            .hint("set `timing = \"dynamic\"`, or use tensor, head or dimension"));
    }
    alone(id, value, rows, cols)
}

fn head(shape: &Shape, value: &Value) -> Result<Granularity> {
    let Some(head) = shape.head else {
        return Err(Error::plan("plan::unsupported", "granularity `head` is for queries, keys and values: other tensors have no heads")
            .hint("use token, group or tensor"));
    };
    let rows = if shape.dynamic { Extent::Of(1) } else { Extent::All };
    alone("head", value, rows, Extent::Of(head as u32))
}

fn size(id: &str, value: &Value) -> Result<Extent> {
    let n = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    n.map(Extent::Of).ok_or_else(|| {
        Error::config("config::invalid", format!("granularity `{id}` needs a size of at least 1, got {value}"))
            .hint(format!("write {{ {id} = 64 }}"))
    })
}

fn block(_: &Shape, value: &Value) -> Result<Granularity> {
    let sides: Option<Vec<Extent>> = value.as_array().and_then(|a| a.iter().map(|v| size("block", v).ok()).collect());
    match sides.as_deref() {
        Some([rows, cols]) => Ok(Granularity::new("block", *rows, *cols)),
        _ => Err(Error::config("config::invalid", format!("granularity `block` needs rows and columns, got {value}"))
            .hint("write { block = [128, 128] }")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    const WEIGHT: Shape = Shape { rows: Some(48), cols: 64, head: None, dynamic: false };
    const INPUT: Shape = Shape { rows: None, cols: 64, head: None, dynamic: false };
    const DYNAMIC: Shape = Shape { dynamic: true, ..INPUT };

    fn tiles(id: &str, shape: &Shape, value: &Value) -> Result<Granularity> {
        Registry::builtin()?.granularity(id, shape, value)
    }

    /// Rows and columns of a tile on a `[48, 64]` matrix.
    #[test]
    fn each_id_has_its_tiles() {
        let heads = Shape { head: Some(16), ..INPUT };
        let null = Value::Null;
        let table: &[(&str, Shape, Value, (usize, usize))] = &[
            ("tensor", WEIGHT, null.clone(), (48, 64)),
            ("tensor", INPUT, null.clone(), (48, 64)),
            ("channel", WEIGHT, null.clone(), (1, 64)),
            ("token", DYNAMIC, null.clone(), (1, 64)),
            ("dimension", WEIGHT, null.clone(), (48, 1)),
            ("dimension", INPUT, null.clone(), (48, 1)),
            ("head", heads, null.clone(), (48, 16)),
            ("head", Shape { dynamic: true, ..heads }, null.clone(), (1, 16)),
            ("group", WEIGHT, json!(32), (1, 32)),
            ("group", DYNAMIC, json!(32), (1, 32)),
            ("group", WEIGHT, json!(1000), (1, 64)),
            ("group-out", WEIGHT, json!(16), (16, 1)),
            ("block", WEIGHT, json!([16, 32]), (16, 32)),
        ];
        for (id, shape, value, want) in table {
            let granularity = tiles(id, shape, value).unwrap();
            let layout = granularity.layout(48, 64);
            assert_eq!((granularity.id.as_str(), (layout.tile_rows, layout.tile_cols)), (*id, *want), "{shape:?} {value}");
        }
        for record in BUILTIN {
            assert!(table.iter().any(|(id, ..)| *id == record.id), "`{}` is not tested", record.id);
        }
    }

    #[test]
    fn refusals_say_why() {
        let null = Value::Null;
        let table: &[(&str, Shape, Value, &str)] = &[
            ("channel", INPUT, null.clone(), "activations have no granularity `channel`: their rows are tokens"),
            ("group-out", INPUT, json!(16), "activations have no granularity `group-out`: their rows are tokens"),
            ("token", WEIGHT, null.clone(), "weights have no granularity `token`: they have no tokens"),
            ("token", INPUT, null.clone(), "granularity `token` cannot be static: tokens are not known beforehand"),
            ("head", WEIGHT, null.clone(), "granularity `head` is for queries, keys and values: other tensors have no heads"),
            ("tensor", WEIGHT, json!(3), "granularity `tensor` has no size, got 3"),
            ("group", WEIGHT, null.clone(), "granularity `group` needs a size of at least 1, got null"),
            ("group", WEIGHT, json!(0), "granularity `group` needs a size of at least 1, got 0"),
            ("group", WEIGHT, json!(1u64 << 40), "granularity `group` needs a size of at least 1, got 1099511627776"),
            ("block", WEIGHT, json!([16]), "granularity `block` needs rows and columns, got [16]"),
            ("block", WEIGHT, json!([16, 0]), "granularity `block` needs rows and columns, got [16,0]"),
            ("colour", WEIGHT, null.clone(), "unknown granularity `colour`"),
        ];
        for (id, shape, value, message) in table {
            let error = tiles(id, shape, value).unwrap_err().to_string();
            assert!(error.contains(message), "`{id}` {value}: {error}");
        }
    }
}
