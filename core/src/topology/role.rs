//! What a layer is, whatever its architecture calls it.

use std::fmt;

/// The role of a layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Token embedding.
    Embed,
    /// Learned position embedding.
    PositionEmbed,
    /// Norm before attention.
    AttnNorm,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Query, key and value projections stored as one matrix (rows in this order).
    AttnQkv,
    /// Norm of each query head.
    AttnQNorm,
    /// Norm of each key head.
    AttnKNorm,
    /// Output projection of attention.
    AttnO,
    /// Norm before the feed-forward layer.
    MlpNorm,
    /// Gate projection.
    MlpGate,
    /// Up projection.
    MlpUp,
    /// Down projection.
    MlpDown,
    /// Norm before the head.
    FinalNorm,
    /// Projection to the vocabulary.
    Head,
    /// A matrix of a model whose architecture is unknown.
    Linear,
}

impl Role {
    const NAMES: [(Self, &'static str); 17] = [
        (Self::Embed, "embed"),
        (Self::PositionEmbed, "position-embed"),
        (Self::AttnNorm, "attn.norm"),
        (Self::AttnQ, "attn.q"),
        (Self::AttnK, "attn.k"),
        (Self::AttnV, "attn.v"),
        (Self::AttnQkv, "attn.qkv"),
        (Self::AttnQNorm, "attn.q-norm"),
        (Self::AttnKNorm, "attn.k-norm"),
        (Self::AttnO, "attn.o"),
        (Self::MlpNorm, "mlp.norm"),
        (Self::MlpGate, "mlp.gate"),
        (Self::MlpUp, "mlp.up"),
        (Self::MlpDown, "mlp.down"),
        (Self::FinalNorm, "final-norm"),
        (Self::Head, "head"),
        (Self::Linear, "linear"),
    ];

    /// The name used in selectors and reports.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(r, _)| *r == self).map_or("", |(_, n)| n)
    }

    /// The role of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, n)| *n == name).map(|(r, _)| *r)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
