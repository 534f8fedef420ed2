//! The kernel: `(v ⊗ lanes) ← (v·(H_K ⊗ H_{2^p})) ⊗ lanes`, in place.
//!
//! A row is `K` blocks of `2^p` numbers. Each block goes through `p` stages of butterflies `(x, y) ← (x + y, x − y)` at distance 1, 2, 4, …:
//! those within a register by permuting it, the others up to four at a time (16 registers), so that 4096 numbers are read and written
//! twice, not twelve times. Then the blocks are mixed by the columns of `H_K`. There four inputs have only 16 signed sums; with those in a
//! table an output is `K/4` additions instead of `K`.
//!
//! A number can also be a run of `inner` numbers next to each other, all transformed alike: columns of a matrix, or rows side by side
//! where blocks are shorter than a register.
//!
//! Stages come in the same order whatever the instruction set, and a butterfly is one rounded addition: results have the same bits on
//! all of them.

use pulp::Simd;

use super::lanes::Lanes;
use crate::numeric::vectorize::Kernel;

/// Numbers that go through all stages before the next do, if their blocks are not longer.
const TOGETHER: usize = 2048;

/// `v ← v·B` on `K` blocks, for a ±1 matrix `B`.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    /// `K`, a multiple of 4.
    order: usize,
    /// `signs[(o/4)·K/4 + g]` for four outputs: bit `4·(o % 4) + i` is set where `B[4g + i, o] = −1`. One word, as the compiler would take
    /// four bytes apart in vector registers, which the sums need.
    signs: Vec<u16>,
}

impl Mix {
    /// Of `B` row-major `[K, K]`, or of its transpose.
    pub(super) fn new(matrix: &[i8], order: usize, transposed: bool) -> Self {
        let entry = |i: usize, o: usize| if transposed { matrix[o * order + i] } else { matrix[i * order + o] };
        let sign = |g: usize, quad: usize| (0..16).map(|bit| u16::from(entry(4 * g + bit % 4, 4 * quad + bit / 4) < 0) << bit).sum();
        let quads = (0..order / 4).flat_map(|quad| (0..order / 4).map(move |g| (quad, g)));
        Self { order, signs: quads.map(|(quad, g)| sign(g, quad)).collect() }
    }
}

/// The transform of the rows of `data`.
pub(super) struct Walsh<'a, T> {
    /// Rows of `K·block·inner` numbers.
    pub(super) data: &'a mut [T],
    /// `2^p`; at least [`super::lanes::LANES`] if `inner` is 1.
    pub(super) block: usize,
    /// 1, or a multiple of [`super::lanes::LANES`].
    pub(super) inner: usize,
    /// `H_K`, if `K > 1`.
    pub(super) mix: Option<&'a Mix>,
    /// Signs of the inputs.
    pub(super) before: Option<&'a [f32]>,
    /// Signs of the outputs.
    pub(super) after: Option<&'a [f32]>,
    /// Factor of the outputs.
    pub(super) scale: f64,
}

impl<T: Lanes> Kernel for Walsh<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { data, block, inner, mix, before, after, scale } = self;
        let order = mix.map_or(1, |mix| mix.order);
        let scale = T::splat(simd, scale);
        let groups = order / 4;
        let mut room = Room { table: vec![Sums([scale; 16]); groups.min(GROUPS)], partial: vec![[scale; 4]; groups] };
        for row in data.chunks_exact_mut(order * block * inner) {
            flip(row, before, inner);
            // Several short blocks are one long run of chunks; together they stay in the first-level cache.
            let together = (TOGETHER / (block * inner)).max(1);
            for part in row.chunks_mut(block * inner * together) {
                butterflies::<S, T>(simd, part, block, inner, if mix.is_none() { Some(scale) } else { None });
            }
            if let Some(mix) = mix {
                mix_blocks::<S, T>(simd, T::vectors::<S>(row), mix, &mut room, scale);
            }
            flip(row, after, inner);
        }
    }
}

