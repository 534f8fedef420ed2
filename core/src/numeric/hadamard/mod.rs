//! Hadamard matrices as fast orthogonal transforms.
//!
//! `H_n = H_K ⊗ H_{2^p}` for `n = K·2^p`: index `i = a·2^p + b` has `a` from the matrix of order `K` ([`construct`]) and `b` from Sylvester's,
//! `(−1)^{popcount(b ∧ b')}`. Divided by `√n` it is orthogonal. It is symmetric if `K = 1`; otherwise the two directions differ, and both
//! are here. The kernel is in [`walsh`].
//!
//! A randomized one is `D·H` with `D` a diagonal of random signs, which hides structure that `H` would meet in the weights.

mod construct;
mod lanes;
mod walsh;

use rayon::prelude::*;

use self::lanes::{LANES, Lanes};
use self::walsh::{Mix, Walsh};
use super::random::uniform_u64;
use super::vectorize::vectorize;
use crate::error::{Error, Result};

/// Keeps these signs apart from other draws with the same seed.
const SIGNS: u64 = u64::from_be_bytes(*b"hadamard");

/// Numbers (bytes over 4 or 8) that one task takes: enough to be worth a task, little enough to stay in its cache.
const TASK: usize = 1 << 16;

/// Orders whose multiples by powers of two are the sizes of [`next_sizes`].
const PUBLISHED: [usize; 13] = [1, 12, 20, 28, 36, 40, 52, 60, 108, 140, 152, 156, 172];

/// An orthogonal matrix `M = D·H/√n` of size `n`: Hadamard's, with or without random signs.
#[derive(Clone, Debug)]
pub struct Hadamard {
    size: usize,
    order: usize,
    /// `H_K`, row-major.
    base: Vec<i8>,
    /// `v·H_K` and `v·H_Kᵀ`, if `K > 1`.
    mixes: Option<[Mix; 2]>,
    /// The diagonal of `D`.
    signs: Option<Vec<f32>>,
}

/// Which matrix multiplies from the right.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Plain,
    Transposed,
}

impl Hadamard {
    /// The matrix of size `n = K·2^p` with the smallest `K` that is known.
    ///
    /// # Errors
    /// `numeric::no-hadamard` if there is none.
    pub fn new(n: usize) -> Result<Self> {
        let made = construct::order_for(n).and_then(|order| Some((order, construct::base(order)?)));
        let Some((order, base)) = made else { return Err(unknown(n)) };
        let mixes = (order > 1).then(|| [false, true].map(|transposed| Mix::new(&base, order, transposed)));
        Ok(Self { size: n, order, base, mixes, signs: None })
    }

