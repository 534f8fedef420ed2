//! The leading singular triples of a matrix: `M ≈ U·Σ·Vᵀ` of a given rank, with the least Frobenius error.
//!
//! Large matrices by a block Krylov method from a random start (Musco and Musco 2015). With blocks of `l = rank + OVERSAMPLE` columns and
//! `Ω` of random signs:
//!
//! ```text
//! K₀ = orth(M·Ω);   Z_s = Mᵀ·K_s,   K_{s+1} = orth(M·Z_s against K₀ … K_s)
//! ZᵀZ = W·S²·Wᵀ  with  Z = [Z₀ … Z_s]:   U = K·W,   V = Z·W·S⁻¹
//! ```
//!
//! The energy `Σ S²` of the leading `rank` never falls from step to step, and is at most that of the best approximation. The spectra of
//! weights fall slowly, where single vectors turn for long but the error of the approximation settles soon: a step that wins less than
//! `SETTLED` of the energy that is left is the last. A matrix that has not settled after `STEPS`, and small ones to begin with, are
//! factored in full, in f64.
//!
//! Products are in f32 in fixed pieces, whose sums are in f64; small factorizations are in f64 on one thread. The result does not depend on
//! the number of threads.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::svd::{ComputeSvdVectors, svd, svd_scratch};
use faer::{Mat, Par, Spec};
use rayon::prelude::*;

use super::gemm::{Onto, Transpose, gemm};
use super::random::uniform_u64;
use super::transpose::transpose;
use crate::error::{Error, Result};

/// Columns of a block beyond the rank: they take up what lies just below it.
const OVERSAMPLE: usize = 8;

/// Blocks at most.
const STEPS: usize = 10;

/// What a step wins, relative to what is left, when it is the last.
const SETTLED: f64 = 1e-3;

/// A matrix that settles slowly is factored in full if its smaller side is at most this.
const FULL: usize = 1024;

/// Keeps these numbers apart from other draws with the same seed.
const SKETCH: u64 = u64::from_be_bytes(*b"svd-sign");

/// A matrix `[m, n]` by what it does. Many columns at a time, row-major.
pub trait LinearMap: Sync {
    /// `(m, n)`
    fn shape(&self) -> (usize, usize);

    /// `M·x`, `[m, l]`, for `x` `[n, l]`.
    fn times(&self, x: &[f32], l: usize) -> Vec<f32>;

    /// `Mᵀ·y`, `[n, l]`, for `y` `[m, l]`.
    fn transposed_times(&self, y: &[f32], l: usize) -> Vec<f32>;

    /// `‖M‖²`
    fn energy(&self) -> f64;
}

/// A row-major matrix.
#[derive(Clone, Copy)]
pub struct Dense<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> Dense<'a> {
    /// `values` as `[rows, cols]`.
    ///
    /// # Errors
    /// `numeric::shape` if there are not as many.
    pub fn new(values: &'a [f32], (rows, cols): (usize, usize)) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::numeric("numeric::shape", format!("{} numbers for a matrix of {rows}x{cols}", values.len())));
        }
        Ok(Self { values, rows, cols })
    }

    /// `values` as `[n, n]`, which they are.
    pub(super) fn square(values: &'a [f32], n: usize) -> Self {
        Self { values, rows: n, cols: n }
    }

    /// A few rows at a time.
    pub(super) fn pieces(&self, rows: usize) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        self.values.chunks(rows * self.cols)
    }
}

