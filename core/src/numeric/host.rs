//! Access to the host slices behind tensors.

use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor, WithDType};

use crate::error::{Error, Result};

/// `1/k!` from k = 13 down to 0.
const SERIES: [f64; 14] = {
    let (mut series, mut factorial, mut k) = ([1.0; 14], 1.0, 1);
    while k < 14 {
        factorial *= k as f64;
        series[13 - k] = 1.0 / factorial;
        k += 1;
    }
    series
};

/// The float types our kernels run in: `f32` for work, `f64` for checks of exactness.
pub trait Real: WithDType + faer::traits::RealField + std::ops::Neg<Output = Self> + Copy + Send + Sync + 'static {
    /// `exp(x)`, to about one unit in the last place, in a form that vectorizes.
    fn exp_fast(self) -> Self;
    /// The Gauss error function.
    fn erf(self) -> Self;
    /// Square root.
    fn root(self) -> Self;
    /// Conversion from `f64`, rounding to nearest.
    fn of(x: f64) -> Self;
    /// Conversion to `f64`, exact.
    fn wide(self) -> f64;
    /// The slice inside a CPU storage of this type.
    fn slice(storage: &CpuStorage) -> Option<&[Self]>;
    /// The same numbers, if they are f32.
    fn as_f32(numbers: &mut [Self]) -> Option<&mut [f32]>;
}

impl Real for f32 {
    /// Cody-Waite reduction by ln 2 and a polynomial of degree 6 on [-ln2/2, ln2/2].
    #[inline(always)]
    fn exp_fast(self) -> Self {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        // ln 2 split in a part exact in few bits and a remainder, so that `x - n ln 2` is exact to f32.
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits: no conversion, which would not vectorize as well.
        const WHOLE: f32 = 12_582_912.0;
        let x = self.clamp(-87.3, 88.0);
        let shifted = x.mul_add(LOG2_E, WHOLE);
        let n = shifted - WHOLE;
        let r = n.mul_add(-LN2_HIGH, x);
        let r = n.mul_add(-LN2_LOW, r);
        let mut p = 1.987_569_2e-4_f32;
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = p.mul_add(r, c);
        }
        let p = (p * r).mul_add(r, r) + 1.0;
        // 2^n by writing the exponent; n is within [-126, 127] after the clamp above.
        let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
        if self < -87.3 { 0.0 } else { p * scale }
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F32(v) = storage { Some(v) } else { None }
    }
    fn as_f32(numbers: &mut [Self]) -> Option<&mut [f32]> {
        Some(numbers)
    }
}

impl Real for f64 {
    /// As for f32; 14 terms of the exponential series are exact to 4e-18 on [-ln2/2, ln2/2].
    #[inline(always)]
    fn exp_fast(self) -> Self {
        // ln 2 split in a part of 33 bits, which times a whole number is exact, and a remainder.
        const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
        const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
        // 1.5·2⁵²
        const WHOLE: f64 = 6_755_399_441_055_744.0;
        let x = self.clamp(-708.0, 709.0);
        let shifted = x.mul_add(std::f64::consts::LOG2_E, WHOLE);
        let n = shifted - WHOLE;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        let mut p = SERIES[0];
        for c in &SERIES[1..] {
            p = p.mul_add(r, *c);
        }
        let scale = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
        if self < -708.0 { 0.0 } else { p * scale }
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    fn slice(storage: &CpuStorage) -> Option<&[Self]> {
        if let CpuStorage::F64(v) = storage { Some(v) } else { None }
    }
    fn as_f32(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}

/// Whether our kernels may run on `tensors`: all on the CPU, of one float type, and none part of a gradient computation.
pub(crate) fn on_host(tensors: &[&Tensor]) -> bool {
    #[cfg(test)]
    if KERNELS_OFF.get() {
        return false;
    }
    tensors.iter().all(|t| {
        matches!(t.device(), Device::Cpu)
            && matches!(t.dtype(), DType::F32 | DType::F64)
            && t.dtype() == tensors[0].dtype()
            && !t.track_op()
    })
}

#[cfg(test)]
thread_local!(static KERNELS_OFF: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });

/// What `f` gives on a thread whose tensors count as those of another device.
#[cfg(test)]
pub(super) fn without_kernels<R>(f: impl FnOnce() -> R) -> R {
    KERNELS_OFF.set(true);
    let result = f();
    KERNELS_OFF.set(false);
    result
}

/// Runs `f` on the contiguous slice of `t`.
pub(crate) fn with_slice<T: Real, R>(t: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    with_slices([t], |[slice]| f(slice))
}

/// Runs `f` on the contiguous slices of `tensors`.
pub(crate) fn with_slices<T: Real, const N: usize, R>(tensors: [&Tensor; N], f: impl FnOnce([&[T]; N]) -> Result<R>) -> Result<R> {
    let tensors = tensors.iter().map(|t| Ok(t.contiguous()?)).collect::<Result<Vec<_>>>()?;
    let held: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[T]; N] = [&[]; N];
    for ((slice, (storage, layout)), tensor) in slices.iter_mut().zip(&held).zip(&tensors) {
        let Storage::Cpu(storage) = &**storage else {
            return Err(Error::internal("a host kernel was given a tensor of another device"));
        };
        let all = T::slice(storage).ok_or_else(|| Error::internal(format!("a host kernel was given {:?}", tensor.dtype())))?;
        let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::internal("a contiguous tensor has no contiguous range"))?;
        *slice = &all[start..end];
    }
    f(slices)
}

/// A CPU tensor that owns `data`.
pub(crate) fn tensor<T: Real>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape.into(), &Device::Cpu)?)
}

/// Evaluates `$body` with `$T` bound to the Rust type of a tensor's float type.
macro_rules! for_real {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use for_real;