    /// The same with the rows negated at random: `D·H/√n`, where `D` depends on `n` and `seed` only.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn randomized(n: usize, seed: u64) -> Result<Self> {
        let sign = |i: usize| if uniform_u64(&[SIGNS, seed, n as u64, i as u64]) >> 63 == 1 { -1.0 } else { 1.0 };
        let plain = Self::new(n)?;
        Ok(Self { signs: Some((0..n).map(sign).collect()), ..plain })
    }

    /// `n`.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `K` of `n = K·2^p`: 1 for powers of two.
    pub fn order(&self) -> usize {
        self.order
    }

    /// The matrix itself, `[n, n]` row-major, entries `±1/√n`.
    pub fn matrix(&self) -> Vec<f64> {
        let (n, block) = (self.size, self.size / self.order);
        let scale = self.scale();
        let mut matrix = vec![0.0; n * n];
        for (i, row) in matrix.chunks_exact_mut(n).enumerate() {
            let sign = self.signs.as_ref().map_or(1.0, |signs| f64::from(signs[i]));
            for (j, entry) in row.iter_mut().enumerate() {
                let base = self.base[i / block * self.order + j / block];
                let odd = ((i % block) & (j % block)).count_ones() % 2 == 1;
                *entry = sign * scale * f64::from(if odd { -base } else { base });
            }
        }
        matrix
    }

    /// Every row `v` of the `[_, n]` matrix `x` becomes `v·M`. A row of several heads of `n` channels is as many rows.
    ///
    /// Rows are shared among threads; each is computed the same way whatever stands beside it.
    ///
    /// # Panics
    /// If the length is no multiple of `n`: a bug of the caller. So do the other verbs.
    pub fn rows<T: Lanes>(&self, x: &mut [T]) {
        self.each_row(x, Direction::Plain);
    }

    /// Every row `v` of the `[_, n]` matrix `x` becomes `v·Mᵀ`: undoes [`Self::rows`].
    pub fn rows_transposed<T: Lanes>(&self, x: &mut [T]) {
        self.each_row(x, Direction::Transposed);
    }

    /// The `[n, cols]` matrix `x` becomes `Mᵀ·x`: its columns are transformed as [`Self::rows`] does rows, with the same bits.
    pub fn columns<T: Lanes>(&self, x: &mut [T], cols: usize) {
        self.each_column(x, cols, Direction::Plain);
    }

    /// The `[n, cols]` matrix `x` becomes `M·x`: undoes [`Self::columns`].
    pub fn columns_transposed<T: Lanes>(&self, x: &mut [T], cols: usize) {
        self.each_column(x, cols, Direction::Transposed);
    }

    fn scale(&self) -> f64 {
        1.0 / (self.size as f64).sqrt()
    }

    fn each_row<T: Lanes>(&self, x: &mut [T], direction: Direction) {
        let n = self.size;
        assert!(x.len().is_multiple_of(n), "rows of {n} in {} numbers", x.len());
        let rows = (TASK / n).max(1);
        let task = |x: &mut [T]| {
            if n / self.order >= LANES {
                return self.transform(x, 1, direction);
            }
            // Blocks shorter than a register: rows side by side instead.
            let mut strip = vec![T::of(0.0); n * LANES];
            for x in x.chunks_mut(n * LANES) {
                for (lane, row) in x.chunks_exact(n).enumerate() {
                    row.iter().zip(strip.chunks_exact_mut(LANES)).for_each(|(x, run)| run[lane] = *x);
                }
                self.transform(&mut strip, LANES, direction);
                for (lane, row) in x.chunks_exact_mut(n).enumerate() {
                    row.iter_mut().zip(strip.chunks_exact(LANES)).for_each(|(x, run)| *x = run[lane]);
                }
            }
        };
        if x.len() <= n * rows { task(x) } else { x.par_chunks_mut(n * rows).for_each(task) }
    }

    /// Strips of columns, as many as there are threads at a time, are copied out so that a strip stays in a core's cache.
    fn each_column<T: Lanes>(&self, x: &mut [T], cols: usize, direction: Direction) {
        let n = self.size;
        assert!(x.len() == n * cols, "a [{n}, {cols}] matrix in {} numbers", x.len());
        if cols == 0 {
            return;
        }
        let width = (2 * TASK / n / LANES).clamp(1, 4) * LANES;
        let strips = rayon::current_num_threads().min(cols.div_ceil(width));
        let mut scratch = vec![T::of(0.0); n * width * strips];
        for start in (0..cols).step_by(width * strips) {
            let source: &[T] = x;
            scratch.par_chunks_mut(n * width).enumerate().for_each(|(s, strip)| {
                let columns = (start + s * width).min(cols)..(start + (s + 1) * width).min(cols);
                if columns.is_empty() {
                    return;
                }
                for (row, run) in source.chunks_exact(cols).zip(strip.chunks_exact_mut(width)) {
                    run[..columns.len()].copy_from_slice(&row[columns.clone()]);
                }
                self.transform(strip, width, direction);
            });
            x.par_chunks_mut(cols).enumerate().with_min_len(16).for_each(|(i, row)| {
                let rest = row[start..].chunks_mut(width);
                for (strip, part) in scratch.chunks_exact(n * width).zip(rest) {
                    part.copy_from_slice(&strip[i * width..][..part.len()]);
                }
            });
        }
    }

    /// Each number of a row is a run of `inner`.
    fn transform<T: Lanes>(&self, data: &mut [T], inner: usize, direction: Direction) {
        vectorize(self.kernel(data, inner, direction));
    }

    fn kernel<'a, T: Lanes>(&'a self, data: &'a mut [T], inner: usize, direction: Direction) -> Walsh<'a, T> {
        let signs = self.signs.as_deref();
        let (mix, before, after) = match direction {
            Direction::Plain => (self.mixes.as_ref().map(|m| &m[0]), signs, None),
            Direction::Transposed => (self.mixes.as_ref().map(|m| &m[1]), None, signs),
        };
        Walsh { data, block: self.size / self.order, inner, mix, before, after, scale: self.scale() }
    }
}

/// The sizes `K·2^p` above `n` in rising order, with `K` from the orders that published rotations use: what a layer can be padded to.
pub fn next_sizes(n: usize) -> impl Iterator<Item = usize> {
    let next = |n: usize| PUBLISHED.iter().filter_map(|order| above(n, *order)).min();
    std::iter::successors(next(n), move |size| next(*size))
}

/// The smallest `order·2^p` above `n`.
fn above(n: usize, order: usize) -> Option<usize> {
    order.checked_mul((n / order).checked_add(1)?.checked_next_power_of_two()?)
}

fn unknown(n: usize) -> Error {
    let orders = construct::orders;
    let below = orders().filter_map(|k| Some(k << (n.checked_sub(1)? / k).checked_ilog2()?)).max();
    let above = orders().filter_map(|k| above(n, k)).min();
    let below = below.map(|size| format!("{size} is the nearest below"));
    let above = above.map(|size| format!("{size} the nearest above"));
    let near = below.into_iter().chain(above).collect::<Vec<_>>().join(", ");
    Error::numeric("numeric::no-hadamard", format!("no Hadamard matrix of size {n} is known here"))
        .hint(format!("{near}; or use a random orthogonal matrix"))
}

#[cfg(test)]
mod tests;
