//! Every way of writing weights and inputs that brevitas has, and what lies between: formats × scales × granularities × observers.
//!
//! Weights are alone first; inputs are then rounded beside int8 weights with a scale for each channel.

use super::{Ordering, Row, Table};

const GROUP: &str = "granularity = { group = 64 }";

/// `(id, fields)`, the fields of `scheme.weights`; `GROUP` stands for groups of 64.
const WEIGHTS: &[(&str, &[(&str, &str)])] = &[
    (
        "Weights: integers, float scales",
        &[
            ("int4 tensor", "format = 'int4', granularity = 'tensor'"),
            ("int4 tensor affine", "format = 'int4', granularity = 'tensor', symmetric = false"),
            ("int4 channel", "format = 'int4', granularity = 'channel'"),
            ("int4 channel affine", "format = 'int4', granularity = 'channel', symmetric = false"),
            ("int4 group", "format = 'int4', GROUP"),
            ("int4 group affine", "format = 'int4', GROUP, symmetric = false"),
            ("int4 tensor mse", "format = 'int4', granularity = 'tensor', range = 'mse'"),
            ("int4 tensor affine mse", "format = 'int4', granularity = 'tensor', symmetric = false, range = 'mse'"),
            ("int4 channel mse", "format = 'int4', granularity = 'channel', range = 'mse'"),
            ("int4 channel affine mse", "format = 'int4', granularity = 'channel', symmetric = false, range = 'mse'"),
            ("int4 tensor hqo", "format = 'int4', granularity = 'tensor', range = 'hqo'"),
            ("int4 tensor affine hqo", "format = 'int4', granularity = 'tensor', symmetric = false, zero-point = 'float', range = 'hqo'"),
            ("int4 channel hqo", "format = 'int4', granularity = 'channel', range = 'hqo'"),
            ("int4 channel affine hqo", "format = 'int4', granularity = 'channel', symmetric = false, zero-point = 'float', range = 'hqo'"),
            ("int4 group affine hqo", "format = 'int4', GROUP, symmetric = false, zero-point = 'float', range = 'hqo'"),
        ],
    ),
    (
        "Weights: integers of other widths",
        &[
            ("int2 group", "format = 'int2', GROUP"),
            ("int3 group", "format = 'int3', GROUP"),
            ("int6 group", "format = 'int6', GROUP"),
            ("int8 group", "format = 'int8', GROUP"),
            ("int3 channel", "format = 'int3', granularity = 'channel'"),
            ("int6 channel", "format = 'int6', granularity = 'channel'"),
            ("int8 tensor", "format = 'int8', granularity = 'tensor'"),
            ("int8 channel", "format = 'int8', granularity = 'channel'"),
            ("int16 channel", "format = 'int16', granularity = 'channel'"),
        ],
    ),
    (
        "Weights: integers, powers of two as scales",
        &[
            ("int4 tensor po2", "format = 'int4', granularity = 'tensor', scale = 'po2'"),
            ("int4 channel po2", "format = 'int4', granularity = 'channel', scale = 'po2'"),
            ("int4 group po2", "format = 'int4', GROUP, scale = 'po2'"),
            ("int4 group affine po2", "format = 'int4', GROUP, symmetric = false, scale = 'po2'"),
            ("int4 tensor po2 mse", "format = 'int4', granularity = 'tensor', scale = 'po2', range = 'mse'"),
            ("int4 channel po2 mse", "format = 'int4', granularity = 'channel', scale = 'po2', range = 'mse'"),
            ("int4 group po2 mse", "format = 'int4', GROUP, scale = 'po2', range = 'mse'"),
            ("int4 group affine po2 mse", "format = 'int4', GROUP, symmetric = false, scale = 'po2', range = 'mse'"),
        ],
    ),
    (
        "Weights: floats",
        &[
            ("e2m1 tensor", "format = 'float-e2m1', granularity = 'tensor'"),
            ("e2m1 channel", "format = 'float-e2m1', granularity = 'channel'"),
            ("e2m1 group", "format = 'float-e2m1', GROUP"),
            ("e4m3 tensor", "format = 'float-e4m3', granularity = 'tensor'"),
            ("e4m3 channel", "format = 'float-e4m3', granularity = 'channel'"),
            ("e4m3 group", "format = 'float-e4m3', GROUP"),
            ("ocp e4m3 tensor", "format = 'float-ocp-e4m3', granularity = 'tensor'"),
            ("ocp e4m3 channel", "format = 'float-ocp-e4m3', granularity = 'channel'"),
            ("ocp e4m3 group", "format = 'float-ocp-e4m3', GROUP"),
            ("ocp e4m3 channel mse", "format = 'float-ocp-e4m3', granularity = 'channel', range = 'mse'"),
            ("ocp e4m3 channel po2 mse", "format = 'float-ocp-e4m3', granularity = 'channel', scale = 'po2', range = 'mse'"),
            ("ocp e4m3 group 32 po2", "format = 'float-ocp-e4m3', granularity = { group = 32 }, scale = 'po2', scale-rounding = 'floor'"),
            (
                "ocp e4m3 group 32 po2 mse",
                "format = 'float-ocp-e4m3', granularity = { group = 32 }, scale = 'po2', scale-rounding = 'floor', range = 'mse'",
            ),
            ("fnuz e4m3 tensor", "format = 'float-fnuz-e4m3', granularity = 'tensor'"),
            ("fnuz e4m3 channel", "format = 'float-fnuz-e4m3', granularity = 'channel'"),
        ],
    ),
    (
        "Weights: tables and formats with scales of their own",
        &[
            ("ternary channel", "format = 'ternary', granularity = 'channel'"),
            ("nf4 group", "format = 'nf4', GROUP"),
            ("mxfp4", "format = 'mxfp4'"),
            ("nvfp4", "format = 'nvfp4'"),
            ("mxfp6-e2m3", "format = 'mxfp6-e2m3'"),
            ("mxfp8-e4m3", "format = 'mxfp8-e4m3'"),
            ("mxint8", "format = 'mxint8'"),
        ],
    ),
];

