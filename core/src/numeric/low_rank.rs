//! `W ← W − B·A` for factors of low rank.

use rayon::prelude::*;

use super::gemm::{Onto, Transpose, gemm};

/// `w ← w − b·a`, with `a` `[rank, cols]`, `b` `[rows, rank]` and `w` `[rows, cols]`, all row-major. Rows are shared among threads, each
/// computed as if it was alone.
///
/// # Panics
/// If a slice is too short for its shape: a bug of the caller.
pub fn subtract_low_rank(w: &mut [f32], a: &[f32], b: &[f32], (cols, rank): (usize, usize)) {
    const ROWS: usize = 64;
    w.par_chunks_mut(ROWS * cols).zip(b.par_chunks(ROWS * rank)).for_each(|(w, b)| {
        let (rows, mut product) = (w.len() / cols, vec![0.0; w.len()]);
        gemm((rows, cols, rank), Onto::Replace, &mut product, cols, b, Transpose::No, rank, a, Transpose::No, cols);
        w.iter_mut().zip(&product).for_each(|(w, p)| *w -= p);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_definition_row_by_row() {
        let (rows, cols, rank) = (150, 7, 3);
        let a: Vec<f32> = (0..rank * cols).map(|i| i as f32 - 9.0).collect();
        let b: Vec<f32> = (0..rows * rank).map(|i| (i % 11) as f32 - 5.0).collect();
        let mut w: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
        subtract_low_rank(&mut w, &a, &b, (cols, rank));
        for (ij, w) in w.iter().enumerate() {
            let product: f32 = (0..rank).map(|k| b[ij / cols * rank + k] * a[k * cols + ij % cols]).sum();
            assert_eq!(*w, ij as f32 - product);
        }
    }
}
