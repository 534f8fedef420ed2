//! What weights were multiplied with, and the gradients of what came out: all that their own gradients need.
//!
//! `Y = X Wᵀ`: `∂W = Gᵀ X`, summed over windows, each with a [`Record`] of its own, in their order.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, Var};

use super::super::bf16::{Bf16Unit, across_bf16};
use super::super::gemm::{Onto, Transpose, gemm};
use super::super::host::{Real, with_slice};
use super::step2;
use crate::error::{Error, Result};

/// The products of one window, by slot: one for each weight that is trained.
#[derive(Debug)]
pub struct Record {
    /// What makes candle follow products whose input is frozen.
    root: Var,
    pairs: Mutex<Vec<Option<(Tensor, Tensor)>>>,
}

impl Record {
    /// An empty record for `slots` weights.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn new(slots: usize) -> Result<Self> {
        Ok(Self { root: Var::new(0f32, &Device::Cpu)?, pairs: Mutex::new(vec![None; slots]) })
    }

    /// What a recorded product depends on besides its input.
    pub(in super::super) fn root(&self) -> &Tensor {
        self.root.as_tensor()
    }

    /// Records the input of a product and the gradient of its result.
    pub(in super::super) fn add(&self, slot: usize, x: Tensor, g: Tensor) -> Result<()> {
        let mut pairs = self.pairs.lock().map_err(|_| Error::internal("a thread panicked during a backward pass"))?;
        match pairs.get_mut(slot) {
            Some(free @ None) => *free = Some((x, g)),
            Some(Some(_)) => return Err(Error::internal("a weight took part twice in one forward pass")),
            None => return Err(Error::internal("a product was recorded in a slot that is not there")),
        }
        Ok(())
    }

    /// `x`, whose gradient `then` sees on the way back.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn watch(&self, x: &Tensor, then: impl Fn(&Tensor) -> Result<()> + Send + Sync + 'static) -> Result<Tensor> {
        step2((self.root(), self.root()), x.detach().copy()?, move |g| {
            then(g)?;
            Ok([None, None])
        })
    }

    fn pair(&self, slot: usize) -> Result<(Tensor, Tensor)> {
        let pairs = self.pairs.lock().map_err(|_| Error::internal("a thread panicked during a backward pass"))?;
        let pair = pairs.get(slot).cloned().flatten();
        pair.ok_or_else(|| Error::internal(format!("weight {slot} takes part in nothing that the loss depends on")))
    }
}

/// Adds the gradient of the bias beside the weight in `slot`, summed over `windows` in their order, to `out`.
///
/// # Errors
/// If the weight took no part in one of them.
pub fn bias_gradient<R: Real>(windows: &[Arc<Record>], slot: usize, out: &mut [R]) -> Result<()> {
    for record in windows {
        with_slice::<R, _>(&record.pair(slot)?.1, |g| {
            g.chunks_exact(out.len().max(1)).for_each(|row| out.iter_mut().zip(row).for_each(|(o, g)| *o += *g));
            Ok(())
        })?;
    }
    Ok(())
}

/// Rows `rows` of the gradient of the weight in `slot`, row-major, summed over `windows` in their order; onto what `out` holds, unless they
/// are the `first`. Where a unit is given and numbers are f32, they are rounded to bf16 on the way.
///
/// # Errors
/// If the weight took no part in one of them.
pub fn weight_gradient<R: Real>(
    windows: &[Arc<Record>],
    slot: usize,
    rows: Range<usize>,
    out: &mut [R],
    first: bool,
    bf16: Option<Bf16Unit>,
) -> Result<()> {
    for (i, record) in windows.iter().enumerate() {
        let (x, g) = record.pair(slot)?;
        let ((t, columns), width) = (x.dims2()?, g.dim(1)?);
        let onto = if first && i == 0 { Onto::Replace } else { Onto::Add };
        if let (Some(unit), Some(out)) = (bf16, R::as_f32(out)) {
            with_slice::<f32, _>(&x, |x| {
                with_slice::<f32, _>(&g, |g| {
                    across_bf16(unit, (g, width, rows.clone()), (x, columns), onto, out);
                    Ok(())
                })
            })?;
            continue;
        }
        with_slice::<R, _>(&x, |x| {
            with_slice::<R, _>(&g, |g| {
                let size = (rows.len(), columns, t);
                gemm(size, onto, out, columns, &g[rows.start..], Transpose::Yes, width, x, Transpose::No, columns);
                Ok(())
            })
        })?;
    }
    Ok(())
}
