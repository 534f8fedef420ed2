//! The innermost loop of `vdpbf16ps`: a tile of up to 12 rows and 32 columns of C, held in registers over all of its `k`.
//!
//! `vdpbf16ps` multiplies pairs: lane `j` of the sum receives `a₀·b₀ⱼ + a₁·b₁ⱼ`. So both operands are stored as pairs of neighbours along
//! `k`, one 32-bit word each. A step loads two lines of B (32 columns) and gives each row's pair to all of their lanes: 24 products
//! for 14 loads.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_store_si512, _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::Bf16Unit;
use crate::numeric::Onto;

/// Rows of a full tile.
pub(super) const ROWS: usize = 12;
/// Columns of a tile: one panel of B.
pub(super) const COLUMNS: usize = 32;

/// Sixteen pairs, as wide as a register.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; 16]);

/// Pairs in a line, and in a step of the tiles of AMX: panels are padded with zeros to multiples.
pub(super) const STEP: usize = 16;

/// How many pairs a panel has for `length` numbers of `k`.
pub(super) fn pairs(length: usize) -> usize {
    length.div_ceil(2).next_multiple_of(STEP)
}

/// The pairs of `lines`, one after the other.
#[allow(unsafe_code, reason = "a view of the same numbers")]
pub(super) fn words(lines: &[Line]) -> &[u32] {
    // SAFETY: a line is 16 words and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 16) }
}

/// The same to be written.
#[allow(unsafe_code, reason = "a view of the same numbers")]
pub(super) fn words_mut(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a line is 16 words and nothing else, and any bits are a word.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// Which part of a tile is written: row `r` has its first `min(width, below + r)` columns written.
#[derive(Clone, Copy)]
pub(super) struct Keep {
    /// Columns that exist, at most [`COLUMNS`].
    pub(super) width: usize,
    /// Columns of the first row on or below the diagonal; [`COLUMNS`] where there is none to respect.
    pub(super) below: usize,
}

impl Keep {
    /// The same for the rows from `row` on.
    pub(super) fn from(self, row: usize) -> Self {
        Self { below: self.below + row, ..self }
    }

    /// How many columns of a row are written.
    pub(super) fn columns(self, row: usize) -> usize {
        self.width.min(self.below + row)
    }

    fn mask(self, row: usize) -> u32 {
        let columns = self.columns(row);
        if columns >= COLUMNS { u32::MAX } else { (1 << columns) - 1 }
    }
}

/// `C ← A·B`, or added to C, for one tile over the pairs of `b`.
///
/// The pair `p` of row `r` is `a[r·ROW + p·STEP]`. `b` is a panel: two lines a pair. `c` begins at the tile's first element.
///
/// # Panics
/// If a slice is too short: a bug of the caller.
pub(super) fn tile<const ROW: usize, const STEP: usize>(
    _: Bf16Unit,
    rows: usize,
    a: &[u32],
    b: &[Line],
    (c, stride): (&mut [f32], usize),
    keep: Keep,
    onto: Onto,
) {
    let pairs = b.len() / 2;
    assert!((1..=ROWS).contains(&rows) && pairs > 0 && a.len() > (rows - 1) * ROW + (pairs - 1) * STEP, "a tile inside A");
    assert!(keep.width <= COLUMNS && c.len() >= (rows - 1) * stride + keep.width, "a tile inside C");
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: the unit proves the instructions; the checks above are what the function asks for.
                $($n => unsafe { fixed::<$n, ROW, STEP>(pairs, a, b, c, stride, keep, onto) },)*
                _ => {}
            }
        };
    }
    #[allow(unsafe_code, reason = "vector instructions by pointer")]
    {
        dispatch!(1 2 3 4 5 6 7 8 9 10 11 12);
    }
}

