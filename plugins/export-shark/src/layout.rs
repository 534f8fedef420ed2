//! How a dataset holds a quantized matrix of `n` rows and `k` columns.
//!
//! With `q` a code of ours, `z` its zero point, `s` its scale, `lo` the smallest code and `g` the columns that share a scale; all numbers that are
//! not codes are f32:
//!
//! | layout | `qs` | `d` | `m` | stands for |
//! |---|---|---|---|---|
//! | `TensorScaledLayout` | `[n, k]`, a byte each | `s`: `[]` or `[n, 1]` | `z`, where there are zero points | `(q − z)·s`, or `v(q)·s` |
//! | `BlockScaledLayout` | `[n, k/g, g]`, a signed byte each | `s`: `[n, k/g, 1]` | | `q·s` |
//! | `BlockScaledI4Layout` | `[n, k/g, g/2]`, `q − lo` in pairs, the first in the low bits | the same | `s·(lo − z)`, alike | `s·(q − lo) + m` |
//! | `BlockScaledFp4Layout` | the same with codes of e2m1, `g` = 32 | `U8`, the exponent of `s` and 127 | | `v(q)·s` |
//!
//! `BlockScaledLayout` may have an `m` too, and nibbles may be signed and have none. sharktank's compiled products know neither, and stop.

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::{Arithmetic, Held, StoredDtype};
use qfw_core::scheme::{Extent, FloatKind, FloatVariant, Grid, PowerRounding, QParams, QuantSpec, ScaleForm, Timing, Zero};
use qfw_core::{Error, Result};
use serde_json::{Value, json};

/// Columns of a block of `BlockScaledFp4Layout`: what its products are made for.
pub(crate) const FP4_RUN: u32 = 32;
/// The exponent that is stored for a scale of 1.
pub(crate) const BIAS: i32 = 127;

const NEAREST: &str = "use int4, int8 or fp8, or `--format qfw`";