impl LinearMap for Dense<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    fn times(&self, x: &[f32], l: usize) -> Vec<f32> {
        const ROWS: usize = 128;
        let n = self.cols;
        let mut y = vec![0.0; self.rows * l];
        y.par_chunks_mut(ROWS * l).zip(self.values.par_chunks(ROWS * n)).for_each(|(y, w)| {
            gemm((w.len() / n, l, n), Onto::Replace, y, l, w, Transpose::No, n, x, Transpose::No, l);
        });
        y
    }

    fn transposed_times(&self, y: &[f32], l: usize) -> Vec<f32> {
        const COLUMNS: usize = 128;
        let mut x = vec![0.0; self.cols * l];
        x.par_chunks_mut(COLUMNS * l).enumerate().for_each(|(i, x)| {
            let w = &self.values[i * COLUMNS..];
            gemm((x.len() / l, l, self.rows), Onto::Replace, x, l, w, Transpose::Yes, self.cols, y, Transpose::No, l);
        });
        x
    }

    fn energy(&self) -> f64 {
        let parts: Vec<f64> = self.values.par_chunks(1 << 16).map(|p| p.iter().map(|x| f64::from(*x).powi(2)).sum()).collect();
        parts.iter().sum()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct TruncatedSvd {
    /// `U`, `[m, rank]` row-major.
    pub u: Vec<f32>,
    /// The diagonal of `Σ`, falling.
    pub values: Vec<f64>,
    /// `Vᵀ`, `[rank, n]` row-major.
    pub vt: Vec<f32>,
    /// Blocks it took; 0 for a full factorization.
    pub steps: usize,
    /// Whether the last step won as little as it should. Only a large matrix can be left without.
    pub settled: bool,
}

impl TruncatedSvd {
    /// `A = √Σ·Vᵀ` `[rank, n]` and `B = U·√Σ` `[m, rank]`, with `B·A = U·Σ·Vᵀ`: neither holds numbers much larger than the other.
    pub fn halves(&self) -> (Vec<f32>, Vec<f32>) {
        let roots: Vec<f64> = self.values.iter().map(|s| s.sqrt()).collect();
        let (rank, n) = (roots.len(), self.vt.len() / self.values.len().max(1));
        let a = self.vt.iter().enumerate().map(|(i, v)| (f64::from(*v) * roots[i / n.max(1)]) as f32).collect();
        let b = self.u.iter().enumerate().map(|(i, u)| (f64::from(*u) * roots[i % rank]) as f32).collect();
        (a, b)
    }
}

/// The `rank` leading singular triples of `m`; `seed` chooses where the search starts.
///
/// # Errors
/// `numeric::shape` for a rank of 0 or more than the smaller side, `numeric::not-finite` for a matrix that is not finite, and
/// `numeric::no-svd` if the factorization fails.
pub fn truncated_svd(m: &dyn LinearMap, rank: usize, seed: u64) -> Result<TruncatedSvd> {
    let (rows, cols) = m.shape();
    let side = rows.min(cols);
    if rank == 0 || rank > side {
        return Err(Error::numeric("numeric::shape", format!("{rank} singular values of a matrix of {rows}x{cols}")));
    }
    let total = m.energy();
    if !total.is_finite() {
        return Err(Error::numeric(
            "numeric::not-finite",
            format!("a matrix of {rows}x{cols} whose singular values are asked for is not finite"),
        ));
    }
    let l = rank + OVERSAMPLE;
    if side <= 128 || 3 * l >= side || total == 0.0 {
        return full(m, rank);
    }
    let found = krylov(m, (rank, l), total, seed)?;
    if found.settled || side > FULL { Ok(found) } else { full(m, rank) }
}

/// The method of the module, with blocks of `l` columns.
fn krylov(m: &dyn LinearMap, (rank, l): (usize, usize), total: f64, seed: u64) -> Result<TruncatedSvd> {
    let ((rows, cols), mut captured) = (m.shape(), 0.0);
    let sign = |i: usize| {
        let word = uniform_u64(&[SKETCH, seed, (i / 64) as u64]);
        if (word >> (i % 64)) & 1 == 1 { 1.0f32 } else { -1.0 }
    };
    let start = Columns { width: l, values: (0..cols * l).map(sign).collect() };
    let (mut k, mut z): (Vec<Columns>, Vec<Columns>) = (Vec::new(), Vec::new());
    // ZᵀZ, block by block.
    let mut inner: Vec<Vec<Vec<f64>>> = Vec::new();
    loop {
        let from = z.last().unwrap_or(&start);
        let next = Columns { width: from.width, values: m.times(&from.values, from.width) }.orthonormal(&k)?;
        // What is spanned already leaves nothing behind: all of the matrix has been found.
        let exhausted = next.width == 0;
        if !exhausted {
            let image = Columns { width: next.width, values: m.transposed_times(&next.values, next.width) };
            z.push(image);
            k.push(next);
            inner.push(z.iter().map(|old| z.last().map_or(Vec::new(), |new| new.inner(old))).collect());
        }
        let (energies, w) = eigen(&assembled(&inner, &z))?;
        let found = rank.min(energies.len());
        let energy: f64 = energies[..found].iter().sum();
        let settled = exhausted || k.len() > 1 && energy - captured <= SETTLED * (total - energy).max(1e-9 * total);
        if settled || k.len() == STEPS || (k.len() + 1) * l > rows.min(cols) {
            let values: Vec<f64> = energies.into_iter().chain(std::iter::repeat(0.0)).take(rank).map(f64::sqrt).collect();
            let u = combined(&k, &w, (rows, rank), |_| 1.0);
            // What has no energy has no direction.
            let floor = 1e-7 * values[0];
            let v = combined(&z, &w, (cols, rank), |i| if values[i] > floor { 1.0 / values[i] } else { 0.0 });
            return Ok(TruncatedSvd { u, vt: transpose(&v, cols, rank), values, steps: k.len(), settled });
        }
        captured = energy;
    }
}

/// Columns of the same height, row-major.
struct Columns {
    width: usize,
    values: Vec<f32>,
}

impl Columns {
    /// `selfᵀ·other` in f64, in pieces that are summed in order.
    fn inner(&self, other: &Self) -> Vec<f64> {
        const ROWS: usize = 256;
        let (p, q) = (self.width, other.width);
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let parts: Vec<Vec<f64>> = self
            .values
            .par_chunks(ROWS * p)
            .zip(other.values.par_chunks(ROWS * q))
            .map(|(x, y)| {
                let mut part = vec![0.0; p * q];
                gemm((p, q, x.len() / p), Onto::Replace, &mut part, q, &wide(x), Transpose::Yes, p, &wide(y), Transpose::No, q);
                part
            })
            .collect();
        parts.into_iter().fold(vec![0.0; p * q], |mut sum, part| {
            sum.iter_mut().zip(&part).for_each(|(s, x)| *s += x);
            sum
        })
    }

    /// `self·c` for `c` `[width, columns]`.
    fn times(&self, c: &[f32], columns: usize) -> Self {
        let dense = Dense { values: &self.values, rows: self.values.len() / self.width.max(1), cols: self.width };
        Self { width: columns, values: dense.times(c, columns) }
    }

    /// Orthonormal columns that span what these do beyond `basis`: fewer, where they are not independent. Twice, as the first round is only as
    /// exact as what it takes away is small.
    fn orthonormal(mut self, basis: &[Self]) -> Result<Self> {
        for _ in 0..2 {
            let before = self.inner(&self).iter().step_by(self.width + 1).copied().fold(0.0, f64::max);
            for k in basis {
                let c: Vec<f32> = k.inner(&self).into_iter().map(|x| -x as f32).collect();
                let along = k.times(&c, self.width);
                self.values.iter_mut().zip(&along.values).for_each(|(x, a)| *x += a);
            }
            let width = self.width;
            let (energies, w) = eigen(&Mat::from_fn(width, width, {
                let inner = self.inner(&self);
                move |i, j| inner[i * width + j]
            }))?;
            // Below this there is nothing but what rounding to f32 has left.
            let floor = 1e-11 * before.max(energies.first().copied().unwrap_or(0.0));
            let kept = energies.iter().take_while(|e| **e > floor && **e > 0.0).count();
            if kept == 0 {
                return Ok(Self { width: 0, values: Vec::new() });
            }
            let c: Vec<f32> = (0..width * kept).map(|ij| (w[(ij / kept, ij % kept)] / energies[ij % kept].sqrt()) as f32).collect();
            self = self.times(&c, kept);
        }
        Ok(self)
    }
}

/// `ZᵀZ` from its blocks at and below the diagonal.
fn assembled(inner: &[Vec<Vec<f64>>], z: &[Columns]) -> Mat<f64> {
    let starts: Vec<usize> = z.iter().scan(0, |at, z| Some(std::mem::replace(at, *at + z.width))).collect();
    let size = z.iter().map(|z| z.width).sum();
    let mut all = Mat::zeros(size, size);
    for (i, row) in inner.iter().enumerate() {
        for (j, block) in row.iter().enumerate() {
            for (at, x) in block.iter().enumerate() {
                let (a, b) = (starts[i] + at / z[j].width, starts[j] + at % z[j].width);
                all[(a, b)] = *x;
                all[(b, a)] = *x;
            }
        }
    }
    all
}

/// `[blocks]·w` for the leading columns of `w`, each times its factor.
fn combined(blocks: &[Columns], w: &Mat<f64>, (rows, rank): (usize, usize), factor: impl Fn(usize) -> f64) -> Vec<f32> {
    let (mut sum, mut start) = (vec![0.0; rows * rank], 0);
    let found = rank.min(w.ncols());
    for block in blocks {
        let entry = |i: usize, j: usize| if j < found { (w[(start + i, j)] * factor(j)) as f32 } else { 0.0 };
        let c: Vec<f32> = (0..block.width * rank).map(|ij| entry(ij / rank, ij % rank)).collect();
        sum.iter_mut().zip(block.times(&c, rank).values).for_each(|(s, x)| *s += x);
        start += block.width;
    }
    sum
}

/// Eigenvalues of a symmetric matrix, falling and not below 0, and its eigenvectors.
fn eigen(a: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = a.nrows();
    let (mut s, mut w) = (Diag::zeros(n), Mat::zeros(n, n));
    let mut memory = MemBuffer::new(self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Spec::default()));
    self_adjoint_evd(a.as_ref(), s.as_mut(), Some(w.as_mut()), Par::Seq, MemStack::new(&mut memory), Spec::default())
        .map_err(|_| Error::numeric("numeric::no-svd", format!("the eigenvalues of a symmetric matrix of {n} were not found")))?;
    let falling = s.column_vector().iter().rev().map(|x| x.max(0.0)).collect();
    Ok((falling, Mat::from_fn(n, n, |i, j| w[(i, n - 1 - j)])))
}