/// Runs of `inner` numbers take their sign.
#[inline(always)]
fn flip<T: Lanes>(row: &mut [T], signs: Option<&[f32]>, inner: usize) {
    let Some(signs) = signs else { return };
    if inner == 1 {
        for (x, sign) in row.iter_mut().zip(signs) {
            *x *= T::of(f64::from(*sign));
        }
        return;
    }
    for (run, sign) in row.chunks_exact_mut(inner).zip(signs) {
        let sign = T::of(f64::from(*sign));
        for x in run {
            *x *= sign;
        }
    }
}

/// All stages of one block, in as few passes over it as the registers allow.
#[inline(always)]
fn butterflies<S: Simd, T: Lanes>(simd: S, part: &mut [T], block: usize, inner: usize, scale: Option<T::Vector<S>>) {
    let numbers = part.len();
    let part = T::vectors::<S>(part);
    let lanes = numbers / part.len();
    let within = inner == 1;
    let (mut stride, mut stages) = if within { (1, (block / lanes).ilog2()) } else { (inner / lanes, block.ilog2()) };
    let most = if S::REGISTER_COUNT >= 32 { 4 } else { 3 };
    let mut passes = stages.div_ceil(most).max(u32::from(within));
    let mut first = within;
    while passes > 0 {
        let now = stages.div_ceil(passes);
        let scale = if passes == 1 { scale } else { None };
        match now {
            0 => pass::<S, T, 1>(simd, part, stride, first, scale),
            1 => pass::<S, T, 2>(simd, part, stride, first, scale),
            2 => pass::<S, T, 4>(simd, part, stride, first, scale),
            3 => pass::<S, T, 8>(simd, part, stride, first, scale),
            _ => pass::<S, T, 16>(simd, part, stride, first, scale),
        }
        stride <<= now;
        stages -= now;
        passes -= 1;
        first = false;
    }
}

/// `log₂ R` stages, the first at a distance of `stride` registers; before them those inside a register, after them the factor.
#[inline(always)]
fn pass<S: Simd, T: Lanes, const R: usize>(simd: S, part: &mut [T::Vector<S>], stride: usize, within: bool, scale: Option<T::Vector<S>>) {
    match (within, scale) {
        (true, None) => {
            for x in part.as_chunks_mut::<R>().0 {
                let mut v = *x;
                for v in &mut v {
                    *v = T::inside(simd, *v);
                }
                radix::<S, T, R>(simd, &mut v);
                *x = v;
            }
        }
        (true, Some(scale)) => {
            for x in part.as_chunks_mut::<R>().0 {
                let mut v = *x;
                for v in &mut v {
                    *v = T::inside(simd, *v);
                }
                radix::<S, T, R>(simd, &mut v);
                for v in &mut v {
                    *v = T::times(simd, *v, scale);
                }
                *x = v;
            }
        }
        (false, None) => strided::<S, T, R>(simd, part, stride, |v| v),
        (false, Some(scale)) => strided::<S, T, R>(simd, part, stride, |v| T::times(simd, v, scale)),
    }
}

/// `R` registers at a distance of `stride` at a time.
#[allow(clippy::needless_range_loop, reason = "`j` walks along all slices at once")]
#[inline(always)]
fn strided<S: Simd, T: Lanes, const R: usize>(
    simd: S,
    part: &mut [T::Vector<S>],
    stride: usize,
    last: impl Fn(T::Vector<S>) -> T::Vector<S>,
) {
    for chunk in part.chunks_exact_mut(R * stride) {
        let mut slices = chunk.chunks_exact_mut(stride);
        let x: [&mut [T::Vector<S>]; R] = std::array::from_fn(|_| slices.next().unwrap_or_default());
        for j in 0..stride {
            let mut v = [x[0][j]; R];
            for r in 1..R {
                v[r] = x[r][j];
            }
            radix::<S, T, R>(simd, &mut v);
            for r in 0..R {
                x[r][j] = last(v[r]);
            }
        }
    }
}

