//! Products of numbers rounded to bf16, summed in f32.
//!
//! ```text
//! Pairs  avx512_bf16, `vdpbf16ps`     on AMD (Zen 4 on) twice the work of an f32 instruction; on Intel less than that
//! Tiles  amx_bf16, `tdpbf16ps`        on Intel (Sapphire Rapids on) many times that
//! ```
//!
//! Both operands are rounded to nearest, ties to even. A product of two of them is exact in f32, and each sum is rounded to nearest. The
//! instructions take subnormal inputs for zeros, and make subnormal results zeros. Like every kernel here these are single-threaded, and
//! an element's sum has one order, given by `k` and the instructions alone: neither the number of threads nor the split of rows into calls
//! changes a bit.
//!
//! There is no slow substitute: whoever wants these kernels asks [`Bf16Unit::detect`], and stays with f32 where there is none.

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod across;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_backward;
#[cfg(target_arch = "x86_64")]
mod engine;
#[cfg(target_arch = "x86_64")]
mod gram;
#[cfg(target_arch = "x86_64")]
mod panels;
#[cfg(target_arch = "x86_64")]
mod scratch;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;

#[cfg(not(target_arch = "x86_64"))]
pub(super) use absent::{Bf16Left, Bf16Right, WIDEST_HEAD, attention_backward_bf16, attention_bf16, sum_across};
#[cfg(not(target_arch = "x86_64"))]
pub use absent::{Bf16Panels, across_bf16, gram_bf16};
#[cfg(target_arch = "x86_64")]
pub use across::across_bf16;
#[cfg(target_arch = "x86_64")]
pub(super) use across::{Bf16Left, Bf16Right, sum_across};
#[cfg(target_arch = "x86_64")]
pub(super) use attention::{WIDEST_HEAD, attention_bf16};
#[cfg(target_arch = "x86_64")]
pub(super) use attention_backward::attention_backward_bf16;
#[cfg(target_arch = "x86_64")]
pub use gram::gram_bf16;
#[cfg(target_arch = "x86_64")]
pub use panels::Bf16Panels;

/// The instructions that multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other CPU has them"))]
enum Instructions {
    /// `vdpbf16ps`
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// `tdpbf16ps`
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

/// A CPU that multiplies bf16. Only [`Bf16Unit::detect`] makes one: it proves that the instructions are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Unit(Instructions);

impl Bf16Unit {
    /// The CPU feature asked for at least, as systems list it.
    pub const FEATURE: &str = "avx512_bf16";

    /// The best unit of this CPU that the system lets us use, if there is one.
    pub fn detect() -> Option<Self> {
        Self::all().next()
    }

    /// All units of this CPU, the best first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        {
            static TILES: std::sync::LazyLock<bool> = std::sync::LazyLock::new(amx::permitted);
            let pairs = std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16");
            // What is multiplied on tiles is rounded by the instructions of `avx512_bf16`.
            let tiles = (pairs && *TILES).then_some(Self(Instructions::Tiles));
            tiles.into_iter().chain(pairs.then_some(Self(Instructions::Pairs)))
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            std::iter::empty()
        }
    }

    /// Whether it multiplies faster than the f32 instructions of this CPU.
    pub fn pays(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::Tiles => true,
            #[cfg(target_arch = "x86_64")]
            Instructions::Pairs => is_amd(),
        }
    }

    /// The instructions, as systems list them: two of them sum in different orders.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Instructions::Tiles => "amx_bf16",
            #[cfg(target_arch = "x86_64")]
            Instructions::Pairs => Self::FEATURE,
        }
    }
}

/// Whether the CPU is of the maker whose `vdpbf16ps` runs at the rate of an f32 instruction.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    #[allow(unused_unsafe, reason = "safe in newer toolchains")]
    #[allow(unsafe_code, reason = "reads what the CPU is")]
    // SAFETY: every x86-64 CPU has the instruction, and leaf 0.
    let id = unsafe { std::arch::x86_64::__cpuid(0) };
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}
