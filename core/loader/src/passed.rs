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

/// A slice that the plugin passes in.
///
/// # Safety
/// `data` is null, or points to `len` numbers.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn slice<'a, T>(data: *const T, len: usize, what: &str) -> Result<&'a [T]> {
    if data.is_null() || !data.is_aligned() {
        return Err(missing(what));
    }
    // SAFETY: the caller promises it.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// A slice that the plugin wants written.
///
/// # Safety
/// `data` is null, or points to `len` numbers that are the plugin's alone.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn slice_mut<'a, T>(data: *mut T, len: usize, what: &str) -> Result<&'a mut [T]> {
    if data.is_null() || !data.is_aligned() {
        return Err(missing(what));
    }
    // SAFETY: the caller promises it.
    Ok(unsafe { std::slice::from_raw_parts_mut(data, len) })
}

/// The site of this call that a plugin names.
///
/// # Safety
/// `site` is null, or one that the host has passed in.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn site_of<'c>(call: &'c Call<'_>, site: *const raw::Site) -> Result<&'c SiteContext<'c>> {
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
pub(crate) unsafe fn codes_tensor<'a>(tensor: *const raw::Tensor, layout: &TileLayout, codes: &Codes) -> Result<&'a raw::DlTensor> {
    // SAFETY: the caller promises it.
    let dl = unsafe { tensor.as_ref() }.map(|t| &t.dl_tensor).ok_or_else(|| missing("tensor of codes"))?;
    let bits = if matches!(codes.data, Units::Narrow(_)) { 8 } else { 16 };
    let other = |what: String| {
        let message = format!("it passed a tensor of codes {what} to the host; the site's is u{bits} [{}, {}]", layout.rows, layout.cols);
        plugin_error("plugin::contract", message)
    };
    if (dl.dtype.code, dl.dtype.bits, dl.dtype.lanes) != (1, bits, 1) {
        return Err(other(format!("of type ({}, {}, {})", dl.dtype.code, dl.dtype.bits, dl.dtype.lanes)));
    }
    if dl.ndim != 2 {
        return Err(other(format!("of {} dimensions", dl.ndim)));
    }
    // SAFETY: it has two.
    let shape = unsafe { slice(dl.shape.cast_const(), 2, "shape of its tensor of codes") }?;
    if shape.iter().map(|n| usize::try_from(*n).ok()).ne([Some(layout.rows), Some(layout.cols)]) {
        return Err(other(format!("of shape {shape:?}")));
    }
    if dl.byte_offset != 0 || dl.device.device_type != raw::CPU || !dl.strides.is_null() {
        return Err(other("with an offset, with strides, or on another device".to_owned()));
    }
    Ok(dl)
}
