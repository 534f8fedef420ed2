//! The other way round in memory.

/// The transpose of a row-major `[rows, cols]` matrix, in tiles that stay in cache.
pub fn transpose<T: Copy + Default>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    const TILE: usize = 32;
    let mut y = vec![T::default(); x.len()];
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for r in r0..rows.min(r0 + TILE) {
                for c in c0..cols.min(c0 + TILE) {
                    y[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
    y
}