/// The same for `scheme.inputs`, which are dynamic unless they say otherwise.
const INPUTS: &[(&str, &[(&str, &str)])] = &[
    (
        "Inputs: integers, int8 weights",
        &[
            ("i8 static tensor", "format = 'int8', timing = 'static', granularity = 'tensor', range = 'percentile'"),
            (
                "i8 static tensor affine",
                "format = 'int8', timing = 'static', granularity = 'tensor', range = 'percentile', symmetric = false",
            ),
            ("i8 static tensor mse", "format = 'int8', timing = 'static', granularity = 'tensor', range = 'mse'"),
            ("i8 static tensor affine mse", "format = 'int8', timing = 'static', granularity = 'tensor', range = 'mse', symmetric = false"),
            ("i8 static tensor po2", "format = 'int8', timing = 'static', granularity = 'tensor', range = 'percentile', scale = 'po2'"),
            ("i8 static tensor po2 mse", "format = 'int8', timing = 'static', granularity = 'tensor', range = 'mse', scale = 'po2'"),
            ("i8 tensor", "format = 'int8', granularity = 'tensor'"),
            ("i8 tensor affine", "format = 'int8', granularity = 'tensor', symmetric = false"),
            ("i8 token", "format = 'int8', granularity = 'token'"),
            ("i8 token affine", "format = 'int8', granularity = 'token', symmetric = false"),
            ("i8 group", "format = 'int8', GROUP"),
            ("i8 group affine", "format = 'int8', GROUP, symmetric = false"),
            ("i8 token po2", "format = 'int8', granularity = 'token', scale = 'po2', scale-rounding = 'floor'"),
            ("i8 group po2", "format = 'int8', GROUP, scale = 'po2', scale-rounding = 'floor'"),
            ("i8 token po2 ceil", "format = 'int8', granularity = 'token', scale = 'po2', scale-rounding = 'ceil'"),
            ("i8 group po2 ceil", "format = 'int8', GROUP, scale = 'po2', scale-rounding = 'ceil'"),
        ],
    ),
    (
        "Inputs: integers of other widths, int8 weights",
        &[
            ("i4 static tensor", "format = 'int4', timing = 'static', granularity = 'tensor', range = 'percentile'"),
            ("i4 tensor", "format = 'int4', granularity = 'tensor'"),
            ("i4 token", "format = 'int4', granularity = 'token'"),
            ("i4 group", "format = 'int4', GROUP"),
            ("i6 token", "format = 'int6', granularity = 'token'"),
            ("i6 group", "format = 'int6', GROUP"),
        ],
    ),
    (
        "Inputs: floats, int8 weights",
        &[
            ("inputs e4m3 static tensor", "format = 'float-e4m3', timing = 'static', granularity = 'tensor', range = 'percentile'"),
            ("inputs e4m3 group", "format = 'float-e4m3', GROUP"),
            ("inputs e4m3 cast", "format = 'float-e4m3', timing = 'cast'"),
            ("inputs ocp e4m3 static tensor", "format = 'float-ocp-e4m3', timing = 'static', granularity = 'tensor', range = 'percentile'"),
            ("inputs ocp e4m3 token", "format = 'float-ocp-e4m3', granularity = 'token'"),
            ("inputs ocp e4m3 group", "format = 'float-ocp-e4m3', GROUP"),
            ("inputs ocp e4m3 token po2", "format = 'float-ocp-e4m3', granularity = 'token', scale = 'po2', scale-rounding = 'floor'"),
            ("inputs ocp e4m3 group po2", "format = 'float-ocp-e4m3', GROUP, scale = 'po2', scale-rounding = 'floor'"),
            (
                "inputs fnuz e4m3 static tensor",
                "format = 'float-fnuz-e4m3', timing = 'static', granularity = 'tensor', range = 'percentile'",
            ),
            ("inputs fnuz e4m3 tensor", "format = 'float-fnuz-e4m3', granularity = 'tensor'"),
            ("inputs fnuz e4m3 token", "format = 'float-fnuz-e4m3', granularity = 'token'"),
        ],
    ),
];

