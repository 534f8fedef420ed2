//! GGUF's blocks of weights, in the order of rows that the file has.
//!
//! A row is a sequence of blocks. `d`, `m`: f16.
//!
//! | type | elements | bytes | value of element `j` |
//! |---|---|---|---|
//! | `Q4_0` | 32 | `d`, 16 of nibbles | `(q − 8)·d` |
//! | `Q4_1` | 32 | `d`, `m`, 16 of nibbles | `q·d + m` |
//! | `Q5_0` | 32 | `d`, 4 of fifth bits, 16 of nibbles | `(q − 16)·d` |
//! | `Q5_1` | 32 | `d`, `m`, 4 of fifth bits, 16 of nibbles | `q·d + m` |
//! | `Q8_0` | 32 | `d`, 32 | `q·d` |
//! | `MXFP4` | 32 | e8m0, 16 of nibbles | `v·2^(e−127)` |
//! | `NVFP4` | 64 | 4 of e4m3 without sign, 32 of nibbles | `v·s`, times the tensor `….scale` |
//!
//! Nibbles: byte `j` of a run has element `j` low and element `j + half` high; runs are 32 elements, of NVFP4 16. Source: llama.cpp,
//! `ggml/src/ggml-common.h` and `ggml-quants.c`.

use half::f16;

use super::sides;
use crate::dtype::{Block, Dtype, array, e2m1, e4m3, e8m0};
use crate::error::Result;
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, integers};
use crate::store::{Store, Tensor};

/// A matrix of blocks, and the rows of the file in the order of the model.
pub(crate) struct Blocks {
    /// Name in the file.
    pub name: String,
    pub shape: (usize, usize),
    pub block: Block,
    /// Rows of a head, where the file has a head's rows in pairs.
    pub head: Option<usize>,
}

/// The row of the file that holds row `r` of the model: a head of `d` rows `(j, k)`, `j` of 2 and `k` of `d/2`, is stored as `(k, j)`.
pub(crate) fn stored_row(r: usize, head: Option<usize>) -> usize {
    let Some(d) = head else { return r };
    let (h, j, k) = (r / d, r % d / (d / 2), r % (d / 2));
    h * d + 2 * k + j
}

/// What a block holds.
#[derive(Default)]
struct Parts {
    codes: Vec<u16>,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl Load for Blocks {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, _: &Store) -> Vec<String> {
        let factor = (self.block == Block::Nvfp4).then(|| factor_name(&self.name)).flatten();
        factor.into_iter().chain([self.name.clone()]).collect()
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let (rows, cols) = self.shape;
        let tensor = store.expect(&self.name, &Dtype::Block(self.block), &[rows, cols])?;
        let bytes = store.bytes(tensor)?;
        let (len, size) = self.block.size();
        let row_bytes = cols / len * size;
        let mut parts = Parts::default();
        for r in 0..rows {
            let row = &bytes[stored_row(r, self.head) * row_bytes..][..row_bytes];
            row.chunks_exact(size).for_each(|b| block(self.block, b, &mut parts));
        }
        let (table, width) = match self.block {
            Block::Q4_0 => (integers(4, -8), 32),
            Block::Q5_0 => (integers(5, -16), 32),
            Block::Q4_1 => (integers(4, 0), 32),
            Block::Q5_1 => (integers(5, 0), 32),
            Block::Q8_0 => ((0..=255u8).map(|c| f32::from(c as i8)).collect(), 32),
            Block::Mxfp4 => ((0..16u8).map(e2m1).collect(), 32),
            Block::Nvfp4 => ((0..16u8).map(e2m1).collect(), 16),
        };
        let arithmetic = match self.block {
            Block::Q4_1 | Block::Q5_1 => Arithmetic::Minimum,
            Block::Nvfp4 => Arithmetic::Factor(factor(store, &self.name)?),
            _ => Arithmetic::Scaled,
        };
        let Parts { codes, scale, zero } = parts;
        Matrix { rows, cols, codes, table, tiles: Tiles::new(cols, 1, width), scale, zero, arithmetic }.checked(&self.name)
    }
}

/// The name of the tensor that holds the factor of another.
pub(crate) fn factor_name(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|stem| format!("{stem}.scale"))
}

