//! How numbers are stored.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::scheme::FloatKind;

/// A stored number type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    BF16,
    /// 64-bit integer.
    I64,
    /// 32-bit integer.
    I32,
    /// 16-bit integer.
    I16,
    /// 8-bit integer.
    I8,
    /// Byte.
    U8,
    /// 32-bit unsigned integer.
    U32,
    /// One byte each.
    Bool,
    /// Another type of the safetensors format, by its name there.
    Other(String),
    /// A block format of ggml, by its name there.
    Ggml(&'static str),
}

impl StoredDtype {
    const NAMES: [(&'static str, Self, u64); 11] = [
        ("F64", Self::F64, 8),
        ("F32", Self::F32, 4),
        ("F16", Self::F16, 2),
        ("BF16", Self::BF16, 2),
        ("I64", Self::I64, 8),
        ("I32", Self::I32, 4),
        ("I16", Self::I16, 2),
        ("I8", Self::I8, 1),
        ("U8", Self::U8, 1),
        ("U32", Self::U32, 4),
        ("BOOL", Self::Bool, 1),
    ];

    /// Whether it holds real numbers that can be read as f32.
    pub fn is_float(&self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::Ggml(_))
    }

    /// Whether it is a block format, whose numbers are codes with scales among them.
    pub fn is_blocks(&self) -> bool {
        matches!(self, Self::Ggml(_))
    }

    /// The type of that name in a safetensors header.
    pub fn parse(name: &str) -> Self {
        Self::NAMES.iter().find(|(n, ..)| *n == name).map_or_else(|| Self::Other(name.to_owned()), |(_, d, _)| d.clone())
    }

    /// Its name in a safetensors header.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            Self::Ggml(name) => name,
            known => Self::NAMES.iter().find(|(_, d, _)| d == known).map_or("", |(n, ..)| n),
        }
    }

    /// Bytes per element, where that is a fixed whole number.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::Other(name) if name.starts_with("F8") => Some(1),
            Self::Other(name) if matches!(name.as_str(), "U16") => Some(2),
            Self::Other(name) if matches!(name.as_str(), "U64") => Some(8),
            known => Self::NAMES.iter().find(|(_, d, _)| d == known).map(|(.., size)| *size),
        }
    }

    /// Decodes little-endian bytes of a float type, appending to `out`; `false` if this is no such type.
    pub(super) fn decode_f32(&self, bytes: &[u8], out: &mut Vec<f32>) -> bool {
        match self {
            Self::F64 => {
                out.extend(bytes.chunks_exact(8).map(|c| f64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]) as f32))
            }
            Self::F32 => out.extend(bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))),
            Self::F16 | Self::BF16 => {
                let start = out.len();
                out.resize(start + bytes.len() / 2, 0.0);
                // Through a small aligned buffer: the bytes of a file need not be aligned.
                const CHUNK: usize = 4096;
                let mut half = [f16::ZERO; CHUNK];
                let mut brain = [bf16::ZERO; CHUNK];
                for (out, bytes) in out[start..].chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
                    if *self == Self::F16 {
                        half.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(h, b)| *h = f16::from_le_bytes([b[0], b[1]]));
                        half[..out.len()].convert_to_f32_slice(out);
                    } else {
                        brain.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(h, b)| *h = bf16::from_le_bytes([b[0], b[1]]));
                        brain[..out.len()].convert_to_f32_slice(out);
                    }
                }
            }
            _ => return false,
        }
        true
    }
}

impl From<FloatKind> for StoredDtype {
    fn from(kind: FloatKind) -> Self {
        match kind {
            FloatKind::F32 => Self::F32,
            FloatKind::F16 => Self::F16,
            FloatKind::Bf16 => Self::BF16,
        }
    }
}
