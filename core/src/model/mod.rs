//! Architectures: configuration to topology, and blocks run through taps.
//!
//! A [`Block`] is a function of hidden states with named places in it ([`crate::topology::Port`]). Statistics, fake quantization,
//! capture and replay are all a [`Tap`] on such places; there is no second mechanism. One file per architecture; families share a block.

mod branch;
mod config;
mod decoder;
mod device;
mod gpt2;
mod layernorm;
mod llama;
mod loaded;
mod mistral;
mod online;
mod opt;
mod quantized;
mod qwen2;
mod qwen3;
mod rope;
mod tap;
mod tensorwise;
mod weights;

use candle_core::Tensor;
use serde_json::Value;

pub use branch::{Branch, StoredBranch};
pub use device::{CPU, device};
pub use loaded::{Model, StoredWeights};
pub use online::Online;
pub use quantized::{ActivationQuant, Activations};
pub use rope::{Rope, Stretch, Yarn};
pub use tap::{Both, Nothing, Tap};
pub use tensorwise::Skipped;
pub use weights::{MapWeights, WeightSource};

use crate::error::{Error, Result, did_you_mean};
use crate::numeric::Activation;
use crate::topology::{Port, PortName, Role, Topology};

/// The numbers of a model that its forward pass depends on.
#[derive(Clone, Debug)]
pub struct Dims {
    /// Decoder blocks.
    pub blocks: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward layer.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// Rows of a table of learned positions before the one of position 0.
    pub position_offset: usize,
    /// ε of the norms.
    pub norm_eps: f64,
    /// The non-linearity.
    pub activation: Activation,
    /// Rotary embedding, where positions enter by rotation.
    pub rope: Option<Rope>,
    /// Sliding window of each block, where there is one.
    pub windows: Vec<Option<usize>>,
    /// Factor on the attention scores of each block.
    pub score_scale: Vec<f64>,
    /// The head is the embedding's own tensor.
    pub tied_head: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub o_bias: bool,
    /// Biases in the feed-forward layer.
    pub mlp_bias: bool,
    /// Norms on the heads of q and k.
    pub qk_norm: bool,
    /// Prefix of stored names (such as `model.` or `transformer.`; may be nothing).
    pub prefix: String,
}

/// Keys and values of one block for the positions seen so far.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[S, kv_heads·head_dim]`, after rotation.
    pub keys: Tensor,
    /// `[S, kv_heads·head_dim]`
    pub values: Tensor,
}

/// What flows through blocks: one sequence.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The tensor at the place where the flow stands, `[T, channels]`.
    pub x: Tensor,
    /// The residual stream, when the flow stands inside a block.
    pub residual: Option<Tensor>,
    /// Position of the first token.
    pub position: usize,
    /// Keys and values of earlier positions; a run appends to it. `None`: keep none.
    pub cache: Option<Option<KvCache>>,
}

impl Flow {
    /// Hidden states `[T, hidden]` of a whole sequence, at position 0, without a cache.
    pub fn new(x: Tensor) -> Self {
        Self { x, residual: None, position: 0, cache: None }
    }
}

/// The stretch of a block to run, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where `Flow::x` stands: `block.in`, `attn.in` or `mlp.in`.
    pub from: Port,
    /// Where to stop: the flow returned stands there.
    pub to: Port,
}

impl Span {
    /// The whole block.
    pub const BLOCK: Self = Self { from: Port::of(PortName::BlockIn), to: Port::of(PortName::BlockOut) };

    /// From the block's input up to a place.
    pub fn until(to: Port) -> Self {
        Self { from: Port::of(PortName::BlockIn), to }
    }
}

/// A decoder block.
pub trait Block: Send + Sync {
    /// Runs the stretch `span` on `flow`, showing every place on the way to `tap`.
    ///
    /// # Errors
    /// If shapes do not fit, if `span.from` is not a place a block can start at, or what the tap returns.
    fn run(&self, span: Span, flow: Flow, tap: &mut dyn Tap) -> Result<Flow>;
}

