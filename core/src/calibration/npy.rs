//! Token ids in NumPy's `.npy` format, versions 1 to 3: magic, version, header length, a Python dictionary, raw data.
//!
//! The format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use super::ids::{integers, into_rows};
use crate::error::{Error, Result};

/// Rows of an array of shape `[tokens]` or `[samples, seq_len]`, of `i64`, `i32`, `u32` or `u16`, in C order.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Vec<u32>>> {
    let (header, data) = split(bytes)?;
    let dtype = entry(header, "descr")?.trim_matches(['\'', '"']);
    let width = match dtype {
        "<i8" => 8,
        "<i4" | "<u4" => 4,
        "<u2" => 2,
        _ => {
            return Err(Error::input("data::id-type", format!("the array has the type `{dtype}`, which is not one of <i8, <i4, <u4, <u2"))
                .hint("save it with `.astype(\"int32\")`"));
        }
    };
    if entry(header, "fortran_order")? != "False" {
        return Err(Error::input("data::npy-order", "the array is in Fortran order").hint("save it with `numpy.ascontiguousarray`"));
    }
    let shape = shape(entry(header, "shape")?)?;
    let expected = shape.iter().try_fold(width, |bytes: usize, size| bytes.checked_mul(*size));
    if expected != Some(data.len()) {
        let expected = expected.map_or_else(|| "more than memory".to_owned(), |bytes| bytes.to_string());
        return Err(Error::input(
            "data::npy-size",
            format!("the array of shape {shape:?} and type `{dtype}` needs {expected} bytes, but the file has {}", data.len()),
        )
        .hint("the file is cut off or damaged: copy it again"));
    }
    let values = match dtype {
        "<i8" => integers(data, i64::from_le_bytes),
        "<i4" => integers(data, |b| i64::from(i32::from_le_bytes(b))),
        "<u4" => integers(data, |b| i64::from(u32::from_le_bytes(b))),
        _ => integers(data, |b| i64::from(u16::from_le_bytes(b))),
    };
    into_rows(&values, &shape)
}

/// The header's text and the data behind it.
fn split(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(|| malformed("it does not start with the magic of the format"))?;
    let (length, rest) = match *rest {
        [1, _, a, b, ref rest @ ..] => (usize::from(u16::from_le_bytes([a, b])), rest),
        [2 | 3, _, a, b, c, d, ref rest @ ..] => (u32::from_le_bytes([a, b, c, d]) as usize, rest),
        _ => return Err(malformed("its version is unknown, or it is cut off in the header")),
    };
    let (header, data) = rest.split_at_checked(length).ok_or_else(|| malformed("it is cut off in the header"))?;
    Ok((std::str::from_utf8(header).map_err(|_| malformed("its header is not text"))?, data))
}

/// The source text of the value of `key` in the header's dictionary.
fn entry<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let missing = || malformed(&format!("its header has no `{key}`"));
    let (_, rest) = header.split_once(&format!("'{key}':")).ok_or_else(missing)?;
    let rest = rest.trim_start();
    // Only a tuple has commas inside; a structured `descr` starts with `[` and is refused by its first part.
    let end = if rest.starts_with('(') { rest.find(')').map(|at| at + 1) } else { rest.find([',', '}']) };
    end.map(|end| rest[..end].trim_end()).ok_or_else(missing)
}

/// Sizes of a Python tuple such as `(3, 4)` or `(5,)`.
fn shape(tuple: &str) -> Result<Vec<usize>> {
    let inner = tuple.strip_prefix('(').and_then(|t| t.strip_suffix(')')).ok_or_else(|| malformed("its shape is not a tuple"))?;
    let sizes = inner.split(',').map(str::trim).filter(|size| !size.is_empty());
    sizes.map(|size| size.parse().map_err(|_| malformed(&format!("its shape has the size `{size}`")))).collect()
}

fn malformed(reason: &str) -> Error {
    Error::input("data::npy", format!("not a readable .npy file: {reason}")).hint("save it with `numpy.save`")
}

#[cfg(test)]
#[path = "npy_tests.rs"]
mod tests;