/// The number that a whole tensor is multiplied with.
fn factor(store: &Store, weight: &str) -> Result<f32> {
    let Some(name) = factor_name(weight).filter(|n| store.get(n).is_some()) else { return Ok(1.0) };
    store.expect(&name, &Dtype::F32, &[1])?;
    Ok(store.floats(&name)?[0])
}

fn block(kind: Block, b: &[u8], out: &mut Parts) {
    let half = |at: usize| f16::from_le_bytes(array(&b[at..])).to_f32();
    let mut push = |scale: f32, zero: f32| {
        out.scale.push(scale);
        out.zero.push(zero);
    };
    match kind {
        Block::Q4_0 => push(half(0), 0.0),
        Block::Q4_1 | Block::Q5_1 => push(half(0), half(2)),
        Block::Q5_0 | Block::Q8_0 => push(half(0), 0.0),
        Block::Mxfp4 => push(e8m0(b[0]), 0.0),
        Block::Nvfp4 => b[..4].iter().for_each(|s| push(e4m3(s & 0x7f), 0.0)),
    }
    match kind {
        Block::Q4_0 => nibbles(&b[2..], 0, &mut out.codes),
        Block::Q4_1 => nibbles(&b[4..], 0, &mut out.codes),
        Block::Q5_0 => nibbles(&b[6..], u32::from_le_bytes(array(&b[2..])), &mut out.codes),
        Block::Q5_1 => nibbles(&b[8..], u32::from_le_bytes(array(&b[4..])), &mut out.codes),
        Block::Q8_0 => out.codes.extend(b[2..].iter().map(|c| u16::from(*c))),
        Block::Mxfp4 => nibbles(&b[1..], 0, &mut out.codes),
        Block::Nvfp4 => b[4..].chunks_exact(8).for_each(|run| nibbles(run, 0, &mut out.codes)),
    }
}

/// A run of nibbles, low ones first, with a fifth bit each.
fn nibbles(bytes: &[u8], fifth: u32, out: &mut Vec<u16>) {
    let values = bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4));
    out.extend(values.enumerate().map(|(j, q)| u16::from(q) | ((fifth >> j & 1) as u16) << 4));
}

/// The block type of a tensor that has one.
pub(crate) fn block_of(tensor: &Tensor) -> Result<Option<(Block, (usize, usize))>> {
    if let Dtype::Block(block) = tensor.dtype { Ok(Some((block, sides(tensor)?))) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of each type by hand; values from the formulas of `ggml-quants.c`.
    #[test]
    fn blocks_are_decoded() {
        let one = f16::from_f32(1.5).to_le_bytes();
        let mut bytes = one.to_vec();
        bytes.extend([0x80; 16]);
        let mut parts = Parts::default();
        block(Block::Q4_0, &bytes, &mut parts);
        assert_eq!((parts.codes[0], parts.codes[15], parts.codes[16], parts.scale[0]), (0, 0, 8, 1.5));

        let mut bytes = one.to_vec();
        bytes.extend((1u32 << 31 | 1).to_le_bytes());
        bytes.extend([0x21; 16]);
        let mut parts = Parts::default();
        block(Block::Q5_0, &bytes, &mut parts);
        assert_eq!((parts.codes[0], parts.codes[1], parts.codes[16], parts.codes[31]), (17, 1, 2, 18));

        let mut bytes = vec![0x38, 0x40, 0x38, 0x38];
        bytes.extend((0..32u8).map(|i| (i % 8) | ((i % 4) << 4)));
        let mut parts = Parts::default();
        block(Block::Nvfp4, &bytes, &mut parts);
        assert_eq!(parts.scale, [1.0, 2.0, 1.0, 1.0]);
        assert_eq!(parts.codes[..16], [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(parts.codes.len(), 64);
    }

    /// `conversion/llama.py`: `reshape(heads, 2, d/2, …).swapaxes(1, 2)`. Of four rows, 0 1 2 3 become 0 2 1 3.
    #[test]
    fn rows_of_a_head_are_in_pairs() {
        let stored: Vec<usize> = (0..12).map(|r| stored_row(r, Some(6))).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(stored_row(7, None), 7);
    }
}
