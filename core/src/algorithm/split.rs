//! What a split sees of the sites that read one port, and what it returns.

use super::{Event, SiteContext};
use crate::error::Result;
use crate::scheme::FloatKind;

/// A branch that a pass wants beside each of its sites: `rank` rows of `A` and columns of `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BranchNeed {
    /// Rank; the planner caps it where a branch of less is the whole weight.
    pub rank: usize,
    /// What `A` and `B` are stored in; `None` for the float type of the weight in the source.
    pub stored: Option<FloatKind>,
    /// Sites that read the same input share one `A`.
    pub shared: bool,
}

/// Sites whose branches are found together: those that read one port and share `A`, or a single one.
pub struct SplitContext<'a> {
    /// The sites. Their `weight` is what is to be split: the weight as it stands, or, [after rounding](Split::after_rounding), what rounding
    /// has left of it.
    pub sites: &'a [SiteContext<'a>],
    /// Rows of `A`.
    pub rank: usize,
    /// What `A` and `B` will be stored in: a method that looks at what its branch leaves has to look at rounded factors
    /// ([`FloatKind::round`]).
    pub stored: FloatKind,
}

/// Branches of the sites of a [`SplitContext`].
pub struct Branches {
    /// `A`, row-major `[rank, in]`: one for all.
    pub a: Vec<f32>,
    /// For each site `B`, row-major `[out, rank]`.
    pub b: Vec<Vec<f32>>,
    /// For each site what happened on the way.
    pub events: Vec<Vec<Event>>,
}

/// Takes branches off weights: `W = residual + B·A`.
///
/// The site then computes `R̂·Q(x) + B·(A·x)`: the branch reads the same input as the codes do, rotated and scaled, but not rounded. Core
/// rounds `A` and `B` to what they are stored in and subtracts what is stored, so that the decomposition is exact as stored up to the
/// rounding of f32; the Round phase works on the residual, whose ranges are its own.
pub trait Split: Send + Sync {
    /// Whether branches are fitted to what rounding has left instead of being taken out before. The Round phase then works on the weight
    /// itself, and the site computes `Ŵ·Q(x) + B·(A·x)` with `B·A ≈ W − Ŵ`.
    fn after_rounding(&self) -> bool {
        false
    }

    /// The branches of some sites.
    ///
    /// # Errors
    /// What makes them unsolvable; under `on-failure = "rtn"` their branches are then zero, which the report says.
    fn split(&self, cx: &SplitContext<'_>) -> Result<Branches>;
}
