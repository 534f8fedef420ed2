//! Whether a plan can be held, and what that costs.

use qfw_core::checkpoint::Verdict;
use qfw_core::plan::{Plan, PlannedActivation, PlannedSite};
use qfw_core::scheme::{QuantSpec, Timing};
use qfw_core::topology::OnlineStep;
use qfw_core::{Error, Result};

use crate::form::{Form, Layer, Table};
use crate::rounding::rounding;

/// Models that there are graphs of.
const FAMILIES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "opt"];

/// The largest rotation that is worth a product with its whole matrix at every token.
const ROTATION: usize = 4096;

pub(crate) fn verdict(form: Form, plan: &Plan) -> Verdict {
    match check(form, plan) {
        Err(e) => Verdict::Refused(e),
        Ok(larger) => larger.map_or(Verdict::Exact, Verdict::Larger),
    }
}

/// Refuses models that there is no graph of.
///
/// # Errors
/// If this is one.
pub(crate) fn family(model_type: &str) -> Result<()> {
    if FAMILIES.contains(&model_type) {
        return Ok(());
    }
    let what = format!("how a `{model_type}` model is a graph is not known here");
    Err(Error::plan("plan::container", what).hint(format!("known are {}; use `--format compressed-tensors` or `qfw`", FAMILIES.join(", "))))
}

/// A layer as the forms ask about it.
pub(crate) fn layer<'a>(
    activations: &[PlannedActivation],
    site: &'a str,
    module: &str,
    spec: &'a QuantSpec,
    shape: (usize, usize),
) -> Layer<'a> {
    let fixed = |a: &&PlannedActivation| a.part == "inputs" && a.spec.bits == 8 && a.spec.timing == Timing::Static;
    let rounded = activations.iter().filter(fixed).any(|a| a.modules.iter().any(|m| m == module));
    Layer { site, spec, shape, rounded }
}

/// What makes the result larger than the plan says, if anything does.
fn check(form: Form, plan: &Plan) -> Result<Option<String>> {
    family(&plan.model_type)?;
    let mut larger = None;
    for (s, spec) in plan.sites.iter().filter_map(|s| Some((s, s.weights.as_ref()?))) {
        let bits = bits(form, plan, s, spec)?;
        let planned = spec.bits_per_weight(s.shape.0, s.shape.1);
        if larger.is_none() && bits > planned + 0.005 {
            larger =
                Some(format!("codes lie in 2, 4 or 8 bits and scales are f32: {bits:.2} bits a weight in `{}`, not {planned:.2}", s.site));
        }
    }
    if let Some(who) = plan.unordered() {
        let what = format!("{who} that do not run in storage order, and blocks do");
        return Err(Error::plan("plan::container", what).hint("set `act-order = \"static\"`, or use `--format gptq` or `qfw`"));
    }
    plan.activations.iter().try_for_each(|a| rounding(form, a).map(|_| ()))?;
    match plan.online().iter().filter_map(OnlineStep::rotation).find(|r| r.rotation.size > ROTATION) {
        Some(r) => {
            let what = format!("`{}`: a rotation of {} channels is a product with a matrix of that size here", r.place, r.rotation.size);
            Err(Error::plan("plan::container", what).hint("leave `r4` out, or use `--format qfw`"))
        }
        None => Ok(larger),
    }
}

/// Bits of a weight, scales and zero points included.
fn bits(form: Form, plan: &Plan, s: &PlannedSite, spec: &QuantSpec) -> Result<f64> {
    if s.is_embedding() {
        return Ok(Table::of(&s.site, spec, s.shape)?.bits(spec, s.shape));
    }
    Ok(form.held(layer(&plan.activations, &s.site, &s.module, spec, s.shape))?.bits(s.shape))
}
