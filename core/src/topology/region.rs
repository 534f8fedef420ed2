//! Spaces of channels, who writes and who reads them, and which changes of basis leave the function unchanged.

use std::ops::Range;

use super::{Part, SiteId};
use crate::error::{Error, Result};

/// Which axis of a parameter carries the channels of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Rows of a matrix (output channels), or the entries of a vector.
    Rows,
    /// Columns of a matrix (input channels; the width of an embedding).
    Columns,
}

/// One parameter's part in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The layer.
    pub site: SiteId,
    /// Weight or bias.
    pub part: Part,
    /// The axis that carries the channels.
    pub axis: Axis,
    /// The range of that axis, where the tensor holds several spaces (fused q, k and v); all of it otherwise.
    pub range: Option<Range<usize>>,
}

/// What the channels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The residual stream of the whole model.
    Residual,
    /// What q, k and v read: behind the attention norm.
    AttnIn,
    /// What the feed-forward layer reads: behind its norm.
    MlpIn,
    /// What the head reads: behind the final norm.
    HeadIn,
    /// Queries and keys, per head.
    Heads,
    /// Values, per key/value head.
    Values,
    /// Inside the feed-forward layer.
    MlpHidden,
    /// What a multiplier writes before the linears of a block that read a place.
    Multiplied,
}

/// How freely a kind of symmetry may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// Not at all: it would change the function.
    Never,
    /// Any.
    Free,
    /// Any rotation `R` with `R·1 = 1`: a LayerNorm subtracts the mean over the channels, so their mean has to stay what it is.
    KeepsMean,
    /// One of `width` channels for each of the key/value heads, repeated for the query heads that share it: query head `h` meets
    /// key/value head `⌊h/repeat⌋`.
    PerKvHead {
        /// Channels per head.
        width: usize,
        /// Query heads per key/value head.
        repeat: usize,
    },
    /// As [`Tie::PerKvHead`], and equal for the two channels of each rotary pair (`i` and `i + rotated/2`).
    PerRopePair {
        /// Channels per head.
        width: usize,
        /// Query heads per key/value head.
        repeat: usize,
        /// Rotated channels per head.
        rotated: usize,
    },
}

/// What a region allows to be fused into its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allows {
    /// Multiply producers by `s`, divide consumers by `s`.
    pub diagonal: Tie,
    /// Reorder the channels.
    pub permutation: Tie,
    /// Rotate the channels by an orthogonal matrix. In the residual stream only once the norms are folded.
    pub orthogonal: Tie,
}

/// A space of channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Name, such as `residual` or `blocks.2.values`.
    pub id: String,
    /// What the channels are.
    pub space: Space,
    /// The block, or `None` for the residual stream.
    pub block: Option<u32>,
    /// Number of channels.
    pub width: usize,
    /// Who writes the channels. Scaling multiplies them; where a norm writes, its weight (and bias) is the producer.
    pub producers: Vec<Slot>,
    /// Who reads the channels, on their input axis.
    pub consumers: Vec<Slot>,
    /// Other vectors over the same channels. They move along under a permutation or a rotation and are left alone by a scaling: the
    /// gate's rows beside `up`, the biases of norms beside the residual stream.
    pub companions: Vec<Slot>,
    /// What may be fused.
    pub allows: Allows,
}

impl Region {
    /// Whether its channels may be scaled at all.
    pub fn may_be_scaled(&self) -> bool {
        self.allows.diagonal != Tie::Never
    }

    /// Channels per head and query heads per key/value head, from whichever tie states them. A region without heads is one head.
    pub fn heads(&self) -> (usize, usize) {
        [self.allows.diagonal, self.allows.permutation, self.allows.orthogonal]
            .into_iter()
            .find_map(|tie| match tie {
                Tie::PerKvHead { width, repeat } | Tie::PerRopePair { width, repeat, .. } => Some((width, repeat)),
                Tie::Never | Tie::Free | Tie::KeepsMean => None,
            })
            .unwrap_or((self.width, 1))
    }

    /// The region's channel that channel `i` of a tensor of `n` is: key/value heads are repeated for the query heads that share them, and
    /// channel `c` of query head `h` is channel `c` of key/value head `⌊h/repeat⌋`.
    ///
    /// # Errors
    /// If such a tensor does not have the region's channels.
    pub fn homes(&self, n: usize) -> Result<Vec<usize>> {
        let (width, repeat) = self.heads();
        if n != self.width && n != self.width * repeat {
            let message = format!("a change of {} channels, repeated {repeat} times, cannot act on {n}", self.width);
            return Err(Error::internal(message));
        }
        let repeat = n / self.width;
        Ok((0..n).map(|i| i / (width * repeat) * width + i % width).collect())
    }

    /// One value for each channel of a tensor of `n`, from one for each of the region's.
    ///
    /// # Errors
    /// As [`Self::homes`].
    pub fn spread(&self, values: &[f64], n: usize) -> Result<Vec<f64>> {
        Ok(self.homes(n)?.into_iter().map(|home| values[home]).collect())
    }

    /// One value for each of the region's channels, from those of a tensor that holds each once or more.
    ///
    /// # Errors
    /// As [`Self::homes`].
    pub fn gather(&self, values: &[f64], join: fn(f64, f64) -> f64) -> Result<Vec<f64>> {
        let mut joined: Vec<Option<f64>> = vec![None; self.width];
        for (home, value) in self.homes(values.len())?.into_iter().zip(values) {
            joined[home] = Some(joined[home].map_or(*value, |old| join(old, *value)));
        }
        Ok(joined.into_iter().flatten().collect())
    }

    /// For each channel of a tensor of `n`, the one that comes in its place when the region's channel `i` is replaced by `p[i]`.
    ///
    /// # Errors
    /// As [`Self::homes`].
    pub fn spread_sources(&self, p: &[u32], n: usize) -> Result<Vec<usize>> {
        let (width, _) = self.heads();
        let (homes, repeat) = (self.homes(n)?, n / self.width);
        let place = |i: usize| {
            let from = p[homes[i]] as usize;
            (from / width * repeat + i / width % repeat) * width + from % width
        };
        Ok((0..n).map(place).collect())
    }
}
