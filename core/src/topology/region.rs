//! Spaces of channels, who writes and who reads them, and which changes of basis leave the function unchanged.

use std::ops::Range;

use super::{Part, SiteId};

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
}
