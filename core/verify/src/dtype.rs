//! Stored element types, and the values of small floats.
//!
//! OCP e4m3: bias 7, largest 448, magnitude `1111.111` is no number. e2m1: 0, ½, 1, 1½, 2, 3, 4, 6, sign in bit 3. e8m0: byte `e` is
//! `2^(e−127)`, 255 is no number. Sources: OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0.

use std::fmt;

use half::{bf16, f16};

/// The type of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// OCP e4m3.
    E4m3,
    /// A power of two.
    E8m0,
    /// Signed integer of so many bytes.
    Int(u8),
    /// Unsigned integer of so many bytes.
    Uint(u8),
    /// One byte, 0 or 1.
    Bool,
    /// Blocks of a GGUF file.
    Block(Block),
    /// A type without a meaning here; its bytes are compared as they are.
    Other(String, Option<u64>),
}

/// Block types of GGUF: their number in the file, elements and bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// `Q4_0`
    Q4_0,
    /// `Q4_1`
    Q4_1,
    /// `Q5_0`
    Q5_0,
    /// `Q5_1`
    Q5_1,
    /// `Q8_0`
    Q8_0,
    /// `MXFP4`
    Mxfp4,
    /// `NVFP4`
    Nvfp4,
}

impl Block {
    /// Elements and bytes.
    pub(crate) fn size(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Mxfp4 => (32, 17),
            Self::Nvfp4 => (64, 36),
        }
    }
}

impl Dtype {
    /// The type that a safetensors header calls `name`.
    pub(crate) fn of_safetensors(name: &str) -> Self {
        match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F8_E4M3" => Self::E4m3,
            "F8_E8M0" => Self::E8m0,
            "I64" => Self::Int(8),
            "I32" => Self::Int(4),
            "I16" => Self::Int(2),
            "I8" => Self::Int(1),
            "U64" => Self::Uint(8),
            "U32" => Self::Uint(4),
            "U16" => Self::Uint(2),
            "U8" => Self::Uint(1),
            "BOOL" => Self::Bool,
            "F8_E5M2" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => Self::Other(name.to_owned(), Some(1)),
            _ => Self::Other(name.to_owned(), None),
        }
    }

    /// The type that a GGUF file numbers `id`.
    pub(crate) fn of_gguf(id: u32) -> Self {
        match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Block(Block::Q4_0),
            3 => Self::Block(Block::Q4_1),
            6 => Self::Block(Block::Q5_0),
            7 => Self::Block(Block::Q5_1),
            8 => Self::Block(Block::Q8_0),
            24 => Self::Int(1),
            25 => Self::Int(2),
            26 => Self::Int(4),
            27 => Self::Int(8),
            28 => Self::F64,
            30 => Self::Bf16,
            39 => Self::Block(Block::Mxfp4),
            40 => Self::Block(Block::Nvfp4),
            _ => Self::Other(format!("type {id}"), None),
        }
    }

    /// Bytes of a tensor of this shape, or nothing where nobody knows, or no file is that large.
    pub(crate) fn bytes(&self, shape: &[usize]) -> Option<u64> {
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
        let each = match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 | Self::E8m0 | Self::Bool => 1,
            Self::Int(n) | Self::Uint(n) => u64::from(*n),
            Self::Block(block) => {
                let (len, bytes) = block.size();
                let whole = shape.last().is_some_and(|n| n.is_multiple_of(len));
                return whole.then(|| elements / len as u64).and_then(|blocks| blocks.checked_mul(bytes as u64));
            }
            Self::Other(_, each) => (*each)?,
        };
        elements.checked_mul(each)
    }

    /// Bytes of a number, if it is a plain float that stands for itself.
    pub(crate) fn float_bytes(&self) -> Option<usize> {
        match self {
            Self::F64 => Some(8),
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            _ => None,
        }
    }

    /// The numbers in `bytes` of a float type.
    pub(crate) fn floats(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(match self {
            Self::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(array(b)) as f32).collect(),
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(array(b))).collect(),
            Self::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(array(b)).to_f32()).collect(),
            Self::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(array(b)).to_f32()).collect(),
            Self::E4m3 => bytes.iter().map(|b| e4m3(*b)).collect(),
            Self::E8m0 => bytes.iter().map(|b| e8m0(*b)).collect(),
            _ => return None,
        })
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(name, _) => f.write_str(name),
            Self::Int(n) => write!(f, "I{}", 8 * n),
            Self::Uint(n) => write!(f, "U{}", 8 * n),
            Self::Block(block) => write!(f, "{}", format!("{block:?}").to_uppercase()),
            other => write!(f, "{}", format!("{other:?}").to_uppercase()),
        }
    }
}

