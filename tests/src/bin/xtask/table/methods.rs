//! What each rounding method makes of the same scheme: eight schemes × seven methods.
//!
//! Calibrated methods are run for every seed, each of which draws other windows; a row is their mean.

use super::{Ordering, Row, Table};

/// `(name, bits, other fields of scheme.weights)`.
const SCHEMES: [(&str, u32, &str); 8] = [
    ("W4 g64", 4, "granularity = { group = 64 }, symmetric = true"),
    ("W4 g64 affine", 4, "granularity = { group = 64 }, symmetric = false"),
    ("W3 g64", 3, "granularity = { group = 64 }, symmetric = true"),
    ("W3 g64 affine", 3, "granularity = { group = 64 }, symmetric = false"),
    ("W3 channel", 3, "granularity = 'channel', symmetric = true"),
    ("W3 channel affine", 3, "granularity = 'channel', symmetric = false"),
    ("W2 g32", 2, "granularity = { group = 32 }, symmetric = true"),
    ("W2 g32 affine", 2, "granularity = { group = 32 }, symmetric = false"),
];

/// `(name, passes)`, a pass being its algorithm and its options.
const METHODS: [(&str, &[(&str, &str)]); 7] = [
    ("RTN", &[("rtn", "")]),
    ("GPTQ", &[("gptq", "act-order = 'off', damp = 0.01")]),
    ("GPTQ act-order", &[("gptq", "act-order = 'static', damp = 0.01")]),
    ("GPFQ", &[("gpfq", "")]),
    ("Qronos", &[("qronos", "")]),
    ("MagR+GPTQ", &[("magr", ""), ("gptq", "act-order = 'static', damp = 0.01")]),
    ("MagR+Qronos", &[("magr", ""), ("qronos", "")]),
];

/// `(better, worse, standard errors allowed, most bits it is expected at)`.
const EXPECTED: [(&str, &str, f64, u32); 8] = [
    ("GPTQ", "RTN", 0.0, 4),
    ("GPTQ act-order", "RTN", 0.0, 4),
    ("GPFQ", "RTN", 0.0, 4),
    ("Qronos", "RTN", 0.0, 4),
    ("Qronos", "GPTQ act-order", 2.0, 3),
    ("Qronos", "GPTQ", 2.0, 3),
    ("MagR+GPTQ", "GPTQ act-order", 2.0, 3),
    ("MagR+Qronos", "Qronos", 2.0, 3),
];

/// Found by experiment; see the document that this table makes.
const REASONS: &[(&str, &str, &str)] = &[(
    "W4 g64: GPTQ",
    "W4 g64: RTN",
    "it is the stored order. Errors of early columns are passed on to late ones, whose groups are then fitted to what these have become, and \
     columns that matter lie anywhere in this model; by activation, as in the next row, they come first.",
)];

fn id(scheme: &str, method: &str) -> String {
    format!("{scheme}: {method}")
}

fn recipe(bits: u32, fields: &str, passes: &[(&str, &str)]) -> String {
    let passes = passes.iter().map(|(algo, options)| format!("[[pass]]\nalgo = '{algo}'\noptions = {{ {options} }}\n"));
    format!(
        "schema = 1\n[scheme]\nweights = {{ format = 'int{bits}', {fields}, convention = 'half-range', range = 'minmax' }}\n{}",
        passes.collect::<String>()
    )
}

/// The table of methods.
pub(super) fn table() -> Table {
    let mut rows = vec![Row { section: "The float model", id: "float".to_owned(), recipe: None, seeded: false }];
    let mut orderings = Vec::new();
    for (section, bits, fields) in SCHEMES {
        for (method, passes) in METHODS {
            rows.push(Row { section, id: id(section, method), recipe: Some(recipe(bits, fields, passes)), seeded: method != "RTN" });
        }
        for (better, worse, allowed, most) in EXPECTED {
            if bits <= most {
                orderings.push(Ordering { kind: "method", better: id(section, better), worse: id(section, worse), allowed });
            }
        }
    }
    Table {
        title: "Rounding methods",
        about: "Every row is `qfw apply` to the native form, then `qfw eval` of what was written. Scales and zero \
                points span each range exactly (`minmax`); options of the methods are the defaults, but for damping 0.01 of GPTQ's, and the \
                natural order of columns where the row does not say act-order.",
        rows,
        orderings,
        reasons: REASONS,
    }
}
