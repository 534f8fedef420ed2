//! Hidden states of several windows, on their way through a model block by block.

use std::sync::Mutex;

use candle_core::Tensor;
use rayon::prelude::*;

use super::perplexity::EvalControl;
use crate::error::{Error, Result};
use crate::model::{Edges, Flow, Model, Nothing, Span};

/// What each window is at the place that the stream has reached. Windows run in parallel, each with single-threaded kernels.
pub(super) struct Stream<'a> {
    slots: Vec<Mutex<Option<Tensor>>>,
    control: &'a EvalControl<'a>,
}

impl<'a> Stream<'a> {
    /// Before the first block.
    pub(super) fn embed(edges: &dyn Edges, windows: &[(Vec<u32>, usize)], control: &'a EvalControl<'a>) -> Result<Self> {
        let slots = windows
            .par_iter()
            .with_max_len(1)
            .map(|(ids, _)| Ok(Mutex::new(Some(edges.embed(ids, 0, &mut Nothing)?.x))))
            .collect::<Result<_>>()?;
        Ok(Self { slots, control })
    }

    /// Through block `b`, which is read for that.
    pub(super) fn pass(&self, model: &Model, b: u32) -> Result<()> {
        let weights = model.load_block(b)?.rounding_products(self.control.bf16);
        let block = model.block(b, &weights)?;
        self.each(&|x| Ok(block.run(Span::BLOCK, Flow::new(x), &mut Nothing)?.x))
    }

    /// What the head reads, for every window.
    pub(super) fn finish(self, edges: &dyn Edges) -> Result<Vec<Tensor>> {
        self.each(&|x| edges.finish(Flow::new(x), &mut Nothing))?;
        self.slots.into_iter().map(|s| s.into_inner().ok().flatten().ok_or_else(lost)).collect()
    }

    /// What every window is here, in their order.
    pub(super) fn states(&self) -> Result<Vec<Tensor>> {
        self.slots.iter().map(|s| s.lock().ok().and_then(|s| s.clone()).ok_or_else(lost)).collect()
    }

    fn each(&self, f: &(dyn Fn(Tensor) -> Result<Tensor> + Sync)) -> Result<()> {
        self.slots.par_iter().with_max_len(1).try_for_each(|slot| {
            self.control.go_on()?;
            let mut slot = slot.lock().map_err(|_| lost())?;
            let x = slot.take().ok_or_else(lost)?;
            *slot = Some(f(x)?);
            Ok(())
        })
    }
}

fn lost() -> Error {
    Error::internal("a window was lost in an evaluation")
}
