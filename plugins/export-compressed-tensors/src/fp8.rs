//! OCP e4m3 (`float-quantized`): `weight` `F8_E4M3 [out, in]` and `weight_scale` `[1]`, `[out, 1]` or `[⌈out/128⌉, in/128]`.
//! In runs of 32 with powers of two (`mxfp8-quantized`) `weight_scale` is `U8 [out, in/32]`. `ŵ = v(q)·s`. The codes here are the bytes there.

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::checkpoint::{StoredDtype, TensorDecl, TensorSource};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{Extent, FloatGrid, FloatVariant, Grid, QParams, QuantSpec, ScaleForm};
use qfw_core::{Error, Result};

use crate::e8m0;
use crate::layout::{decl, e4m3, scale_dtype, scale_kind};
use crate::read::{bad, scales};

/// Whether a grid is the one that this format has.
pub(crate) fn holds(grid: &Grid) -> bool {
    matches!(grid, Grid::Float(f) if f.shape() == (4, 3) && f.variant() == FloatVariant::Ocp)
}

/// Whether scales are powers of two.
fn powers(spec: &QuantSpec) -> bool {
    matches!(spec.scale, ScaleForm::PowerOfTwo { .. })
}

/// OCP e4m3.
pub(crate) fn grid() -> Result<FloatGrid> {
    FloatGrid::new(4, 3, FloatVariant::Ocp).ok_or_else(|| Error::internal("there is no e4m3"))
}

pub(crate) fn declare(site: &NativeSite) -> Vec<TensorDecl> {
    let (rows, cols) = site.shape;
    let (tile_rows, tile_cols) = site.spec.granularity.layout(rows, cols).grid();
    let scale = if site.spec.granularity.rows == Extent::All { vec![1] } else { vec![tile_rows, tile_cols] };
    let dtype = if powers(&site.spec) { StoredDtype::U8 } else { scale_dtype(&site.spec) };
    vec![decl(&site.module, "weight", e4m3(), vec![rows, cols]), decl(&site.module, "weight_scale", dtype, scale)]
}

pub(crate) fn encode(site: &NativeSite, rounded: &Rounded, suffix: &str) -> Vec<u8> {
    match suffix {
        "weight_scale" if powers(&site.spec) => e8m0::encode(&rounded.params.scale),
        "weight_scale" => scale_kind(&site.spec).bytes(&rounded.params.scale),
        _ => rounded.codes.iter().map(|c| c as u8).collect(),
    }
}

/// Codes and parameters of a module.
pub(crate) fn read(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Rounded> {
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(site.shape.0, site.shape.1);
    let data = tensors.read_bytes(&name("weight"))?;
    if data.len() != site.shape.0 * site.shape.1 {
        return Err(bad(format!("{} codes for {}x{}", data.len(), site.shape.0, site.shape.1)));
    }
    if let Some(at) = data.iter().position(|b| !site.spec.grid.holds(i32::from(*b))) {
        return Err(bad(format!("`{}` is not a number at row {}, column {}", name("weight"), at / site.shape.1, at % site.shape.1)));
    }
    let scale = if powers(&site.spec) {
        let stored = tensors.read_bytes(&name("weight_scale"))?;
        if stored.len() != layout.tiles() {
            return Err(bad(format!("`{}` holds {} values for {} tiles", name("weight_scale"), stored.len(), layout.tiles())));
        }
        e8m0::decode(&stored, &name("weight_scale"))?
    } else {
        scales(tensors, &name("weight_scale"), layout.tiles())?
    };
    let zero = vec![0.0; layout.tiles()];
    Ok(Rounded {
        codes: Codes { lo: 0, data: Units::Narrow(data) },
        params: QParams { layout, scale, zero, global: None },
        group_index: None,
        events: Vec::new(),
    })
}
