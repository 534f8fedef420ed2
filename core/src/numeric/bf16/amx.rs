//! The same products on the tile registers of AMX: `tdpbf16ps` multiplies 16 rows of 16 pairs with 16 pairs of 16 columns.
//!
//! ```text
//! tmm0 tmm1   =  tmm4 · tmm6 tmm7      32 rows and 32 columns of C stay in four tiles over all of their `k`;
//! tmm2 tmm3      tmm5                  a step takes 16 pairs of A's rows and of a panel of B: four products for four loads
//! ```
//!
//! A tile of B is what a panel holds anyway: pairs of neighbours along `k`, the columns side by side. Each instruction sums its 16 pairs
//! apart, even and odd ones too, and adds that to C: an element's sum has an order given by `k` alone here as well, but another one than
//! `vdpbf16ps` has.
//!
//! There are no stable intrinsics for these instructions, and the state of the tiles is not the compiler's: what touches them is one piece
//! of assembly each.

use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_ET0, _mm_prefetch, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::panels::STRIDE;
use super::tile::{COLUMNS, Keep, Line, STEP, words, words_mut};
use crate::numeric::Onto;

/// Rows of a block of C.
pub(super) const HIGH: usize = 32;

/// Whether the CPU has the tiles, and the system lets this process use them.
pub(super) fn permitted() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    #[allow(unused_unsafe, reason = "safe in newer toolchains")]
    #[allow(unsafe_code, reason = "reads what the CPU is")]
    // SAFETY: every x86-64 CPU has the instruction; the leaf is asked for only where it exists.
    let edx = unsafe {
        if std::arch::x86_64::__cpuid(0).eax < 7 {
            return false;
        }
        std::arch::x86_64::__cpuid_count(7, 0).edx
    };
    edx & (BF16 | TILES) == BF16 | TILES && allowed_by_system()
}

/// Linux saves the tiles of a process only once it has asked for that.
#[cfg(target_os = "linux")]
fn allowed_by_system() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and touches no memory of ours.
    #[allow(unsafe_code, reason = "no safe wrapper of this call exists")]
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn allowed_by_system() -> bool {
    false
}

/// The tiles of this thread, laid out for [`Self::block`] until this is dropped.
pub(super) struct Tiles(());

/// All eight tiles: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPE: Shape = Shape {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Tiles {
    /// Lays the tiles out. Only for callers whose [`super::Bf16Unit`] says that there are any.
    pub(super) fn new() -> Self {
        // SAFETY: the unit proves the instructions; the shape is one of the first palette.
        #[allow(unsafe_code, reason = "there is no intrinsic")]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, preserves_flags, readonly));
        }
        Self(())
    }

    /// `C ← A·B`, or added to C, for up to 32 rows and the columns of one panel.
    ///
    /// Row `r` of A is the pairs from `a[r·STRIDE]` on, of which 32 rows have to be readable; `b` is a panel of whole steps. `c` begins at
    /// the block's first element, and has rows `stride` long.
    ///
    /// # Panics
    /// If a slice is too short, or `b` is not whole steps: a bug of the caller.
    pub(super) fn block(&self, rows: usize, a: &[u32], b: &[Line], (c, stride): (&mut [f32], usize), keep: Keep, onto: Onto) {
        let pairs = b.len() / 2;
        assert!(pairs > 0 && b.len().is_multiple_of(2 * STEP) && a.len() >= (HIGH - 1) * STRIDE + pairs, "whole steps, and 32 rows of A");
        assert!((1..=HIGH).contains(&rows) && c.len() >= (rows - 1) * stride + keep.width, "a block inside C");
        let steps = pairs / STEP;
        if rows == HIGH && keep.columns(0) == COLUMNS {
            // SAFETY: the checks above; every column of 32 rows lies within `c`.
            #[allow(unsafe_code, reason = "tiles are loaded by pointer")]
            unsafe {
                product(steps, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), stride, onto);
            }
            return;
        }
        let mut whole = Block([[0.0; COLUMNS]; HIGH]);
        if onto == Onto::Add {
            for (r, row) in whole.0.iter_mut().enumerate().take(rows) {
                let columns = keep.columns(r);
                row[..columns].copy_from_slice(&c[r * stride..][..columns]);
            }
        }
        // SAFETY: the checks above; `whole` is a block of its own.
        #[allow(unsafe_code, reason = "tiles are loaded by pointer")]
        unsafe {
            product(steps, a.as_ptr(), b.as_ptr(), whole.0.as_mut_ptr().cast(), COLUMNS, onto);
        }
        for (r, row) in whole.0.iter().enumerate().take(rows) {
            let columns = keep.columns(r);
            c[r * stride..][..columns].copy_from_slice(&row[..columns]);
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever made this had the instructions.
        #[allow(unsafe_code, reason = "there is no intrinsic")]
        unsafe {
            asm!("tilerelease", options(nostack, preserves_flags, nomem));
        }
    }
}

#[repr(C, align(64))]
struct Block([[f32; COLUMNS]; HIGH]);

