//! Inputs of linears that are rounded with a fixed scale: a `StaticScaledQuantizer` under the name of the layer and `q_input`.
//!
//! Its entries are `rscale`, which is `s`, and `scale`, `1/s`, both `F32 []`; `x̂ = s·round(x/s)`, clamped to the numbers of `dtype`. An `offset` is
//! read and not written: the product of sharktank that corrects for it sums weights over the wrong axis, which ends with an error, or,
//! where the matrix is square, with other numbers.

use std::collections::BTreeMap;

use qfw_core::checkpoint::{StoredActivation, StoredDtype, TensorSource};
use qfw_core::plan::PlannedActivation;
use qfw_core::scheme::{
    Extent, FloatGrid, FloatKind, FloatVariant, Granularity, Grid, QParams, QuantSpec, ScaleForm, TileLayout, Timing, Zero,
};
use qfw_core::topology::{Place, Topology};
use qfw_core::{Error, Result};

use crate::layout::FP8;
use crate::model;
use crate::stored::{Kind, Stored, bad};

/// What follows the name of a layer.
pub(crate) const INPUT: &str = "q_input";

const NEAREST: &str = "use int8 or fp8 with `timing = \"static\"` and tensor, or `--format qfw`";

fn refuse<T>(a: &PlannedActivation, why: &str, hint: &str) -> Result<T> {
    Err(Error::plan("plan::container", format!("`{}`: {why}", a.place)).hint(hint))
}

/// Whether what a module reads is rounded.
pub(crate) fn rounded(activations: &[PlannedActivation], module: &str) -> bool {
    activations.iter().any(|a| a.part == "inputs" && a.modules.iter().any(|m| m == module))
}

/// Refuses what there is no quantizer for.
///
/// # Errors
/// If this is such a thing.
pub(crate) fn check(a: &PlannedActivation) -> Result<()> {
    if a.part != "inputs" {
        let hint = format!("leave `scheme.{}` out, or use `--format onnx` or `qfw`", a.part);
        return refuse(a, &format!("it holds rounded inputs of linears, and this is {} ({})", a.part, a.spec), &hint);
    }
    if a.spec.timing != Timing::Static {
        let why = format!("sharktank rounds inputs with scales that are fixed, not {}", a.spec);
        return refuse(a, &why, "set `scheme.inputs.timing = \"static\"`, or use `--format compressed-tensors` or `qfw`");
    }
    if (a.spec.granularity.rows, a.spec.granularity.cols) != (Extent::All, Extent::All) {
        return refuse(a, &format!("its inputs have one scale, not one for each {}", a.spec.granularity), NEAREST);
    }
    if matches!(a.spec.grid.zero(), Zero::Integer | Zero::Float) {
        let why = "sharktank's product of integers corrects for zero points of inputs along the wrong axis";
        return refuse(a, why, "set `scheme.inputs.symmetric = true`, or use `--format onnx` or `qfw`");
    }
    if !matches!(a.spec.scale, ScaleForm::Float(_) | ScaleForm::PowerOfTwo { .. }) {
        return refuse(a, &format!("its inputs have a scale, not {}", a.spec), NEAREST);
    }
    dtype(&a.spec)
        .map(|_| ())
        .ok_or(())
        .or_else(|()| refuse(a, &format!("it holds inputs of 8 bits that use every code, or e4m3, not {}", a.spec), NEAREST))
}

/// The `dtype` of a quantizer.
pub(crate) fn dtype(spec: &QuantSpec) -> Option<&'static str> {
    match &spec.grid {
        Grid::Int { lo: -128, hi: 127, .. } => Some("int8"),
        Grid::Float(f) if f.shape() == (4, 3) => {
            FP8.iter().find(|(shape, variant, ..)| (*shape, *variant) == (f.shape(), f.variant())).map(|(.., name)| *name)
        }
        _ => None,
    }
}

/// The two entries of a quantizer and their numbers.
pub(crate) fn numbers(params: &QParams) -> Result<[(&'static str, f32); 2]> {
    let s = *params.scale.first().ok_or_else(|| Error::internal("an input without a scale"))?;
    Ok([("scale", 1.0 / s), ("rscale", s)])
}

/// A module that reads a place, and how it rounds what it reads.
type Reader<'a> = (&'a str, Option<(QuantSpec, QParams)>);

