//! Steps along rotations.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::lu::partial_pivoting::factor::{lu_in_place, lu_in_place_scratch};
use faer::linalg::lu::partial_pivoting::solve::{solve_in_place, solve_in_place_scratch};
use faer::{Mat, MatRef, Par, Spec};

use super::gemm::{Onto, Transpose, gemm};

/// `(I + A/2)⁻¹·(I − A/2)·X` for a skew matrix `A` and `X`, both `[n, n]`, row-major: a rotation of `X` by about `−A`, orthogonal if `X` is
/// (Cayley's transform).
pub fn cayley(a: &[f64], x: &[f64], n: usize) -> Vec<f64> {
    let minus: Vec<f64> = a.iter().enumerate().map(|(k, a)| f64::from(u8::from(k / n == k % n)) - 0.5 * a).collect();
    let mut right = vec![0.0; n * n];
    gemm((n, n, n), Onto::Replace, &mut right, n, &minus, Transpose::No, n, x, Transpose::No, n);
    // The transpose of `I − A/2` is `I + A/2`.
    let mut lu = MatRef::from_column_major_slice(&minus, n, n).to_owned();
    let mut turned: Mat<f64> = MatRef::from_row_major_slice(&right, n, n).to_owned();
    // On one thread, so that every machine has the same order of summation.
    let scratch = StackReq::any_of(&[
        lu_in_place_scratch::<usize, f64>(n, n, Par::Seq, Spec::default()),
        solve_in_place_scratch::<usize, f64>(n, n, Par::Seq),
    ]);
    let mut memory = MemBuffer::new(scratch);
    let (mut forth, mut back) = (vec![0usize; n], vec![0usize; n]);
    let (_, order) = lu_in_place(lu.as_mut(), &mut forth, &mut back, Par::Seq, MemStack::new(&mut memory), Spec::default());
    solve_in_place(lu.as_ref(), lu.as_ref(), order, turned.as_mut(), Par::Seq, MemStack::new(&mut memory));
    (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| turned[(i, j)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rotates_by_the_angle_and_keeps_lengths() {
        // In the plane, by the angle 2·atan(θ/2).
        let (theta, identity) = (0.3f64, [1.0, 0.0, 0.0, 1.0]);
        let turned = cayley(&[0.0, theta, -theta, 0.0], &identity, 2);
        let angle = 2.0 * (theta / 2.0).atan();
        for (x, y) in turned.iter().zip([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]) {
            assert!((x - y).abs() < 1e-15, "{turned:?}");
        }
        let n = 17;
        let number = |i: usize, j: usize| ((i * 31 + j * 17) % 13) as f64 / 7.0;
        let skew: Vec<f64> = (0..n * n).map(|k| number(k / n, k % n) - number(k % n, k / n)).collect();
        let identity: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
        let q = cayley(&skew, &identity, n);
        for i in 0..n {
            for j in 0..n {
                let dot: f64 = (0..n).map(|k| q[i * n + k] * q[j * n + k]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }
}
