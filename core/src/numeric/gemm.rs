//! Matrix product on host slices, single-threaded.
//!
//! `C ← A·B`, or added to C, with A `[m, k]` and B `[k, n]`. One thread on purpose: the sum over `k` then has one order, whatever the machine's
//! thread count, and two windows on two threads are faster than one window split in two.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::host::Real;

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transpose {
    /// Row-major as named.
    No,
    /// The transpose of what is named lies row-major.
    Yes,
}

/// What becomes of what the result holds already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// It is replaced, and need not be defined.
    Replace,
    /// The product is added to it.
    Add,
}

/// `C ← A·B` or `C ← C + A·B`, all row-major with the given row strides (elements).
///
/// `a` is `[m, k]` (or `[k, m]` with [`Transpose::Yes`]), `b` is `[k, n]` (or `[n, k]`), `c` is `[m, n]`.
///
/// # Panics
/// If a slice is too short for its shape and stride: a bug of the caller.
#[allow(clippy::too_many_arguments, reason = "the classic signature of this operation")]
pub fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    onto: Onto,
    c: &mut [T],
    c_stride: usize,
    a: &[T],
    a_transpose: Transpose,
    a_stride: usize,
    b: &[T],
    b_transpose: Transpose,
    b_stride: usize,
) {
    if m == 0 || n == 0 {
        return;
    }
    let a = operand(a, (m, k), a_transpose, a_stride);
    let b = operand(b, (k, n), b_transpose, b_stride);
    // Row-major is the transpose of column-major; faer 0.24's own row-major constructor of a mutable matrix swaps the strides.
    let c = MatMut::from_column_major_slice_with_stride_mut(c, n, m, c_stride).transpose_mut();
    let accum = if onto == Onto::Replace { Accum::Replace } else { Accum::Add };
    matmul(c, accum, a, b, T::of(1.0), Par::Seq);
}

/// A `[rows, cols]` operand, whichever way it lies in memory.
fn operand<T>(data: &[T], (rows, cols): (usize, usize), transpose: Transpose, stride: usize) -> MatRef<'_, T> {
    match transpose {
        Transpose::No => MatRef::from_row_major_slice_with_stride(data, rows, cols, stride),
        Transpose::Yes => MatRef::from_row_major_slice_with_stride(data, cols, rows, stride).transpose(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
            }
        }
        c
    }

    #[test]
    fn agrees_with_the_definition_in_every_orientation() {
        let (m, n, k) = (5, 7, 9);
        let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.37).sin()).collect();
        let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.73).cos()).collect();
        let expected = naive(m, n, k, &a, &b);
        let at: Vec<f64> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
        let bt: Vec<f64> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        for (ta, a, sa) in [(Transpose::No, &a, k), (Transpose::Yes, &at, m)] {
            for (tb, b, sb) in [(Transpose::No, &b, n), (Transpose::Yes, &bt, k)] {
                let mut c = vec![1.0; m * n];
                gemm((m, n, k), Onto::Add, &mut c, n, a, ta, sa, b, tb, sb);
                for (got, want) in c.iter().zip(&expected) {
                    assert!((got - 1.0 - want).abs() < 1e-12);
                }
            }
        }
    }
}
