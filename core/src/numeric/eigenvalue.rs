//! The largest eigenvalue of a Gram matrix.

use super::random::uniform_u64;

/// `σ_max` of the symmetric `h` (lower triangle) by 30 steps of the power iteration from a start that is the same each time.
pub fn largest_eigenvalue(h: &[f32], n: usize) -> f64 {
    let mut x: Vec<f64> = (0..n as u64).map(|i| (uniform_u64(&[0, i]) >> 11) as f64 / (1u64 << 53) as f64 + 0.5).collect();
    let mut value = 0.0;
    for _ in 0..30 {
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm == 0.0 {
            return 0.0;
        }
        x.iter_mut().for_each(|x| *x /= norm);
        let mut y = vec![0.0; n];
        for i in 0..n {
            let row = &h[i * n..i * n + i];
            let mut sum = f64::from(h[i * n + i]) * x[i];
            for (j, h) in row.iter().enumerate() {
                let h = f64::from(*h);
                sum += h * x[j];
                y[j] += h * x[i];
            }
            y[i] += sum;
        }
        value = y.iter().map(|y| y * y).sum::<f64>().sqrt();
        x = y;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Householder reflection between known eigenvalues.
    #[test]
    fn it_is_the_largest_that_was_put_in() {
        let n = 40;
        let u: Vec<f64> = (0..n).map(|i| (i as f64 + 1.0).sin()).collect();
        let norm: f64 = u.iter().map(|x| x * x).sum();
        let q = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * u[i] * u[j] / norm;
        let entry = |i: usize, j: usize| (0..n).map(|k| q(i, k) * 13.0 * 0.7f64.powi(k as i32) * q(j, k)).sum::<f64>() as f32;
        let h: Vec<f32> = (0..n * n).map(|ij| if ij % n <= ij / n { entry(ij / n, ij % n) } else { 0.0 }).collect();
        assert!((largest_eigenvalue(&h, n) - 13.0).abs() < 1e-4);
        assert_eq!(largest_eigenvalue(&[0.0; 9], 3), 0.0);
    }
}
