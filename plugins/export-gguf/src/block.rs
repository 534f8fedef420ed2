//! The block formats of ggml that hold our codes, and how a row is written in each.
//!
//! With `q` a code of ours, `z` its zero point, `s` its scale and `lo` the smallest code, `ŵ = s·(q − z)`. Nibbles: byte `j` of a run of
//! 32 holds element `j` in its low half and element `j + 16` in its high half.
//!
//! | type | elements | bytes | holds |
//! |---|---|---|---|
//! | `Q8_0` | 32 | 34 | `d = s` (f16), 32 signed bytes `q − z` |
//! | `Q4_0` | 32 | 18 | `d`, nibbles `q − z + 8` |
//! | `Q5_0` | 32 | 22 | `d`, 32 fifth bits, nibbles, of `q − z + 16` |
//! | `Q4_1` | 32 | 20 | `d`, `m = −s·(z − lo)` (f16), nibbles `q − lo`: `d·u + m` |
//! | `Q5_1` | 32 | 24 | `d`, `m`, fifth bits, nibbles |
//! | `MXFP4` | 32 | 17 | exponent of the scale + 127, nibbles that are e2m1 bit for bit |
//! | `NVFP4` | 64 | 36 | four e4m3 scales, for each run of 16 its nibbles: `j` low, `j + 8` high |
//!
//! Source: llama.cpp, `ggml/src/ggml-common.h` and `ggml-quants.c`.

use half::f16;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::{Arithmetic, Held};
use qfw_core::scheme::{FloatGrid, FloatKind, FloatVariant, Grid, ScaleForm};
use qfw_core::{Error, Result};

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Mxfp4,
    Nvfp4,
}

/// What the codes of a run of columns stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub scale: f32,
    pub form: ScaleForm,
    pub zero: f32,
    /// The factor of the tensor, 1 where there is none.
    pub global: f32,
}

impl Block {
    /// Its name in ggml.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Mxfp4 => "MXFP4",
            Self::Nvfp4 => "NVFP4",
        }
    }

    /// `general.file_type` of a file that is mostly of this type.
    pub(crate) fn file_type(self) -> u64 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Mxfp4 => 38,
            Self::Nvfp4 => 39,
        }
    }

    /// Elements of a block.
    pub(crate) fn len(self) -> usize {
        if self == Self::Nvfp4 { 64 } else { 32 }
    }

    /// Elements that share a scale.
    pub(crate) fn run(self) -> usize {
        if self == Self::Nvfp4 { 16 } else { 32 }
    }

    /// Bits of an element, scales included.
    pub(crate) fn bits(self) -> f64 {
        let bytes = match self {
            Self::Mxfp4 => 17,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Nvfp4 => 36,
        };
        f64::from(bytes * 8) / self.len() as f64
    }

    /// Appends a row of codes less the grid's smallest; `params` gives those of the run that begins at a column.
    ///
    /// # Errors
    /// If a scale or minimum is too large for f16.
    pub(crate) fn encode(self, grid: &Grid, codes: &[u8], params: impl Fn(usize) -> Params, out: &mut Vec<u8>) -> Result<()> {
        let lo = grid.limits().0;
        for (i, codes) in codes.chunks_exact(self.len()).enumerate() {
            let p = params(i * self.len());
            let around = |middle: i32| codes.iter().map(move |q| (i32::from(*q) + lo - p.zero as i32 + middle) as u8);
            let above = codes.iter().copied();
            match self {
                Self::Q8_0 => {
                    out.extend(half(p)?);
                    out.extend(around(0));
                }
                Self::Q4_0 | Self::Q5_0 => {
                    out.extend(half(p)?);
                    if self == Self::Q4_0 { nibbles(around(8), out) } else { five_bits(around(16), out) }
                }
                Self::Q4_1 | Self::Q5_1 => {
                    out.extend(half(p)?);
                    out.extend(minimum(p, lo)?.to_le_bytes());
                    if self == Self::Q4_1 { nibbles(above, out) } else { five_bits(above, out) }
                }
                Self::Mxfp4 => {
                    out.push((p.scale.to_bits() >> 23) as u8);
                    nibbles(above, out);
                }
                Self::Nvfp4 => {
                    let e4m3 = e4m3()?;
                    let local = |run: usize| {
                        let p = params(i * self.len() + run * self.run());
                        e4m3.code(p.scale * p.global) as u8
                    };
                    out.extend((0..4).map(local));
                    codes.chunks_exact(16).for_each(|run| nibbles(run.iter().copied(), out));
                }
            }
        }
        Ok(())
    }
}

