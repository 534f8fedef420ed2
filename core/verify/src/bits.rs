//! Streams of codes: element `i` of a stream of `b`-bit codes is bits `i·b .. (i+1)·b`, lowest bit of the lowest byte first.

/// The first `n` codes of a stream, if it has so many.
pub(crate) fn stream(bytes: &[u8], bits: u32, n: usize, out: &mut Vec<u16>) -> Option<()> {
    if n.checked_mul(bits as usize)?.div_ceil(8) > bytes.len() || !(1..=16).contains(&bits) {
        return None;
    }
    let (mut held, mut holds, mut next) = (0u32, 0, bytes.iter());
    for _ in 0..n {
        while holds < bits {
            held |= u32::from(*next.next()?) << holds;
            holds += 8;
        }
        out.push((held & ((1 << bits) - 1)) as u16);
        held >>= bits;
        holds -= bits;
    }
    Some(())
}

/// The first `n` codes of words that hold as many whole codes as fit, from their low bits, and leave the rest unused.
pub(crate) fn padded(bytes: &[u8], bits: u32, n: usize, out: &mut Vec<u16>) -> Option<()> {
    let per_word = (32 / bits) as usize;
    if n.div_ceil(per_word) * 4 > bytes.len() {
        return None;
    }
    let word = |w: usize| u32::from_le_bytes(crate::dtype::array(&bytes[4 * w..]));
    out.extend((0..n).map(|i| (word(i / per_word) >> (bits * (i % per_word) as u32) & ((1 << bits) - 1)) as u16));
    Some(())
}

/// The transpose of a matrix of 4-byte words.
pub(crate) fn turned(words: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut out = vec![0; 4 * rows * cols];
    for (r, row) in words.chunks_exact(4 * cols).take(rows).enumerate() {
        for (c, word) in row.chunks_exact(4).enumerate() {
            out[4 * (c * rows + r)..][..4].copy_from_slice(word);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0, 1, …, 7, 0, 1, 2 in three bits each is 0o21076543210 (octal digits are the codes, last first); the eleventh lies across words.
    #[test]
    fn three_bits_lie_across_words() {
        let value: u64 = 0o21_076_543_210;
        let mut codes = Vec::new();
        stream(&value.to_le_bytes(), 3, 11, &mut codes).unwrap();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]);
        assert_eq!(stream(&[0, 0], 3, 6, &mut Vec::new()), None);
    }

    #[test]
    fn padding_is_left_out() {
        let words = [0o7u32 << 27 | 0o5, 0o6];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut codes = Vec::new();
        padded(&bytes, 3, 11, &mut codes).unwrap();
        assert_eq!(codes, [5, 0, 0, 0, 0, 0, 0, 0, 0, 7, 6]);
    }

    #[test]
    fn words_are_turned() {
        let words: Vec<u8> = (0..6u32).flat_map(u32::to_le_bytes).collect();
        let expected: Vec<u8> = [0u32, 3, 1, 4, 2, 5].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(turned(&words, 2, 3), expected);
    }
}
