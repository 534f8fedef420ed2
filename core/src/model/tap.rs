//! Observing and replacing tensors on their way through a block.

use candle_core::Tensor;

use crate::error::Result;
use crate::topology::Port;

/// Something that watches places of a forward pass.
pub trait Tap {
    /// Whether [`Tap::at`] is to be called at `port`. Wanting `scores` or `probs` makes attention take its explicit path.
    fn wants(&self, port: Port) -> bool;

    /// Sees the tensor at `port`; what it returns flows on.
    ///
    /// # Errors
    /// Whatever the observer finds wrong; the run stops.
    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor>;
}

/// The tap that wants nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Tap for Nothing {
    fn wants(&self, _: Port) -> bool {
        false
    }

    fn at(&mut self, _: Port, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
}

/// Shows `x` at `port` if the tap wants it.
pub(super) fn pass(tap: &mut dyn Tap, port: impl Into<Port>, x: Tensor) -> Result<Tensor> {
    let port = port.into();
    if tap.wants(port) { tap.at(port, x) } else { Ok(x) }
}
