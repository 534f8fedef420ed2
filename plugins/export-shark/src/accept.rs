//! Whether a plan can be held, and what that costs.

use qfw_core::checkpoint::Verdict;
use qfw_core::plan::Plan;
use qfw_core::{Error, Result};

use crate::activation;
use crate::layout::Layout;
use crate::model;

pub(crate) fn verdict(plan: &Plan) -> Verdict {
    match check(plan) {
        Err(e) => Verdict::Refused(e),
        Ok((None, None)) => Verdict::Exact,
        Ok((None, Some(larger))) => Verdict::Larger(larger),
        Ok((Some(what), None)) => Verdict::Changes(what),
        Ok((Some(what), Some(larger))) => Verdict::Changes(format!("{what}; {larger}")),
    }
}

/// What is rounded on the way, and what makes the result larger than the plan says.
fn check(plan: &Plan) -> Result<(Option<String>, Option<String>)> {
    model::family(&plan.model_type)?;
    let (mut changes, mut larger) = (None, None);
    for (s, spec) in plan.sites.iter().filter_map(|s| Some((s, s.weights.as_ref()?))) {
        let layout = Layout::of(&s.site, spec, s.shape, activation::rounded(&plan.activations, &s.module))?;
        if changes.is_none() && !layout.exact(spec) {
            changes = Some(format!(
                "codes of 4 bits are read as `s·u + m` in f32, with an `m` for each group: in `{}` that moves a weight by up to 2^-22 of the largest of its group",
                s.site
            ));
        }
        let (bits, planned) = (layout.bits(spec, s.shape), spec.bits_per_weight(s.shape.0, s.shape.1));
        if larger.is_none() && bits > planned + 0.005 {
            larger =
                Some(format!("codes lie in 4 or 8 bits and scales are f32: {bits:.2} bits a weight in `{}`, not {planned:.2}", s.site));
        }
    }
    if let Some(who) = plan.unordered() {
        let what = format!("{who} that do not run in storage order, and blocks do");
        return Err(Error::plan("plan::container", what).hint("set `act-order = \"static\"`, or use `--format gptq` or `qfw`"));
    }
    plan.activations.iter().try_for_each(activation::check)?;
    Ok((changes, larger))
}
