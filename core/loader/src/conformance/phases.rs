//! Which cases a phase has.

use qfw_core::Result;
use qfw_core::algorithm::Phase;

use super::shapes::{SHAPES, fixed_point, no_strength, one, sample};
use super::{Outcome, Try, fuzz, regions, repeats, safety};

/// Cases of every phase that works on single sites, beside those of the shapes.
const MORE: [&str; 7] = ["same-twice", "threads", "order", "not-finite", "cancelled", "memory", "fuzz"];

/// Names of the cases of a phase.
pub(super) fn cases(phase: Phase) -> Vec<&'static str> {
    let shapes = SHAPES.iter().map(|(name, ..)| *name);
    match phase {
        Phase::Round => shapes.chain(["fixed-point"]).chain(MORE).collect(),
        Phase::Condition => shapes.chain(["no-strength"]).chain(MORE).collect(),
        Phase::Split | Phase::Correct => shapes.chain(MORE).collect(),
        Phase::Transform => regions::CASES.to_vec(),
    }
}

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    if on.phase == Phase::Transform {
        return regions::run(on, name);
    }
    if let Some((_, kind, shape, format, group)) = SHAPES.iter().find(|(n, ..)| *n == name) {
        return one(on, sample(on.seed, *kind, *shape, format, *group)?);
    }
    match name {
        "fixed-point" => fixed_point(on),
        "no-strength" => no_strength(on),
        "same-twice" => repeats::twice(on),
        "threads" => repeats::threads(on),
        "order" => repeats::order(on),
        "not-finite" => safety::not_finite(on),
        "cancelled" => safety::cancelled(on),
        "memory" => safety::memory(on),
        _ => fuzz::run(on),
    }
}
