//! Weights.

use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{Dequantized, NativeSite, ReadRounded, VirtualWeight};
use qfw_core::checkpoint::{StoredDtype, TensorSource};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{FloatGrid, FloatKind, FloatVariant, Granularity, Grid, QParams, QuantSpec, ScaleForm};
use qfw_core::{Error, Result};

use crate::bad;
use crate::said::Said;

/// Elements of a run of nvfp4.
pub(crate) const RUN: u32 = 16;

/// What the tensors of a module are called, but for the weight.
const SUFFIXES: [&str; 4] = ["weight_scale_inv", "weight_scale", "weight_scale_2", "input_scale"];

/// What scales of keys and values end in.
pub(crate) const CACHE: [&str; 2] = ["k_scale", "v_scale"];

/// How the weight of a module is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    E4m3,
    E2m1,
}

/// OCP e4m3 (`exponents` 4) or e2m1 (2).
pub(crate) fn floats(exponents: u8, mantissas: u8) -> Result<FloatGrid> {
    FloatGrid::new(exponents, mantissas, FloatVariant::Ocp).ok_or_else(|| Error::internal("there is no such float"))
}

/// How the weight of a module is stored, if it is quantized.
pub(crate) fn stored(tensors: &dyn TensorSource, module: &str) -> Result<Option<Stored>> {
    let name = format!("{module}.weight");
    let Some(info) = tensors.info(&name) else { return Ok(None) };
    match &info.dtype {
        StoredDtype::Other(name) if name == "F8_E4M3" => Ok(Some(Stored::E4m3)),
        StoredDtype::U8 if tensors.info(&format!("{module}.weight_scale_2")).is_some() => Ok(Some(Stored::E2m1)),
        StoredDtype::Other(other) if other.starts_with("F8_") => {
            Err(bad(format!("`{name}` is {other}")).hint("weights in F8_E4M3 can be read"))
        }
        _ => Ok(None),
    }
}

/// Presents the weights as floats.
///
/// # Errors
/// If a tensor is missing or malformed, or nothing is quantized.
pub(crate) fn open(said: &Said, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
    let mut weights = Vec::new();
    for name in tensors.names() {
        let Some(module) = name.strip_suffix(".weight") else { continue };
        let Some(kind) = stored(&*tensors, module)? else { continue };
        let site = site(said, kind, &*tensors, module)?;
        let hidden = SUFFIXES.map(|s| format!("{module}.{s}")).into_iter().chain([name.clone()]).collect();
        let read: ReadRounded = Box::new(move |site, tensors| match kind {
            Stored::E4m3 => e4m3(site, tensors),
            Stored::E2m1 => e2m1(site, tensors),
        });
        weights.push((VirtualWeight { site, hidden }, read));
    }
    if weights.is_empty() {
        return Err(bad("config.json says fp8, but no weight is F8_E4M3 or nvfp4".to_owned())
            .hint("are the weights and the configuration of the same checkpoint?"));
    }
    let cache: Vec<String> = tensors.names().into_iter().filter(|n| CACHE.iter().any(|c| n.ends_with(&format!(".{c}")))).collect();
    Ok(Arc::new(Dequantized::new(tensors, weights).without(cache)))
}

fn site(said: &Said, kind: Stored, tensors: &dyn TensorSource, module: &str) -> Result<NativeSite> {
    let name = format!("{module}.weight");
    let shape = match tensors.require(&name)?.shape[..] {
        [rows, cols] if rows > 0 && cols > 0 => (rows, if kind == Stored::E2m1 { 2 * cols } else { cols }),
        ref other => return Err(bad(format!("`{name}` has shape {other:?}, not two axes"))),
    };
    let spec = match kind {
        Stored::E2m1 => {
            let form = ScaleForm::TwoLevel;
            QuantSpec::stored("nvfp4", 4, Grid::Float(floats(2, 1)?), Granularity::group(RUN), form)
        }
        Stored::E4m3 => QuantSpec::stored("float-ocp-e4m3", 8, Grid::Float(floats(4, 3)?), tiles(said, tensors, module, shape)?, F32),
    };
    let site = NativeSite { site: module.to_owned(), module: module.to_owned(), shape, transposed: false, spec };
    let scale = scale_name(&site, tensors);
    let (rows, cols) = site.spec.granularity.layout(shape.0, shape.1).grid();
    let there = &tensors.require(&scale)?.shape;
    if there.iter().product::<usize>() != rows * cols || (cols > 1 && *there != [rows, cols]) {
        return Err(bad(format!("`{scale}` has shape {there:?}, but {} asks for [{rows}, {cols}]", site.spec))
            .hint("does `quantization_config` belong to these weights?"));
    }
    Ok(site)
}

