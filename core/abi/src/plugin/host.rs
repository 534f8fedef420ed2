//! What the host offers to a call.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

use super::{Failure, Numeric, Result, Status};
use crate::raw;

/// A type of numbers that the host allocates.
pub(super) trait Number {
    /// DLPack's code and bits.
    const TYPE: (u8, u8);
}

impl Number for u32 {
    const TYPE: (u8, u8) = (1, 32);
}

impl Number for f32 {
    const TYPE: (u8, u8) = (2, 32);
}

/// The host, for the time of a call.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    raw: &'a raw::Host,
}

// SAFETY: the header says of every function of the host that any thread may call it, and nothing here is written to.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Host<'_> {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Host<'_> {}

/// A string for the other side; it borrows `text`.
pub(super) fn lend(text: &str) -> raw::Str {
    raw::Str { ptr: text.as_ptr().cast(), len: text.len() }
}

/// A string of the other side.
///
/// # Safety
/// `text` points to that many bytes that stay as they are for `'a`, or its length is 0.
#[allow(unsafe_code, reason = "the border")]
pub(super) unsafe fn borrow<'a>(text: raw::Str) -> &'a str {
    if text.ptr.is_null() || text.len == 0 {
        return "";
    }
    // SAFETY: the caller promises it.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len) };
    std::str::from_utf8(bytes).unwrap_or("")
}

impl<'a> Host<'a> {
    /// # Safety
    /// `raw` is a host of this ABI's major, valid for `'a`, or null.
    #[allow(unsafe_code, reason = "the border")]
    pub(super) unsafe fn new(raw: *const raw::Host) -> Option<Self> {
        // SAFETY: the caller promises it.
        unsafe { raw.as_ref() }.map(|raw| Self { raw })
    }

    pub(super) fn raw(&self) -> *const raw::Host {
        self.raw
    }

    /// How many threads the plugin may use.
    pub fn threads(&self) -> usize {
        self.raw.threads.max(1) as usize
    }

    /// Whether the call should end soon.
    pub fn cancelled(&self) -> bool {
        // SAFETY: a function of the host, with the host it belongs to.
        #[allow(unsafe_code, reason = "the border")]
        self.raw.cancelled.is_some_and(|f| unsafe { f(self.raw) } != 0)
    }

    /// An error if the call should end soon.
    ///
    /// # Errors
    /// [`Status::Cancelled`]
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancelled() { Err(Failure::new(Status::Cancelled, "the run was interrupted")) } else { Ok(()) }
    }

    /// A line for the log; `level` is 1 (error) to 4 (debug).
    pub fn log(&self, level: u32, message: &str) {
        if let Some(f) = self.raw.log {
            // SAFETY: as in `cancelled`; the string lives through the call.
            #[allow(unsafe_code, reason = "the border")]
            unsafe {
                f(self.raw, level, lend(message));
            }
        }
    }

    /// How far the call is.
    pub fn progress(&self, done: u64, total: u64) {
        if let Some(f) = self.raw.progress {
            // SAFETY: as in `cancelled`.
            #[allow(unsafe_code, reason = "the border")]
            unsafe {
                f(self.raw, done, total);
            }
        }
    }

    /// Something worth reporting of the site: one JSON object.
    pub fn event(&self, json: &str) {
        if let Some(f) = self.raw.event {
            // SAFETY: as in `log`.
            #[allow(unsafe_code, reason = "the border")]
            unsafe {
                f(self.raw, lend(json));
            }
        }
    }

    pub(super) fn reply(&self, json: &str) {
        if let Some(f) = self.raw.reply {
            // SAFETY: as in `log`.
            #[allow(unsafe_code, reason = "the border")]
            unsafe {
                f(self.raw, lend(json));
            }
        }
    }

    pub(super) fn fail(&self, message: &str, hint: &str) {
        if let Some(f) = self.raw.set_error {
            // SAFETY: as in `log`.
            #[allow(unsafe_code, reason = "the border")]
            unsafe {
                f(self.raw, lend(message), lend(hint));
            }
        }
    }

    /// A zeroed tensor of the host's, valid until the call returns.
    pub(super) fn alloc<T: Number>(&self, shape: &[usize]) -> Result<*mut raw::Tensor> {
        let mut out = null_mut();
        let extents: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        let alloc = self.raw.alloc.ok_or_else(|| Failure::new(Status::Internal, "the host has no `alloc`"))?;
        let ((code, bits), ndim) = (T::TYPE, extents.len() as i32);
        // SAFETY: as in `cancelled`; the shape lives through the call, and `out` is a place to write to.
        #[allow(unsafe_code, reason = "the border")]
        let status = unsafe { alloc(self.raw, code, bits, ndim, extents.as_ptr(), &mut out) };
        if status != raw::OK || out.is_null() {
            return Err(Failure::new(Status::Internal, format!("the host could not allocate a tensor of shape {shape:?}")));
        }
        Ok(out)
    }

    fn extension(&self, id: &CStr) -> *const c_void {
        // SAFETY: as in `log`.
        #[allow(unsafe_code, reason = "the border")]
        self.raw.extension.map_or(std::ptr::null(), |f| unsafe { f(self.raw, id.as_ptr()) })
    }

    /// The host's numerics: `qfw.numeric/1`.
    ///
    /// # Errors
    /// If it has none.
    pub fn numeric(&self) -> Result<Numeric<'a>> {
        let table = self.extension(c"qfw.numeric/1").cast::<raw::Numeric>();
        // SAFETY: the header says what stands behind that name, and that it lives as long as the host.
        #[allow(unsafe_code, reason = "the border")]
        let table = unsafe { table.as_ref() };
        let table = table.ok_or_else(|| Failure::new(Status::Unsupported, "the host has no `qfw.numeric/1`"))?;
        Ok(Numeric::new(*self, table))
    }
}
