//! What changes of basis gain before rounding: scales for activations that are rounded, scales for weights of few bits, rotations where
//! both have few.

use super::{Methods, Section, Table, of_sections};

const GPTQ: (&str, &str) = ("gptq", "act-order = 'static', damp = 0.01");

const SMOOTHED: Methods = &[
    ("RTN", &[("rtn", "")]),
    ("SmoothQuant 0.3", &[("smoothquant", "alpha = 0.3"), ("rtn", "")]),
    ("SmoothQuant 0.5", &[("smoothquant", "alpha = 0.5"), ("rtn", "")]),
    ("SmoothQuant 0.7", &[("smoothquant", "alpha = 0.7"), ("rtn", "")]),
    ("GPTQ", &[GPTQ]),
    ("SmoothQuant 0.5 + GPTQ", &[("smoothquant", "alpha = 0.5"), GPTQ]),
];

const SCALED: Methods = &[
    ("RTN", &[("rtn", "")]),
    ("AWQ", &[("awq", ""), ("rtn", "")]),
    ("AWQ duo", &[("awq", "duo-scaling = true"), ("rtn", "")]),
    ("AWQ module", &[("awq", "loss = 'module'"), ("rtn", "")]),
    ("AWQ + clip", &[("awq", ""), ("clip", ""), ("rtn", "")]),
    ("GPTQ", &[GPTQ]),
    ("AWQ + GPTQ", &[("awq", ""), GPTQ]),
    ("AWQ linear + GPTQ", &[("awq", "loss = 'linear'"), GPTQ]),
    ("AWQ + clip + GPTQ", &[("awq", ""), ("clip", ""), GPTQ]),
];

const ROTATED: Methods = &[
    ("RTN", &[("rtn", "")]),
    ("GPTQ", &[GPTQ]),
    ("QuaRot + RTN", &[("quarot", ""), ("rtn", "")]),
    ("QuaRot + GPTQ", &[("quarot", ""), GPTQ]),
    ("QuaRot + Qronos", &[("quarot", ""), ("qronos", "")]),
    ("QuaRot R4 + GPTQ", &[("quarot", "rotations = ['r1', 'r2', 'r4']"), GPTQ]),
];

const CACHED: Methods = &[
    ("RTN", &[("rtn", "")]),
    ("QuaRot + GPTQ", &[("quarot", ""), GPTQ]),
    ("QuaRot R3 R4 + GPTQ", &[("quarot", "rotations = ['r1', 'r2', 'r3', 'r4']"), GPTQ]),
];

const SECTIONS: [Section; 6] = [
    (
        "W8A8 static",
        "weights = { format = 'int8', granularity = 'channel' }\n\
         inputs = { format = 'int8', timing = 'static', granularity = 'tensor', range = 'minmax' }",
        SMOOTHED,
    ),
    (
        "W4 g64 A8",
        "weights = { format = 'int4', granularity = { group = 64 }, convention = 'half-range' }\n\
         inputs = { format = 'int8', granularity = 'token' }",
        SMOOTHED,
    ),
    ("W4 g64", "weights = { format = 'int4', granularity = { group = 64 }, convention = 'half-range' }", SCALED),
    (
        "W4A4",
        "weights = { format = 'int4', granularity = 'channel', convention = 'half-range' }\n\
         inputs = { format = 'int4', granularity = 'token' }",
        ROTATED,
    ),
    (
        "W4A4 KV4",
        "weights = { format = 'int4', granularity = 'channel', convention = 'half-range' }\n\
         inputs = { format = 'int4', granularity = 'token' }\n\
         keys = { format = 'int4', granularity = 'head', timing = 'dynamic' }\n\
         values = { format = 'int4', granularity = 'head', timing = 'dynamic' }",
        CACHED,
    ),
    ("W3 g64", "weights = { format = 'int3', granularity = { group = 64 }, convention = 'half-range' }", SCALED),
];

/// `(better, worse)` in each section that has both.
const EXPECTED: [(&str, &str); 11] = [
    ("SmoothQuant 0.5", "RTN"),
    ("SmoothQuant 0.5 + GPTQ", "GPTQ"),
    ("AWQ", "RTN"),
    ("AWQ + clip", "AWQ"),
    ("AWQ + GPTQ", "GPTQ"),
    ("AWQ + GPTQ", "AWQ linear + GPTQ"),
    ("AWQ + clip + GPTQ", "GPTQ"),
    ("QuaRot + RTN", "RTN"),
    ("QuaRot + GPTQ", "GPTQ"),
    ("QuaRot R4 + GPTQ", "QuaRot + GPTQ"),
    ("QuaRot R3 R4 + GPTQ", "QuaRot + GPTQ"),
];

/// The table of transforms.
pub(super) fn table() -> Table {
    let (rows, orderings) = of_sections(&SECTIONS, &EXPECTED);
    Table {
        title: "Changes of basis before rounding",
        about: "Every row is `qfw apply` to the native form, then `qfw eval` of what was written. GPTQ orders columns by activation, with damping 0.01.",
        rows,
        orderings,
        reasons: &[],
    }
}
