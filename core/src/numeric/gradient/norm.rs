//! RMSNorm and LayerNorm, backwards, with frozen weights.
//!
//! ```text
//! RMSNorm     r = 1/√(mean(x²) + ε),  h = g⊙w:   ∂x = r·(h − x·r²·mean(h⊙x))
//! LayerNorm   r = 1/√(var x + ε),  x̂ = (x − mean x)·r,  h = g⊙w:   ∂x = r·(h − mean h − x̂·mean(h⊙x̂))
//! ```

use candle_core::Tensor;

use super::super::host::{Real, for_real, tensor, with_slice};
use super::super::norm::sum;
use super::super::vectorize::{Kernel, vectorize};
use crate::error::Result;

/// `x` becomes its gradient.
struct Rms<'a, R> {
    x: &'a mut [R],
    w: &'a [R],
    g: &'a [R],
    eps: R,
}

impl<R: Real> Kernel for Rms<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let (one, n) = (R::of(1.0), R::of(self.w.len() as f64));
        let mut products = vec![R::of(0.0); self.w.len()];
        for (x, g) in self.x.chunks_exact_mut(self.w.len()).zip(self.g.chunks_exact(self.w.len())) {
            let r = one / (sum(x, |v| v * v) / n + self.eps).root();
            for (((p, x), g), w) in products.iter_mut().zip(&*x).zip(g).zip(self.w) {
                *p = *g * *w * *x;
            }
            let along = sum(&products, |p| p) / n * r * r;
            for ((x, g), w) in x.iter_mut().zip(g).zip(self.w) {
                *x = r * (*g * *w - *x * along);
            }
        }
    }
}

struct Layer<'a, R> {
    x: &'a mut [R],
    w: &'a [R],
    g: &'a [R],
    eps: R,
}

impl<R: Real> Kernel for Layer<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        let (one, n) = (R::of(1.0), R::of(self.w.len() as f64));
        let mut h = vec![R::of(0.0); self.w.len()];
        let mut products = h.clone();
        for (x, g) in self.x.chunks_exact_mut(self.w.len()).zip(self.g.chunks_exact(self.w.len())) {
            let mean = sum(x, |v| v) / n;
            let r = one / (sum(x, |v| (v - mean) * (v - mean)) / n + self.eps).root();
            for (((h, p), x), (g, w)) in h.iter_mut().zip(&mut products).zip(x.iter_mut()).zip(g.iter().zip(self.w)) {
                *x = (*x - mean) * r;
                *h = *g * *w;
                *p = *h * *x;
            }
            let (level, along) = (sum(&h, |h| h) / n, sum(&products, |p| p) / n);
            for (x, h) in x.iter_mut().zip(&h) {
                *x = r * (*h - level - *x * along);
            }
        }
    }
}

/// The gradient of `x`, from `g`, that of its RMSNorm.
pub(in super::super) fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, g: &Tensor) -> Result<Tensor> {
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(weight, |w| with_slice::<R, _>(g, |g| {
        let mut dx = x_.to_vec();
        vectorize(Rms { x: &mut dx, w, g, eps: R::of(eps) });
        tensor(dx, x.shape().clone())
    }))))
}

/// The gradient of `x`, from `g`, that of its LayerNorm.
pub(in super::super) fn layer_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, g: &Tensor) -> Result<Tensor> {
    for_real!(x, R => with_slice::<R, _>(x, |x_| with_slice::<R, _>(weight, |w| with_slice::<R, _>(g, |g| {
        let mut dx = x_.to_vec();
        vectorize(Layer { x: &mut dx, w, g, eps: R::of(eps) });
        tensor(dx, x.shape().clone())
    }))))
}
