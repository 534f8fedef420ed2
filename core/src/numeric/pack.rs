//! Codes as dense little-endian bit streams.
//!
//! Element `i` of a row occupies bits `[i·b, (i+1)·b)` of the row's stream; every row starts on a fresh unit (byte or 32-bit word).

use super::codes::Unit;
use crate::error::{Error, Result};

/// Bytes of a packed row of `cols` codes of `bits` bits, rows aligned to `unit` bytes.
pub fn packed_row_bytes(cols: usize, bits: u8, unit: usize) -> usize {
    (cols * bits as usize).div_ceil(8 * unit) * unit
}

/// Packs one row of unsigned codes, each below `2^bits`, appending to `out`.
pub fn pack_row<U: Unit>(codes: &[U], bits: u8, unit: usize, out: &mut Vec<u8>) {
    let start = out.len();
    let mut buffer = 0u64;
    let mut filled = 0u32;
    for c in codes {
        buffer |= u64::from(c.code() as u32) << filled;
        filled += u32::from(bits);
        while filled >= 8 {
            out.push(buffer as u8);
            buffer >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        out.push(buffer as u8);
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
    let mut bytes = packed.iter();
    let (mut buffer, mut filled) = (0u64, 0u32);
    for _ in 0..cols {
        while filled < u32::from(bits) {
            buffer |= u64::from(bytes.next().copied().unwrap_or(0)) << filled;
            filled += 8;
        }
        out.push(U::of((buffer & mask) as i32));
        buffer >>= bits;
        filled -= u32::from(bits);
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
            prop_assert_eq!(packed.len() % unit, 0);
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