/// The butterflies among `R` registers.
#[inline(always)]
fn radix<S: Simd, T: Lanes, const R: usize>(simd: S, v: &mut [T::Vector<S>; R]) {
    distance::<S, T, R, 1>(simd, v);
    distance::<S, T, R, 2>(simd, v);
    distance::<S, T, R, 4>(simd, v);
    distance::<S, T, R, 8>(simd, v);
}

#[inline(always)]
fn distance<S: Simd, T: Lanes, const R: usize, const D: usize>(simd: S, v: &mut [T::Vector<S>; R]) {
    if D >= R {
        return;
    }
    for i in 0..R {
        if i & D == 0 {
            let (a, b) = (v[i], v[i + D]);
            v[i] = T::plus(simd, a, b);
            v[i + D] = T::minus(simd, a, b);
        }
    }
}

/// Groups of four inputs whose signed sums are held at a time: 16 registers of 64 bytes each, within 28 KiB of the first-level cache.
const GROUPS: usize = 28;

/// Where [`mix_blocks`] holds what it needs of one column of registers.
struct Room<V> {
    /// The signed sums of each group of inputs.
    table: Vec<Sums<V>>,
    /// The outputs, while groups are still to come.
    partial: Vec<[V; 4]>,
}

/// Sums of four numbers with all signs. Aligned, so that no register lies across two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums<V>([V; 16]);

/// Blocks of registers times a ±1 matrix and the factor.
#[inline(always)]
fn mix_blocks<S: Simd, T: Lanes>(simd: S, row: &mut [T::Vector<S>], mix: &Mix, room: &mut Room<T::Vector<S>>, scale: T::Vector<S>) {
    let stride = row.len() / mix.order;
    let groups = mix.order / 4;
    let most = groups.div_ceil(groups.div_ceil(GROUPS));
    let zero = T::splat(simd, 0.0);
    for j in 0..stride {
        let column = &mut row[j..];
        for start in (0..groups).step_by(most) {
            let end = (start + most).min(groups);
            let table = &mut room.table[..end - start];
            for (g, sums) in table.iter_mut().enumerate() {
                let at = 4 * (start + g) * stride;
                let [a, b, c, d] = [column[at], column[at + stride], column[at + 2 * stride], column[at + 3 * stride]];
                let (low, high) = (signed::<S, T>(simd, zero, a, b), signed::<S, T>(simd, zero, c, d));
                for (i, sum) in sums.0.iter_mut().enumerate() {
                    *sum = T::plus(simd, low[i & 3], high[i >> 2]);
                }
            }
            for (quad, (signs, partial)) in mix.signs.chunks_exact(groups).zip(&mut room.partial).enumerate() {
                let mut outputs = if start == 0 { [zero; 4] } else { *partial };
                for (sums, signs) in table.iter().zip(&signs[start..end]) {
                    for (o, output) in outputs.iter_mut().enumerate() {
                        *output = T::plus(simd, *output, sums.0[usize::from(signs >> (4 * o) & 15)]);
                    }
                }
                if end < groups {
                    *partial = outputs;
                    continue;
                }
                // All inputs are in sums by now.
                for o in 0..4 {
                    column[(4 * quad + o) * stride] = T::times(simd, outputs[o], scale);
                }
            }
        }
    }
}

/// `±a ± b`: bit 0 of the index negates `a`, bit 1 negates `b`.
#[inline(always)]
fn signed<S: Simd, T: Lanes>(simd: S, zero: T::Vector<S>, a: T::Vector<S>, b: T::Vector<S>) -> [T::Vector<S>; 4] {
    let (sum, difference) = (T::plus(simd, a, b), T::minus(simd, a, b));
    [sum, T::minus(simd, zero, difference), difference, T::minus(simd, zero, sum)]
}
