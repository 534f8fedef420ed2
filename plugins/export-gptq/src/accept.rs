//! Whether a plan can be held.

use qfw_core::checkpoint::Verdict;
use qfw_core::plan::{Plan, PlannedSite};
use qfw_core::scheme::{Extent, FloatKind, Grid, QuantSpec, ScaleForm, Timing, Zero};
use qfw_core::{Error, Result};

use crate::Version;
use crate::write::shift;

/// Widths of codes that every reader packs alike.
pub(crate) const BITS: [u8; 4] = [2, 3, 4, 8];

/// Channels of both sides come in multiples of this: whole words at every width, and what readers ask for.
const MULTIPLE: usize = 32;

const INTEGERS: &str = "use int2, int3, int4 or int8, or `--format qfw`";

fn refuse(site: &str, why: &str, hint: &str) -> Result<()> {
    Err(Error::plan("plan::container", format!("`{site}`: {why}")).hint(hint))
}

pub(crate) fn verdict(version: Version, plan: &Plan) -> Verdict {
    if let Err(e) = check(version, plan) {
        return Verdict::Refused(e);
    }
    // Numbers of bf16 are numbers of f16 too, down to 2^-17, and scales are above that in all but dead channels.
    let single = |s: &PlannedSite| s.weights.as_ref().is_some_and(|w| w.scale == ScaleForm::Float(FloatKind::F32));
    match plan.sites.iter().find(|s| single(s)) {
        Some(s) => {
            Verdict::Changes(format!("it holds scales as f16, and those of `{}` are f32: each moves by up to 1/2048 of itself", s.site))
        }
        None => Verdict::Exact,
    }
}

fn check(version: Version, plan: &Plan) -> Result<()> {
    for s in &plan.sites {
        if let Some(spec) = &s.weights {
            weight(version, s, spec)?;
        }
    }
    if let Some(a) = plan.activations.first() {
        let why = format!("it holds weights, and nothing that rounds {} ({})", a.part, a.spec);
        return refuse(
            &a.place.to_string(),
            &why,
            &format!("leave `scheme.{}` out, or use `--format compressed-tensors` or `qfw`", a.part),
        );
    }
    Ok(())
}

fn weight(version: Version, s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    let site = &s.site;
    if s.is_embedding() {
        return refuse(site, "readers of this format look tokens up in floats", "leave `scheme.embed` out, or use `--format qfw`");
    }
    if spec.timing != Timing::Static {
        return refuse(site, &format!("it holds weights with scales, not {spec}"), "leave `timing` out, or use `--format qfw`");
    }
    let Grid::Int { lo, hi, zero } = spec.grid else {
        return refuse(site, &format!("it holds integers, not {}", spec.format), INTEGERS);
    };
    if !BITS.contains(&spec.bits) {
        let why = format!("it holds 2, 3, 4 and 8 bits: readers pack {} differently, or not at all", spec.bits);
        return refuse(site, &why, INTEGERS);
    }
    match zero {
        Zero::Float => {
            return refuse(site, "its zero points are integers, not floats", "leave `zero-point` out, or use `--format qfw`");
        }
        Zero::Integer if version == Version::One => {
            let why = "it stores zero points less one, which leaves 0 no place, and GPTQModel and vLLM refuse affine weights in it";
            return refuse(site, why, "use `--format gptq-v2`, or for vLLM `awq` or `compressed-tensors`; or set `symmetric = true`");
        }
        Zero::None | Zero::Fixed(_) | Zero::Integer => {}
    }
    let (first, middle) = (shift(spec), 1 << (spec.bits - 1));
    let symmetric = zero == Zero::Integer || zero == Zero::Fixed(middle - first) || zero == Zero::None && first == middle;
    if !symmetric || lo + first < 0 || hi + first >= 2 * middle {
        return refuse(site, &format!("it holds integers around their middle, not {spec}"), INTEGERS);
    }
    if !matches!(spec.scale, ScaleForm::Float(_) | ScaleForm::PowerOfTwo { .. }) {
        return refuse(site, "it holds one scale for each group, not two levels of them", INTEGERS);
    }
    shape(s, spec)
}

fn shape(s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    let (outputs, inputs) = s.shape;
    if let Extent::Of(g) = spec.granularity.cols
        && !inputs.is_multiple_of(g as usize)
    {
        let nearest = (1..=g).rev().filter(|n| n.is_power_of_two()).find(|n| inputs.is_multiple_of(*n as usize)).unwrap_or(1);
        let hint = format!("group {nearest} divides it; or use `--format qfw`, which holds a shorter last group");
        return refuse(&s.site, &format!("group {g} does not divide its {inputs} input channels"), &hint);
    }
    for (n, side) in [(inputs, "input"), (outputs, "output")] {
        if !n.is_multiple_of(MULTIPLE) {
            let why = format!("readers need multiples of {MULTIPLE} channels, and it has {n} {side} channels");
            return refuse(&s.site, &why, "leave that layer out, or use `--format compressed-tensors` or `qfw`");
        }
    }
    Ok(())
}