const MORE_BITS: &str = "more bits";
const FINER: &str = "finer granularity";
const DYNAMIC: &str = "dynamic, not static";

/// Rows from better to worse.
const CHAINS: &[(&str, &[&str])] = &[
    (MORE_BITS, &["int8 group", "int6 group", "int4 group", "int3 group", "int2 group"]),
    (MORE_BITS, &["int16 channel", "int8 channel", "int6 channel", "int4 channel", "int3 channel"]),
    (MORE_BITS, &["int8 tensor", "int4 tensor"]),
    (MORE_BITS, &["e4m3 tensor", "e2m1 tensor"]),
    (MORE_BITS, &["e4m3 channel", "e2m1 channel"]),
    (MORE_BITS, &["e4m3 group", "e2m1 group"]),
    (MORE_BITS, &["mxfp8-e4m3", "mxfp6-e2m3", "mxfp4"]),
    (MORE_BITS, &["mxint8", "mxfp4"]),
    (MORE_BITS, &["int3 channel", "ternary channel"]),
    (FINER, &["int4 group", "int4 channel", "int4 tensor"]),
    (FINER, &["int4 group affine", "int4 channel affine", "int4 tensor affine"]),
    (FINER, &["int4 channel mse", "int4 tensor mse"]),
    (FINER, &["int4 channel affine mse", "int4 tensor affine mse"]),
    (FINER, &["int4 channel hqo", "int4 tensor hqo"]),
    (FINER, &["int4 group affine hqo", "int4 channel affine hqo", "int4 tensor affine hqo"]),
    (FINER, &["int8 group", "int8 channel", "int8 tensor"]),
    (FINER, &["int6 group", "int6 channel"]),
    (FINER, &["int3 group", "int3 channel"]),
    (FINER, &["int4 group po2", "int4 channel po2", "int4 tensor po2"]),
    (FINER, &["int4 group po2 mse", "int4 channel po2 mse", "int4 tensor po2 mse"]),
    (FINER, &["e2m1 group", "e2m1 channel", "e2m1 tensor"]),
    (FINER, &["e4m3 group", "e4m3 channel", "e4m3 tensor"]),
    (FINER, &["ocp e4m3 group", "ocp e4m3 channel", "ocp e4m3 tensor"]),
    (FINER, &["fnuz e4m3 channel", "fnuz e4m3 tensor"]),
    (MORE_BITS, &["i8 token", "i6 token", "i4 token"]),
    (MORE_BITS, &["i8 group", "i6 group", "i4 group"]),
    (MORE_BITS, &["i8 tensor", "i4 tensor"]),
    (MORE_BITS, &["i8 static tensor", "i4 static tensor"]),
    (FINER, &["i8 group", "i8 token", "i8 tensor"]),
    (FINER, &["i8 group affine", "i8 token affine", "i8 tensor affine"]),
    (FINER, &["i8 group po2", "i8 token po2"]),
    (FINER, &["i8 group po2 ceil", "i8 token po2 ceil"]),
    (FINER, &["i6 group", "i6 token"]),
    (FINER, &["i4 group", "i4 token", "i4 tensor"]),
    (FINER, &["inputs ocp e4m3 group", "inputs ocp e4m3 token"]),
    (FINER, &["inputs ocp e4m3 group po2", "inputs ocp e4m3 token po2"]),
    (FINER, &["inputs fnuz e4m3 token", "inputs fnuz e4m3 tensor"]),
    (DYNAMIC, &["i8 token", "i8 static tensor"]),
    (DYNAMIC, &["i8 token affine", "i8 static tensor affine"]),
    (DYNAMIC, &["i8 token", "i8 static tensor mse"]),
    (DYNAMIC, &["i8 token affine", "i8 static tensor affine mse"]),
    (DYNAMIC, &["i8 token po2", "i8 static tensor po2"]),
    (DYNAMIC, &["i4 token", "i4 static tensor"]),
    (DYNAMIC, &["inputs e4m3 group", "inputs e4m3 static tensor"]),
    (DYNAMIC, &["inputs ocp e4m3 token", "inputs ocp e4m3 static tensor"]),
    (DYNAMIC, &["inputs fnuz e4m3 token", "inputs fnuz e4m3 static tensor"]),
];

