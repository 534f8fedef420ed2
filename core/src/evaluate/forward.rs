//! The whole model on one sequence.

use candle_core::Tensor;

use crate::error::Result;
use crate::model::{Flow, Model, Nothing, Span};
use crate::numeric::linear;

/// Rows of the head multiplied at once: the vocabulary's matrix is never held.
pub(super) const HEAD_ROWS: usize = 4096;

/// Logits `[T, vocabulary]` of a sequence.
///
/// # Errors
/// If an id is out of range or a weight cannot be read.
pub fn logits(model: &Model, ids: &[u32]) -> Result<Tensor> {
    let edges = model.edges()?;
    let mut flow = edges.embed(ids, 0, &mut Nothing)?;
    for b in 0..model.topology.blocks {
        let weights = model.load_block(b)?;
        flow = model.block(b, &weights)?.run(Span::BLOCK, Flow::new(flow.x), &mut Nothing)?;
    }
    let x = edges.finish(flow, &mut Nothing)?;
    let mut parts = Vec::new();
    for start in (0..edges.vocab()).step_by(HEAD_ROWS) {
        let rows = edges.head_rows(start..edges.vocab().min(start + HEAD_ROWS))?;
        parts.push(linear(&x, &rows, None)?);
    }
    Ok(Tensor::cat(&parts, 1)?)
}