/// 32 rows and 32 columns of C.
///
/// # Safety
/// The tiles are laid out. Readable: 32 rows of `16·steps` words, `STRIDE` words apart, from `a`, and `32·steps` lines from `b`; `steps > 0`.
/// Writable (with [`Onto::Add`] readable): 32 columns of 32 rows, `stride` numbers apart, from `c`.
#[allow(unsafe_code, reason = "there are no intrinsics")]
unsafe fn product(steps: usize, a: *const u32, b: *const Line, c: *mut f32, stride: usize, onto: Onto) {
    let (a_below, c_below) = (a.wrapping_add(16 * STRIDE), c.wrapping_add(16 * stride));
    // SAFETY: as this function asks for. No register of the compiler's is touched but those named.
    unsafe {
        if onto == Onto::Replace {
            // C comes from far, and is fetched while the products run.
            for row in 0..HIGH {
                _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(row * stride).cast());
                _mm_prefetch::<_MM_HINT_ET0>(c.wrapping_add(row * stride + 16).cast());
            }
        }
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {c_row}]",
            "tileloadd tmm1, [{c} + {c_row} + 64]",
            "tileloadd tmm2, [{c_below} + {c_row}]",
            "tileloadd tmm3, [{c_below} + {c_row} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm6, [{b} + {b_row}]",
            "tileloadd tmm4, [{a} + {a_row}]",
            "tileloadd tmm7, [{b} + {b_row} + 64]",
            "tileloadd tmm5, [{a_below} + {a_row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {a_below}, 64",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {c_row}], tmm0",
            "tilestored [{c} + {c_row} + 64], tmm1",
            "tilestored [{c_below} + {c_row}], tmm2",
            "tilestored [{c_below} + {c_row} + 64], tmm3",
            add = in(reg) u32::from(onto == Onto::Add),
            steps = inout(reg) steps => _,
            a = inout(reg) a => _,
            a_below = inout(reg) a_below => _,
            a_row = in(reg) 4 * STRIDE,
            b = inout(reg) b => _,
            b_row = in(reg) 2 * size_of::<Line>(),
            c = in(reg) c,
            c_below = in(reg) c_below,
            c_row = in(reg) 4 * stride,
            options(nostack),
        );
    }
}

/// The rows of a panel's transpose: word `p` of row `r` of `rows`, `STRIDE` words apart, is column `r` of pair `p`. The pairs of a panel are
/// whole steps.
///
/// # Panics
/// If a slice does not have its size: a bug of the caller.
pub(super) fn turned(panel: &[Line], rows: &mut [u32]) {
    let pairs = panel.len() / 2;
    assert!(pairs.is_multiple_of(STEP) && pairs <= STRIDE && rows.len() >= (HIGH - 1) * STRIDE + pairs, "32 rows of whole steps");
    let panel = words(panel);
    for first in (0..pairs).step_by(STEP) {
        for half in 0..2 {
            let (from, to) = (&panel[COLUMNS * first + 16 * half..], &mut rows[16 * half * STRIDE + first..]);
            turn((from, COLUMNS), (to, STRIDE));
        }
    }
}

/// The panel whose transpose these rows are: the way back from [`turned`].
///
/// # Panics
/// If a slice does not have its size: a bug of the caller.
pub(super) fn turned_back(rows: &[u32], panel: &mut [Line]) {
    let pairs = panel.len() / 2;
    assert!(pairs.is_multiple_of(STEP) && pairs <= STRIDE && rows.len() >= (HIGH - 1) * STRIDE + pairs, "32 rows of whole steps");
    let panel = words_mut(panel);
    for first in (0..pairs).step_by(STEP) {
        for half in 0..2 {
            let (from, to) = (&rows[16 * half * STRIDE + first..], &mut panel[COLUMNS * first + 16 * half..]);
            turn((from, STRIDE), (to, COLUMNS));
        }
    }
}

/// Writes the transpose of 16 rows of 16 words.
fn turn((from, from_row): (&[u32], usize), (to, to_row): (&mut [u32], usize)) {
    assert!(from.len() >= 15 * from_row + 16 && to.len() >= 15 * to_row + 16, "16 rows of 16 words");
    // SAFETY: the check above. A unit of tiles has AVX-512, and only those who have one come here.
    #[allow(unsafe_code, reason = "vector instructions by pointer")]
    unsafe {
        turn_fast((from.as_ptr(), from_row), (to.as_mut_ptr(), to_row));
    }
}

/// # Safety
/// 16 rows of 16 words, so many words apart, are readable, and writable; the CPU has AVX-512.
#[allow(unsafe_code, reason = "vector instructions by pointer")]
#[allow(clippy::needless_range_loop, reason = "one column of four rows at a time")]
#[target_feature(enable = "avx512f")]
unsafe fn turn_fast((from, from_row): (*const u32, usize), (to, to_row): (*mut u32, usize)) {
    let mut r = [_mm512_setzero_si512(); 16];
    for (i, r) in r.iter_mut().enumerate() {
        // SAFETY: row `i`.
        *r = unsafe { _mm512_loadu_si512(from.add(i * from_row).cast()) };
    }
    // Within each quarter of 128 bits: 4x4 words of four rows.
    let mut quads = [[_mm512_setzero_si512(); 4]; 4];
    for (quad, r) in quads.iter_mut().zip(r.chunks_exact(4)) {
        let (a, b) = (_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[0], r[1]));
        let (c, d) = (_mm512_unpacklo_epi32(r[2], r[3]), _mm512_unpackhi_epi32(r[2], r[3]));
        *quad = [_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)];
    }
    // Quarter `q` of `quads[g][j]` is rows `4g..4g+4` of column `4q + j`.
    for j in 0..4 {
        let [a, b, c, d] = [quads[0][j], quads[1][j], quads[2][j], quads[3][j]];
        let (low, high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (low2, high2) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        let columns = [
            (j, _mm512_shuffle_i32x4::<0x88>(low, low2)),
            (j + 4, _mm512_shuffle_i32x4::<0x88>(high, high2)),
            (j + 8, _mm512_shuffle_i32x4::<0xdd>(low, low2)),
            (j + 12, _mm512_shuffle_i32x4::<0xdd>(high, high2)),
        ];
        for (column, words) in columns {
            // SAFETY: 16 words of a row.
            unsafe { _mm512_storeu_si512(to.add(column * to_row).cast(), words) };
        }
    }
}
