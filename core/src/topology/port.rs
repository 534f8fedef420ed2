//! Places in a forward pass where a tap can observe or replace a tensor.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in a block, in order of execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortName {
    /// Output of the embeddings, `[T, hidden]`.
    EmbedOut,
    /// Input of the block, `[T, hidden]`.
    BlockIn,
    /// Output of the attention norm: what q, k and v read, `[T, hidden]`.
    AttnIn,
    /// Queries before rotation, `[T, heads·head_dim]`.
    Q,
    /// Keys before rotation, `[T, kv_heads·head_dim]`.
    K,
    /// Values, `[T, kv_heads·head_dim]`.
    V,
    /// Queries as they meet the keys.
    QRope,
    /// Keys as they are cached.
    KRope,
    /// Scaled and masked scores, `[heads, T, S]`.
    Scores,
    /// Attention weights, `[heads, T, S]`.
    Probs,
    /// What the output projection reads, `[T, heads·head_dim]`.
    Ctx,
    /// Output of the output projection, before the residual sum, `[T, hidden]`.
    OOut,
    /// Output of the feed-forward norm, `[T, hidden]`.
    MlpIn,
    /// Output of the gate projection, `[T, ffn]`.
    Gate,
    /// Output of the up projection, `[T, ffn]`.
    Up,
    /// Output of the non-linearity, before the product with `Up` where there is one, `[T, ffn]`.
    Act,
    /// What the down projection reads, `[T, ffn]`.
    DownIn,
    /// Output of the down projection, before the residual sum, `[T, hidden]`.
    DownOut,
    /// Output of the block, `[T, hidden]`.
    BlockOut,
    /// Output of the final norm: what the head reads, `[T, hidden]`.
    FinalOut,
    /// `[T, vocabulary]`
    Logits,
}

/// A place, with the expert it belongs to in a mixture.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The place.
    pub name: PortName,
    /// The expert, in mixture-of-experts blocks.
    pub expert: Option<u16>,
}

impl Port {
    /// The dense port of that name.
    pub const fn of(name: PortName) -> Self {
        Self { name, expert: None }
    }
}

/// A port of a model: of one block, or around the blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Place {
    /// The decoder block, or `None` for what lies around them.
    pub block: Option<u32>,
    /// The port.
    pub port: Port,
}

impl fmt::Display for Place {
    /// `blocks.3.attn.in`, `final.out`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(b) => write!(f, "blocks.{b}.{}", self.port),
            None => write!(f, "{}", self.port),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
        let block = parts.and_then(|(b, _)| b.parse::<u32>().ok());
        let name = parts.filter(|_| block.is_some()).map_or(text.as_str(), |(_, name)| name);
        let port = PortName::ALL.iter().find(|p| p.as_str() == name);
        port.map(|p| Self { block, port: (*p).into() }).ok_or_else(|| format!("`{text}` is no place of a model"))
    }
}

impl From<PortName> for Port {
    fn from(name: PortName) -> Self {
        Self::of(name)
    }
}

impl PortName {
    /// All of them.
    const ALL: [Self; 21] = [
        Self::EmbedOut,
        Self::BlockIn,
        Self::AttnIn,
        Self::Q,
        Self::K,
        Self::V,
        Self::QRope,
        Self::KRope,
        Self::Scores,
        Self::Probs,
        Self::Ctx,
        Self::OOut,
        Self::MlpIn,
        Self::Gate,
        Self::Up,
        Self::Act,
        Self::DownIn,
        Self::DownOut,
        Self::BlockOut,
        Self::FinalOut,
        Self::Logits,
    ];

    /// The name used in configuration and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmbedOut => "embed.out",
            Self::BlockIn => "block.in",
            Self::AttnIn => "attn.in",
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::QRope => "q.rope",
            Self::KRope => "k.rope",
            Self::Scores => "scores",
            Self::Probs => "probs",
            Self::Ctx => "ctx",
            Self::OOut => "o.out",
            Self::MlpIn => "mlp.in",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Act => "act",
            Self::DownIn => "down.in",
            Self::DownOut => "down.out",
            Self::BlockOut => "block.out",
            Self::FinalOut => "final.out",
            Self::Logits => "logits",
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.expert {
            Some(e) => write!(f, "{}[{e}]", self.name.as_str()),
            None => f.write_str(self.name.as_str()),
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
