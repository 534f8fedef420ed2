//! Softmax of rows, in place.

use super::host::Real;

/// Partial results side by side: a fixed order of summation, as wide as the widest vector of f32.
const LANES: usize = 16;

/// `x ← exp(s·x − max s·x) / Σ`, over one row; `s` is positive.
#[inline(always)]
pub(super) fn softmax_row<R: Real>(x: &mut [R], s: R) {
    let mut top = [R::of(f64::NEG_INFINITY); LANES];
    let larger = |m: &mut R, v: R| *m = if v > *m { v } else { *m };
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (m, v) in top.iter_mut().zip(chunk) {
            larger(m, *v);
        }
    }
    for (m, v) in top.iter_mut().zip(rest) {
        larger(m, *v);
    }
    let max = top.into_iter().fold(R::of(f64::NEG_INFINITY), |a, b| if b > a { b } else { a });
    let mut lanes = [R::of(0.0); LANES];
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = ((*v - max) * s).exp_fast();
            *lane += *v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *v = ((*v - max) * s).exp_fast();
        *lane += *v;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    let scale = R::of(1.0) / lanes[0];
    for v in x {
        *v *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition_in_f64() {
        for n in [1, 2, 15, 16, 17, 100, 513] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() * 40.0).collect();
            let e: Vec<f64> = x.iter().map(|v| (f64::from(*v) * 0.125).exp()).collect();
            let sum: f64 = e.iter().sum();
            let mut y = x.clone();
            softmax_row(&mut y, 0.125);
            for (y, e) in y.iter().zip(&e) {
                assert!((f64::from(*y) - e / sum).abs() <= 2e-6 * (e / sum), "{n}: {y} {}", e / sum);
            }
        }
        let mut equal = [f32::MIN; 3];
        softmax_row(&mut equal, 1.0);
        assert!(equal.iter().all(|v| (v - 1.0 / 3.0).abs() < 1e-6), "{equal:?}");
    }
}
