//! Reading the weights of a dataset, whoever wrote it.

use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{Dequantized, NativeSite, ReadRounded, VirtualWeight};
use qfw_core::checkpoint::{StoredDtype, TensorSource, groups_of};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{FloatGrid, FloatKind, FloatVariant, Granularity, Grid, PowerRounding, QParams, QuantSpec, ScaleForm, Zero};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::layout::{BIAS, FP4_RUN, FP8};
use crate::model;
use crate::renamed::Renamed;
use crate::stored::{Kind, Planar, Stored, bad};

const F32: ScaleForm = ScaleForm::Float(FloatKind::F32);

/// Presents the tensors of a dataset as those of the model.
pub(crate) fn open(tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
    let (stored, names) = (Stored::of(&*tensors)?, model::names()?);
    let (mut floats, mut weights) = (Vec::new(), Vec::new());
    for (name, kind) in stored.iter() {
        if matches!(kind, Kind::Quantizer { .. }) || shares_embedding(&stored, name, kind) {
            continue;
        }
        let here = names.name_of(name).ok_or_else(|| {
            bad(format!("the dataset has a tensor `{name}`, which no layer of `llama` reads"))
                .hint("weights, biases and `q_input` of its layers can be read")
        })?;
        match kind {
            Kind::Planar(planar) => weights.push(weight(&here, planar, &*tensors).map_err(|e| e.within(format!("`{name}`")))?),
            Kind::Plain(entry) => floats.push((here, entry.clone())),
            Kind::Quantizer { .. } => {}
        }
    }
    // What is no tensor of the model keeps the name that it has in the archive.
    let aside: Vec<String> = tensors.names().into_iter().filter(|n| !floats.iter().any(|(here, _)| here == n)).collect();
    let renamed = Arc::new(Renamed::new(tensors, floats)?);
    Ok(Arc::new(Dequantized::new(renamed, weights).without(aside)))
}

/// Whether a head is made of what the embedding is made of.
fn shares_embedding(stored: &Stored, name: &str, kind: &Kind) -> bool {
    name == "output.weight"
        && match (kind, stored.get("token_embd.weight")) {
            (Kind::Plain(head), Some(Kind::Plain(embedding))) => head == embedding,
            (Kind::Planar(head), Some(Kind::Planar(embedding))) => head == embedding,
            _ => false,
        }
}

/// The planes of a tensor: what of them is read at once, and what is when it is asked for.
#[derive(Clone)]
struct Planes {
    qs: String,
    /// Codes in pairs.
    pairs: bool,
    /// What is added to a byte, as it is stored, so that codes begin at 0.
    flip: u8,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

/// A weight of the model, and how it is read.
fn weight(name: &str, planar: &Planar, tensors: &dyn TensorSource) -> Result<(VirtualWeight, ReadRounded)> {
    let (spec, planes) = match planar.layout.as_str() {
        "TensorScaledLayout" => tensor_scaled(planar, tensors)?,
        "BlockScaledLayout" => block_scaled(planar, tensors)?,
        "BlockScaledI4Layout" => nibbles(planar, tensors)?,
        "BlockScaledFp4Layout" => fp4(planar, tensors)?,
        other => {
            return Err(bad(format!("its `layout_type` is {other}"))
                .hint("`TensorScaledLayout`, `BlockScaledLayout`, and those of `I4` and `Fp4` can be read"));
        }
    };
    let module = name.strip_suffix(".weight").ok_or_else(|| bad(format!("`{name}` has codes, and is no weight")))?.to_owned();
    let site = NativeSite { site: module.clone(), module, shape: planar.shape, transposed: false, spec };
    let hidden = planar.planes.values().cloned().collect();
    let read: ReadRounded = Box::new(move |site, tensors| rounded(site, &planes, tensors));
    Ok((VirtualWeight { site, hidden }, read))
}

fn rounded(site: &NativeSite, planes: &Planes, tensors: &dyn TensorSource) -> Result<Rounded> {
    let mut data = tensors.read_bytes(&planes.qs)?;
    if planes.pairs {
        data = data.into_iter().flat_map(|b| [b & 15, b >> 4]).collect();
    }
    data.iter_mut().for_each(|b| *b ^= planes.flip);
    let codes = Codes { lo: site.spec.grid.limits().0, data: Units::Narrow(data) };
    let (_, cols) = site.shape;
    if let Some(at) = codes.iter().position(|c| !site.spec.grid.holds(c)) {
        return Err(bad(format!("`{}` is not a number at row {}, column {}", planes.qs, at / cols, at % cols)));
    }
    let layout = site.spec.granularity.layout(site.shape.0, cols);
    let params = QParams { layout, scale: planes.scale.clone(), zero: planes.zero.clone(), global: None };
    Ok(Rounded { codes, params, group_index: None, events: Vec::new() })
}

impl Planar {
    fn plane(&self, name: &str) -> Result<&str> {
        self.planes.get(name).map(String::as_str).ok_or_else(|| bad(format!("`raw_tensors` has no `{name}`")))
    }