/// The first bytes of a slice that is long enough.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

/// A float of `exp` exponent and `man` mantissa bits below its sign, by its bias.
pub(crate) fn small_float(code: u32, exp: u32, man: u32, bias: i32) -> f32 {
    let (e, m) = (code >> man & ((1 << exp) - 1), code & ((1 << man) - 1));
    let whole = if e == 0 { m } else { m + (1 << man) };
    let value = f64::from(whole) * 2f64.powi(e.max(1) as i32 - bias - man as i32);
    (if code >> (exp + man) & 1 == 1 { -value } else { value }) as f32
}

/// OCP e4m3.
pub(crate) fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f { f32::NAN } else { small_float(u32::from(byte), 4, 3, 7) }
}

/// OCP e5m2.
pub(crate) fn e5m2(byte: u8) -> f32 {
    match (byte & 0x7f, byte >> 7) {
        (0x7c, 0) => f32::INFINITY,
        (0x7c, _) => f32::NEG_INFINITY,
        (0x7d.., _) => f32::NAN,
        _ => small_float(u32::from(byte), 5, 2, 15),
    }
}

/// e4m3 without infinities, in which magnitude 0 with a sign is no number.
pub(crate) fn e4m3_fnuz(byte: u8) -> f32 {
    if byte == 0x80 { f32::NAN } else { small_float(u32::from(byte), 4, 3, 8) }
}

/// e5m2 of that kind.
pub(crate) fn e5m2_fnuz(byte: u8) -> f32 {
    if byte == 0x80 { f32::NAN } else { small_float(u32::from(byte), 5, 2, 16) }
}

/// e2m1.
pub(crate) fn e2m1(nibble: u8) -> f32 {
    const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = MAGNITUDES[usize::from(nibble & 7)];
    if nibble & 8 == 0 { value } else { -value }
}

/// A power of two by its exponent.
pub(crate) fn e8m0(byte: u8) -> f32 {
    if byte == 255 { f32::NAN } else { 2f64.powi(i32::from(byte) - 127) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest, smallest and one numbers that the OCP specifications name.
    #[test]
    fn small_floats_have_the_values_of_their_specifications() {
        assert_eq!([e4m3(0x7e), e4m3(0xfe), e4m3(0x38), e4m3(0x08), e4m3(0x01)], [448.0, -448.0, 1.0, 0.015_625, 0.001_953_125]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        for nibble in 0..16u8 {
            assert_eq!(e2m1(nibble), small_float(u32::from(nibble), 2, 1, 1), "{nibble}");
        }
        assert_eq!([e8m0(127), e8m0(0), e8m0(254)], [1.0, 2f32.powi(-127), 2f32.powi(127)]);
        assert!(e8m0(255).is_nan());
    }

    #[test]
    fn sizes_that_overflow_are_no_sizes() {
        assert_eq!(Dtype::F32.bytes(&[usize::MAX, 8]), None);
        assert_eq!(Dtype::Block(Block::Q4_0).bytes(&[2, 64]), Some(72));
        assert_eq!(Dtype::Block(Block::Q4_0).bytes(&[2, 48]), None);
    }
}
