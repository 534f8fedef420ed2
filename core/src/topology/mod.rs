//! Roles, ports, parameters and regions of an architecture.
//!
//! One [`Topology`] per model, declared beside its forward pass, says everything the rest of the program needs to know of it: which
//! stored tensor holds which parameter, which linears exist and what they read, and which channels may be scaled, permuted or rotated
//! without changing the function. Names of stored tensors occur here and in `checkpoint` only; everything else speaks roles.

mod apply;
mod canonical;
mod check;
mod online;
mod port;
mod region;
mod rewrite;
mod role;
mod rotation;
mod symmetry;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use apply::apply;
pub use canonical::{Folded, assume_rms_norms, center_writers, fold_norms, rewrite, untie};
pub use check::{CheckRow, CheckTable, Must, check, check_architecture, logits, random_weights};
pub use online::{OnlineRotation, OnlineStep};
pub use port::{Place, Port, PortName};
pub use region::{Allows, Axis, Region, Slot, Space, Tie};
pub use rewrite::{Fetch, Rewrite, Rewriting};
pub use role::Role;
pub use rotation::{Rotation, RotationKind, Turn};
pub use symmetry::{Kind, Symmetry};

/// Which of the tensors of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The weight: a matrix, or the vector of a norm.
    Weight,
    /// The bias.
    Bias,
    /// What its input is multiplied by: a vector over its channels, for all that read the same input. Few layers have one.
    Multiplier,
}

/// A layer: a role, inside a block or of the whole model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId {
    /// The decoder block, or `None` for embeddings, the final norm and the head.
    pub block: Option<u32>,
    /// What the layer is.
    pub role: Role,
}

impl SiteId {
    /// The site of `role` in `block`.
    pub const fn in_block(block: u32, role: Role) -> Self {
        Self { block: Some(block), role }
    }

    /// The site of `role` outside the blocks.
    pub const fn global(role: Role) -> Self {
        Self { block: None, role }
    }
}

impl fmt::Display for SiteId {
    /// `blocks.3.attn.q`, `head`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(b) => write!(f, "blocks.{b}.{}", self.role),
            None => write!(f, "{}", self.role),
        }
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One parameter tensor of the model and where it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamDecl {
    /// The layer it belongs to.
    pub site: SiteId,
    /// Weight or bias.
    pub part: Part,
    /// Name of the stored tensor.
    pub tensor: String,
    /// Shape as the forward pass uses it: `[out, in]` or `[n]`.
    pub shape: Vec<usize>,
    /// The file holds the transpose (`Conv1D`).
    pub transposed: bool,
}

/// A linear layer that can be quantized: one stored weight matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The site.
    pub site: SiteId,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// Where its input can be observed. Linears with the same input port form a parallel group and share statistics.
    pub input: Port,
    /// Where its output can be observed.
    pub output: Port,
    /// Whether it has a bias.
    pub bias: bool,
    /// Name of the stored module: the tensor name without `.weight`.
    pub module: String,
    /// The file holds the transpose (`Conv1D`).
    pub transposed: bool,
}

/// What an architecture is made of.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Number of decoder blocks.
    pub blocks: u32,
    /// Every parameter, in no particular order.
    pub params: Vec<ParamDecl>,
    /// The linears of all blocks in order of execution, then the head.
    pub linears: Vec<Linear>,
    /// Spaces of channels and the symmetries they allow.
    pub regions: Vec<Region>,
    /// The head is the embedding's own tensor.
    pub tied_head: bool,
    /// Norms are LayerNorm (centred, with bias) rather than RMSNorm.
    pub layer_norm: bool,
}

impl Topology {
    /// The parameter of that site and part.
    pub fn param(&self, site: SiteId, part: Part) -> Option<&ParamDecl> {
        self.params.iter().find(|p| p.site == site && p.part == part)
    }

    /// Every parameter of block `b`.
    pub fn block_params(&self, b: u32) -> impl Iterator<Item = &ParamDecl> {
        self.params.iter().filter(move |p| p.site.block == Some(b))
    }

    /// The linears of block `b` in order of execution.
    pub fn block_linears(&self, b: u32) -> impl Iterator<Item = &Linear> {
        self.linears.iter().filter(move |l| l.site.block == Some(b))
    }

    /// The linear at a site.
    pub fn linear(&self, site: SiteId) -> Option<&Linear> {
        self.linears.iter().find(|l| l.site == site)
    }

    /// The regions that a norm writes: where norms are folded.
    pub fn norm_regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|r| matches!(r.space, Space::AttnIn | Space::MlpIn | Space::HeadIn))
    }

    /// The linears of block `b` grouped by the port they read, in order of execution: q, k and v; o; gate and up; down.
    pub fn parallel_groups(&self, b: u32) -> Vec<Vec<&Linear>> {
        let mut groups: Vec<Vec<&Linear>> = Vec::new();
        for linear in self.block_linears(b) {
            match groups.iter_mut().find(|g| g[0].input == linear.input) {
                Some(group) => group.push(linear),
                None => groups.push(vec![linear]),
            }
        }
        groups
    }
}

/// What the built-in architecture that a `config.json` names is made of.
#[cfg(test)]
fn of_config(config: &serde_json::Value) -> Topology {
    let architecture = crate::model::BUILTIN.iter().find(|r| config["model_type"] == r.id).unwrap().architecture;
    architecture.topology(&architecture.parse(config, &|_| false).unwrap())
}
