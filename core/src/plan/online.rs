//! What is done to activations while the model runs, and which containers can state it.

use super::Plan;
use crate::checkpoint::Container;
use crate::error::{Error, Result};
use crate::topology::OnlineStep;

/// That a container can state all that a plan does to activations while the model runs.
///
/// # Errors
/// If it cannot, with the first place at which something would be left out.
pub(crate) fn fit(plan: &Plan, container: &dyn Container) -> Result<()> {
    let Some(step) = plan.online().into_iter().find(|step| !container.carries(step)) else { return Ok(()) };
    let (what, hint) = match &step {
        OnlineStep::Rotation(_) => ("rotated", "leave `r3`, `r4`, `orphan-sink` and `layerwise` out, or use `--format qfw`"),
        OnlineStep::Multiplier(_) => {
            ("multiplied by a vector", "leave `stand-alone` of the pass out, or use `--format qfw` or `--format onnx`")
        }
    };
    let message = format!("`{}`: it is {what} while the model runs, which no reader of this format does", step.place());
    Err(Error::plan("plan::container", message).hint(hint))
}
