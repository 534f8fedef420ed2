//! Numbers in registers, and the butterflies between the numbers of one register.

use std::any::Any;

use pulp::Simd;
use pulp::bytemuck::{cast, cast_slice_mut};

use crate::numeric::host::Real;

/// The widest register of all, in numbers: runs and blocks are multiples of it.
pub(super) const LANES: usize = 16;

/// A number type with registers.
pub trait Lanes: Real {
    /// A register of them.
    type Vector<S: Simd>: Copy + Send + Sync + 'static;
    /// Registers over all of `data`, whose length is a multiple of [`LANES`].
    fn vectors<S: Simd>(data: &mut [Self]) -> &mut [Self::Vector<S>];
    /// The same number everywhere.
    fn splat<S: Simd>(simd: S, x: f64) -> Self::Vector<S>;
    /// `a + b`.
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// `a − b`.
    fn minus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// `a·b`.
    fn times<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// All stages at distances inside one register.
    fn inside<S: Simd>(simd: S, x: Self::Vector<S>) -> Self::Vector<S>;
}

/// The register as numbers in memory, for instruction sets without permutations here.
macro_rules! portable {
    ($T:ty, $x:expr) => {{
        let mut x = [$x];
        let numbers: &mut [$T] = cast_slice_mut(&mut x);
        let mut distance = 1;
        while distance < numbers.len() {
            for start in (0..numbers.len()).step_by(2 * distance) {
                for i in start..start + distance {
                    let (a, b) = (numbers[i], numbers[i + distance]);
                    (numbers[i], numbers[i + distance]) = (a + b, a - b);
                }
            }
            distance *= 2;
        }
        x[0]
    }};
}

/// A stage inside a register: `x ← s·x + permuted x`, where the sign `s` is −1 in the upper half of each butterfly. The product is exact.
macro_rules! stage {
    ($simd:ident, $x:ident, $add:ident, $T:ty, $N:literal, $distance:literal, $permuted:expr) => {
        let signs: [$T; $N] = const {
            let mut signs = [1.0; $N];
            let mut i = 0;
            while i < $N {
                if i & $distance != 0 {
                    signs[i] = -1.0;
                }
                i += 1;
            }
            signs
        };
        let $x = $simd.$add(cast(signs), $x, cast($permuted));
    };
}

/// The methods that only forward to the instruction set.
macro_rules! forward {
    ($T:ty, $as_mut:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident) => {
        #[inline(always)]
        fn vectors<S: Simd>(data: &mut [Self]) -> &mut [Self::Vector<S>] {
            S::$as_mut(data).0
        }
        #[inline(always)]
        fn splat<S: Simd>(simd: S, x: f64) -> Self::Vector<S> {
            simd.$splat(x as $T)
        }
        #[inline(always)]
        fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S> {
            simd.$add(a, b)
        }
        #[inline(always)]
        fn minus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S> {
            simd.$sub(a, b)
        }
        #[inline(always)]
        fn times<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S> {
            simd.$mul(a, b)
        }
    };
}

impl Lanes for f32 {
    type Vector<S: Simd> = S::f32s;
    forward!(f32, as_mut_simd_f32s, splat_f32s, add_f32s, sub_f32s, mul_f32s);
    #[inline(always)]
    fn inside<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        #[cfg(target_arch = "x86_64")]
        {
            use pulp::x86::{V3, V4};
            if let Some(v4) = instructions::<S, V4>(simd) {
                let (x, f) = (cast::<_, pulp::f32x16>(x), v4.avx512f);
                stage!(v4, x, mul_add_f32s, f32, 16, 1, f._mm512_permute_ps::<0b10_11_00_01>(cast(x)));
                stage!(v4, x, mul_add_f32s, f32, 16, 2, f._mm512_permute_ps::<0b01_00_11_10>(cast(x)));
                stage!(v4, x, mul_add_f32s, f32, 16, 4, f._mm512_shuffle_f32x4::<0b10_11_00_01>(cast(x), cast(x)));
                stage!(v4, x, mul_add_f32s, f32, 16, 8, f._mm512_shuffle_f32x4::<0b01_00_11_10>(cast(x), cast(x)));
                return cast(x);
            }
            if let Some(v3) = instructions::<S, V3>(simd) {
                let (x, f) = (cast::<_, pulp::f32x8>(x), v3.avx);
                stage!(v3, x, mul_add_f32s, f32, 8, 1, f._mm256_permute_ps::<0b10_11_00_01>(cast(x)));
                stage!(v3, x, mul_add_f32s, f32, 8, 2, f._mm256_permute_ps::<0b01_00_11_10>(cast(x)));
                stage!(v3, x, mul_add_f32s, f32, 8, 4, f._mm256_permute2f128_ps::<1>(cast(x), cast(x)));
                return cast(x);
            }
        }
        portable!(f32, x)
    }
}

impl Lanes for f64 {
    type Vector<S: Simd> = S::f64s;
    forward!(f64, as_mut_simd_f64s, splat_f64s, add_f64s, sub_f64s, mul_f64s);
    #[inline(always)]
    fn inside<S: Simd>(simd: S, x: S::f64s) -> S::f64s {
        #[cfg(target_arch = "x86_64")]
        {
            use pulp::x86::{V3, V4};
            if let Some(v4) = instructions::<S, V4>(simd) {
                let (x, f) = (cast::<_, pulp::f64x8>(x), v4.avx512f);
                stage!(v4, x, mul_add_f64s, f64, 8, 1, f._mm512_permute_pd::<0b0101_0101>(cast(x)));
                stage!(v4, x, mul_add_f64s, f64, 8, 2, f._mm512_permutex_pd::<0b01_00_11_10>(cast(x)));
                stage!(v4, x, mul_add_f64s, f64, 8, 4, f._mm512_shuffle_f64x2::<0b01_00_11_10>(cast(x), cast(x)));
                return cast(x);
            }
            if let Some(v3) = instructions::<S, V3>(simd) {
                let (x, f) = (cast::<_, pulp::f64x4>(x), v3.avx);
                stage!(v3, x, mul_add_f64s, f64, 4, 1, f._mm256_permute_pd::<0b0101>(cast(x)));
                stage!(v3, x, mul_add_f64s, f64, 4, 2, f._mm256_permute2f128_pd::<1>(cast(x), cast(x)));
                return cast(x);
            }
        }
        portable!(f64, x)
    }
}

/// `simd`, if it is `W`: known when compiled.
#[inline(always)]
fn instructions<S: Simd, W: Copy + 'static>(simd: S) -> Option<W> {
    (&simd as &dyn Any).downcast_ref::<W>().copied()
}
