//! What a plugin passes to the host's functions, looked at before it is used.
//!
//! A pointer that is not null cannot be checked; everything that is said about it can.

use qfw_abi::raw;
use qfw_core::algorithm::SiteContext;
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::TileLayout;
use qfw_core::{Error, Result};

use crate::call::Call;
use crate::plugin_error;

pub(crate) fn missing(what: &str) -> Error {
    plugin_error("plugin::contract", format!("it passed no {what} to the host"))
}

/// Numbers that a plugin passes by pointer and length, looked at as far as that goes: not null, aligned, and no longer than memory can be.
pub(crate) struct Span<T> {
    data: *mut T,
    len: usize,
    what: &'static str,
}

impl<T> Span<T> {
    /// `what` is for the error.
    ///
    /// # Errors
    /// If there cannot be such numbers.
    pub(crate) fn of(data: *const T, len: usize, what: &'static str) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
        match bytes {
            Some(bytes) if !data.is_null() && data.is_aligned() && data.addr().checked_add(bytes).is_some() => {
                Ok(Self { data: data.cast_mut(), len, what })
            }
            _ => Err(missing(what)),
        }
    }

    /// Refuses to write where something else that is passed lies, from its first number to its last.
    ///
    /// # Errors
    /// If they overlap.
    pub(crate) fn apart_from<U>(&self, other: &Span<U>) -> Result<()> {
        let (a, b) = (self.addresses(), other.addresses());
        if a.start < b.end && b.start < a.end {
            let message = format!("it passed a {} that overlaps its {} to the host", self.what, other.what);
            return Err(plugin_error("plugin::contract", message));
        }
        Ok(())
    }

    fn addresses(&self) -> std::ops::Range<usize> {
        self.data.addr()..self.data.addr() + self.len * size_of::<T>()
    }

    /// The numbers.
    ///
    /// # Safety
    /// There are that many behind the pointer, and nobody writes to them for `'a`.
    #[allow(unsafe_code, reason = "the border")]
    pub(crate) unsafe fn read<'a>(&self) -> &'a [T] {
        // SAFETY: the caller promises it; the pointer is aligned and the length is one that can be.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    /// The numbers, to be written.
    ///
    /// # Safety
    /// There are that many behind the pointer, and nobody else has them for `'a`.
    #[allow(unsafe_code, reason = "the border")]
    pub(crate) unsafe fn write<'a>(&self) -> &'a mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

/// The extents of a tensor that a plugin passes: contiguous, on the CPU, of that type and of two dimensions.
///
/// # Errors
/// If it is another one, saying in what.
///
/// # Safety
/// Where it is not null, `dl.shape` has `dl.ndim` extents.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn plain(dl: &raw::DlTensor, (code, bits): (u8, u8)) -> std::result::Result<[usize; 2], String> {
    if (dl.dtype.code, dl.dtype.bits, dl.dtype.lanes) != (code, bits, 1) {
        return Err(format!("of type ({}, {}, {})", dl.dtype.code, dl.dtype.bits, dl.dtype.lanes));
    }
    if dl.ndim != 2 {
        return Err(format!("of {} dimensions", dl.ndim));
    }
    let shape = Span::of(dl.shape.cast_const(), 2, "shape").map_err(|_| "without a shape".to_owned())?;
    // SAFETY: it has two.
    let shape = unsafe { shape.read() };
    if dl.byte_offset != 0 || dl.device.device_type != raw::CPU || !dl.strides.is_null() {
        return Err("with an offset, with strides, or on another device".to_owned());
    }
    let extent = |n: i64| usize::try_from(n).map_err(|_| format!("of shape {shape:?}"));
    Ok([extent(shape[0])?, extent(shape[1])?])
}

/// The site of this call that a plugin names.
///
/// # Safety
/// `site` is null, or one that the host has passed in.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn site_of<'c>(call: &'c Call<'_>, site: *const raw::Site) -> Result<&'c SiteContext<'c>> {
    if !site.is_aligned() {
        return Err(missing("site"));
    }
    // SAFETY: the caller promises it.
    let token = unsafe { site.as_ref() }.map(|s| s.token).ok_or_else(|| missing("site"))?;
    let of_this_call = usize::try_from(token).ok().and_then(|token| call.sites.get(token));
    of_this_call.ok_or_else(|| missing("site of this call that is to be rounded"))
}

