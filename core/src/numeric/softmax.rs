//! Softmax of rows, in place.

use super::host::Real;

/// `x ← exp(x − max x) / Σ`, over one row.
#[inline(always)]
pub(super) fn softmax_row<R: Real>(x: &mut [R]) {
    let mut top = [R::of(f64::NEG_INFINITY); 8];
    for chunk in x.chunks(8) {
        for (m, v) in top.iter_mut().zip(chunk) {
            if *v > *m {
                *m = *v;
            }
        }
    }
    let max = top.into_iter().fold(R::of(f64::NEG_INFINITY), |a, b| if b > a { b } else { a });
    let mut lanes = [R::of(0.0); 8];
    for chunk in x.chunks_mut(8) {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = (*v - max).exp_fast();
            *lane += *v;
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    let scale = R::of(1.0) / (((a + e) + (b + f)) + ((c + g) + (d + h)));
    for v in x {
        *v *= scale;
    }
}
