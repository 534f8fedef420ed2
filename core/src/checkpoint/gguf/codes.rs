//! Codes of the block formats of ggml whose numbers lie on a grid of ours.
//!
//! | type | grid | scale and zero point |
//! |---|---|---|
//! | `Q4_0`, `Q5_0`, `Q8_0` | `int4`, `int5`, `int8` | `d` |
//! | `Q4_1`, `Q5_1` | `uint4`, `uint5` | `d`, and the float zero point `−m/d` |
//! | `MXFP4` | `mxfp4` | `2^(e − 127)` |
//! | `NVFP4` | `nvfp4` | e4m3 by the factor of the tensor |
//!
//! Codes of a row run in storage order; a row of blocks is a row of tiles. The layouts are those of `dequantize`. The k-quants and the
//! table formats have scales of scales, for which there is no grid: they are floats here.

use half::f16;

use super::ggml_type::GgmlType;
use crate::algorithm::Rounded;
use crate::checkpoint::native::NativeSite;
use crate::error::{Error, Result};
use crate::numeric::{Codes, Units};
use crate::scheme::{FloatGrid, FloatKind, FloatVariant, Granularity, Grid, PowerRounding, QParams, QuantSpec, ScaleForm, Zero};

/// How the numbers of a format are quantized, if a grid holds them.
pub(super) fn spec(format: &GgmlType) -> Option<QuantSpec> {
    let signed = |bits: u8| Grid::Int { lo: -(1 << (bits - 1)), hi: (1 << (bits - 1)) - 1, zero: Zero::None };
    let unsigned = |bits: u8| Grid::Int { lo: 0, hi: (1 << bits) - 1, zero: Zero::Float };
    let e2m1 = Grid::Float(FloatGrid::new(2, 1, FloatVariant::Ocp)?);
    let half = ScaleForm::Float(FloatKind::F16);
    let (name, grid, run, scale) = match format.name {
        "Q4_0" => ("int4", signed(4), 32, half),
        "Q5_0" => ("int5", signed(5), 32, half),
        "Q8_0" => ("int8", signed(8), 32, half),
        "Q4_1" => ("uint4", unsigned(4), 32, half),
        "Q5_1" => ("uint5", unsigned(5), 32, half),
        "MXFP4" => ("mxfp4", e2m1, 32, ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 2 }),
        "NVFP4" => ("nvfp4", e2m1, 16, ScaleForm::TwoLevel),
        _ => return None,
    };
    let bits = match &grid {
        Grid::Float(_) => 4,
        grid => (grid.limits().1 - grid.limits().0 + 1).trailing_zeros() as u8,
    };
    Some(QuantSpec::stored(name, bits, grid, Granularity::group(run), scale))
}

/// What has been read of the blocks so far: codes less the smallest of the grid, and a scale and a zero point for each run.
#[derive(Default)]
struct Parts {
    codes: Vec<u8>,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

/// The codes of a matrix from its blocks, rows in the order of the model. `factor` is what the whole tensor is multiplied with.
///
/// # Errors
/// If a scale is no finite number, or the factor is none that can be divided by.
pub(super) fn rounded(site: &NativeSite, format: &GgmlType, factor: Option<f32>, bytes: &[u8]) -> Result<Rounded> {
    let bad =
        |what: String| Error::input("gguf::scale", format!("`{}.weight` {what}", site.module)).hint("the file is damaged; get it again");
    let global = match site.spec.scale {
        ScaleForm::TwoLevel => Some(1.0 / factor.unwrap_or(1.0)),
        _ => None,
    };
    if let Some(global) = global.filter(|g| !g.is_finite() || *g == 0.0) {
        return Err(bad(format!("has a factor whose inverse is {global}")));
    }
    let mut parts = Parts::default();
    for block in bytes.chunks_exact(format.bytes) {
        parts.add(format.name, block, global.unwrap_or(1.0))?;
    }
    if let Some(i) = parts.scale.iter().zip(&parts.zero).position(|(s, z)| !(s.is_finite() && z.is_finite())) {
        return Err(bad(format!("holds a scale that is no finite number, in its block {i}")));
    }
    let layout = site.spec.granularity.layout(site.shape.0, site.shape.1);
    if parts.codes.len() != layout.rows * layout.cols || parts.scale.len() != layout.tiles() {
        return Err(bad(format!("holds {} numbers, not {} x {}", parts.codes.len(), layout.rows, layout.cols)));
    }
    Ok(Rounded {
        codes: Codes { lo: site.spec.grid.limits().0, data: Units::Narrow(parts.codes) },
        params: QParams { layout, scale: parts.scale, zero: parts.zero, global },
        group_index: None,
        events: Vec::new(),
    })
}

impl Parts {
    fn run(&mut self, scale: f32, zero: f32, codes: impl Iterator<Item = u8>) {
        self.scale.push(scale);
        self.zero.push(zero);
        self.codes.extend(codes);
    }

