//! Which cases an algorithm has: the same for every phase. One that means nothing for a phase is skipped with the reason, so that a report
//! says what was not tried.

use qfw_core::Result;
use qfw_core::algorithm::Phase;

use super::shapes::{SHAPES, fixed_point, no_strength, one, sample};
use super::{Outcome, Try, fuzz, regions, repeats, safety};

/// Cases that have to do with no shape.
const MORE: [&str; 9] = ["fixed-point", "no-strength", "same-twice", "threads", "order", "not-finite", "cancelled", "memory", "fuzz"];

/// Names of the cases of every phase.
pub(super) fn cases() -> Vec<&'static str> {
    SHAPES.iter().map(|(name, ..)| *name).chain(regions::OF_REGIONS).chain(MORE).collect()
}

/// Why a case means nothing for a phase, if it does not.
pub(super) fn skipped(phase: Phase, name: &str) -> Option<&'static str> {
    let of_region = regions::OF_REGIONS.contains(&name);
    match (phase, name) {
        (Phase::Transform, "one-by-one" | "one-row" | "one-column" | "wide" | "constant-row") => {
            Some("it works on the channels between the layers of a model, not on a matrix of any shape")
        }
        (Phase::Transform, _) if of_region => None,
        (_, _) if of_region => Some("it works on single layers"),
        (Phase::Round, "fixed-point") | (Phase::Condition, "no-strength") => None,
        (_, "fixed-point") => Some("it makes no codes"),
        (_, "no-strength") => Some("it moves no weights in high precision"),
        _ => None,
    }
}

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    if let Some(why) = skipped(on.phase, name) {
        return Ok(Outcome::Skipped(why.to_owned()));
    }
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