/// Which weights share a scale.
fn tiles(said: &Said, tensors: &dyn TensorSource, module: &str, shape: (usize, usize)) -> Result<Granularity> {
    let name = |suffix: &str| format!("{module}.{suffix}");
    if tensors.info(&name("weight_scale_inv")).is_some() {
        let Some((rows, cols)) = said.block else {
            return Err(bad(format!("there is `{}`, but no `weight_block_size` that says of what", name("weight_scale_inv"))));
        };
        return Ok(Granularity::block(rows, cols));
    }
    match tensors.require(&name("weight_scale"))?.shape[..] {
        [] | [1] | [1, 1] => Ok(Granularity::tensor()),
        [rows] | [rows, 1] if rows == shape.0 => Ok(Granularity::channel()),
        // Blocks of weights alone are stored with an axis between those of blocks.
        ref other => {
            Err(bad(format!("`{}` has shape {other:?}, which is neither one scale nor one for each output", name("weight_scale"))))
        }
    }
}

fn scale_name(site: &NativeSite, tensors: &dyn TensorSource) -> String {
    let inverse = format!("{}.weight_scale_inv", site.module);
    if tensors.info(&inverse).is_some() { inverse } else { format!("{}.weight_scale", site.module) }
}

/// Scales as floats of 32 bits.
pub(crate) const F32: ScaleForm = ScaleForm::Float(FloatKind::F32);

/// The floats of a tensor of any shape, all of them finite.
///
/// # Errors
/// If it is missing, or one is not.
pub(crate) fn numbers(tensors: &dyn TensorSource, name: &str) -> Result<Vec<f32>> {
    let rows = tensors.require(name)?.shape.first().copied().unwrap_or(1);
    let mut out = Vec::new();
    tensors.read_f32(name, 0..rows, &mut out)?;
    match out.iter().find(|s| !s.is_finite()) {
        Some(s) => Err(bad(format!("`{name}` holds {s}"))),
        None => Ok(out),
    }
}

fn e4m3(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Rounded> {
    let (rows, cols) = site.shape;
    let name = format!("{}.weight", site.module);
    let codes = tensors.read_bytes(&name)?;
    if let Some(at) = codes.iter().position(|b| !site.spec.grid.holds(i32::from(*b))) {
        return Err(bad(format!("`{name}` is not a number at row {}, column {}", at / cols, at % cols)));
    }
    let scale = numbers(tensors, &scale_name(site, tensors))?;
    rounded(site, codes, scale, None, (rows, cols))
}

fn e2m1(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Rounded> {
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let grid = floats(4, 3)?;
    let whole = numbers(tensors, &name("weight_scale_2"))?;
    let [whole] = whole[..] else { return Err(bad(format!("`{}` holds {} numbers, not one", name("weight_scale_2"), whole.len()))) };
    // The factor divides in the formats that have it, and multiplies here.
    let global = 1.0 / whole;
    let local = tensors.read_bytes(&name("weight_scale"))?;
    if !(global.is_finite() && global > 0.0) || local.iter().any(|s| !grid.holds(u32::from(*s))) {
        return Err(bad(format!("`{}` and `{}` hold no sound scales", name("weight_scale"), name("weight_scale_2"))));
    }
    let scale = local.iter().map(|s| grid.value(u32::from(*s)) / global).collect();
    let codes = tensors.read_bytes(&name("weight"))?.into_iter().flat_map(|b| [b & 15, b >> 4]).collect();
    rounded(site, codes, scale, Some(global), site.shape)
}

fn rounded(site: &NativeSite, codes: Vec<u8>, scale: Vec<f32>, global: Option<f32>, (rows, cols): (usize, usize)) -> Result<Rounded> {
    let layout = site.spec.granularity.layout(rows, cols);
    if codes.len() != rows * cols || scale.len() != layout.tiles() {
        return Err(bad(format!("`{}` holds {} codes and {} scales for {rows}x{cols}", site.module, codes.len(), scale.len())));
    }
    let zero = vec![0.0; scale.len()];
    Ok(Rounded {
        codes: Codes { lo: 0, data: Units::Narrow(codes) },
        params: QParams { layout, scale, zero, global },
        group_index: None,
        events: Vec::new(),
    })
}
