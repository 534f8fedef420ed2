//! `y = f(x)` and `y = f(x) ⊙ u`: `∂x = g ⊙ f′(x)`, and `∂x = g ⊙ u ⊙ f′(x)`, `∂u = g ⊙ f(x)`.

use candle_core::Tensor;

use super::super::activation::{Activation, OverPointwise, Pointwise};
use super::super::elementwise::{PART, part_by_part};
use super::super::host::{Real, for_real, tensor, with_slice};
use super::super::vectorize::{Kernel, vectorize};
use crate::error::Result;

/// `x` becomes `g ⊙ f′(x)`, or with a factor `u`: `g ⊙ u ⊙ f′(x)`, and `u` becomes `g ⊙ f(x)`.
struct Back<'a, R> {
    f: Activation,
    x: &'a mut [R],
    factor: Option<&'a mut [R]>,
    g: &'a [R],
}

impl<R: Real> OverPointwise for Back<'_, R> {
    #[inline(always)]
    fn each<F: Pointwise>(self) {
        match self.factor {
            None => self.x.iter_mut().zip(self.g).for_each(|(x, g)| *x = *g * F::slope(*x)),
            Some(u) => {
                for ((x, u), g) in self.x.iter_mut().zip(u).zip(self.g) {
                    (*x, *u) = (*g * *u * F::slope(*x), *g * F::at(*x));
                }
            }
        }
    }
}

impl<R: Real> Kernel for Back<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        self.f.with(self);
    }
}

/// The gradient of `x`, from `g`, that of `f(x)`.
pub(in super::super) fn activate_backward(f: Activation, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(g, |g| {
        let dx = part_by_part(x_, PART, |at, x| vectorize(Back { f, g: &g[at..][..x.len()], x, factor: None }));
        tensor(dx, x.shape().clone())
    })))
}

/// The gradients of `gate` and `up`, from `g`, that of `f(gate) ⊙ up`.
pub(in super::super) fn activate_gated_backward(f: Activation, gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    for_real!(gate, R => with_slice::<R, _>(gate, |x| with_slice::<R, _>(up, |u| with_slice::<R, _>(g, |g| {
        let mut du = Vec::with_capacity(u.len());
        let dx = part_by_part(x, PART, |at, x| {
            du.extend_from_slice(&u[at..][..x.len()]);
            vectorize(Back { f, g: &g[at..][..x.len()], x, factor: Some(&mut du[at..]) });
        });
        Ok((tensor(dx, gate.shape().clone())?, tensor(du, up.shape().clone())?))
    }))))
}