impl Block {
    /// What codes stand for in blocks of this format.
    ///
    /// # Errors
    /// If a minimum is too large for f16.
    pub(crate) fn held(self, grid: &Grid, form: ScaleForm, mut rounded: Rounded) -> Result<Held> {
        match self {
            Self::Mxfp4 => Ok(Held::exactly(rounded)),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => Held::exactly(rounded).scales_in(form, FloatKind::F16),
            Self::Q4_1 | Self::Q5_1 => {
                let p = &rounded.params;
                let of = |(scale, zero): (&f32, &f32)| minimum(Params { scale: *scale, form, zero: *zero, global: 1.0 }, grid.limits().0);
                let minima = p.scale.iter().zip(&p.zero).map(|tile| of(tile).map(f16::to_f32)).collect::<Result<_>>()?;
                Ok(Held { arithmetic: Arithmetic::Minimum(minima), ..Held::exactly(rounded).scales_in(form, FloatKind::F16)? })
            }
            Self::Nvfp4 => {
                let (global, e4m3) = (rounded.params.global.unwrap_or(1.0), e4m3()?);
                rounded.params.scale.iter_mut().for_each(|s| *s = e4m3.round(*s * global));
                Ok(Held { rounded, arithmetic: Arithmetic::Factor(1.0 / global) })
            }
        }
    }
}

/// The scales of NVFP4.
fn e4m3() -> Result<FloatGrid> {
    FloatGrid::new(4, 3, FloatVariant::Ocp).ok_or_else(|| Error::internal("there is no e4m3"))
}

/// `m` of the formats that have one: what the smallest code stands for.
pub(crate) fn minimum(p: Params, lo: i32) -> Result<f16> {
    let m = -p.scale * (p.zero - lo as f32);
    if m.abs() > FloatKind::F16.largest() {
        let what = format!("a minimum is {m}, and the container holds them as f16");
        return Err(Error::numeric("container::overflow", what).hint("use `--format qfw`, which holds zero points"));
    }
    Ok(f16::from_f32(m))
}

fn half(p: Params) -> Result<[u8; 2]> {
    Ok(f16::from_f32(p.form.held_in(FloatKind::F16, p.scale)?).to_le_bytes())
}

/// Two halves of a run, one in the low and one in the high half of each byte.
fn nibbles(codes: impl ExactSizeIterator<Item = u8> + Clone, out: &mut Vec<u8>) {
    let middle = codes.len() / 2;
    out.extend(codes.clone().zip(codes.skip(middle)).map(|(low, high)| (low & 15) | high << 4));
}

