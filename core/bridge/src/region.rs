//! A region as core has it, from what crosses the border: its channels, what it allows and who reads it. Who writes it stays behind.

use qfw_abi::plugin::{Failure, Host, Region as Given, Result, Status};
use qfw_core::algorithm::{Reader, RegionContext, Solved, Transform};
use qfw_core::topology::{Allows, Region, Space, Symmetry, Tie};

use crate::linked::{Bridged, Owned, failure, tell};
use crate::statistics::stream_of;

/// The region; `None` for a space that this version does not know.
pub(crate) fn region(given: &Given<'_>) -> Option<Region> {
    use Space::{AttnIn, HeadIn, Heads, MlpHidden, MlpIn, Multiplied, Residual, Values};
    const SPACES: [Space; 8] = [Residual, AttnIn, MlpIn, HeadIn, Heads, Values, MlpHidden, Multiplied];
    let (width, repeat) = given.heads();
    let heads = match (given.rotated(), width == given.width() && repeat == 1) {
        (0, true) => Tie::Free,
        (0, false) => Tie::PerKvHead { width, repeat },
        (rotated, _) => Tie::PerRopePair { width, repeat, rotated },
    };
    let (scaling, permutation, rotation) = given.allows();
    let tie = |allowed: bool| if allowed { heads } else { Tie::Never };
    Some(Region {
        id: given.name().to_owned(),
        space: *SPACES.get(given.space() as usize)?,
        block: given.block(),
        width: given.width(),
        producers: Vec::new(),
        consumers: Vec::new(),
        companions: Vec::new(),
        allows: Allows { diagonal: tie(scaling), permutation: tie(permutation), orthogonal: tie(rotation) },
    })
}

/// Solves a region; `factor` stays as it is where the algorithm leaves it alone.
pub(crate) fn solve(bridged: &Bridged, stage: &dyn Transform, host: &Host<'_>, given: &Given<'_>, factor: &mut [f64]) -> Result<()> {
    let region = region(given).ok_or_else(|| Failure::new(Status::Unsupported, "a space of channels that the plugin does not know"))?;
    let sites = given.readers();
    let owned: Vec<Owned> = sites.iter().map(|s| bridged.owned(s)).collect::<Result<_>>()?;
    let readers: Vec<Reader<'_>> = owned
        .iter()
        .zip(&sites)
        .map(|(o, site)| Reader {
            linear: &o.linear,
            weight: site.weight(),
            target: o.target.as_ref().map(|(spec, observer)| (spec, &**observer)),
            input: o.input.as_ref(),
            feeds_back: site.feeds_back(),
        })
        .collect();
    let first = owned.first().ok_or_else(|| Failure::new(Status::Internal, "a region without readers"))?;
    let stats = bridged.matrices().stats(given.stats(), first.linear.input, first.linear.shape.1)?;
    let (stream, seed) = (stream_of(given.stream()), given.seed());
    let cx = RegionContext { region: &region, readers: &readers, producers: &[], stats: &stats, replay: None, stream, seed };
    let Some(Solved { symmetry, events }) = stage.solve(&cx).map_err(|e| failure(&e))? else { return Ok(()) };
    let Symmetry::Diagonal(found) = symmetry else {
        return Err(Failure::new(Status::Unsupported, "a plugin that is loaded at run time scales channels, and nothing else"));
    };
    if found.len() != factor.len() {
        return Err(Failure::new(Status::Internal, format!("{} factors for {} channels", found.len(), factor.len())));
    }
    factor.copy_from_slice(&found);
    tell(host, &events);
    Ok(())
}
