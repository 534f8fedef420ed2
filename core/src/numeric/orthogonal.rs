//! Orthogonal matrices that are not Hadamard's: random ones, and those that keep the vector of ones.
//!
//! All in f64 and on one thread, so that a seed means the same matrix everywhere.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch, apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::{Conj, Mat, Par, Spec};

use super::host::Real;
use super::random::uniform_u64;
use crate::error::{Error, Result};

/// Keeps these numbers apart from other draws with the same seed.
const GAUSSIAN: u64 = u64::from_be_bytes(*b"gaussian");

/// A random orthogonal matrix, `[n, n]` row-major: uniform over all of them (Haar).
///
/// `Q·sign(diag R)` of the factors `QR` of a matrix of Gaussians. Without the signs the factorization's choice of them would show:
/// Householder's makes the diagonal of R negative where that of Q tends to be positive (Mezzadri, "How to generate random matrices from
/// the classical compact groups", 2007).
///
/// # Errors
/// `numeric::empty-matrix` if `n` is 0.
pub fn random_orthogonal(n: usize, seed: u64) -> Result<Vec<f64>> {
    if n == 0 {
        return Err(empty());
    }
    let mut qr = Mat::<f64>::from_fn(n, n, |i, j| gaussian(&[GAUSSIAN, seed, i as u64, j as u64]));
    let block = recommended_block_size::<f64>(n, n);
    let mut factor = Mat::<f64>::zeros(block, n);
    let mut memory = MemBuffer::new(
        qr_in_place_scratch::<f64>(n, n, block, Par::Seq, Spec::default())
            .or(apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(n, block, n)),
    );
    qr_in_place(qr.as_mut(), factor.as_mut(), Par::Seq, MemStack::new(&mut memory), Spec::default());
    let mut q = Mat::<f64>::from_fn(n, n, |i, j| if i == j { qr[(j, j)].signum() } else { 0.0 });
    apply_block_householder_sequence_on_the_left_in_place_with_conj(
        qr.as_ref(),
        factor.as_ref(),
        Conj::No,
        q.as_mut(),
        Par::Seq,
        MemStack::new(&mut memory),
    );
    Ok((0..n * n).map(|ij| q[(ij / n, ij % n)]).collect())
}

/// The orthogonal `R`, `[n, n]` row-major, with `R·1 = 1` and `1ᵀ·R = 1ᵀ` that acts as `inner` on the space across from the ones.
///
/// `R = B·diag(1, inner)·B` with the reflection `B` of [`reflect_ones`]. Products of two `inner` become products of their `R`, transposes
/// become transposes. O(n²).
///
/// # Errors
/// `numeric::shape` unless `inner` is `[n − 1, n − 1]`; `numeric::empty-matrix` if `n` is 0.
pub fn fixing_ones(inner: &[f64], n: usize) -> Result<Vec<f64>> {
    let below = n.checked_sub(1).ok_or_else(empty)?;
    if below.checked_mul(below) != Some(inner.len()) {
        let message =
            format!("a rotation of {n} channels that keeps the ones needs a [{below}, {below}] matrix, not {} numbers", inner.len());
        return Err(Error::numeric("numeric::shape", message).hint("its size is one less than that of the result"));
    }
    let mut r = vec![0.0; n * n];
    r[0] = 1.0;
    if below > 0 {
        for (r, inner) in r[n..].chunks_exact_mut(n).zip(inner.chunks_exact(below)) {
            r[1..].copy_from_slice(inner);
        }
    }
    // diag(1, inner)·B, then B times that: the reflection of all columns, r ← r − w·(wᵀr)/(1 − 1/√n).
    reflect_ones(&mut r, n);
    let Some(w) = across(n) else { return Ok(r) };
    let mut along = vec![0.0; n];
    for (i, row) in r.chunks_exact(n).enumerate() {
        along.iter_mut().zip(row).for_each(|(a, r)| *a += w.at(i) * r);
    }
    for (i, row) in r.chunks_exact_mut(n).enumerate() {
        row.iter_mut().zip(&along).for_each(|(r, a)| *r -= w.at(i) * w.factor * a);
    }
    Ok(r)
}

/// Every row `v` of the `[_, n]` matrix `x` becomes `v·B`, where the reflection `B` swaps `e₀` and `1/√n`.
///
/// `v·B·diag(1, inner)·B` is `v·R` of [`fixing_ones`] without the matrix: for an `inner` that is applied by itself.
///
/// # Panics
/// If the length is no multiple of `n`: a bug of the caller.
pub fn reflect_ones<T: Real>(x: &mut [T], n: usize) {
    let Some(w) = across(n) else { return };
    assert!(x.len().is_multiple_of(n), "rows of {n} in {} numbers", x.len());
    for row in x.chunks_exact_mut(n) {
        let dot: f64 = row.iter().enumerate().map(|(i, x)| x.wide() * w.at(i)).sum();
        for (i, x) in row.iter_mut().enumerate() {
            *x = T::of(x.wide() - w.at(i) * w.factor * dot);
        }
    }
}

/// `w = e₀ − 1/√n`, with `B = I − wwᵀ·factor`.
#[derive(Clone, Copy)]
struct Across {
    ones: f64,
    factor: f64,
}

impl Across {
    #[inline(always)]
    fn at(self, i: usize) -> f64 {
        if i == 0 { 1.0 - self.ones } else { -self.ones }
    }
}

/// None where `B` is the identity: `e₀` is the vector of ones already.
fn across(n: usize) -> Option<Across> {
    let ones = 1.0 / (n as f64).sqrt();
    (n > 1).then(|| Across { ones, factor: 1.0 / (1.0 - ones) })
}

