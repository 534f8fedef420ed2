//! RMSNorm and LayerNorm, backwards, with frozen weights.
//!
//! ```text
//! RMSNorm     r = 1/√(mean(x²) + ε),  x̂ = x·r,  h = g⊙w:   ∂x = r·(h − x̂·mean(h⊙x̂))
//! LayerNorm   r = 1/√(var x + ε),  x̂ = (x − mean x)·r,  h = g⊙w:   ∂x = r·(h − mean h − x̂·mean(h⊙x̂))
//! ```

use candle_core::Tensor;

use super::super::elementwise::part_by_part;
use super::super::host::{Real, for_real, tensor, with_slice};
use super::super::norm::sum;
use super::super::vectorize::{Kernel, vectorize};
use crate::error::Result;

/// The gradient of `x`; without its mean, RMSNorm is what LayerNorm is.
struct Back<'a, R> {
    x: &'a [R],
    w: &'a [R],
    g: &'a [R],
    eps: R,
    /// LayerNorm.
    centred: bool,
}

impl<R: Real> Kernel for Back<'_, R> {
    type Output = Vec<R>;
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> Vec<R> {
        let (zero, n) = (R::of(0.0), R::of(self.w.len() as f64));
        let (mut h, mut products) = (vec![zero; self.w.len()], vec![zero; self.w.len()]);
        part_by_part(self.x, self.w.len(), |at, x| {
            let g = &self.g[at..][..x.len()];
            let mean = if self.centred { sum(x, |v| v) / n } else { zero };
            let r = R::of(1.0) / (sum(x, |v| (v - mean) * (v - mean)) / n + self.eps).root();
            for (((h, p), x), (g, w)) in h.iter_mut().zip(&mut products).zip(x.iter_mut()).zip(g.iter().zip(self.w)) {
                *x = (*x - mean) * r;
                *h = *g * *w;
                *p = *h * *x;
            }
            let (level, along) = (if self.centred { sum(&h, |h| h) / n } else { zero }, sum(&products, |p| p) / n);
            for (x, h) in x.iter_mut().zip(&h) {
                *x = r * (*h - level - *x * along);
            }
        })
    }
}

fn backward(x: &Tensor, weight: &Tensor, eps: f64, g: &Tensor, centred: bool) -> Result<Tensor> {
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(weight, |w| with_slice::<R, _>(g, |g| {
        tensor(vectorize(Back { x: x_, w, g, eps: R::of(eps), centred }), x.shape().clone())
    }))))
}

/// The gradient of `x`, from `g`, that of its RMSNorm.
pub(in super::super) fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, g: &Tensor) -> Result<Tensor> {
    backward(x, weight, eps, g, false)
}

/// The gradient of `x`, from `g`, that of its LayerNorm.
pub(in super::super) fn layer_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, g: &Tensor) -> Result<Tensor> {
    backward(x, weight, eps, g, true)
}
