//! Bit streams of 32-bit words, along rows and down columns.

use qfw_core::Result;
use qfw_core::numeric::{pack_row, unpack_row};

/// Packs a row-major `[rows, cols]` matrix of unsigned codes row by row.
pub(crate) fn pack_rows(codes: &[u8], cols: usize, bits: u8) -> Vec<u8> {
    let mut out = Vec::new();
    for row in codes.chunks_exact(cols) {
        pack_row(row, bits, 4, &mut out);
    }
    out
}

/// Packs a row-major `[rows, cols]` matrix down its columns: the result is `[words, cols]` of 32-bit words.
pub(crate) fn pack_columns(codes: &[u8], rows: usize, cols: usize, bits: u8) -> Vec<u8> {
    let words = (rows * bits as usize).div_ceil(32);
    let mut out = vec![0; words * cols * 4];
    let mut stream = Vec::new();
    for c in 0..cols {
        let column: Vec<u8> = (0..rows).map(|r| codes[r * cols + c]).collect();
        stream.clear();
        pack_row(&column, bits, 4, &mut stream);
        for (w, word) in stream.chunks_exact(4).enumerate() {
            out[(w * cols + c) * 4..][..4].copy_from_slice(word);
        }
    }
    out
}

/// Undoes [`pack_columns`].
pub(crate) fn unpack_columns(packed: &[u8], rows: usize, cols: usize, bits: u8, padded: bool) -> Result<Vec<u8>> {
    let words = packed.len() / 4 / cols.max(1);
    let mut out = vec![0; rows * cols];
    for c in 0..cols {
        let stream: Vec<u8> = (0..words).flat_map(|w| packed[(w * cols + c) * 4..][..4].to_vec()).collect();
        for (r, code) in unpack(&stream, rows, bits, padded)?.into_iter().enumerate() {
            out[r * cols + c] = code;
        }
    }
    Ok(out)
}

/// Codes of one packed stream. `padded`: every word holds `⌊32/b⌋` codes, as readers before 0.18 packed.
pub(crate) fn unpack(stream: &[u8], n: usize, bits: u8, padded: bool) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(n);
    if !padded {
        unpack_row(stream, n, bits, &mut out)?;
        return Ok(out);
    }
    let per_word = 32 / bits as usize;
    for word in stream.chunks_exact(4) {
        let take = per_word.min(n - out.len());
        unpack_row(word, take, bits, &mut out)?;
    }
    if out.len() != n {
        return Err(qfw_core::Error::input("checkpoint::wrong-shape", format!("{} packed bytes hold {} codes, not {n}", stream.len(), out.len())));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_rows_agree_with_words_written_by_hand() {
        // Four bits: element i of a stream sits at bits 4i of its word.
        assert_eq!(pack_rows(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 9, 4), [0x21, 0x43, 0x65, 0x87, 0x09, 0, 0, 0]);
        // Two columns, three rows: column 0 is 1, 3, 5; column 1 is 2, 4, 6.
        assert_eq!(pack_columns(&[1, 2, 3, 4, 5, 6], 3, 2, 4), [0x31, 0x05, 0, 0, 0x42, 0x06, 0, 0]);
        let codes: Vec<u8> = (0..70).map(|i| i % 8).collect();
        let packed = pack_columns(&codes, 35, 2, 3);
        assert_eq!(unpack_columns(&packed, 35, 2, 3, false).unwrap(), codes);
    }

    #[test]
    fn the_old_padded_layout_is_read() {
        // Three bits, ten to a word: 0b…011_010_001.
        let word = (1u32 | 2 << 3 | 3 << 6).to_le_bytes();
        assert_eq!(unpack(&word, 3, 3, true).unwrap(), [1, 2, 3]);
        assert!(unpack(&word, 11, 3, true).is_err());
    }
}