/// [`tile`] with the number of rows fixed, so that the sums stay in registers.
///
/// # Safety
/// The CPU has the features. Readable: `a[r·ROW + p·STEP]` and `b[2p]`, `b[2p + 1]` for all `r < R`, `p < pairs`. Writable: the columns of
/// `c[r·stride..]` that `keep` names.
#[allow(unsafe_code, reason = "vector instructions by pointer")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn fixed<const R: usize, const ROW: usize, const STEP: usize>(
    pairs: usize,
    a: *const u32,
    b: *const Line,
    c: *mut f32,
    stride: usize,
    keep: Keep,
    onto: Onto,
) {
    if onto == Onto::Add {
        for r in 0..R {
            // C was last touched a block of `k` ago; it is fetched while the products run.
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(r * stride).cast());
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(r * stride + 16).cast());
        }
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for p in 0..pairs {
        // SAFETY: within `b`, which is aligned to lines.
        let (left, right) = unsafe { (_mm512_load_si512(b.add(2 * p).cast()), _mm512_load_si512(b.add(2 * p + 1).cast())) };
        let (left, right) = (halves(left), halves(right));
        for (r, [l, h]) in sums.iter_mut().enumerate() {
            // SAFETY: within `a`.
            let pair = unsafe { *a.add(r * ROW + p * STEP) };
            let pair = halves(_mm512_set1_epi32(pair as i32));
            *l = _mm512_dpbf16_ps(*l, pair, left);
            *h = _mm512_dpbf16_ps(*h, pair, right);
        }
    }
    for (r, [l, h]) in sums.into_iter().enumerate() {
        let mask = keep.mask(r);
        for (sum, mask, at) in [(l, mask as u16, r * stride), (h, (mask >> 16) as u16, r * stride + 16)] {
            let c = c.wrapping_add(at);
            // SAFETY: only lanes of the mask are touched, and these lie within `c`.
            unsafe {
                match (mask, onto) {
                    (0, _) => {}
                    (u16::MAX, Onto::Replace) => _mm512_storeu_ps(c, sum),
                    (u16::MAX, Onto::Add) => _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), sum)),
                    (_, Onto::Replace) => _mm512_mask_storeu_ps(c, mask, sum),
                    (_, Onto::Add) => _mm512_mask_storeu_ps(c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum)),
                }
            }
        }
    }
}

/// The same bits, as pairs of bf16.
#[allow(unsafe_code, reason = "vector types have no other conversion")]
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}

/// Rounds `x` to bf16, to nearest, ties to even; subnormal numbers become zero. Neighbours become pairs: pair `p` is
/// `x[2p] | x[2p + 1] << 16`. Writes whole groups of 16 pairs, zeros behind the end of `x`.
///
/// # Panics
/// If `pairs` is shorter than that: a bug of the caller.
pub(super) fn round(_: Bf16Unit, x: &[f32], pairs: &mut [u32]) {
    assert!(pairs.len() >= x.len().div_ceil(COLUMNS) * 16, "room for {} numbers", x.len());
    // SAFETY: the unit proves the instructions; every group read is within `x` by its mask, and every one written within `pairs`.
    #[allow(unsafe_code, reason = "vector instructions by pointer")]
    unsafe {
        round_fast(x, pairs.as_mut_ptr());
    }
}

/// # Safety
/// The CPU has the features; `pairs` has room for `⌈len/32⌉·16` words.
#[allow(unsafe_code, reason = "vector instructions by pointer")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round_fast(x: &[f32], pairs: *mut u32) {
    for (group, x) in x.chunks(COLUMNS).enumerate() {
        // SAFETY: as this function asks for.
        unsafe {
            let (low, high) = (part(x), part(&x[x.len().min(16)..]));
            let bits = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(pairs.add(16 * group).cast(), bits);
        }
    }
}

/// Rounds two rows as [`round`] does; pair `j` is `even[j] | odd[j] << 16`. A missing row counts as zeros.
///
/// # Panics
/// If there are more than [`COLUMNS`] numbers: a bug of the caller.
pub(super) fn round_across(_: Bf16Unit, even: &[f32], odd: &[f32], pairs: &mut [Line; 2]) {
    assert!(even.len() <= COLUMNS && odd.len() <= COLUMNS, "at most a panel's columns");
    // SAFETY: the unit proves the instructions.
    #[allow(unsafe_code, reason = "vector instructions")]
    unsafe {
        round_across_fast(even, odd, pairs);
    }
}

#[allow(unsafe_code, reason = "vector types have no other conversion")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round_across_fast(even: &[f32], odd: &[f32], pairs: &mut [Line; 2]) {
    for (group, line) in pairs.iter_mut().enumerate() {
        let half = |x: &[f32]| {
            // SAFETY: both are 32 bytes without invalid values.
            let bits = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(part(&x[x.len().min(16 * group)..]))) };
            _mm512_cvtepu16_epi32(bits)
        };
        let both = _mm512_or_si512(half(even), _mm512_slli_epi32::<16>(half(odd)));
        // SAFETY: a line is 64 aligned bytes.
        unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), both) };
    }
}

/// The first sixteen numbers of `x`, zeros for those that are missing.
#[allow(unsafe_code, reason = "vector instructions by pointer")]
#[inline]
#[target_feature(enable = "avx512f")]
fn part(x: &[f32]) -> __m512 {
    let mask = if x.len() >= 16 { u16::MAX } else { (1 << x.len()) - 1 };
    // SAFETY: lanes of the mask lie within `x`; the others are not read.
    unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
}
