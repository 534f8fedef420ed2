//! Bytes of a matrix, rows to columns.

/// Rows and columns at a time: what is read and what is written both stay in the cache.
const TILE: usize = 64;

/// The transpose of a row-major `[rows, cols]` matrix.
pub(crate) fn turn(matrix: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut out = vec![0; rows * cols];
    for top in (0..rows).step_by(TILE) {
        for left in (0..cols).step_by(TILE) {
            for r in top..rows.min(top + TILE) {
                for c in left..cols.min(left + TILE) {
                    out[c * rows + r] = matrix[r * cols + c];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_whatever_the_tiles() {
        for (rows, cols) in [(1, 1), (1, 200), (3, 64), (65, 130)] {
            let matrix: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 251) as u8).collect();
            let turned = turn(&matrix, rows, cols);
            for i in 0..rows * cols {
                assert_eq!(turned[i % cols * rows + i / cols], matrix[i]);
            }
        }
    }
}
