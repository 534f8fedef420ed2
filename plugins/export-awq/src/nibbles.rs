//! Eight codes to a word, in the order of this format.

/// Which of eight outputs lies in each nibble of a word, from the lowest.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Packs codes, eight at a time, appending to `out`.
pub(crate) fn pack(codes: &[u8], out: &mut Vec<u8>) {
    for eight in codes.chunks_exact(8) {
        // One nibble too large would spoil its neighbour.
        let word = ORDER.iter().enumerate().fold(0, |word, (k, o)| word | u32::from(eight[*o] & 15) << (4 * k));
        out.extend(word.to_le_bytes());
    }
}

/// Undoes [`pack`], appending to `out`.
pub(crate) fn unpack(packed: &[u8], out: &mut Vec<u8>) {
    for bytes in packed.chunks_exact(4) {
        let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let mut eight = [0; 8];
        for (k, o) in ORDER.iter().enumerate() {
            eight[*o] = (word >> (4 * k) & 15) as u8;
        }
        out.extend(eight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn outputs_lie_in_the_order_of_the_format() {
        let mut packed = Vec::new();
        pack(&[0, 1, 2, 3, 4, 5, 6, 7], &mut packed);
        // Read from the lowest nibble: 0, 2, 4, 6, 1, 3, 5, 7.
        assert_eq!(packed, 0x7531_6420u32.to_le_bytes());
    }

    proptest! {
        /// The inverse that readers use: output `j` of eight comes from nibble `[0, 4, 1, 5, 2, 6, 3, 7][j]`.
        #[test]
        fn readers_find_each_code(words in proptest::collection::vec(any::<u32>(), 1..9)) {
            let packed: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let mut codes = Vec::new();
            unpack(&packed, &mut codes);
            for (i, code) in codes.iter().enumerate() {
                let nibble = [0, 4, 1, 5, 2, 6, 3, 7][i % 8];
                prop_assert_eq!(u32::from(*code), words[i / 8] >> (4 * nibble) & 15);
            }
            let mut again = Vec::new();
            pack(&codes, &mut again);
            prop_assert_eq!(again, packed);
        }
    }
}
