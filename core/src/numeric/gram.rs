//! `H = XᵀX` of one window: the lower triangle of a symmetric `[n, n]` matrix, f32.

use super::gemm::{Onto, Transpose, gemm};

/// Columns formed at once. Narrow panels waste less above the diagonal, wide ones run the product at its full rate.
const PANEL: usize = 192;

/// Lower triangle of `XᵀX` for row-major `x` `[t, n]`, written to row-major `h` `[n, n]`; above it are zeros if there were before.
///
/// Columns go in panels, each from the diagonal down: little more than half the work of a full product.
///
/// # Panics
/// If a slice does not have this size: a bug of the caller.
pub fn gram(x: &[f32], n: usize, h: &mut [f32]) {
    assert_eq!(h.len(), n * n, "the result is {n}x{n}");
    let t = x.len() / n;
    assert_eq!(x.len(), t * n, "rows of {n}");
    if t == 0 {
        h.fill(0.0);
        return;
    }
    for first in (0..n).step_by(PANEL) {
        let (width, below) = (PANEL.min(n - first), n - first);
        let panel = &mut h[first * n + first..];
        let x = &x[first..];
        gemm((below, width, t), Onto::Replace, panel, n, x, Transpose::Yes, n, x, Transpose::No, n);
        for (i, row) in panel.chunks_mut(n).take(width).enumerate() {
            row[i + 1..width].fill(0.0);
        }
    }
}

/// `a ← a + b` on lower triangles.
pub fn add_lower(a: &mut [f32], b: &[f32], n: usize) {
    for (i, (a, b)) in a.chunks_exact_mut(n).zip(b.chunks_exact(n)).enumerate() {
        for (a, b) in a[..=i].iter_mut().zip(&b[..=i]) {
            *a += *b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition_in_f64() {
        for (t, n) in [(1, 1), (3, 5), (40, 33), (17, 130), (9, 200)] {
            let x: Vec<f32> = (0..t * n).map(|i| (i as f32 * 0.37).sin()).collect();
            let mut h = vec![0.0; n * n];
            gram(&x, n, &mut h);
            for i in 0..n {
                for j in 0..=i {
                    let want: f64 = (0..t).map(|r| f64::from(x[r * n + i]) * f64::from(x[r * n + j])).sum();
                    assert!((f64::from(h[i * n + j]) - want).abs() <= 1e-5 * t as f64, "{t}x{n} at {i},{j}");
                }
                assert!(h[i * n + i + 1..(i + 1) * n].iter().all(|v| *v == 0.0), "{t}x{n} above the diagonal of row {i}");
            }
        }
    }
}
