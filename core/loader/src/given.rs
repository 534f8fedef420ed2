//! Structs that a plugin gives out, as this version of the interface knows them.
//!
//! Every struct begins with the size that its maker knows, and is only appended to. One of an older version is shorter: the members that
//! it lacks are zero, as the header says. One that is longer was built with a newer header, and says that it does without what is new:
//! a plugin of a newer minor is refused before. So there has to be nothing but zeros.

use std::mem::MaybeUninit;

use qfw_abi::raw::{self, Grows};

/// No struct of the interface will ever be so large.
const LARGEST: usize = 4096;

/// A copy of the struct behind a plugin's pointer.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub(crate) fn given<T: Grows>(pointer: *const T) -> Result<T, String> {
    if pointer.is_null() {
        return Err("is missing".to_owned());
    }
    if !pointer.is_aligned() {
        return Err("lies at an odd address".to_owned());
    }
    let version = || format!("version {}.{} of the interface", raw::MAJOR, raw::MINOR);
    // SAFETY: every struct of the interface begins with its size.
    #[allow(unsafe_code, reason = "the border")]
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < T::FIRST {
        return Err(format!("has {size} bytes, and {} wants {}", version(), T::FIRST));
    }
    if size > LARGEST {
        return Err(format!("has {size} bytes, more than any struct of the interface"));
    }
    let known = size.min(size_of::<T>());
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: it says of itself that it is so large, and `Grows` that zeros are a value; of the rest, bytes are read.
    #[allow(unsafe_code, reason = "the border")]
    let (copy, rest) = unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), known);
        (copy.assume_init(), std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known))
    };
    match rest.iter().position(|byte| *byte != 0) {
        Some(at) => Err(format!("has {size} bytes and asks for something at byte {}, which {} does not know", known + at, version())),
        None => Ok(copy),
    }
}

#[cfg(test)]
#[allow(unsafe_code, reason = "structs of versions that are not there yet")]
mod tests {
    use super::*;

    /// The struct as it is now, and as it was first, without `added`.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        size: u32,
        reserved: u32,
        first: u64,
        added: u64,
        last: u64,
    }
    // SAFETY: numbers, behind a size.
    unsafe impl Grows for Now {
        const FIRST: usize = std::mem::offset_of!(Now, added);
    }

    /// As it may be one day.
    #[repr(C)]
    struct Later {
        now: Now,
        unknown: u32,
        more: u32,
    }

    fn read(from: &Now) -> Result<Now, String> {
        given(from)
    }

    #[test]
    fn what_an_older_struct_lacks_is_zero() {
        // Behind its end lies what is none of its own.
        let old = Now { size: 16, reserved: 0, first: 7, added: 9, last: 3 };
        assert_eq!(read(&old).unwrap(), Now { size: 16, reserved: 0, first: 7, added: 0, last: 0 });
        let between = Now { size: 24, ..old };
        assert_eq!(read(&between).unwrap(), Now { last: 0, ..between });
        let short = Now { size: 15, ..old };
        assert_eq!(read(&short).unwrap_err(), "has 15 bytes, and version 1.0 of the interface wants 16");
        let endless = Now { size: u32::MAX, ..old };
        assert_eq!(read(&endless).unwrap_err(), "has 4294967295 bytes, more than any struct of the interface");
    }

    #[test]
    fn a_newer_struct_is_read_where_it_asks_for_nothing_new() {
        let now = Now { size: size_of::<Later>() as u32, reserved: 0, first: 7, added: 9, last: 0 };
        let mut later = Later { now, unknown: 0, more: 0 };
        assert_eq!(read(&later.now).unwrap(), now, "zeros ask for nothing");
        later.more = 1 << 8;
        let asks = "has 40 bytes and asks for something at byte 37, which version 1.0 of the interface does not know";
        assert_eq!(given::<Now>(std::ptr::from_ref(&later).cast()).unwrap_err(), asks);
        assert_eq!(later.unknown, 0);
    }

    #[test]
    fn pointers_that_cannot_be_are_refused() {
        assert_eq!(given::<Now>(std::ptr::null()).unwrap_err(), "is missing");
        assert_eq!(given(std::ptr::without_provenance::<Now>(4)).unwrap_err(), "lies at an odd address");
    }
}
