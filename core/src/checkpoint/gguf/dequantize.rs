//! Block formats of ggml, decoded to f32.
//!
//! Notation: `d` a scale, `m` a minimum, `q` a code; every number is little endian. A row is a sequence of blocks, and in the k-quants
//! a block of 256 is divided in sub-blocks of 16 or 32 that have 4- or 6-bit scales of their own. The order of the floating-point
//! operations is that of ggml's reference decoders.

use half::{bf16, f16};

/// Applies `block` to each pair of a stored block and its place in `dst`.
fn each<const BYTES: usize, const LEN: usize>(src: &[u8], dst: &mut [f32], block: impl Fn(&[u8; BYTES], &mut [f32; LEN])) {
    for (b, w) in src.as_chunks::<BYTES>().0.iter().zip(dst.as_chunks_mut::<LEN>().0) {
        block(b, w);
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

pub(super) fn float32(src: &[u8], dst: &mut [f32]) {
    each::<4, 1>(src, dst, |b, w| w[0] = f32::from_le_bytes(*b));
}

pub(super) fn float16(src: &[u8], dst: &mut [f32]) {
    each::<2, 1>(src, dst, |b, w| w[0] = f16::from_le_bytes(*b).to_f32());
}

pub(super) fn bfloat16(src: &[u8], dst: &mut [f32]) {
    each::<2, 1>(src, dst, |b, w| w[0] = bf16::from_le_bytes(*b).to_f32());
}

/// `d`, 16 bytes of nibbles (element j low, element j + 16 high): `(q - 8) d`.
pub(super) fn q4_0(src: &[u8], dst: &mut [f32]) {
    each::<18, 32>(src, dst, |b, w| {
        let d = half_at(b, 0);
        for (j, &byte) in b[2..].iter().enumerate() {
            w[j] = f32::from(i16::from(byte & 15) - 8) * d;
            w[j + 16] = f32::from(i16::from(byte >> 4) - 8) * d;
        }
    });
}

/// `d`, `m`, nibbles as in Q4_0: `q d + m`.
pub(super) fn q4_1(src: &[u8], dst: &mut [f32]) {
    each::<20, 32>(src, dst, |b, w| {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        for (j, &byte) in b[4..].iter().enumerate() {
            w[j] = f32::from(byte & 15) * d + m;
            w[j + 16] = f32::from(byte >> 4) * d + m;
        }
    });
}

/// The 32 five-bit codes of Q5_0 and Q5_1: nibbles at `at + 4`, the fifth bits in a word at `at`.
fn fifth_bit_codes(b: &[u8], at: usize) -> [u8; 32] {
    let high = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    std::array::from_fn(|i| {
        let byte = b[at + 4 + i % 16];
        let nibble = if i < 16 { byte & 15 } else { byte >> 4 };
        nibble | (((high >> i) & 1) as u8) << 4
    })
}

/// `d`, fifth bits, nibbles: `(q - 16) d`.
pub(super) fn q5_0(src: &[u8], dst: &mut [f32]) {
    each::<22, 32>(src, dst, |b, w| {
        let d = half_at(b, 0);
        for (w, q) in w.iter_mut().zip(fifth_bit_codes(b, 2)) {
            *w = f32::from(i16::from(q) - 16) * d;
        }
    });
}

/// `d`, `m`, fifth bits, nibbles: `q d + m`.
pub(super) fn q5_1(src: &[u8], dst: &mut [f32]) {
    each::<24, 32>(src, dst, |b, w| {
        let (d, m) = (half_at(b, 0), half_at(b, 2));
        for (w, q) in w.iter_mut().zip(fifth_bit_codes(b, 4)) {
            *w = f32::from(q) * d + m;
        }
    });
}

/// `d`, 32 signed bytes: `q d`.
pub(super) fn q8_0(src: &[u8], dst: &mut [f32]) {
    each::<34, 32>(src, dst, |b, w| {
        let d = half_at(b, 0);
        for (w, &q) in w.iter_mut().zip(&b[2..]) {
            *w = f32::from(q.cast_signed()) * d;
        }
    });
}

/// Element `i` of the 2-bit planes of Q2_K and Q3_K: each half block of 128 keeps four elements, 32 apart, in one of its 32 bytes.
fn two_bits(qs: &[u8], i: usize) -> u8 {
    (qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3
}

/// 16 scales (low nibble) and minima (high nibble), 2-bit codes, `d`, `dmin`: `d s q - dmin m`.
pub(super) fn q2_k(src: &[u8], dst: &mut [f32]) {
    each::<84, 256>(src, dst, |b, w| {
        let (scales, qs, d, dmin) = (&b[..16], &b[16..80], half_at(b, 80), half_at(b, 82));
        for (i, w) in w.iter_mut().enumerate() {
            let s = scales[i / 16];
            *w = (d * f32::from(s & 15)) * f32::from(two_bits(qs, i)) - dmin * f32::from(s >> 4);
        }
    });
}

/// Third bits, 2-bit codes, 16 scales of 6 bits, `d`: `d (s - 32) (q - 4)`.
pub(super) fn q3_k(src: &[u8], dst: &mut [f32]) {
    each::<110, 256>(src, dst, |b, w| {
        let (high, qs, packed, d) = (&b[..32], &b[32..96], &b[96..108], half_at(b, 108));
        // Four low bits: the nibbles of bytes 0..8. Two high bits: bytes 8..12, four scales to a byte.
        let scales: [f32; 16] = std::array::from_fn(|j| {
            let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
            let top = (packed[8 + j % 4] >> (j / 4 * 2)) & 3;
            d * f32::from(i16::from(low | top << 4) - 32)
        });
        for (i, w) in w.iter_mut().enumerate() {
            let third = (high[i % 32] >> (i / 32)) & 1;
            *w = scales[i / 16] * f32::from(i16::from(two_bits(qs, i) | third << 2) - 4);
        }
    });
}

/// The 6-bit scale and minimum of sub-block `j` (of 8) in the 12 bytes of Q4_K and Q5_K.
fn scale_and_min(s: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) =
        if j < 4 { (s[j] & 63, s[j + 4] & 63) } else { ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4) };
    (f32::from(scale), f32::from(min))
}

/// Element `i` of the nibbles of Q4_K and Q5_K: 64 elements share 32 bytes, the first 32 in the low nibbles.
fn k_nibble(qs: &[u8], i: usize) -> u8 {
    (qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15
}

/// `d`, `dmin`, 12 bytes of scales and minima, nibbles: `d s q - dmin m`.
pub(super) fn q4_k(src: &[u8], dst: &mut [f32]) {
    each::<144, 256>(src, dst, |b, w| {
        let (d, dmin, packed, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..]);
        for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = scale_and_min(packed, j);
            let (s, m) = (d * s, dmin * m);
            for (l, w) in w.iter_mut().enumerate() {
                *w = s * f32::from(k_nibble(qs, j * 32 + l)) - m;
            }
        }
    });
}

