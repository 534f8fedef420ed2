//! Whether a plan can be held.

use qfw_core::checkpoint::Verdict;
use qfw_core::plan::{Plan, PlannedSite};
use qfw_core::scheme::{Extent, FloatKind, Grid, QuantSpec, ScaleForm, Timing, Zero};
use qfw_core::topology::{Role, SiteId};
use qfw_core::{Error, Result};

use crate::write::shift;

/// Outputs of a word.
const WORD: usize = 8;

const INTEGERS: &str = "use int4, or `--format gptq`, `compressed-tensors` or `qfw`";

fn refuse(site: &str, why: &str, hint: &str) -> Result<()> {
    Err(Error::plan("plan::container", format!("`{site}`: {why}")).hint(hint))
}

pub(crate) fn verdict(plan: &Plan) -> Verdict {
    if let Err(e) = check(plan) {
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

fn check(plan: &Plan) -> Result<()> {
    let mut first: Option<(&PlannedSite, &QuantSpec)> = None;
    for s in &plan.sites {
        let Some(spec) = &s.weights else { continue };
        weight(s, spec)?;
        let (other, said) = *first.get_or_insert((s, spec));
        if said.granularity.cols != spec.granularity.cols {
            let why =
                format!("it has one group size for all layers: this is {}, and `{}` is {}", spec.granularity, other.site, said.granularity);
            return refuse(&s.site, &why, "give them the same group, or use `--format gptq`, `compressed-tensors` or `qfw`");
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
    if let Some(who) = plan.unordered() {
        let why = format!("{who} that do not run in storage order, for which it has no room");
        return Err(
            Error::plan("plan::container", why).hint("set `act-order = \"static\"`, which needs no index, or use `--format gptq` or `qfw`")
        );
    }
    Ok(())
}

fn weight(s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    let site = &s.site;
    if s.is_embedding() {
        return refuse(site, "readers of this format look tokens up in floats", "leave `scheme.embed` out, or use `--format qfw`");
    }
    if *site == SiteId::global(Role::Head).to_string() {
        return refuse(site, "readers of this format keep the head in floats", "leave `scheme.head` out, or use `--format gptq` or `qfw`");
    }
    if s.transposed {
        let why = "its weight is stored transposed (`Conv1D`), and readers of this format quantize plain linear layers only";
        return refuse(site, why, "use `--format gptq` or `qfw`");
    }
    if spec.timing != Timing::Static {
        return refuse(site, &format!("it holds weights with scales, not {spec}"), "leave `timing` out, or use `--format qfw`");
    }
    let Grid::Int { lo, hi, zero } = spec.grid else {
        return refuse(site, &format!("it holds integers of 4 bits, not {}", spec.format), INTEGERS);
    };
    if spec.bits != 4 {
        return refuse(site, &format!("it holds integers of 4 bits, not {}", spec.format), INTEGERS);
    }
    if zero == Zero::Float {
        return refuse(site, "its zero points are integers, not floats", "leave `zero-point` out, or use `--format qfw`");
    }
    let shift = shift(spec);
    if zero == Zero::None && shift == 0 || lo + shift < 0 || hi + shift > 15 {
        return refuse(site, &format!("it holds integers around their middle, not {spec}"), INTEGERS);
    }
    if !matches!(spec.scale, ScaleForm::Float(_) | ScaleForm::PowerOfTwo { .. }) {
        return refuse(site, "it holds one scale for each group, not two levels of them", INTEGERS);
    }
    let (outputs, inputs) = s.shape;
    if let Extent::Of(g) = spec.granularity.cols
        && !inputs.is_multiple_of(g as usize)
    {
        let nearest = (1..=g).rev().filter(|n| n.is_power_of_two()).find(|n| inputs.is_multiple_of(*n as usize)).unwrap_or(1);
        let hint = format!("group {nearest} divides it; or use `--format qfw`, which holds a shorter last group");
        return refuse(site, &format!("group {g} does not divide its {inputs} input channels"), &hint);
    }
    if !outputs.is_multiple_of(WORD) {
        let why = format!("a word holds {WORD} output channels, and it has {outputs}");
        return refuse(site, &why, "leave that layer out, or use `--format compressed-tensors` or `qfw`");
    }
    Ok(())
}
