//! Running a part of a block again, with other weights.

use crate::error::Result;
use crate::topology::SiteId;

/// The module behind a region (all of attention, all of the feed-forward layer), on the calibration data.
pub trait Replay: Sync {
    /// The squared difference, summed over all tokens and channels, of what the module puts out with `weights` (row-major, in place of
    /// those of their layers) from what it puts out as it stands.
    ///
    /// # Errors
    /// If a layer is not one of the block, its weight has another size, or the run is interrupted.
    fn error(&self, weights: Vec<(SiteId, Vec<f32>)>) -> Result<f64>;
}