    /// Columns of a block and the shapes that scales and codes then have. `pairs`: two codes to a byte.
    fn blocks(&self, pairs: bool, tensors: &dyn TensorSource) -> Result<usize> {
        let (qs, (rows, cols)) = (self.plane("qs")?, self.shape);
        let stored = &tensors.require(qs)?.shape;
        let size = stored.last().copied().unwrap_or(0) * if pairs { 2 } else { 1 };
        if size == 0 || *stored != [rows, cols / size, if pairs { size / 2 } else { size }] || cols % size != 0 {
            return Err(bad(format!("`{qs}` has the shape {stored:?}, and is {rows}x{cols} in blocks")));
        }
        tensors.expect_shape(self.plane("d")?, &[rows, cols / size, 1])?;
        Ok(size)
    }
}

/// All numbers of a plane of f32.
fn floats(name: &str, tensors: &dyn TensorSource) -> Result<Vec<f32>> {
    let info = tensors.require(name)?;
    if info.dtype != StoredDtype::F32 {
        let what = format!("`{name}` is of type {}, in which sharktank then computes", info.dtype.name());
        return Err(bad(what).hint("scales of type F32 can be read"));
    }
    let rows = info.shape.first().copied().unwrap_or(1);
    let mut out = Vec::new();
    tensors.read_f32(name, 0..rows, &mut out)?;
    match out.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(bad(format!("`{name}` holds {x}"))),
        None => Ok(out),
    }
}

fn of_bytes(name: &str, tensors: &dyn TensorSource) -> Result<(Grid, u8)> {
    let info = tensors.require(name)?;
    match &info.dtype {
        StoredDtype::I8 => Ok((Grid::Int { lo: -128, hi: 127, zero: Zero::None }, 0x80)),
        StoredDtype::U8 => Ok((Grid::Int { lo: 0, hi: 255, zero: Zero::None }, 0)),
        dtype => {
            let known = FP8.iter().find(|(_, _, ours, _)| *ours == dtype.name());
            let grid = known.and_then(|((exp, man), variant, ..)| FloatGrid::new(*exp, *man, *variant));
            grid.map(|g| (Grid::Float(g), 0)).ok_or_else(|| bad(format!("`{name}` is of type {}, not of one byte", dtype.name())))
        }
    }
}

/// What a grid is called, and its bits.
fn named(grid: &Grid) -> (String, u8) {
    match grid {
        Grid::Float(f) => {
            let (exp, man) = f.shape();
            let variant = if f.variant() == FloatVariant::Fnuz { "fnuz" } else { "ocp" };
            (format!("float-{variant}-e{exp}m{man}"), f.bits())
        }
        grid => {
            let (lo, hi) = grid.limits();
            let bits = (hi - lo + 1).trailing_zeros() as u8;
            (format!("{}int{bits}", if lo < 0 { "" } else { "u" }), bits)
        }
    }
}

fn tensor_scaled(planar: &Planar, tensors: &dyn TensorSource) -> Result<(QuantSpec, Planes)> {
    if let Some(dtype) = planar.metadata.get("dtype").filter(|d| *d != "float32") {
        return Err(bad(format!("its `dtype` is {dtype}, to which sharktank rounds its weights")).hint("weights of float32 can be read"));
    }
    let (qs, d, (rows, cols)) = (planar.plane("qs")?, planar.plane("d")?, planar.shape);
    tensors.expect_shape(qs, &[rows, cols])?;
    let granularity = match tensors.require(d)?.shape[..] {
        [] | [1] | [1, 1] => Granularity::tensor(),
        [n, 1] if n == rows => Granularity::channel(),
        ref other => return Err(bad(format!("`{d}` has the shape {other:?}, and is a scale for the tensor or for each of {rows} rows"))),
    };
    let (mut grid, flip) = of_bytes(qs, tensors)?;
    let scale = floats(d, tensors)?;
    let mut zero = vec![0.0; scale.len()];
    if let Some(m) = planar.planes.get("m") {
        zero = floats(m, tensors)?;
        if zero.len() != scale.len() {
            return Err(bad(format!("`{m}` has {} numbers, and `{d}` has {}", zero.len(), scale.len())));
        }
    }
    if let Grid::Int { zero: kind, lo, hi } = &mut grid {
        *kind = zero_of(&zero, (*lo, *hi));
    } else if zero.iter().any(|z| *z != 0.0) {
        return Err(bad("it has floats with an offset".to_owned()).hint("integers can have one"));
    }
    let (format, bits) = named(&grid);
    let spec = QuantSpec::stored(format, bits, grid, granularity, F32);
    Ok((spec, Planes { qs: qs.to_owned(), pairs: false, flip, scale, zero }))
}

/// What kind of zero points these are.
fn zero_of(zero: &[f32], (lo, hi): (i32, i32)) -> Zero {
    if zero.iter().all(|z| *z == 0.0) {
        Zero::None
    } else if zero.iter().all(|z| z.fract() == 0.0 && (lo as f32..=hi as f32).contains(z)) {
        Zero::Integer
    } else {
        Zero::Float
    }
}