/// The fifth bits of 32 codes in one word, then their nibbles.
fn five_bits(codes: impl ExactSizeIterator<Item = u8> + Clone, out: &mut Vec<u8>) {
    let fifth = codes.clone().enumerate().fold(0_u32, |word, (i, code)| word | u32::from(code >> 4 & 1) << i);
    out.extend(fifth.to_le_bytes());
    nibbles(codes, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use qfw_core::scheme::{PowerRounding, Zero};

    const SINGLE: ScaleForm = ScaleForm::Float(FloatKind::F32);
    const ONE: [u8; 2] = [0x00, 0x3c];

    fn units(grid: &Grid, codes: &[i32]) -> Vec<u8> {
        codes.iter().map(|q| (q - grid.limits().0) as u8).collect()
    }

    fn encoded(block: Block, grid: Grid, codes: &[i32], p: Params) -> Vec<u8> {
        let mut out = Vec::new();
        block.encode(&grid, &units(&grid, codes), |_| p, &mut out).unwrap();
        assert_eq!(out.len() * 8, (block.bits() * codes.len() as f64) as usize, "{block:?}");
        out
    }

    fn int(bits: u32, zero: Zero) -> Grid {
        let half = 1 << (bits - 1);
        Grid::Int { lo: -half, hi: half - 1, zero }
    }

    /// Codes `−8 … 7, −8 … 7`: every element `j` of the first half meets `j + 16` of the second, which is the same.
    #[test]
    fn nibbles_lie_as_in_ggml() {
        let codes: Vec<i32> = (0..32).map(|i| i % 16 - 8).collect();
        let plain = Params { scale: 1.0, form: SINGLE, zero: 0.0, global: 1.0 };
        let expected: Vec<u8> = ONE.into_iter().chain((0..16).map(|i| i << 4 | i)).collect();
        assert_eq!(encoded(Block::Q4_0, int(4, Zero::None), &codes, plain), expected);
        // The first half alone: the high halves are the middle, 8.
        let codes: Vec<i32> = (0..32).map(|i| if i < 16 { 7 - i } else { 0 }).collect();
        let bytes = encoded(Block::Q4_0, int(4, Zero::None), &codes, plain);
        assert_eq!(bytes[2..], (0..16).map(|i| 8 << 4 | (15 - i)).collect::<Vec<u8>>());
    }

    /// An affine code `q` of a signed grid with zero point 3 and step 2: `2(q − 3) = 2(q + 8) − 22`.
    #[test]
    fn minima_are_what_the_smallest_code_stands_for() {
        let codes: Vec<i32> = (0..32).map(|i| i % 16 - 8).collect();
        let bytes = encoded(Block::Q4_1, int(4, Zero::Integer), &codes, Params { scale: 2.0, form: SINGLE, zero: 3.0, global: 1.0 });
        assert_eq!(bytes[..4], [0x00, 0x40, 0x80, 0xcd]);
        assert_eq!(f16::from_le_bytes([bytes[2], bytes[3]]).to_f32(), -22.0);
        assert_eq!(bytes[4..], (0..16).map(|i| i << 4 | i).collect::<Vec<u8>>());
    }

    #[test]
    fn fifth_bits_come_first() {
        let codes: Vec<i32> = (-16..16).collect();
        let plain = Params { scale: 1.0, form: SINGLE, zero: 0.0, global: 1.0 };
        let bytes = encoded(Block::Q5_0, int(5, Zero::None), &codes, plain);
        assert_eq!(bytes[2..6], [0, 0, 0xff, 0xff]);
        assert_eq!(bytes[6..], (0..16).map(|i| i << 4 | i).collect::<Vec<u8>>());
        let bytes = encoded(Block::Q5_1, Grid::Int { lo: 0, hi: 31, zero: Zero::Integer }, &[31; 32], plain);
        assert_eq!(bytes[4..], [0xff; 20]);
    }

    #[test]
    fn bytes_are_signed() {
        let codes: Vec<i32> = (0..32).map(|i| if i == 0 { -128 } else { 128 - i }).collect();
        // Unsigned storage of a symmetric format: the zero point is the same everywhere.
        let grid = Grid::Int { lo: 0, hi: 255, zero: Zero::Fixed(128) };
        let stored: Vec<i32> = codes.iter().map(|q| q + 128).collect();
        let bytes = encoded(Block::Q8_0, grid, &stored, Params { scale: 0.5, form: SINGLE, zero: 128.0, global: 1.0 });
        assert_eq!(bytes[..5], [0x00, 0x38, 0x80, 127, 126]);
    }

    /// Exponents are biased by 127, codes are sign and magnitude: 9 is −0.5.
    #[test]
    fn microscaling_keeps_its_bits() {
        let grid = Grid::Float(FloatGrid::new(2, 1, FloatVariant::Ocp).unwrap());
        let codes: Vec<i32> = (0..32).map(|i| if i < 16 { 9 } else { 7 }).collect();
        let bytes = encoded(Block::Mxfp4, grid.clone(), &codes, Params { scale: 0.25, form: SINGLE, zero: 0.0, global: 1.0 });
        assert_eq!(bytes, [vec![125], vec![0x79; 16]].concat());
        // Four runs of 16 with local scales 1, 2, 3, 4, which are 0x38, 0x40, 0x44, 0x48 in e4m3.
        let codes: Vec<i32> = (0..64).map(|i| i % 16).collect();
        let mut out = Vec::new();
        let params = |column: usize| Params { scale: (column / 16 + 1) as f32 / 8.0, form: SINGLE, zero: 0.0, global: 8.0 };
        Block::Nvfp4.encode(&grid, &units(&grid, &codes), params, &mut out).unwrap();
        let run: Vec<u8> = (0..8).map(|i| (i + 8) << 4 | i).collect();
        assert_eq!(out, [vec![0x38, 0x40, 0x44, 0x48], run.repeat(4)].concat());
    }

    #[test]
    fn what_f16_cannot_hold_is_said() {
        let failure = |block: Block, p: Params| {
            let e = block.encode(&int(4, Zero::Integer), &[0; 32], |_| p, &mut Vec::new()).unwrap_err();
            format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
        };
        assert_eq!(
            failure(Block::Q4_0, Params { scale: 1e5, form: SINGLE, zero: 0.0, global: 1.0 }),
            "a scale is 1e5, and the container holds scales as float16, whose largest is 65504 | use `--format qfw`, which holds them as f32"
        );
        assert_eq!(
            failure(Block::Q4_1, Params { scale: 1e4, form: SINGLE, zero: 7.0, global: 1.0 }),
            "a minimum is -150000, and the container holds them as f16 | use `--format qfw`, which holds zero points"
        );
        // Powers of two are exact or refused; other scales become the nearest there is.
        let power = ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 0 };
        let form = |form: ScaleForm, scale: f32| Params { scale, form, zero: 0.0, global: 1.0 };
        for exponent in [-25, 16] {
            let says = failure(Block::Q8_0, form(power, 2f32.powi(exponent)));
            assert!(says.contains("a power of two that float16, in which the container holds scales, has not"), "{says}");
        }
        let kept = |p: Params| encoded(Block::Q8_0, int(8, Zero::None), &[0; 32], p)[..2].to_vec();
        assert_eq!((kept(form(power, 2f32.powi(-24))), kept(form(power, 2f32.powi(15)))), (vec![1, 0], vec![0, 0x78]));
        assert_eq!(kept(form(SINGLE, 1e-12)), [1, 0]);
    }
}
