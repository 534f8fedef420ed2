//! Inputs of the benches.

/// `n` numbers in `-1 ..= 1`, the same each time and without structure a kernel could profit from.
pub fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The lower triangle of a positive definite `[n, n]` matrix: `XᵀX` of as many rows as columns.
pub fn gram_matrix(n: usize) -> Vec<f32> {
    let mut h = vec![0.0; n * n];
    qfw_core::numeric::gram(&numbers(n * n), n, &mut h);
    h
}