/// What the linears of a stored model read rounded. One place is rounded once for all that read it, so these have to agree.
///
/// # Errors
/// If they do not, or a quantizer is none of those above.
pub(crate) fn read(tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
    let (stored, names) = (Stored::of(tensors)?, model::names()?);
    let mut at: BTreeMap<Place, Vec<Reader<'_>>> = BTreeMap::new();
    for l in &topology.linears {
        let Some((name, _)) = names.place(&format!("{}.weight", l.module)) else { continue };
        let quantizer = name.strip_suffix("weight").and_then(|stem| stored.get(&format!("{stem}{INPUT}")));
        let rounding = quantizer.map(|q| quantizer_of(&l.module, q, tensors)).transpose()?;
        at.entry(Place { block: l.site.block, port: l.input }).or_default().push((&l.module, rounding));
    }
    let mut out = Vec::new();
    for (place, readers) in at {
        let Some((first, rounding)) = readers.first() else { continue };
        if let Some((other, _)) = readers.iter().find(|(_, r)| r != rounding) {
            let what = format!("`{first}` and `{other}` read the same tensor, and round it differently");
            return Err(bad(what).hint("such a checkpoint cannot be evaluated here"));
        }
        if let Some((spec, params)) = rounding {
            let modules = readers.iter().map(|(module, _)| (*module).to_owned()).collect();
            let planned = PlannedActivation { place, part: "inputs".to_owned(), modules, spec: spec.clone() };
            out.push(StoredActivation { planned, params: Some(params.clone()) });
        }
    }
    Ok(out)
}

fn quantizer_of(module: &str, kind: &Kind, tensors: &dyn TensorSource) -> Result<(QuantSpec, QParams)> {
    let Kind::Quantizer { rscale, offset, dtype } = kind else {
        return Err(bad(format!("`{INPUT}` of `{module}` is no quantizer with a fixed scale")));
    };
    let mut scale = Vec::new();
    tensors.expect_shape(rscale, &[])?;
    tensors.read_f32(rscale, 0..1, &mut scale)?;
    if scale.iter().any(|s| !s.is_finite() || *s == 0.0) {
        return Err(bad(format!("`{rscale}` holds {scale:?}")));
    }
    let zero = offset.as_ref().map(|name| byte(name, tensors)).transpose()?;
    let grid = match dtype.as_str() {
        "int8" => Grid::Int { lo: -128, hi: 127, zero: if zero.is_some() { Zero::Integer } else { Zero::None } },
        "float8_e4m3fn" if zero.is_none() => e4m3(FloatVariant::Ocp)?,
        "float8_e4m3fnuz" if zero.is_none() => e4m3(FloatVariant::Fnuz)?,
        other => return Err(bad(format!("`{INPUT}` of `{module}` rounds to {other}")).hint("int8 and e4m3 without an offset can be read")),
    };
    let format = if dtype == "int8" {
        "int8"
    } else if dtype.ends_with("fnuz") {
        "float-fnuz-e4m3"
    } else {
        "float-ocp-e4m3"
    };
    let spec = QuantSpec::stored(format, 8, grid, Granularity::tensor(), ScaleForm::Float(FloatKind::F32));
    let layout = TileLayout { rows: 1, cols: 1, tile_rows: 1, tile_cols: 1 };
    Ok((spec, QParams { layout, scale, zero: vec![zero.unwrap_or(0.0)], global: None }))
}

fn e4m3(variant: FloatVariant) -> Result<Grid> {
    FloatGrid::new(4, 3, variant).map(Grid::Float).ok_or_else(|| Error::internal("there is no e4m3"))
}

/// A signed byte.
fn byte(name: &str, tensors: &dyn TensorSource) -> Result<f32> {
    let info = tensors.expect_shape(name, &[])?;
    match (&info.dtype, &tensors.read_bytes(name)?[..]) {
        (StoredDtype::I8, [b]) => Ok(f32::from(*b as i8)),
        (dtype, _) => Err(bad(format!("`{name}` is of type {}, not a signed byte", dtype.name()))),
    }
}
