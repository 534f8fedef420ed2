//! Products of numbers rounded to bf16, summed in f32: `vdpbf16ps`, which does twice the work of an f32 instruction.
//!
//! Both operands are rounded to nearest, ties to even. A product of two of them is exact in f32, and each sum is rounded to nearest. The
//! instructions take subnormal inputs for zeros, and make subnormal results zeros. Like every kernel here these are single-threaded, and
//! an element's sum has one order, given by `k` alone: neither the number of threads nor the split of rows into calls changes a bit.
//!
//! There is no slow substitute: whoever wants these kernels asks [`Bf16Unit::detect`], and stays with f32 where there is none.

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod attention;
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
pub use absent::{Bf16Panels, across_bf16, gram_bf16};
#[cfg(not(target_arch = "x86_64"))]
pub(super) use absent::{WIDEST_HEAD, attention_bf16};
#[cfg(target_arch = "x86_64")]
pub(super) use attention::{WIDEST_HEAD, attention_bf16};
#[cfg(target_arch = "x86_64")]
pub use gram::{across_bf16, gram_bf16};
#[cfg(target_arch = "x86_64")]
pub use panels::Bf16Panels;

/// What proves that the instructions are there: only [`Bf16Unit::detect`] makes one.
#[cfg(target_arch = "x86_64")]
type Proof = ();
#[cfg(not(target_arch = "x86_64"))]
type Proof = std::convert::Infallible;

/// A CPU that multiplies bf16.
#[derive(Clone, Copy, Debug)]
pub struct Bf16Unit(Proof);

impl Bf16Unit {
    /// The CPU feature asked for, as systems list it.
    pub const FEATURE: &str = "avx512_bf16";

    /// The unit, if this CPU has one.
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16") {
            return Some(Self(()));
        }
        None
    }
}
