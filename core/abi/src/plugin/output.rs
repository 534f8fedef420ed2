//! What a call fills in.

use super::host::{Host, Number};
use super::site::{extents, numbers_in};
use super::{Failure, Result, Status};
use crate::raw;

/// Codes, `code − lo` each, in the width that the grid asks for.
pub enum CodesMut<'a> {
    /// Grids of up to 256 codes.
    Narrow(&'a mut [u8]),
    /// Others.
    Wide(&'a mut [u16]),
}

/// The numbers of an output, to be written; empty where its type is another.
///
/// # Safety
/// `tensor` is null, or valid for `'a`, and nobody else has its numbers.
#[allow(unsafe_code, reason = "the border")]
pub(super) unsafe fn view_mut<'a, T>(tensor: *mut raw::Tensor) -> &'a mut [T] {
    // SAFETY: the caller promises it.
    let Some(tensor) = (unsafe { tensor.as_ref() }) else { return &mut [] };
    let data = tensor.dl_tensor.data.cast::<T>();
    if data.is_null() || usize::from(tensor.dl_tensor.dtype.bits) != 8 * size_of::<T>() {
        return &mut [];
    }
    // SAFETY: the host's tensors are contiguous, aligned and of the length that their shape says.
    unsafe { std::slice::from_raw_parts_mut(data, numbers_in(tensor)) }
}

/// A tensor of the host's that holds these numbers.
fn copied<T: Number + Copy>(host: &Host<'_>, numbers: &[T], shape: &[usize]) -> Result<*mut raw::Tensor> {
    let tensor = host.alloc::<T>(shape)?;
    // SAFETY: fresh from the host, and nobody else's.
    #[allow(unsafe_code, reason = "the border")]
    let target: &mut [T] = unsafe { view_mut(tensor) };
    if target.len() != numbers.len() {
        return Err(Failure::new(Status::Internal, "the host allocated a tensor of another size"));
    }
    target.copy_from_slice(numbers);
    Ok(tensor)
}

/// The outputs of rounding a site.
pub struct RoundOut<'a> {
    raw: &'a mut raw::RoundOut,
    host: Host<'a>,
}

#[allow(unsafe_code, reason = "the border: outputs are the call's alone, and every view here borrows all of them")]
impl<'a> RoundOut<'a> {
    /// # Safety
    /// `raw` is the host's, valid for `'a` and nobody else's, or null.
    pub(super) unsafe fn new(raw: *mut raw::RoundOut, host: Host<'a>) -> Option<Self> {
        // SAFETY: the caller promises it.
        unsafe { raw.as_mut() }.map(|raw| Self { raw, host })
    }

    /// The codes `[rows, cols]`, all 0.
    pub fn codes(&mut self) -> CodesMut<'_> {
        // SAFETY: see above.
        let narrow = unsafe { self.raw.codes.as_ref() }.is_some_and(|t| t.dl_tensor.dtype.bits == 8);
        // SAFETY: see above.
        if narrow { CodesMut::Narrow(unsafe { view_mut(self.raw.codes) }) } else { CodesMut::Wide(unsafe { view_mut(self.raw.codes) }) }
    }

    /// The scales, one for each tile.
    pub fn scale(&mut self) -> &mut [f32] {
        // SAFETY: see above.
        unsafe { view_mut(self.raw.scale) }
    }

    /// The zero points, one for each tile.
    pub fn zero(&mut self) -> &mut [f32] {
        // SAFETY: see above.
        unsafe { view_mut(self.raw.zero) }
    }

    /// The tile column of each input channel, where groups do not run in storage order.
    ///
    /// # Errors
    /// If the host has no memory for it.
    pub fn set_group_index(&mut self, index: &[u32]) -> Result<()> {
        self.raw.group_index = copied(&self.host, index, &[index.len()])?;
        Ok(())
    }

    /// The tensor of the codes.
    pub(super) fn codes_tensor(&self) -> *mut raw::Tensor {
        self.raw.codes
    }
}

/// The outputs of conditioning a site.
pub struct ConditionOut<'a> {
    raw: &'a mut raw::ConditionOut,
    host: Host<'a>,
}

#[allow(unsafe_code, reason = "the border: outputs are the call's alone, and every view here borrows all of them")]
impl<'a> ConditionOut<'a> {
    /// # Safety
    /// `raw` is the host's, valid for `'a` and nobody else's, or null.
    pub(super) unsafe fn new(raw: *mut raw::ConditionOut, host: Host<'a>) -> Option<Self> {
        // SAFETY: the caller promises it.
        unsafe { raw.as_mut() }.map(|raw| Self { raw, host })
    }

    /// Row-major `[rows, cols]`: holds the weight as it stands and receives the one to round instead.
    pub fn weight(&mut self) -> &mut [f32] {
        // SAFETY: see above.
        unsafe { view_mut(self.raw.weight) }
    }

    /// What scales and zero points are to be fitted to, row-major `[rows, cols]`, where that is not the weight itself.
    ///
    /// # Errors
    /// If it has another size, or the host has no memory for it.
    pub fn set_ranged(&mut self, ranged: &[f32]) -> Result<()> {
        // SAFETY: see above.
        let shape = unsafe { self.raw.weight.as_ref().map(|t| extents(t)) }.unwrap_or_default();
        if ranged.len() != shape.iter().product::<usize>() {
            return Err(Failure::new(Status::Internal, format!("{} numbers for a weight of shape {shape:?}", ranged.len())));
        }
        self.raw.ranged = copied(&self.host, ranged, &shape)?;
        Ok(())
    }
}