    fn add(&mut self, format: &str, b: &[u8], global: f32) -> Result<()> {
        let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        match format {
            "Q4_0" => self.run(half(0), 0.0, nibbles(&b[2..])),
            "Q5_0" => self.run(half(0), 0.0, five_bits(b, 2)),
            // Signed bytes; less the smallest, −128, they are unsigned.
            "Q8_0" => self.run(half(0), 0.0, b[2..].iter().map(|q| q ^ 0x80)),
            "Q4_1" => self.minimum(half(0), half(2), nibbles(&b[4..])),
            "Q5_1" => self.minimum(half(0), half(2), five_bits(b, 4)),
            "MXFP4" => {
                // 2^-127 is subnormal.
                let scale = if b[0] == 0 { f32::from_bits(0x0040_0000) } else { f32::from_bits(u32::from(b[0]) << 23) };
                self.run(scale, 0.0, nibbles(&b[1..]));
            }
            "NVFP4" => {
                let e4m3 = FloatGrid::new(4, 3, FloatVariant::Ocp).ok_or_else(|| Error::internal("there is no e4m3"))?;
                for (run, codes) in b[4..].chunks_exact(8).enumerate() {
                    // The sign does not count, and what is no number is 0.
                    let code = u32::from(b[run] & 0x7f);
                    let local = if e4m3.holds(code) { e4m3.value(code) } else { 0.0 };
                    self.run(local / global, 0.0, nibbles(codes));
                }
            }
            other => return Err(Error::internal(format!("blocks of {other} have no codes here"))),
        }
        Ok(())
    }

    /// A run of `d·u + m`. Without a step all of it is `m`, which then is the scale, whatever the codes were.
    fn minimum(&mut self, d: f32, m: f32, codes: impl Iterator<Item = u8>) {
        match (d == 0.0, m == 0.0) {
            (false, _) => self.run(d, -m / d, codes),
            (true, false) => self.run(m, -1.0, codes.map(|_| 0)),
            (true, true) => self.run(0.0, 0.0, codes),
        }
    }
}

/// Elements of a run, the first half in the low halves of its bytes, the second in the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// 32 codes of five bits: nibbles at `at + 4`, the fifth bits in a word at `at`.
fn five_bits(b: &[u8], at: usize) -> impl Iterator<Item = u8> + '_ {
    let fifth = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    nibbles(&b[at + 4..]).enumerate().map(move |(i, q)| q | ((fifth >> i & 1) as u8) << 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::decode;

    /// Codes and scales of random blocks give the numbers that ggml's arithmetic gives, which `dequantize` is tested to have.
    #[test]
    fn codes_stand_for_the_numbers_of_the_blocks() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for (name, halves) in
            [("Q4_0", &[0][..]), ("Q4_1", &[0, 2]), ("Q5_0", &[0]), ("Q5_1", &[0, 2]), ("Q8_0", &[0]), ("MXFP4", &[]), ("NVFP4", &[])]
        {
            let format = GgmlType::by_name(name).unwrap();
            let (rows, cols) = (3, 128);
            let mut bytes: Vec<u8> = (0..rows * cols / format.block * format.bytes).map(|_| random()).collect();
            for (i, block) in bytes.chunks_mut(format.bytes).enumerate() {
                for at in halves {
                    // The first block has no step.
                    let value = f16::from_f32(if i == 0 && *at == 0 { 0.0 } else { ((i * 37 + at) % 101) as f32 * 0.01 - 0.5 });
                    block[*at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
                if name == "MXFP4" {
                    block[0] = 100 + i as u8;
                }
            }
            let factor = (name == "NVFP4").then_some(0.375);
            let site = NativeSite {
                site: "m".to_owned(),
                module: "m".to_owned(),
                shape: (rows, cols),
                transposed: false,
                spec: spec(format).unwrap(),
            };
            let r = rounded(&site, format, factor, &bytes).unwrap();
            assert!(r.codes.stand_for(&site.spec.grid), "{name}");
            let mut values = Vec::new();
            decode(&site.spec.grid, &r.params, &r.codes, 0..rows, None, &mut values);
            let mut expected = vec![f32::NAN; rows * cols];
            format.decode.unwrap()(&bytes, &mut expected);
            expected.iter_mut().for_each(|x| *x *= factor.unwrap_or(1.0));
            for (i, (a, b)) in values.iter().zip(&expected).enumerate() {
                // A minimum behind a zero point cancels: what is left is exact to the rounding of the larger of both.
                assert!((a - b).abs() <= 4e-6, "{name} element {i}: {a} is not {b}");
            }
            assert!(expected.iter().any(|v| *v != 0.0), "{name}: nothing was tested");
        }
    }

    #[test]
    fn scales_that_are_no_numbers_are_refused() {
        let format = GgmlType::by_name("Q8_0").unwrap();
        let site =
            NativeSite { site: "m".to_owned(), module: "m".to_owned(), shape: (1, 32), transposed: false, spec: spec(format).unwrap() };
        let mut bytes = vec![0; 34];
        bytes[1] = 0x7c;
        let e = rounded(&site, format, None, &bytes).err().unwrap();
        assert_eq!(
            (e.code(), e.to_string().as_str()),
            ("gguf::scale", "`m.weight` holds a scale that is no finite number, in its block 0")
        );
    }
}