/// A normal number for `key`, from two uniform ones (Box and Muller, 1958).
fn gaussian(key: &[u64; 4]) -> f64 {
    let [tag, seed, i, j] = *key;
    // In (0, 1], so that its logarithm is finite.
    let unit = |which: u64| ((uniform_u64(&[tag, seed, i, j, which]) >> 11) + 1) as f64 / (1u64 << 53) as f64;
    // Of `libm`, whose results do not depend on the platform.
    libm::sqrt(-2.0 * libm::log(unit(0))) * libm::cos(std::f64::consts::TAU * unit(1))
}

fn empty() -> Error {
    Error::numeric("numeric::empty-matrix", "an orthogonal matrix of size 0 was asked for").hint("the size has to be at least 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest entry of `|RRᵀ − I|`.
    fn defect(r: &[f64], n: usize) -> f64 {
        let dot = |i: usize, j: usize| (0..n).map(|k| r[i * n + k] * r[j * n + k]).sum::<f64>();
        let off = |i: usize, j: usize| (dot(i, j) - f64::from(u8::from(i == j))).abs();
        (0..n * n).map(|ij| off(ij / n, ij % n)).fold(0.0, f64::max)
    }

    #[test]
    fn random_ones_are_orthogonal_and_depend_on_the_seed_alone() {
        for n in [1, 2, 3, 17, 100, 150] {
            let q = random_orthogonal(n, 7).unwrap();
            assert!(defect(&q, n) < 1e-12, "{n}: {}", defect(&q, n));
        }
        let (first, again, other) =
            (random_orthogonal(64, 1).unwrap(), random_orthogonal(64, 1).unwrap(), random_orthogonal(64, 2).unwrap());
        assert_eq!(first, again);
        assert!(first.iter().zip(&other).all(|(a, b)| a != b));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| random_orthogonal(64, 1)).unwrap(), first);
    }

    /// Under Haar every entry of an n×n matrix has mean 0 and variance 1/n, and the trace has mean 0 and variance 1.
    #[test]
    fn they_are_distributed_as_haar() {
        let (n, draws) = (6, 2000);
        let matrices: Vec<Vec<f64>> = (0..draws).map(|seed| random_orthogonal(n, seed).unwrap()).collect();
        let mean = |f: &dyn Fn(&[f64]) -> f64| matrices.iter().map(|q| f(q)).sum::<f64>() / draws as f64;
        let trace = |q: &[f64]| (0..n).map(|i| q[i * n + i]).sum::<f64>();
        let five_sigma = 5.0 / (draws as f64).sqrt();
        for i in 0..n * n {
            assert!(mean(&|q| q[i]).abs() < five_sigma / (n as f64).sqrt(), "entry {i}");
        }
        assert!(mean(&trace).abs() < five_sigma);
        // The trace's fourth moment is 3 as that of a Gaussian (n ≥ 4), so that of its square has the deviation √2.
        assert!((mean(&|q| trace(q) * trace(q)) - 1.0).abs() < five_sigma * 2f64.sqrt());
        // Reflections are as frequent as rotations: the sign of a 6×6 determinant, by the known cofactor-free elimination of faer.
        let turned = mean(&|q| Mat::<f64>::from_fn(n, n, |i, j| q[i * n + j]).determinant());
        assert!(turned.abs() < five_sigma);
    }

    #[test]
    fn the_ones_are_kept() {
        for n in [1, 2, 5, 48] {
            let inner = if n == 1 { Vec::new() } else { random_orthogonal(n - 1, 3).unwrap() };
            let r = fixing_ones(&inner, n).unwrap();
            assert!(defect(&r, n) < 1e-12);
            for i in 0..n {
                assert!((r[i * n..][..n].iter().sum::<f64>() - 1.0).abs() < 1e-12, "row {i} of {n}");
                assert!(((0..n).map(|k| r[k * n + i]).sum::<f64>() - 1.0).abs() < 1e-12, "column {i} of {n}");
            }
            // The trace is that of diag(1, inner), B being its own inverse.
            let trace = |m: &[f64], n: usize| (0..n).map(|i| m[i * n + i]).sum::<f64>();
            assert!((trace(&r, n) - 1.0 - trace(&inner, n - 1)).abs() < 1e-12);
        }
    }

    #[test]
    fn in_steps_it_is_the_same() {
        let n = 20;
        let inner = random_orthogonal(n - 1, 5).unwrap();
        let r = fixing_ones(&inner, n).unwrap();
        let v: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin()).collect();
        let mut lazy = v.clone();
        reflect_ones(&mut lazy, n);
        let tail = lazy[1..].to_vec();
        for j in 1..n {
            lazy[j] = (0..n - 1).map(|i| tail[i] * inner[i * (n - 1) + j - 1]).sum();
        }
        reflect_ones(&mut lazy, n);
        for j in 0..n {
            let want: f64 = (0..n).map(|i| v[i] * r[i * n + j]).sum();
            assert!((lazy[j] - want).abs() < 1e-12);
        }
        let mut first = vec![0.0f32; n];
        first[0] = 1.0;
        reflect_ones(&mut first, n);
        assert!(first.iter().all(|x| (x - (n as f32).sqrt().recip()).abs() < 1e-7));
    }

    #[test]
    fn what_has_no_matrix_is_an_error() {
        let error = random_orthogonal(0, 1).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str()), ("numeric::empty-matrix", "an orthogonal matrix of size 0 was asked for"));
        assert_eq!(fixing_ones(&[], 0).unwrap_err().code(), "numeric::empty-matrix");
        let error = fixing_ones(&[1.0], 4).unwrap_err();
        assert_eq!(error.to_string(), "a rotation of 4 channels that keeps the ones needs a [3, 3] matrix, not 1 numbers");
    }
}