/// The tensor of a `[rows, cols]` site's codes: contiguous numbers without sign, of the width that `codes` has.
///
/// # Errors
/// If it is another one, saying in what.
///
/// # Safety
/// `tensor` is null, or points to a tensor whose `shape` has `ndim` extents.
#[allow(unsafe_code, reason = "the border")]
unsafe fn codes_tensor<'a>(tensor: *const raw::Tensor, layout: &TileLayout, codes: &Codes) -> Result<&'a raw::DlTensor> {
    if !tensor.is_aligned() {
        return Err(missing("tensor of codes"));
    }
    // SAFETY: the caller promises it.
    let dl = unsafe { tensor.as_ref() }.map(|t| &t.dl_tensor).ok_or_else(|| missing("tensor of codes"))?;
    let bits = if matches!(codes.data, Units::Narrow(_)) { 8 } else { 16 };
    let other = |what: String| {
        let message = format!("it passed a tensor of codes {what} to the host; the site's is u{bits} [{}, {}]", layout.rows, layout.cols);
        plugin_error("plugin::contract", message)
    };
    // SAFETY: the caller promises it.
    let shape = unsafe { plain(dl, (1, bits)) }.map_err(other)?;
    if shape != [layout.rows, layout.cols] {
        return Err(other(format!("of shape {shape:?}")));
    }
    Ok(dl)
}

/// A plugin's tensor of codes, of one of two widths.
pub(crate) enum CodesSpan {
    Narrow(Span<u8>),
    Wide(Span<u16>),
}

impl CodesSpan {
    /// Those of a site.
    ///
    /// # Safety
    /// As [`codes_tensor`].
    #[allow(unsafe_code, reason = "the border")]
    pub(crate) unsafe fn of(tensor: *const raw::Tensor, cx: &SiteContext<'_>) -> Result<Self> {
        let (layout, empty) = (cx.layout(), Codes::new(&cx.spec.grid, 0));
        // SAFETY: the caller promises it.
        let data = unsafe { codes_tensor(tensor, &layout, &empty) }?.data;
        let len = layout.rows * layout.cols;
        Ok(match empty.data {
            Units::Narrow(_) => Self::Narrow(Span::of(data.cast_const().cast(), len, "tensor of codes")?),
            Units::Wide(_) => Self::Wide(Span::of(data.cast_const().cast(), len, "tensor of codes")?),
        })
    }

    pub(crate) fn apart_from<T>(&self, other: &Span<T>) -> Result<()> {
        match self {
            Self::Narrow(codes) => codes.apart_from(other),
            Self::Wide(codes) => codes.apart_from(other),
        }
    }
}

/// What a function over a site's grid is passed: a weight, scales and zero points.
pub(crate) struct Passed {
    pub(crate) weight: Span<f32>,
    pub(crate) scale: Span<f32>,
    pub(crate) zero: Span<f32>,
}

impl Passed {
    pub(crate) fn of(cx: &SiteContext<'_>, weight: *const f32, scale: *const f32, zero: *const f32) -> Result<Self> {
        let layout = cx.layout();
        Ok(Self {
            weight: Span::of(weight, layout.rows * layout.cols, "weight")?,
            scale: Span::of(scale, layout.tiles(), "list of scales")?,
            zero: Span::of(zero, layout.tiles(), "list of zero points")?,
        })
    }

    /// Refuses codes to be written over it.
    pub(crate) fn apart_from(&self, codes: &CodesSpan) -> Result<()> {
        codes.apart_from(&self.weight)?;
        codes.apart_from(&self.scale)?;
        codes.apart_from(&self.zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<T>(result: Result<T>) -> Option<String> {
        result.err().map(|e| e.to_string())
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let numbers = [0.0f32; 8];
        let no = Some("it passed no weight to the host".to_owned());
        assert_eq!(told(Span::of(numbers.as_ptr(), 8, "weight")), None);
        assert_eq!(told(Span::<f32>::of(std::ptr::null(), 8, "weight")), no);
        assert_eq!(told(Span::of(numbers.as_ptr().wrapping_byte_add(2), 4, "weight")), no);
        for len in [usize::MAX, usize::MAX / 4 + 2, isize::MAX as usize / 4 + 1] {
            assert_eq!(told(Span::of(numbers.as_ptr(), len, "weight")), no, "{len} numbers");
        }
    }

    #[test]
    fn what_is_written_overlaps_nothing_else() {
        let numbers = [0.0f32; 8];
        let part = |at: usize, len: usize, what| Span::of(numbers[at..].as_ptr(), len, what).unwrap();
        assert_eq!(told(part(0, 4, "C").apart_from(&part(4, 4, "A"))), None);
        assert_eq!(told(part(0, 0, "C").apart_from(&part(0, 4, "A"))), None);
        let both = Some("it passed a C that overlaps its A to the host".to_owned());
        assert_eq!(told(part(0, 5, "C").apart_from(&part(4, 4, "A"))), both);
        assert_eq!(told(part(4, 4, "C").apart_from(&part(0, 8, "A"))), both);
    }
}
