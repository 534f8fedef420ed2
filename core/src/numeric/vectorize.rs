//! Running a kernel with the widest vector instructions of the machine.
//!
//! The compiler vectorizes a loop for the instructions of the function it is inlined into. A closure is not enough: the shim that calls
//! it is an ordinary function and keeps the loop out of the wide one. So a kernel is a type whose `run` is always inlined.

use pulp::{Arch, Simd, WithSimd};

/// A computation to be compiled for every instruction set. Implementations mark `run` `#[inline(always)]`.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Computes it. `simd` is the instruction set, for the loops that the compiler does not vectorize well by itself.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs a kernel with the widest instructions.
pub(crate) fn vectorize<K: Kernel>(kernel: K) -> K::Output {
    struct Wide<K>(K);
    impl<K: Kernel> WithSimd for Wide<K> {
        type Output = K::Output;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> K::Output {
            self.0.run(simd)
        }
    }
    Arch::new().dispatch(Wide(kernel))
}