/// As Q4_K with the fifth bits in 32 bytes, bit `j` of byte `l` for element `l` of sub-block `j`.
pub(super) fn q5_k(src: &[u8], dst: &mut [f32]) {
    each::<176, 256>(src, dst, |b, w| {
        let (d, dmin, packed, high, qs) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48], &b[48..]);
        for (j, w) in w.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = scale_and_min(packed, j);
            let (s, m) = (d * s, dmin * m);
            for (l, w) in w.iter_mut().enumerate() {
                *w = s * f32::from(k_nibble(qs, j * 32 + l) | ((high[l] >> j) & 1) << 4) - m;
            }
        }
    });
}

/// Low nibbles, 2-bit planes, 16 signed scales, `d`: `d s (q - 32)`.
pub(super) fn q6_k(src: &[u8], dst: &mut [f32]) {
    each::<210, 256>(src, dst, |b, w| {
        let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
        for (i, w) in w.iter_mut().enumerate() {
            // In a half block of 128, element i shares its nibble byte with element i + 64.
            let nibble = (low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4)) & 15;
            let q = nibble | two_bits(high, i) << 4;
            *w = d * f32::from(scales[i / 16].cast_signed()) * f32::from(i16::from(q) - 32);
        }
    });
}

/// Twice the values of e2m1: sign and magnitude, so that codes from 8 on are negative.
const DOUBLED: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// An exponent biased by 127, nibbles: `2^(e − 127) v`.
pub(super) fn mxfp4(src: &[u8], dst: &mut [f32]) {
    each::<17, 32>(src, dst, |b, w| {
        // Half the scale, for the doubled values; below 2^-126 it is subnormal.
        let d = f32::from_bits(if b[0] < 2 { 0x0020_0000 << b[0] } else { (u32::from(b[0]) - 1) << 23 });
        for (j, q) in b[1..].iter().enumerate() {
            w[j] = DOUBLED[usize::from(q & 15)] * d;
            w[j + 16] = DOUBLED[usize::from(q >> 4)] * d;
        }
    });
}