fn block_scaled(planar: &Planar, tensors: &dyn TensorSource) -> Result<(QuantSpec, Planes)> {
    let (qs, size) = (planar.plane("qs")?, planar.blocks(false, tensors)?);
    let (mut grid, flip) = of_bytes(qs, tensors)?;
    let (scale, zero) = offsets(planar, &mut grid, tensors)?;
    let (format, bits) = named(&grid);
    let spec = QuantSpec::stored(format, bits, grid, groups_of(size, planar.shape.1), F32);
    Ok((spec, Planes { qs: qs.to_owned(), pairs: false, flip, scale, zero }))
}

/// Nibbles; those around their middle are `int4`.
fn nibbles(planar: &Planar, tensors: &dyn TensorSource) -> Result<(QuantSpec, Planes)> {
    let (qs, size) = (planar.plane("qs")?, planar.blocks(true, tensors)?);
    let signed =
        planar.metadata.get("signed").and_then(Value::as_bool).ok_or_else(|| bad("`layout_metadata` has no `signed`".to_owned()))?;
    if signed && planar.planes.contains_key("m") {
        return Err(bad("it has signed nibbles with an offset".to_owned()).hint("signed ones without, and unsigned ones can be read"));
    }
    let mut grid = Grid::Int { lo: 0, hi: 15, zero: Zero::None };
    let (scale, mut zero) = offsets(planar, &mut grid, tensors)?;
    if signed || zero.iter().all(|z| *z == 8.0) {
        grid = Grid::Int { lo: -8, hi: 7, zero: Zero::None };
        zero.fill(0.0);
    }
    let (format, bits) = named(&grid);
    let spec = QuantSpec::stored(format, bits, grid, groups_of(size, planar.shape.1), F32);
    Ok((spec, Planes { qs: qs.to_owned(), pairs: true, flip: if signed { 8 } else { 0 }, scale, zero }))
}

/// The scales of blocks, and what `m` of `d·q + m` is as a zero point: `−m/d`.
fn offsets(planar: &Planar, grid: &mut Grid, tensors: &dyn TensorSource) -> Result<(Vec<f32>, Vec<f32>)> {
    let d = planar.plane("d")?;
    let scale = floats(d, tensors)?;
    let Some(m) = planar.planes.get("m") else { return Ok((scale.clone(), vec![0.0; scale.len()])) };
    let Grid::Int { zero: kind, lo, hi } = grid else {
        return Err(bad("it has floats with an offset".to_owned()).hint("integers can have one"));
    };
    tensors.expect_shape(m, &tensors.require(d)?.shape)?;
    let minima = floats(m, tensors)?;
    if let Some(i) = (0..scale.len()).find(|i| scale[*i] == 0.0 && minima[*i] != 0.0) {
        return Err(bad(format!("block {i} has a scale of 0 and an offset of {}", minima[i])));
    }
    let zero: Vec<f32> = scale.iter().zip(&minima).map(|(s, m)| zero_point(*s, *m)).collect();
    *kind = zero_of(&zero, (*lo, *hi));
    Ok((scale, zero))
}

/// `−m/s`: the integer that `m` was made of, if it was.
fn zero_point(s: f32, m: f32) -> f32 {
    if s == 0.0 {
        return 0.0;
    }
    let z = -m / s;
    if s * -z.round() == m { z.round() } else { z }
}

fn fp4(planar: &Planar, tensors: &dyn TensorSource) -> Result<(QuantSpec, Planes)> {
    let (qs, d) = (planar.plane("qs")?, planar.plane("d")?);
    let (size, powers) = (planar.metadata.get("block_size"), planar.metadata.get("use_fe8m0_scale"));
    if planar.blocks(true, tensors)? != FP4_RUN as usize
        || tensors.require(d)?.dtype != StoredDtype::U8
        || powers == Some(&Value::Bool(false))
    {
        let what = format!("it has e2m1 in blocks of {size:?} with scales of type {}", tensors.require(d)?.dtype.name());
        return Err(bad(what).hint("mxfp4 can be read: blocks of 32 with exponents"));
    }
    let exponents = tensors.read_bytes(d)?;
    if exponents.contains(&u8::MAX) {
        return Err(bad(format!("`{d}` holds a scale that is not a number")));
    }
    let scale: Vec<f32> = exponents.iter().map(|e| 2f64.powi(i32::from(*e) - BIAS) as f32).collect();
    let grid = FloatGrid::new(2, 1, FloatVariant::Ocp).map(Grid::Float).ok_or_else(|| Error::internal("there is no e2m1"))?;
    let form = ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 2 };
    let spec = QuantSpec::stored("mxfp4", 4, grid, Granularity::group(FP4_RUN), form);
    let zero = vec![0.0; scale.len()];
    Ok((spec, Planes { qs: qs.to_owned(), pairs: true, flip: 0, scale, zero }))
}