/// Found by experiment; see the document that this table makes.
const REASONS: &[(&str, &str, &str)] = &[(
    "i8 group po2",
    "i8 token po2",
    "brevitas' default for both, `floor`, gives the scale 2^(⌊log₂ a⌋ − 7), whose largest code stands for less than 2^⌊log₂ a⌋: the largest \
     value of every tile, up to 2^(⌊log₂ a⌋ + 1), is clipped to that. Nine tiles a token clip nine times as many values as one. With `ceil`, \
     which clips none, the order is as expected (`i8 group po2 ceil` against `i8 token po2 ceil`).",
)];

/// The table of schemes.
pub(super) fn table() -> Table {
    let recipe = |scheme: &str| Some(format!("schema = 1\n[scheme]\n{scheme}\n[[pass]]\nalgo = \"rtn\"\n"));
    let mut rows = vec![Row { section: "The float model", id: "float".to_owned(), recipe: None, seeded: false }];
    let each = |sections: &'static [(&'static str, &'static [(&'static str, &'static str)])]| {
        sections.iter().flat_map(|(section, rows)| rows.iter().map(move |(id, fields)| (*section, *id, fields.replace("GROUP", GROUP))))
    };
    for (section, id, fields) in each(WEIGHTS) {
        rows.push(Row { section, id: id.to_owned(), recipe: recipe(&format!("weights = {{ {fields} }}")), seeded: false });
    }
    for (section, id, fields) in each(INPUTS) {
        let scheme = format!("weights = {{ format = 'int8', granularity = 'channel' }}\ninputs = {{ {fields} }}");
        rows.push(Row { section, id: id.to_owned(), recipe: recipe(&scheme), seeded: fields.contains("'static'") });
    }
    let orderings = CHAINS.iter().flat_map(|(kind, chain)| {
        chain.windows(2).map(|pair| Ordering { kind, better: pair[0].to_owned(), worse: pair[1].to_owned(), allowed: 2.0 })
    });
    let about = "Every row is `qfw apply` to the native form with weights rounded to nearest, then `qfw eval` of what was written.";
    Table { title: "Schemes, rounded to nearest", about, rows, orderings: orderings.collect(), reasons: REASONS }
}
