//! Running a part of a block again, with other weights.

use std::ops::Range;

use crate::error::Result;
use crate::topology::SiteId;

/// The module behind a region (all of attention, all of the feed-forward layer), on the calibration data.
pub trait Replay: Sync {
    /// Windows of calibration data there are.
    fn windows(&self) -> usize;

    /// For each of `windows` the squared difference, summed over its tokens and channels, of what the module puts out with `weights`
    /// (row-major, in place of those of their layers) from what it puts out as it stands.
    ///
    /// # Errors
    /// If a layer is not one of the block, its weight has another size, or the run is interrupted.
    fn errors(&self, weights: Vec<(SiteId, Vec<f32>)>, windows: Range<usize>) -> Result<Vec<f64>>;
}