/// All of it in f64, cut.
fn full(m: &dyn LinearMap, rank: usize) -> Result<TruncatedSvd> {
    let (rows, cols) = m.shape();
    let one = |n: usize| (0..n * n).map(|i| f32::from(u8::from(i / n == i % n))).collect::<Vec<f32>>();
    let (u, values, v) = if cols <= rows {
        thin_svd(&tall(&m.times(&one(cols), cols), (rows, cols)))?
    } else {
        let (v, values, u) = thin_svd(&tall(&m.transposed_times(&one(rows), rows), (cols, rows)))?;
        (u, values, v)
    };
    let vt = (0..rank * cols).map(|ij| v[(ij % cols, ij / cols)] as f32).collect();
    let u = (0..rows * rank).map(|ij| u[(ij / rank, ij % rank)] as f32).collect();
    Ok(TruncatedSvd { u, values: values[..rank].to_vec(), vt, steps: 0, settled: true })
}

/// `(U, diag S, V)` of a matrix with at least as many rows as columns.
fn thin_svd(a: &Mat<f64>) -> Result<(Mat<f64>, Vec<f64>, Mat<f64>)> {
    let (m, n) = a.shape();
    let (mut u, mut s, mut v) = (Mat::zeros(m, n), Diag::zeros(n), Mat::zeros(n, n));
    let thin = ComputeSvdVectors::Thin;
    let mut memory = MemBuffer::new(svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Spec::default()));
    let stack = MemStack::new(&mut memory);
    svd(a.as_ref(), s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), Par::Seq, stack, Spec::default())
        .map_err(|_| Error::numeric("numeric::no-svd", format!("the singular values of a matrix of {m}x{n} were not found")))?;
    let values = s.column_vector().iter().copied().collect();
    Ok((u, values, v))
}

