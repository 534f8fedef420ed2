//! The number formats of ggml: identifier, name, block size, and the decoder where there is one.

use super::dequantize as decode;

/// Decodes whole blocks: `dst.len() / block` of them.
pub(super) type Decode = fn(src: &[u8], dst: &mut [f32]);

/// One number format of ggml.
#[derive(Debug)]
pub struct GgmlType {
    /// The number that stands for it in a file.
    pub id: u32,
    /// Its name in ggml.
    pub name: &'static str,
    /// Elements per block.
    pub block: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// Decoder to f32, for the formats that can be read.
    pub(super) decode: Option<Decode>,
}

impl GgmlType {
    /// The format with this identifier.
    pub fn by_id(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|t| t.id == id)
    }

    /// The format of this name, such as `Q8_0`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        TYPES.iter().find(|t| t.name == name)
    }

    /// Bytes of a row of `elements`, which has to be whole blocks; `None` when it is not or when it overflows.
    pub fn row_bytes(&self, elements: usize) -> Option<usize> {
        elements.is_multiple_of(self.block).then(|| (elements / self.block).checked_mul(self.bytes))?
    }
}

/// Names of the formats that can be decoded, for messages.
pub(super) fn decodable() -> String {
    TYPES.iter().filter(|t| t.decode.is_some()).map(|t| t.name).collect::<Vec<_>>().join(", ")
}

const fn read(id: u32, name: &'static str, block: usize, bytes: usize, decode: Decode) -> GgmlType {
    GgmlType { id, name, block, bytes, decode: Some(decode) }
}

/// A format whose size is known, so that a file with it can be listed, but not its numbers.
const fn sized(id: u32, name: &'static str, block: usize, bytes: usize) -> GgmlType {
    GgmlType { id, name, block, bytes, decode: None }
}

/// Every format; the gaps in the numbers are formats that ggml has withdrawn.
static TYPES: &[GgmlType] = &[
    read(0, "F32", 1, 4, decode::float32),
    read(1, "F16", 1, 2, decode::float16),
    read(2, "Q4_0", 32, 18, decode::q4_0),
    read(3, "Q4_1", 32, 20, decode::q4_1),
    read(6, "Q5_0", 32, 22, decode::q5_0),
    read(7, "Q5_1", 32, 24, decode::q5_1),
    read(8, "Q8_0", 32, 34, decode::q8_0),
    sized(9, "Q8_1", 32, 36),
    read(10, "Q2_K", 256, 84, decode::q2_k),
    read(11, "Q3_K", 256, 110, decode::q3_k),
    read(12, "Q4_K", 256, 144, decode::q4_k),
    read(13, "Q5_K", 256, 176, decode::q5_k),
    read(14, "Q6_K", 256, 210, decode::q6_k),
    sized(15, "Q8_K", 256, 292),
    sized(16, "IQ2_XXS", 256, 66),
    sized(17, "IQ2_XS", 256, 74),
    sized(18, "IQ3_XXS", 256, 98),
    sized(19, "IQ1_S", 256, 50),
    sized(20, "IQ4_NL", 32, 18),
    sized(21, "IQ3_S", 256, 110),
    sized(22, "IQ2_S", 256, 82),
    sized(23, "IQ4_XS", 256, 136),
    sized(24, "I8", 1, 1),
    sized(25, "I16", 1, 2),
    sized(26, "I32", 1, 4),
    sized(27, "I64", 1, 8),
    sized(28, "F64", 1, 8),
    sized(29, "IQ1_M", 256, 56),
    read(30, "BF16", 1, 2, decode::bfloat16),
    sized(34, "TQ1_0", 256, 54),
    sized(35, "TQ2_0", 256, 66),
    read(39, "MXFP4", 32, 17, decode::mxfp4),
    read(40, "NVFP4", 64, 36, decode::nvfp4),
    sized(41, "Q1_0", 128, 18),
    sized(42, "Q2_0", 64, 18),
];

/// What makes the blocks that people call `name`, such as `q4_0` and `Q4_K_M`, if it is such a name. Those with two levels of integer scales
/// (k-quants) and those of tables (i-quants) are not written, and have a neighbour that is.
pub(crate) fn wanted(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let (bits, rest) = name.strip_prefix("iq").or_else(|| name.strip_prefix('q'))?.split_once('_')?;
    let bits: u32 = bits.parse().ok().filter(|b| (1..=8).contains(b))?;
    let scheme = match (bits, rest) {
        (4 | 5, "1") => format!("`format = \"uint{bits}\"` and `symmetric = false`"),
        (..=4, _) => "`format = \"int4\"`".to_owned(),
        (5, _) => "`format = \"int5\"`".to_owned(),
        _ => "`format = \"int8\"`".to_owned(),
    };
    let makes = format!("{scheme} in groups of 32, with `--format gguf`");
    let written = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"].contains(&name.as_str());
    Some(if written { format!("write {makes}") } else { format!("k-quants and i-quants are not written; nearest: {makes}") })
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn names_of_blocks_are_told_from_others() {
        for (name, says) in [
            ("q4_0", "write `format = \"int4\"` in groups of 32, with `--format gguf`"),
            ("Q5_1", "write `format = \"uint5\"` and `symmetric = false` in groups of 32, with `--format gguf`"),
            ("Q4_K_M", "k-quants and i-quants are not written; nearest: `format = \"int4\"` in groups of 32, with `--format gguf`"),
            ("q6_k", "k-quants and i-quants are not written; nearest: `format = \"int8\"` in groups of 32, with `--format gguf`"),
            ("iq3_xxs", "k-quants and i-quants are not written; nearest: `format = \"int4\"` in groups of 32, with `--format gguf`"),
        ] {
            assert_eq!(wanted(name).as_deref(), Some(says), "{name}");
        }
        for name in ["int4", "qfw", "q_4", "q9_0", "gguf", "quant_1", "iq_"] {
            assert_eq!(wanted(name), None, "{name}");
        }
    }
}