/// Floats of a byte: exponent and mantissa, variant, and the names of the type in an archive here and in sharktank.
pub(crate) const FP8: [((u8, u8), FloatVariant, &str, &str); 4] = [
    ((4, 3), FloatVariant::Ocp, "F8_E4M3", "float8_e4m3fn"),
    ((4, 3), FloatVariant::Fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz"),
    ((5, 2), FloatVariant::Ocp, "F8_E5M2", "float8_e5m2"),
    ((5, 2), FloatVariant::Fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz"),
];

/// A layout, of codes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `TensorScaledLayout` of integers: the type of a byte, what is taken from each code, and whether there are zero points.
    Integers { unsigned: bool, less: i32, zeros: bool },
    /// `TensorScaledLayout` of floats, by the name of their type in an archive.
    Floats { dtype: &'static str },
    /// `BlockScaledLayout` of so many columns; what is taken from each code.
    Blocks { size: usize, less: i32 },
    /// `BlockScaledI4Layout`.
    Nibbles { size: usize },
    /// `BlockScaledFp4Layout`.
    Fp4,
}

/// A plane of a tensor, and its bytes.
pub(crate) type Plane = (&'static str, StoredDtype, Vec<usize>);

fn refuse<T>(site: &str, why: &str, hint: &str) -> Result<T> {
    Err(Error::plan("plan::container", format!("`{site}`: {why}")).hint(hint))
}

impl Layout {
    /// The layout of a matrix of `(rows, columns)`. `rounded`: whether what is multiplied with it is rounded too, and both are multiplied
    /// as integers.
    ///
    /// # Errors
    /// If there is none, with the nearest scheme that has one.
    pub(crate) fn of(site: &str, spec: &QuantSpec, shape: (usize, usize), rounded: bool) -> Result<Self> {
        if spec.timing != Timing::Static {
            return refuse(site, &format!("it holds weights with scales, not {spec}"), "leave `timing` out, or use `--format qfw`");
        }
        if spec.scale == ScaleForm::TwoLevel {
            return refuse(site, "it holds one scale for each group, not two levels of them", "use mxfp4 or int4, or `--format qfw`");
        }
        let size = group(site, spec, shape.1)?;
        match &spec.grid {
            Grid::Int { .. } if spec.bits <= 8 => integers(site, spec, shape.1, size, rounded),
            Grid::Int { .. } => refuse(site, &format!("it holds weights of up to 8 bits, not of {}", spec.bits), NEAREST),
            Grid::Float(f) if f.shape() == (2, 1) && f.variant() != FloatVariant::Fnuz => fp4(site, spec),
            Grid::Float(f) => match FP8.iter().find(|(shape, variant, ..)| (*shape, *variant) == (f.shape(), f.variant())) {
                Some(_) if size.is_some() => {
                    let why =
                        "it holds fp8 with a scale for the tensor or for each output channel, and sharktank has no product for groups";
                    refuse(site, why, "use tensor or channel, or `--format qfw`")
                }
                Some((.., dtype, _)) => Ok(Self::Floats { dtype }),
                None => refuse(site, &format!("none of its types is {}", spec.format), NEAREST),
            },
            _ => refuse(site, &format!("it has no tables of values, which {} is", spec.format), NEAREST),
        }
    }

    /// Its `layout_type` and `layout_metadata`.
    pub(crate) fn said(self) -> (&'static str, Option<Value>) {
        match self {
            Self::Integers { .. } | Self::Floats { .. } => ("TensorScaledLayout", Some(json!({ "dtype": "float32" }))),
            Self::Blocks { .. } => ("BlockScaledLayout", None),
            Self::Nibbles { .. } => ("BlockScaledI4Layout", Some(json!({ "signed": false }))),
            Self::Fp4 => ("BlockScaledFp4Layout", Some(json!({ "block_size": FP4_RUN, "use_fe8m0_scale": true }))),
        }
    }

    /// Its planes: name, type and shape.
    pub(crate) fn planes(self, spec: &QuantSpec, (rows, cols): (usize, usize)) -> Vec<Plane> {
        let f32 = |name, shape: &[usize]| (name, StoredDtype::F32, shape.to_vec());
        let scales: &[usize] = if of_tensor(spec) { &[] } else { &[rows, 1] };
        let scaled = |dtype| vec![f32("d", scales), ("qs", dtype, vec![rows, cols])];
        let blocks = |size: usize| [rows, cols / size, 1];
        match self {
            Self::Integers { unsigned, zeros, .. } => {
                let mut planes = scaled(if unsigned { StoredDtype::U8 } else { StoredDtype::I8 });
                if zeros {
                    planes.push(f32("m", scales));
                }
                planes
            }
            Self::Floats { dtype } => scaled(StoredDtype::parse(dtype)),
            Self::Blocks { size, .. } => vec![f32("d", &blocks(size)), ("qs", StoredDtype::I8, vec![rows, cols / size, size])],
            Self::Nibbles { size } => {
                vec![f32("d", &blocks(size)), ("qs", StoredDtype::U8, vec![rows, cols / size, size / 2]), f32("m", &blocks(size))]
            }
            Self::Fp4 => {
                let size = FP4_RUN as usize;
                vec![("d", StoredDtype::U8, blocks(size).to_vec()), ("qs", StoredDtype::U8, vec![rows, cols / size, size / 2])]
            }
        }
    }

    /// The bytes of each plane.
    ///
    /// # Errors
    /// If there are codes of more than eight bits.
    pub(crate) fn encode(self, spec: &QuantSpec, rounded: &Rounded) -> Result<Vec<Vec<u8>>> {
        let params = &rounded.params;
        let codes = rounded.codes.bytes().ok_or_else(|| Error::internal("codes of more than eight bits"))?;
        let lo = rounded.codes.lo;
        let less = |n: i32| codes.iter().map(|above| (i32::from(*above) + lo - n) as u8).collect::<Vec<u8>>();
        let pairs = || codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect::<Vec<u8>>();
        let scales = || FloatKind::F32.bytes(&spread(self, spec, params, &params.scale));
        Ok(match self {
            Self::Integers { less: n, zeros, .. } => {
                let mut planes = vec![scales(), less(n)];
                if zeros {
                    let stored: Vec<f32> = params.zero.iter().map(|z| z - n as f32).collect();
                    planes.push(FloatKind::F32.bytes(&spread(self, spec, params, &stored)));
                }
                planes
            }
            Self::Floats { .. } => vec![scales(), less(0)],
            Self::Blocks { less: n, .. } => vec![scales(), less(n)],
            Self::Nibbles { .. } => {
                let minima = minima(spec, params);
                vec![scales(), pairs(), FloatKind::F32.bytes(&spread(self, spec, params, &minima))]
            }
            Self::Fp4 => {
                let exponent = |s: &f32| (PowerRounding::Floor.exponent(f64::from(*s)) + BIAS).clamp(0, 254) as u8;
                vec![spread(self, spec, params, &params.scale).iter().map(exponent).collect(), pairs()]
            }
        })
    }

    /// What readers make of the codes.
    pub(crate) fn held(self, spec: &QuantSpec, rounded: Rounded) -> Held {
        let arithmetic = match self {
            Self::Nibbles { .. } => Arithmetic::Minimum(minima(spec, &rounded.params)),
            _ => Arithmetic::Scaled,
        };
        Held { rounded, arithmetic }
    }

    /// Bits of a weight, with its share of what else is stored.
    pub(crate) fn bits(self, spec: &QuantSpec, shape: (usize, usize)) -> f64 {
        let bytes: f64 =
            self.planes(spec, shape).iter().map(|(_, d, s)| (d.size().unwrap_or(1) * s.iter().product::<usize>() as u64) as f64).sum();
        8.0 * bytes / (shape.0 * shape.1) as f64
    }

    /// Whether `s·(q − lo) + m` is `s·(q − z)` to the last bit: scales of few bits leave room for both products.
    pub(crate) fn exact(self, spec: &QuantSpec) -> bool {
        let short = !matches!(spec.scale, ScaleForm::Float(FloatKind::F32));
        !matches!(self, Self::Nibbles { .. }) || short && spec.grid.zero() != Zero::Float
    }
}

/// Whether there is one scale for all of it.
fn of_tensor(spec: &QuantSpec) -> bool {
    (spec.granularity.rows, spec.granularity.cols) == (Extent::All, Extent::All)
}

/// The columns that share a scale, if that is not all of a row.
fn group(site: &str, spec: &QuantSpec, cols: usize) -> Result<Option<usize>> {
    let Extent::Of(g) = spec.granularity.cols else { return Ok(None) };
    let size = g as usize;
    if !cols.is_multiple_of(size) {
        let nearest = (1..=g).rev().filter(|n| n.is_power_of_two()).find(|n| cols.is_multiple_of(*n as usize)).unwrap_or(1);
        let hint = format!("group {nearest} divides it; or use `--format qfw`, which holds a shorter last group");
        return refuse(site, &format!("group {g} does not divide its {cols} input channels"), &hint);
    }
    Ok((size < cols).then_some(size))
}

fn integers(site: &str, spec: &QuantSpec, cols: usize, size: Option<usize>, rounded: bool) -> Result<Layout> {
    let (lo, hi) = spec.grid.limits();
    let centre = match spec.grid.zero() {
        Zero::None => Some(0),
        Zero::Fixed(z) => Some(z),
        Zero::Integer | Zero::Float => None,
    };
    let signed = centre.filter(|c| lo - c >= -128 && hi - c <= 127);
    let block = size.unwrap_or(cols);
    if spec.bits <= 4 && block.is_multiple_of(2) && !(rounded && size.is_none()) {
        return Ok(Layout::Nibbles { size: block });
    }
    match (size, signed) {
        (Some(size), Some(less)) => Ok(Layout::Blocks { size, less }),
        (Some(_), None) => {
            let why = format!("it holds groups of {} bits without zero points: sharktank's compiled product has none there", spec.bits);
            refuse(site, &why, "set `symmetric = true`, or use uint4, or channel; or `--format qfw`")
        }
        (None, Some(less)) => Ok(Layout::Integers { unsigned: false, less, zeros: false }),
        // Float zero points are not moved, which would round them.
        (None, None) if hi > 127 && spec.grid.zero() == Zero::Float => Ok(Layout::Integers { unsigned: true, less: 0, zeros: true }),
        (None, None) => Ok(Layout::Integers { unsigned: false, less: if hi > 127 { 128 } else { 0 }, zeros: true }),
    }
}

fn fp4(site: &str, spec: &QuantSpec) -> Result<Layout> {
    let power = matches!(spec.scale, ScaleForm::PowerOfTwo { .. });
    if power && spec.granularity.cols == Extent::Of(FP4_RUN) {
        return Ok(Layout::Fp4);
    }
    let why = format!("it holds e2m1 in groups of {FP4_RUN} with powers of two as scales, not {spec}");
    refuse(site, &why, "use mxfp4, or `--format qfw`")
}

/// What codes of 0 stand for, less the smallest code: `s·(lo − z)` of each tile.
fn minima(spec: &QuantSpec, params: &QParams) -> Vec<f32> {
    let lo = spec.grid.limits().0 as f32;
    params.scale.iter().zip(&params.zero).map(|(s, z)| s * (lo - z)).collect()
}

/// One value for each row and block, whatever the height of a tile; a single one where the layout has one for the tensor.
fn spread(layout: Layout, spec: &QuantSpec, params: &QParams, values: &[f32]) -> Vec<f32> {
    let tiles = params.layout;
    let whole = matches!(layout, Layout::Integers { .. } | Layout::Floats { .. });
    if whole && of_tensor(spec) {
        return values[..1].to_vec();
    }
    let row = |row: usize| (0..tiles.cols).step_by(tiles.tile_cols).map(move |column| values[tiles.tile(row, column)]);
    (0..tiles.rows).flat_map(row).collect()
}