/// Four e4m3 scales without a sign, then nibbles of four runs of 16: `d v`.
pub(super) fn nvfp4(src: &[u8], dst: &mut [f32]) {
    each::<36, 64>(src, dst, |b, w| {
        for (run, w) in w.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let d = half_of_e4m3(b[run]);
            for (j, q) in b[4 + 8 * run..][..8].iter().enumerate() {
                w[j] = DOUBLED[usize::from(q & 15)] * d;
                w[j + 8] = DOUBLED[usize::from(q >> 4)] * d;
            }
        }
    });
}

/// Half of an e4m3 number; its sign does not count, and what is no number is 0.
fn half_of_e4m3(x: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(x >> 3 & 15), f32::from(x & 7));
    match x & 0x7f {
        0x7f => 0.0,
        _ if exponent == 0 => mantissa * 2_f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 8),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use candle_core::{DType, Device};

    use super::super::ggml_type::GgmlType;
    use super::*;

    /// Every format against candle's decoder on the same random bytes: candle's is written independently of ours.
    #[test]
    fn random_blocks_decode_as_in_candle() {
        // Offsets of the half-precision fields in a block: those are made finite and small, all other bytes are free.
        let formats: [(u32, GgmlDType, &[usize]); 13] = [
            (0, GgmlDType::F32, &[]),
            (1, GgmlDType::F16, &[0]),
            (30, GgmlDType::BF16, &[]),
            (2, GgmlDType::Q4_0, &[0]),
            (3, GgmlDType::Q4_1, &[0, 2]),
            (6, GgmlDType::Q5_0, &[0]),
            (7, GgmlDType::Q5_1, &[0, 2]),
            (8, GgmlDType::Q8_0, &[0]),
            (10, GgmlDType::Q2K, &[80, 82]),
            (11, GgmlDType::Q3K, &[108]),
            (12, GgmlDType::Q4K, &[0, 2]),
            (13, GgmlDType::Q5K, &[0, 2]),
            (14, GgmlDType::Q6K, &[208]),
        ];
        for (id, theirs, halves) in formats {
            let ours = GgmlType::by_id(id).unwrap();
            let (rows, blocks) = (3, 1024 / ours.block);
            let mut bytes = random_bytes(u64::from(id) + 1, rows * blocks * ours.bytes);
            for (i, block) in bytes.chunks_mut(ours.bytes).enumerate() {
                for &at in halves {
                    let value = f16::from_f32(((i * 37 + at) % 101) as f32 * 0.01 - 0.5);
                    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
                match id {
                    0 => block.copy_from_slice(&(i as f32 * 0.37 - 5.0).to_le_bytes()),
                    30 => block.copy_from_slice(&bf16::from_f32(i as f32 * 0.37 - 5.0).to_le_bytes()),
                    _ => {}
                }
            }
            let storage = QStorage::from_data(Cow::Owned(bytes.clone()), &Device::Cpu, theirs).unwrap();
            let expected = QTensor::new(storage, (rows, 1024)).unwrap().dequantize(&Device::Cpu).unwrap();
            let expected = expected.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mut decoded = vec![f32::NAN; rows * 1024];
            ours.decode.unwrap()(&bytes, &mut decoded);
            for (i, (a, b)) in decoded.iter().zip(&expected).enumerate() {
                assert!((a - b).abs() <= b.abs() * 1e-6, "{} element {i}: {a} is not {b}", ours.name);
            }
            assert!(expected.iter().any(|v| *v != 0.0), "{}: nothing was tested", ours.name);
        }
    }

    /// candle has no decoder of these; the numbers are those of the standards. Code 10 is −1, code 7 is 6.
    #[test]
    fn four_bit_floats_are_those_of_the_standards() {
        let mut out = [f32::NAN; 32];
        mxfp4(&[vec![128], vec![0x7a; 16]].concat(), &mut out);
        assert_eq!(out, [[-2.0; 16], [12.0; 16]].concat()[..]);
        for (e, scale) in [(0, 2_f32.powi(-127)), (1, 2_f32.powi(-126)), (127, 1.0), (254, 2_f32.powi(127))] {
            mxfp4(&[vec![e], vec![0x22; 16]].concat(), &mut out);
            assert_eq!(out[0], scale, "exponent {e}");
        }
        // Scales 1, 448 (the largest), 2^-9 (the smallest), and no number.
        let mut out = [f32::NAN; 64];
        nvfp4(&[vec![0x38, 0x7e, 0x01, 0x7f], vec![0x1a; 32]].concat(), &mut out);
        for (run, scale) in [1.0, 448.0, 2_f32.powi(-9), 0.0].into_iter().enumerate() {
            assert_eq!((out[16 * run], out[16 * run + 7], out[16 * run + 8]), (-scale, -scale, scale / 2.0), "run {run}");
        }
    }

    fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }
}