/// What comes before and after the blocks. Matrices over the vocabulary are read by rows, never held.
pub trait Edges: Send + Sync {
    /// Token ids → hidden states `[T, hidden]`, the first at position `position`.
    ///
    /// # Errors
    /// If an id or position is out of range.
    fn embed(&self, ids: &[u32], position: usize, tap: &mut dyn Tap) -> Result<Flow>;

    /// Output of the last block → input of the head, `[T, hidden]`.
    ///
    /// # Errors
    /// What the tap returns.
    fn finish(&self, flow: Flow, tap: &mut dyn Tap) -> Result<Tensor>;

    /// The rows `range` of the head, `[rows, hidden]`, and the vocabulary's size. Logits are `final.out · headᵀ`.
    ///
    /// # Errors
    /// If reading fails.
    fn head_rows(&self, range: std::ops::Range<usize>) -> Result<Tensor>;

    /// Entries of the vocabulary.
    fn vocab(&self) -> usize;
}

/// A model family: configuration in, topology and runnable parts out.
pub trait Architecture: Send + Sync {
    /// The `model_type` it answers to.
    fn id(&self) -> &'static str;

    /// Reads `config.json`. `has_tensor` answers whether the checkpoint holds a tensor, for facts that only the weights tell.
    ///
    /// # Errors
    /// If a key is missing, malformed, or asks for something this forward pass does not do.
    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims>;

    /// What the model is made of.
    fn topology(&self, dims: &Dims) -> Topology;

    /// The key of `config.json` that gives the linears of a role biases, where there is one. Families without it have them or not by
    /// definition, and readers would ignore others.
    fn bias_key(&self, _: Role) -> Option<&'static str> {
        None
    }

    /// What the model's class in transformers calls its body (`base_model_prefix`): the outermost module, which checkpoints may leave out of
    /// the names of what is in it.
    fn body(&self) -> &'static str {
        "model"
    }

    /// Block `b` with its weights.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    fn block(&self, dims: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>>;

    /// The embeddings, final norm and head.
    ///
    /// # Errors
    /// If a weight is missing or has the wrong shape.
    fn edges(&self, dims: &Dims, weights: std::sync::Arc<dyn WeightSource>) -> Result<Box<dyn Edges>>;
}

/// The record of an architecture in the registry.
pub struct ArchitectureRecord {
    /// The `model_type`.
    pub id: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// The implementation.
    pub architecture: &'static dyn Architecture,
}

inventory::collect!(ArchitectureRecord);

macro_rules! builtin {
    ($($id:literal, $summary:literal, $value:expr;)*) => {
        /// The architectures of this crate.
        pub const BUILTIN: &[ArchitectureRecord] = &[$(ArchitectureRecord {
            id: $id, summary: $summary, version: env!("CARGO_PKG_VERSION"), source: "qfw-core", architecture: &$value,
        }),*];
    };
}

builtin! {
    "gpt2", "GPT-2: LayerNorm, learned positions, fused q/k/v, GELU", gpt2::Gpt2;
    "llama", "LLaMA 1 to 3 and models of its shape: RMSNorm, rotary positions, gated SiLU, grouped keys and values", llama::Llama;
    "mistral", "Mistral: LLaMA with a sliding window", mistral::Mistral;
    "opt", "OPT: LayerNorm, learned positions behind an offset, ReLU", opt::Opt;
    "qwen2", "Qwen2 and Qwen2.5: LLaMA with biases on q, k and v", qwen2::Qwen2;
    "qwen3", "Qwen3: LLaMA with norms on the heads of q and k", qwen3::Qwen3;
}

/// The `model_type` of a configuration.
///
/// # Errors
/// If the key is missing.
pub fn model_type(config: &Value) -> Result<&str> {
    config.get("model_type").and_then(Value::as_str).ok_or_else(|| {
        Error::input("model::config", "config.json has no `model_type`").hint("add the key, for example `\"model_type\": \"llama\"`")
    })
}

/// The error for a `model_type` nobody answers to.
pub fn unknown_architecture(model_type: &str, known: &[&str]) -> Error {
    Error::input("model::unknown-type", format!("unknown model_type `{model_type}`{}", did_you_mean(model_type, known.iter().copied())))
        .hint(format!("known model types: {}; methods that read weights only, such as `rtn`, need none of them", known.join(", ")))
}
