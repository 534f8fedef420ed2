//! The allocator of the program, and its settings.

use qfw_core::CacheLines;

#[global_allocator]
static ALLOCATOR: CacheLines = CacheLines;

/// Keeps large tensors on the heap instead of mapping fresh pages for each: with glibc's defaults every tensor above a threshold costs a
/// page fault per 4 KiB, which is several times the cost of the arithmetic on it. Embedders are not affected.
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub(crate) fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: called once at the start of `main`, before any other thread exists; both parameters are documented for `mallopt`.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
        libc::mallopt(libc::M_TOP_PAD, 16 << 20);
    }
}
