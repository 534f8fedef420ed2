//! Stored token ids: the `input_ids` of a safetensors file, and the step from any stored integers to rows.

use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// Name of the tensor that holds the ids.
const NAME: &str = "input_ids";

/// Rows of the tensor `input_ids`, of shape `[tokens]` or `[samples, seq_len]`.
pub(super) fn from_safetensors(bytes: &[u8]) -> Result<Vec<Vec<u32>>> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::input("data::safetensors", format!("not a readable safetensors file: {e}")).with_source(e))?;
    let Ok(tensor) = file.tensor(NAME) else {
        let mut names = file.names();
        names.sort_unstable();
        return Err(Error::input("data::no-input-ids", format!("no tensor `{NAME}`; the tensors are: {}", names.join(", ")))
            .hint("store the token ids under that name"));
    };
    let data = tensor.data();
    let values = match tensor.dtype() {
        Dtype::I64 => integers(data, i64::from_le_bytes),
        Dtype::I32 => integers(data, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::U32 => integers(data, |b| i64::from(u32::from_le_bytes(b))),
        other => {
            return Err(Error::input("data::id-type", format!("`{NAME}` has the type {other:?}, which is not one of I64, I32, U32"))
                .hint("store the token ids as integers"));
        }
    };
    into_rows(&values, tensor.shape())
}

/// Little-endian integers of `N` bytes.
pub(super) fn integers<const N: usize>(data: &[u8], decode: impl Fn([u8; N]) -> i64) -> Vec<i64> {
    data.as_chunks::<N>().0.iter().map(|bytes| decode(*bytes)).collect()
}

/// Checks that `values` of shape `[tokens]` or `[samples, seq_len]` are ids, and cuts them into rows.
pub(super) fn into_rows(values: &[i64], shape: &[usize]) -> Result<Vec<Vec<u32>>> {
    let width = match *shape {
        [width] | [_, width] => width,
        _ => {
            return Err(Error::input("data::id-shape", format!("the ids have the shape {shape:?}, with {} dimensions", shape.len()))
                .hint("store them as `[tokens]` or `[samples, seq_len]`"));
        }
    };
    if width == 0 {
        return Ok(Vec::new());
    }
    let row = |(index, row): (usize, &[i64])| {
        let id = |(position, value): (usize, &i64)| {
            u32::try_from(*value).map_err(|_| {
                let reason = if *value < 0 { "negative" } else { "beyond 32 bits" };
                Error::input("data::not-an-id", format!("id {value} at position {position} of row {index} is {reason}"))
                    .hint("remove padding and label masks (such as -100) from the ids")
            })
        };
        row.iter().enumerate().map(id).collect::<Result<Vec<u32>>>()
    };
    values.chunks(width).enumerate().map(row).collect()
}
