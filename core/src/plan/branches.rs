//! Branches beside the codes: which sites get one, of which rank, and who shares.

use serde::{Deserialize, Serialize};

use super::{Plan, PlannedPass};
use crate::algorithm::BranchNeed;
use crate::checkpoint::{BranchPlace, Container};
use crate::error::{Error, Result};
use crate::scheme::FloatKind;
use crate::topology::{Linear, OnlineStep, Place};

/// A low-rank branch of a site: `B·(A·x)` on the input as it is before it is rounded, beside the product of the codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlannedBranch {
    /// Role path.
    pub site: String,
    /// Stored name of the module.
    pub module: String,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// What `A` and `B` are stored in.
    pub stored: FloatKind,
    /// The module that `A` is stored with: this one, or another that reads the same input.
    pub a: String,
}

impl PlannedBranch {
    /// Bits it takes. An `A` that is shared counts once.
    pub fn bits(&self) -> f64 {
        let (rows, cols) = self.shape;
        let of_a = if self.a == self.module { cols } else { 0 };
        let width = if self.stored == FloatKind::F32 { 32 } else { 16 };
        (self.rank * (rows + of_a) * width) as f64
    }
}

/// That a container has a place for the branches of a plan. `turned` is one that reads what is rotated while the model runs, if there is any.
///
/// # Errors
/// If it has none, or one where they would read something else.
pub(crate) fn fit(plan: &Plan, turned: Option<&PlannedBranch>, container: &dyn Container) -> Result<()> {
    let Some(first) = plan.branches.first() else { return Ok(()) };
    let (branch, why, hint) = match (container.branches_lie(), turned) {
        (BranchPlace::Inside, _) => return Ok(()),
        (BranchPlace::Nowhere, _) => (
            first,
            format!("it holds codes, and no branch of rank {} beside them", first.rank),
            "leave the pass out, or use `--format qfw`, or `compressed-tensors` with an adapter beside it",
        ),
        (BranchPlace::Beside, Some(branch)) => (
            branch,
            "its branch reads a rotated input, and an adapter beside the layer reads it before it is rotated".to_owned(),
            "leave out the rotation, or the branch of that layer, or use `--format qfw`",
        ),
        (BranchPlace::Beside, None) if plan.tensorwise => {
            (first, "what an adapter has to call it in an unknown architecture is not known".to_owned(), "use `--format qfw`")
        }
        (BranchPlace::Beside, None) => return Ok(()),
    };
    Err(Error::plan("plan::container", format!("`{}`: {why}", branch.site)).hint(hint))
}

/// A branch that reads what is rotated while the model runs, if there is any.
pub(crate) fn turned<'a>(branches: &'a [PlannedBranch], online: &[OnlineStep], linears: &[Linear]) -> Option<&'a PlannedBranch> {
    let rotated = |l: &Linear| online.iter().any(|o| o.place() == Place { block: l.site.block, port: l.input });
    branches.iter().find(|b| linears.iter().any(|l| l.module == b.module && rotated(l)))
}

/// Adds the branches that a pass puts beside its sites.
///
/// # Errors
/// If a site has one already, or a rank is 0.
pub(super) fn add(
    all: &mut Vec<PlannedBranch>,
    algo: &str,
    need: &BranchNeed,
    sites: &[&Linear],
    stored: &dyn Fn(&str) -> FloatKind,
) -> Result<()> {
    if need.rank == 0 {
        return Err(Error::internal(format!("`{algo}` asks for branches of rank 0")));
    }
    for l in sites {
        if all.iter().any(|b| b.site == l.site.to_string()) {
            return Err(Error::plan("plan::two-splits", format!("`{}` would get two branches, the second from `{algo}`", l.site))
                .hint("keep one of the passes, or give each its own sites with `match`"));
        }
    }
    for l in sites {
        let group: Vec<&&Linear> = sites
            .iter()
            .filter(|x| if need.shared { (x.site.block, x.input) == (l.site.block, l.input) } else { x.site == l.site })
            .collect();
        // With a rank of either side of the matrix, the branch is the whole of it.
        let rows: usize = group.iter().map(|x| x.shape.0).sum();
        let first = group.first().map_or(l.module.as_str(), |x| x.module.as_str());
        all.push(PlannedBranch {
            site: l.site.to_string(),
            module: l.module.clone(),
            shape: l.shape,
            rank: need.rank.min(rows).min(l.shape.1),
            stored: need.stored.unwrap_or_else(|| stored(first)),
            a: first.to_owned(),
        });
    }
    Ok(())
}

/// That sites which share an `A` are all rounded by `pass`, or none of them: what is rounded as a block is split apart from what is not.
///
/// # Errors
/// If one is, and another is not.
pub(super) fn rounded_together(all: &[PlannedBranch], pass: &PlannedPass) -> Result<()> {
    let here = |b: &&PlannedBranch| pass.sites.contains(&b.site);
    for b in all.iter().filter(here) {
        if let Some(other) = all.iter().find(|o| o.a == b.a && !here(o)) {
            let message = format!(
                "`{}` and `{}` share a part of their branches, and only the first is rounded by `{}`",
                b.site, other.site, pass.algo
            );
            return Err(Error::plan("plan::unsupported", message)
                .hint("round both with one pass, or leave out `shared` of the pass that adds branches"));
        }
    }
    Ok(())
}
