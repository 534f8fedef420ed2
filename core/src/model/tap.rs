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

/// Two taps, one after the other.
pub struct Both<'a>(pub &'a mut dyn Tap, pub &'a mut dyn Tap);

impl Tap for Both<'_> {
    fn wants(&self, port: Port) -> bool {
        self.0.wants(port) || self.1.wants(port)
    }

    fn at(&mut self, port: Port, x: Tensor) -> Result<Tensor> {
        let x = if self.0.wants(port) { self.0.at(port, x)? } else { x };
        if self.1.wants(port) { self.1.at(port, x) } else { Ok(x) }
    }
}

/// Shows `x` at `port` if the tap wants it.
pub(super) fn pass(tap: &mut dyn Tap, port: impl Into<Port>, x: Tensor) -> Result<Tensor> {
    let port = port.into();
    if tap.wants(port) { tap.at(port, x) } else { Ok(x) }
}
