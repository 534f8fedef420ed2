//! What gradients gain: learned rounding beside its forms without, low-rank branches, distillation, and learned rotations.

use super::{Methods, Section, Table, of_sections};

const GPTQ: (&str, &str) = ("gptq", "act-order = 'static', damp = 0.01");

/// 50 steps of 4 windows, but where the name says otherwise.
const WEIGHTS: Methods = &[
    ("RTN", &[("rtn", "")]),
    ("GPTQ", &[GPTQ]),
    ("AutoRound form, 50 steps", &[("learned-round", "iters = 50, batch-size = 4")]),
    ("AutoRound form, 200 steps", &[("learned-round", "iters = 200, batch-size = 4")]),
    ("sign steps, fixed ranges", &[("learned-round", "iters = 50, batch-size = 4, learn-scale = false")]),
    ("sign steps, ranges by SGD", &[("learned-round", "iters = 50, batch-size = 4, scale-optimizer = 'sgd'")]),
    ("AdaRound, 50 steps", &[("adaround", "iters = 50, batch-size = 4")]),
    ("SVDQuant 16", &[("svdquant", "rank = 16"), ("rtn", "")]),
    ("SVDQuant 32", &[("svdquant", "rank = 32"), ("rtn", "")]),
    ("SVDQuant 64", &[("svdquant", "rank = 64"), ("rtn", "")]),
    ("SVDQuant 32 + GPTQ", &[("svdquant", "rank = 32"), GPTQ]),
    ("ZeroQuant with LKD", &[("zeroquant", "lkd = { iters = 50, batch-size = 4 }")]),
];

const ROTATED: Methods = &[
    ("QuaRot + RTN", &[("quarot", ""), ("rtn", "")]),
    ("SpinQuant + RTN", &[("spinquant", "optimize = { steps = 30, batch-size = 4 }"), ("rtn", "")]),
    ("SpinQuant, Cayley SGD + RTN", &[("spinquant", "optimize = { steps = 30, batch-size = 4, optimizer = 'cayley-sgd' }"), ("rtn", "")]),
    ("weight-recon + RTN", &[("spinquant", "optimize = { variant = 'weight-recon', steps = 100 }"), ("rtn", "")]),
    ("QuaRot + GPTQ", &[("quarot", ""), GPTQ]),
    ("SpinQuant + GPTQ", &[("spinquant", "optimize = { steps = 30, batch-size = 4 }"), GPTQ]),
];

const SECTIONS: [Section; 4] = [
    ("W4 g64", "weights = { format = 'int4', granularity = { group = 64 }, convention = 'half-range' }", WEIGHTS),
    ("W3 g64", "weights = { format = 'int3', granularity = { group = 64 }, convention = 'half-range' }", WEIGHTS),
    ("W2 g32", "weights = { format = 'int2', granularity = { group = 32 }, convention = 'half-range' }", WEIGHTS),
    (
        "W4A4",
        "weights = { format = 'int4', granularity = 'channel', convention = 'half-range' }\n\
         inputs = { format = 'int4', granularity = 'token' }",
        ROTATED,
    ),
];

/// `(better, worse)` in each section that has both.
const EXPECTED: [(&str, &str); 9] = [
    ("AutoRound form, 50 steps", "GPTQ"),
    ("AutoRound form, 200 steps", "GPTQ"),
    ("AutoRound form, 50 steps", "sign steps, fixed ranges"),
    ("AdaRound, 50 steps", "RTN"),
    ("SVDQuant 32", "SVDQuant 16"),
    ("SVDQuant 64", "SVDQuant 32"),
    ("ZeroQuant with LKD", "RTN"),
    ("SpinQuant + RTN", "QuaRot + RTN"),
    ("SpinQuant + GPTQ", "QuaRot + GPTQ"),
];

/// The table of methods that learn.
pub(super) fn table() -> Table {
    let (rows, orderings) = of_sections(&SECTIONS, &EXPECTED);
    Table {
        title: "What gradients gain",
        about: "Every row is `qfw apply` to the native form, then `qfw eval` of what was written. GPTQ orders columns by activation, with \
                damping 0.01; methods that learn take 50 steps of 4 windows where nothing else is said. A branch of rank `r` counts in the \
                bits.",
        rows,
        orderings,
        reasons: &[],
    }
}
