//! Codes as dense little-endian bit streams.
//!
//! Element `i` of a row occupies bits `[i·b, (i+1)·b)` of the row's stream; every row starts on a fresh unit (byte or 32-bit word).

use super::codes::Unit;
use crate::error::{Error, Result};

/// Bytes of a packed row of `cols` codes of `bits` bits, rows aligned to `unit` bytes.
pub fn packed_row_bytes(cols: usize, bits: u8, unit: usize) -> usize {
    (cols * bits as usize).div_ceil(8 * unit) * unit
}

/// Codes taken at once: whole bytes, whatever their width.
const TOGETHER: usize = 8;

/// Packs one row of unsigned codes, each below `2^bits`, of at most sixteen bits, appending to `out`.
pub fn pack_row<U: Unit>(codes: &[U], bits: u8, unit: usize, out: &mut Vec<u8>) {
    let start = out.len();
    for codes in codes.chunks(TOGETHER) {
        let code = |c: &U| c.code() as u32;
        let word = if bits <= 8 {
            u128::from(codes.iter().rev().fold(0u64, |word, c| word << bits | u64::from(code(c))))
        } else {
            codes.iter().rev().fold(0u128, |word, c| word << bits | u128::from(code(c)))
        };
        out.extend_from_slice(&word.to_le_bytes()[..packed_row_bytes(codes.len(), bits, 1)]);
    }
    out.resize(start + packed_row_bytes(codes.len(), bits, unit), 0);
}

/// Unpacks one row of `cols` codes, appending to `out`.
///
/// # Errors
/// If `packed` is too short.
pub fn unpack_row<U: Unit>(packed: &[u8], cols: usize, bits: u8, out: &mut Vec<U>) -> Result<()> {
    if packed.len() * 8 < cols * bits as usize {
        return Err(Error::internal(format!("{} bytes cannot hold {cols} codes of {bits} bits", packed.len())));
    }
    let mask = (1u64 << bits) - 1;
    out.reserve(cols);
    for (bytes, first) in packed.chunks(usize::from(bits).max(1)).zip((0..cols).step_by(TOGETHER)) {
        let mut word = [0; 16];
        word[..bytes.len()].copy_from_slice(bytes);
        let (word, codes) = (u128::from_le_bytes(word), 0..TOGETHER.min(cols - first));
        if bits <= 8 {
            let word = word as u64;
            out.extend(codes.map(|i| U::of((word >> (i * usize::from(bits)) & mask) as i32)));
        } else {
            out.extend(codes.map(|i| U::of(((word >> (i * usize::from(bits))) as u64 & mask) as i32)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacking_undoes_packing(bits in 1u8..=16, codes in proptest::collection::vec(any::<u16>(), 0..200), unit in 1usize..=4) {
            let codes: Vec<u16> = codes.into_iter().map(|c| (u32::from(c) & ((1 << bits) - 1)) as u16).collect();
            let mut packed = Vec::new();
            pack_row(&codes, bits, unit, &mut packed);
            prop_assert_eq!(packed.len(), packed_row_bytes(codes.len(), bits, unit));
            // Bit by bit, as the module says; zeros behind the last code.
            let stream: Vec<bool> = packed.iter().flat_map(|byte| (0..8).map(move |i| byte >> i & 1 == 1)).collect();
            let want = codes.iter().flat_map(|code| (0..bits).map(move |i| code >> i & 1 == 1));
            let want: Vec<bool> = want.chain(std::iter::repeat(false)).take(stream.len()).collect();
            prop_assert_eq!(stream, want);
            let mut back: Vec<u16> = Vec::new();
            unpack_row(&packed, codes.len(), bits, &mut back).unwrap();
            prop_assert_eq!(back, codes);
        }
    }

    #[test]
    fn the_bit_order_is_little_endian() {
        let mut packed = Vec::new();
        pack_row(&[1u8, 2, 3, 4, 5, 6, 7, 8], 4, 4, &mut packed);
        assert_eq!(packed, [0x21, 0x43, 0x65, 0x87]);
        packed.clear();
        // 3-bit codes 1, 2, 3: 0b011_010_001 = 0xd1.
        pack_row(&[1u8, 2, 3], 3, 1, &mut packed);
        assert_eq!(packed, [0xd1, 0x00]);
    }
}
