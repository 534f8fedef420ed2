//! Matrix product on host slices, single-threaded.
//!
//! `C ← β·C + A·B` with A `[m, k]` and B `[k, n]`. One thread on purpose: the sum over `k` then has one order, whatever the machine's
//! thread count, and two windows on two threads are faster than one window split in two.

use super::host::Real;

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transpose {
    /// Row-major as named.
    No,
    /// The transpose of what is named lies row-major.
    Yes,
}

/// `C ← beta·C + A·B`, all row-major with the given row strides (elements).
///
/// `a` is `[m, k]` (or `[k, m]` with [`Transpose::Yes`]), `b` is `[k, n]` (or `[n, k]`), `c` is `[m, n]`.
///
/// # Panics
/// If a slice is too short for its shape and stride: a bug of the caller.
#[allow(clippy::too_many_arguments, reason = "the classic signature of this operation")]
pub fn gemm<T: Real>(
    (m, n, k): (usize, usize, usize),
    beta: T,
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
    let span = |rows: usize, cols: usize, stride: usize| if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
    let (a_rows, a_cols) = if a_transpose == Transpose::No { (m, k) } else { (k, m) };
    let (b_rows, b_cols) = if b_transpose == Transpose::No { (k, n) } else { (n, k) };
    assert!(a.len() >= span(a_rows, a_cols, a_stride), "left operand: {} < {a_rows}x{a_cols}", a.len());
    assert!(b.len() >= span(b_rows, b_cols, b_stride), "right operand: {} < {b_rows}x{b_cols}", b.len());
    assert!(c.len() >= span(m, n, c_stride), "result: {} < {m}x{n}", c.len());
    let (a_rs, a_cs) = if a_transpose == Transpose::No { (a_stride as isize, 1) } else { (1, a_stride as isize) };
    let (b_rs, b_cs) = if b_transpose == Transpose::No { (b_stride as isize, 1) } else { (1, b_stride as isize) };
    let zero = T::of(0.0);
    #[allow(unsafe_code, reason = "the gemm crate takes raw pointers; lengths are checked above")]
    // SAFETY: the three assertions above prove that each pointer covers its matrix under its strides, and `c` is exclusively borrowed.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_stride as isize,
            beta != zero,
            a.as_ptr(),
            a_cs,
            a_rs,
            b.as_ptr(),
            b_cs,
            b_rs,
            beta,
            T::of(1.0),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
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
                gemm((m, n, k), 1.0, &mut c, n, a, ta, sa, b, tb, sb);
                for (got, want) in c.iter().zip(&expected) {
                    assert!((got - 1.0 - want).abs() < 1e-12);
                }
            }
        }
    }
}
