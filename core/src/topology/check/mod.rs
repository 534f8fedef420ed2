//! Proof by numbers that a topology says the truth about its forward pass.
//!
//! For every kind of region a random symmetry that it allows is fused into a model in f64, and the logits have to stay what they were;
//! then one that it does not allow, or an allowed one with a writer or reader forgotten, and the logits have to change. What is proven
//! is the architecture: the model has the shape of the one asked about, cut down where it is large, and weights of its own
//! (see `draw`).

mod draw;
mod rows;
mod run;

use std::fmt;

use serde::Serialize;

pub use draw::random_weights;
pub use run::logits;

use crate::error::Result;
use crate::model::{Architecture, Dims, Model};

/// What has to happen to the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Must {
    /// They stay what they were: the error is at most 1e-9.
    Hold,
    /// They change: the error is at least 1e-3.
    Break,
}

impl fmt::Display for Must {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hold => "hold",
            Self::Break => "break",
        })
    }
}

/// One change of the model and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckRow {
    /// The region; `blocks.*` where it is changed in every block.
    pub region: String,
    /// What was done.
    pub action: String,
    /// What has to come of it.
    pub must: Must,
    /// Largest change of a logit over the largest logit.
    pub error: f64,
    /// Whether it is as it has to be.
    pub ok: bool,
}

impl CheckRow {
    /// Above this, rounding in f64 no longer explains a difference.
    const EXACT: f64 = 1e-9;
    /// Below this, a difference is no proof of a change.
    const BROKEN: f64 = 1e-3;

    fn new(region: impl Into<String>, action: impl Into<String>, must: Must, error: f64) -> Self {
        // Comparisons with a NaN are false: it is never as it has to be.
        let ok = match must {
            Must::Hold => error <= Self::EXACT,
            Must::Break => error >= Self::BROKEN,
        };
        Self { region: region.into(), action: action.into(), must, error, ok }
    }
}

/// All rows of a check. Its `Display` is a table with aligned columns.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CheckTable {
    /// The rows, in the order of the topology's regions.
    pub rows: Vec<CheckRow>,
}

impl CheckTable {
    /// Whether every row is as it has to be.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(|r| r.ok)
    }
}

impl fmt::Display for CheckTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |title: &str, text: fn(&CheckRow) -> &str| self.rows.iter().map(|r| text(r).chars().count()).fold(title.len(), usize::max);
        let (region, action) = (width("region", |r| &r.region), width("action", |r| &r.action));
        write!(f, "{:region$}  {:action$}  must   {:>7}  ok", "region", "action", "error")?;
        for r in &self.rows {
            let ok = if r.ok { "yes" } else { "NO" };
            write!(f, "\n{:region$}  {:action$}  {:5}  {:>7.1e}  {ok}", r.region, r.action, r.must, r.error)?;
        }
        Ok(())
    }
}

/// Checks the topology of `model`'s architecture at its shape. Its weights are not read.
///
/// # Errors
/// If the forward pass fails; a symmetry that does not do what it has to is a row, not an error.
pub fn check(model: &Model, seed: u64) -> Result<CheckTable> {
    check_architecture(model.architecture(), &model.dims, seed)
}

/// As [`check`], of a shape for which there need be no model.
///
/// # Errors
/// As [`check`].
pub fn check_architecture(architecture: &dyn Architecture, dims: &Dims, seed: u64) -> Result<CheckTable> {
    rows::all(architecture, reduced(dims), seed)
}

/// The same architecture, small enough for seconds: at most three blocks, and a few heads of the same width that still share keys and
/// values where they did. Models whose heads together are as wide as the residual stream keep that, as some forward passes need it.
fn reduced(d: &Dims) -> Dims {
    const WIDE: usize = 512;
    let mut small = d.clone();
    small.blocks = d.blocks.min(3);
    small.windows.truncate(small.blocks);
    small.score_scale.truncate(small.blocks);
    small.vocab = d.vocab.min(256);
    small.max_positions = d.max_positions.min(64);
    small.ffn = d.ffn.min(192);
    if d.heads * d.head_dim > WIDE {
        small.kv_heads = d.kv_heads.min(2);
        small.heads = small.kv_heads * (d.heads / d.kv_heads).min(2);
    }
    small.hidden = if d.hidden == d.heads * d.head_dim { small.heads * d.head_dim } else { d.hidden.min(192) };
    small
}

#[cfg(test)]
mod tests;
