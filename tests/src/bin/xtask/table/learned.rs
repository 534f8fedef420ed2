//! What gradients gain: learned rounding beside its forms without, low-rank branches, distillation, and learned rotations.

use super::{Ordering, Row, Table};

/// `(name, passes)`; a pass is its algorithm and its options.
type Methods = &'static [(&'static str, &'static [(&'static str, &'static str)])];

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

const SECTIONS: [(&str, &str, Methods); 4] = [
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
    let id = |section: &str, method: &str| format!("{section}: {method}");
    let mut rows = vec![Row { section: "The float model", id: "float".to_owned(), recipe: None, seeded: false }];
    let mut orderings = Vec::new();
    for (section, scheme, methods) in SECTIONS {
        for (method, passes) in methods {
            let passes: String =
                passes.iter().map(|(algo, options)| format!("[[pass]]\nalgo = '{algo}'\noptions = {{ {options} }}\n")).collect();
            let recipe = Some(format!("schema = 1\n[scheme]\n{scheme}\n{passes}"));
            rows.push(Row { section, id: id(section, method), recipe, seeded: *method != "RTN" });
        }
        for (better, worse) in EXPECTED {
            if [better, worse].iter().all(|name| methods.iter().any(|(method, _)| method == name)) {
                orderings.push(Ordering { kind: "method", better: id(section, better), worse: id(section, worse), allowed: 0.0 });
            }
        }
    }
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
