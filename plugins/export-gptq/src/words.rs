//! Codes as bit streams down the columns of a matrix of 32-bit words.

use qfw_core::Result;
use qfw_core::numeric::{pack_row, unpack_row};

/// Columns at a time: as many as words in a cache line, so that each line is touched once.
const COLUMNS: usize = 16;

/// Packs each row of a row-major `[rows, cols]` matrix into a stream and stores it as a column: `[words, rows]`. `cols · bits` is a
/// multiple of 32.
pub(crate) fn pack_down(codes: &[u8], cols: usize, bits: u8) -> Vec<u8> {
    let (rows, words) = (codes.len() / cols, cols * bits as usize / 32);
    let mut out = vec![0; words * rows * 4];
    let mut streams = Vec::new();
    for (chunk, codes) in codes.chunks(COLUMNS * cols).enumerate() {
        streams.clear();
        for row in codes.chunks_exact(cols) {
            pack_row(row, bits, 4, &mut streams);
        }
        for (c, stream) in streams.chunks_exact(words * 4).enumerate() {
            for (w, word) in stream.chunks_exact(4).enumerate() {
                out[(w * rows + chunk * COLUMNS + c) * 4..][..4].copy_from_slice(word);
            }
        }
    }
    out
}

/// Undoes [`pack_down`]: the `[rows, cols]` codes of `[words, rows]` words, of whose bits there are enough.
pub(crate) fn unpack_down(packed: &[u8], rows: usize, cols: usize, bits: u8) -> Result<Vec<u8>> {
    let words = packed.len() / 4 / rows;
    let mut out = Vec::with_capacity(rows * cols);
    let mut streams = vec![0; COLUMNS * words * 4];
    for first in (0..rows).step_by(COLUMNS) {
        let here = COLUMNS.min(rows - first);
        for (w, line) in packed.chunks_exact(rows * 4).enumerate() {
            for (c, word) in line[first * 4..][..here * 4].chunks_exact(4).enumerate() {
                streams[(c * words + w) * 4..][..4].copy_from_slice(word);
            }
        }
        for stream in streams.chunks_exact(words * 4).take(here) {
            unpack_row(stream, cols, bits, &mut out)?;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Bit `k` of code `i` of a row is bit `(i·b + k) mod 32` of word `⌊(i·b + k)/32⌋` of its column.
        #[test]
        fn every_bit_lies_where_the_format_says(
            bits in proptest::sample::select(vec![2u8, 3, 4, 8]),
            rows in 1usize..40,
            blocks in 1usize..3,
            seed in any::<u64>(),
        ) {
            let cols = 32 * blocks;
            let code = |i: usize| (seed.wrapping_mul(i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 & (255 >> (8 - bits));
            let codes: Vec<u8> = (0..rows * cols).map(code).collect();
            let packed = pack_down(&codes, cols, bits);
            let words: Vec<u32> = packed.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
            for (at, code) in codes.iter().enumerate() {
                for k in 0..bits as usize {
                    let bit = at % cols * bits as usize + k;
                    let there = words[bit / 32 * rows + at / cols] >> (bit % 32) & 1;
                    prop_assert_eq!(there, u32::from(*code >> k & 1));
                }
            }
            prop_assert_eq!(unpack_down(&packed, rows, cols, bits).unwrap(), codes);
        }
    }

    /// Three bits: codes 10 and 21 of 32 lie across two words.
    #[test]
    fn three_bits_run_across_words() {
        let mut codes = [0u8; 32];
        (codes[0], codes[10], codes[21], codes[31]) = (1, 0b101, 0b110, 0b111);
        let words: Vec<u32> = pack_down(&codes, 32, 3).chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        assert_eq!(words, [0b01 << 30 | 1, 1, 0b11 | 0b111 << 29]);
    }
}