fn tall(x: &[f32], (rows, cols): (usize, usize)) -> Mat<f64> {
    Mat::from_fn(rows, cols, |i, j| f64::from(x[i * cols + j]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaussian-like numbers with a spectrum that falls like that of weights: a few strong directions on a flat rest.
    fn weight(rows: usize, cols: usize, strong: usize) -> Vec<f32> {
        let draw =
            |key: u64, i: usize| (0..4).map(|k| (uniform_u64(&[key, i as u64, k]) >> 11) as f64 / (1u64 << 53) as f64 - 0.5).sum::<f64>();
        let mut w: Vec<f64> = (0..rows * cols).map(|i| draw(1, i)).collect();
        for s in 0..strong {
            let size = 3.0 / (1.0 + s as f64);
            for i in 0..rows {
                for j in 0..cols {
                    w[i * cols + j] += size * draw(2 + 2 * s as u64, i) * draw(3 + 2 * s as u64, j);
                }
            }
        }
        w.into_iter().map(|x| x as f32).collect()
    }

    /// `‖W − U·Σ·Vᵀ‖²`, and the least there is, from faer's singular values in f64.
    fn errors(w: &[f32], shape: (usize, usize), found: &TruncatedSvd) -> (f64, f64) {
        let ((rows, cols), rank) = (shape, found.values.len());
        let (a, b) = found.halves();
        let mut error = 0.0;
        for i in 0..rows {
            for j in 0..cols {
                let x: f64 = (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * cols + j])).sum();
                error += (f64::from(w[i * cols + j]) - x).powi(2);
            }
        }
        let all = tall(w, shape).singular_values().unwrap();
        (error, all[rank..].iter().map(|s| s * s).sum())
    }

    #[test]
    fn it_is_as_near_as_the_full_factorization() {
        for (shape, rank, strong) in
            [((300, 200), 8, 3), ((200, 300), 16, 0), ((400, 160), 4, 20), ((90, 40), 7, 2), ((40, 90), 40, 2), ((1, 9), 1, 0)]
        {
            let w = weight(shape.0, shape.1, strong);
            let found = truncated_svd(&Dense::new(&w, shape).unwrap(), rank, 0).unwrap();
            let (error, least) = errors(&w, shape, &found);
            assert_eq!(found.steps == 0, shape.0.min(shape.1) <= 128, "{shape:?}");
            assert!(found.settled && error <= least * 1.003 + 1e-6, "{shape:?} rank {rank}: {error} for {least} in {} steps", found.steps);
            assert!(found.values.windows(2).all(|s| s[0] >= s[1]));
        }
    }

    #[test]
    fn threads_do_not_change_a_bit_and_the_seed_hardly_the_error() {
        let shape = (260, 330);
        let w = weight(shape.0, shape.1, 5);
        let of = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| truncated_svd(&Dense::new(&w, shape).unwrap(), 12, seed).unwrap())
        };
        let one = of(1, 0);
        for other in [of(2, 0), of(3, 0)] {
            assert!(one.u == other.u && one.vt == other.vt && one.values == other.values);
        }
        let another = of(1, 7);
        let ((e, _), (f, _)) = (errors(&w, shape, &one), errors(&w, shape, &another));
        assert!(one.u != another.u && (e / f - 1.0).abs() < 1e-3, "{e} {f}");
    }

    /// Fewer directions than are asked for: the rest is zero, not noise.
    #[test]
    fn a_matrix_of_low_rank_is_found_whole() {
        let (rows, cols) = (220, 180);
        let side = |key: u64, i: usize| (uniform_u64(&[key, i as u64]) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        let w: Vec<f32> = (0..rows * cols).map(|ij| (0..5u64).map(|k| side(k, ij / cols) * side(10 + k, ij % cols)).sum::<f32>()).collect();
        let found = truncated_svd(&Dense::new(&w, (rows, cols)).unwrap(), 20, 0).unwrap();
        let (a, b) = found.halves();
        assert!(found.steps > 0 && found.values[4] > 0.1 && found.values[6] < 1e-4 * found.values[0], "{:?}", found.values);
        for (ij, w) in w.iter().enumerate() {
            let x: f32 = (0..20).map(|k| b[ij / cols * 20 + k] * a[k * cols + ij % cols]).sum();
            assert!((x - w).abs() < 1e-4, "{x} for {w}");
        }
    }

    #[test]
    fn what_has_no_such_triples_is_refused() {
        let w = vec![1.0; 12];
        let m = Dense::new(&w, (3, 4)).unwrap();
        for rank in [0, 4] {
            let e = truncated_svd(&m, rank, 0).unwrap_err();
            assert_eq!(e.to_string(), format!("{rank} singular values of a matrix of 3x4"));
        }
        assert_eq!(Dense::new(&w, (3, 5)).err().unwrap().to_string(), "12 numbers for a matrix of 3x5");
        let broken = [1.0, f32::NAN];
        let e = truncated_svd(&Dense::new(&broken, (1, 2)).unwrap(), 1, 0).unwrap_err();
        assert_eq!(e.code(), "numeric::not-finite");
        // Nothing is a matrix of rank 0.
        let none = truncated_svd(&Dense::new(&[0.0; 12], (3, 4)).unwrap(), 2, 0).unwrap();
        assert_eq!(none.values, [0.0, 0.0]);
        assert!(none.halves().0.iter().chain(&none.halves().1).all(|x| *x == 0.0));
    }
}
