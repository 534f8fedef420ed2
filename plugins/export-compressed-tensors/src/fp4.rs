//! e2m1 in runs with small scales. Two codes a byte, the first in the low bits: `weight_packed` `U8 [out, in/2]`.
//!
//! * `nvfp4-pack-quantized`: `weight_scale` `F8_E4M3 [out, in/16]` and `weight_global_scale` `F32 [1]`; `ŵ = v(q)·s/g`.
//! * `mxfp4-pack-quantized`: `weight_scale` `U8 [out, in/32]`; `ŵ = v(q)·2^(s − 127)`.

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::checkpoint::{StoredDtype, TensorDecl, TensorSource};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{FloatGrid, FloatVariant, Grid, QParams, ScaleForm};
use qfw_core::{Error, Result};

use crate::layout::{decl, e4m3};
use crate::read::{bad, scales};
use crate::{e8m0, fp8};

/// Columns of a run of nvfp4.
pub(crate) const NV_RUN: u32 = 16;
/// Columns of a run of mxfp4 and mxfp8.
pub(crate) const MX_RUN: u32 = 32;

/// Whether a grid is the one that these formats have.
pub(crate) fn holds(grid: &Grid) -> bool {
    matches!(grid, Grid::Float(f) if f.shape() == (2, 1) && f.variant() != FloatVariant::Fnuz)
}

/// e2m1.
pub(crate) fn grid() -> Result<FloatGrid> {
    FloatGrid::new(2, 1, FloatVariant::Ocp).ok_or_else(|| Error::internal("there is no e2m1"))
}

pub(crate) fn declare(site: &NativeSite) -> Vec<TensorDecl> {
    let (rows, cols) = site.shape;
    let (tile_rows, tile_cols) = site.spec.granularity.layout(rows, cols).grid();
    let decl = |suffix: &str, dtype, shape| decl(&site.module, suffix, dtype, shape);
    let two_level = site.spec.scale == ScaleForm::TwoLevel;
    let scale = if two_level { e4m3() } else { StoredDtype::U8 };
    let mut out =
        vec![decl("weight_packed", StoredDtype::U8, vec![rows, cols / 2]), decl("weight_scale", scale, vec![tile_rows, tile_cols])];
    if two_level {
        out.push(decl("weight_global_scale", StoredDtype::F32, vec![1]));
    }
    out
}

pub(crate) fn encode(rounded: &Rounded, suffix: &str) -> Result<Vec<u8>> {
    let params = &rounded.params;
    Ok(match (suffix, params.global) {
        ("weight_packed", _) => {
            let codes: Vec<u8> = rounded.codes.iter().map(|c| c as u8).collect();
            codes.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect()
        }
        ("weight_global_scale", global) => global.unwrap_or(1.0).to_le_bytes().to_vec(),
        (_, Some(global)) => {
            // A scale is a quotient whose numerator is an e4m3 number: rounding to those undoes the rounding of the division.
            let grid = fp8::grid()?;
            params.scale.iter().map(|s| grid.code(s * global) as u8).collect()
        }
        (_, None) => e8m0::encode(&params.scale),
    })
}

/// Codes and parameters of a module.
pub(crate) fn read(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Rounded> {
    let (rows, cols) = site.shape;
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(rows, cols);
    let packed = tensors.read_bytes(&name("weight_packed"))?;
    let stored = tensors.read_bytes(&name("weight_scale"))?;
    if packed.len() * 2 != rows * cols || stored.len() != layout.tiles() {
        return Err(bad(format!(
            "{} bytes of codes and {} scales for {rows}x{cols} in {} runs",
            packed.len(),
            stored.len(),
            layout.tiles()
        )));
    }
    let (scale, global): (Vec<f32>, _) = if site.spec.scale == ScaleForm::TwoLevel {
        let global = scales(tensors, &name("weight_global_scale"), 1)?[0];
        let grid = fp8::grid()?;
        if global <= 0.0 || stored.iter().any(|s| !grid.holds(u32::from(*s))) {
            return Err(bad(format!("`{}` holds no sound scales", name("weight_scale"))));
        }
        (stored.iter().map(|s| grid.value(u32::from(*s)) / global).collect(), Some(global))
    } else {
        (e8m0::decode(&stored, &name("weight_scale"))?, None)
    };
    let data = packed.into_iter().flat_map(|b| [b & 15, b >> 4]).collect();
    let zero = vec![0.0; layout.tiles()];
    Ok(Rounded {
        codes: Codes { lo: 0, data: Units::Narrow(data) },
        params: QParams { layout, scale, zero, global },
        group_index: None,
        events: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use qfw_core::scheme::Granularity;

    use super::*;

    fn rounded(codes: Vec<u8>, run: u32, scale: Vec<f32>, global: Option<f32>) -> Rounded {
        let layout = Granularity::group(run).layout(1, codes.len());
        let zero = vec![0.0; scale.len()];
        let params = QParams { layout, scale, zero, global };
        Rounded { codes: Codes { lo: 0, data: Units::Narrow(codes) }, params, group_index: None, events: Vec::new() }
    }

    #[test]
    fn bytes_are_those_written_by_hand() {
        let codes: Vec<u8> = (0..32).map(|i| i % 16).collect();
        // Local scales 448 and 0.125 = 2^-3: exponent field 4, no mantissa.
        let nv = rounded(codes.clone(), NV_RUN, vec![448.0 / 3.0, 0.125 / 3.0], Some(3.0));
        assert_eq!(encode(&nv, "weight_packed").unwrap()[..3], [0x10, 0x32, 0x54]);
        assert_eq!(encode(&nv, "weight_scale").unwrap(), [0x7e, 0x20]);
        assert_eq!(encode(&nv, "weight_global_scale").unwrap(), 3f32.to_le_bytes());
        let mx = rounded(codes, MX_RUN, vec![0.25], None);
        assert_eq!(encode(&mx, "weight_scale").unwrap(), [125]);
    }

    #[test]
    fn every_local_scale_survives_the_division() {
        let grid = fp8::grid().unwrap();
        for global in [1.0f32, 0.37, 1234.567, 3.0e-5] {
            let stored: Vec<u8> = (1..=0x7e).collect();
            let scale = stored.iter().map(|s| grid.value(u32::from(*s)) / global).collect();
            assert_eq!(encode(&rounded(vec![0; 126 * 16], NV_RUN, scale, Some(global)), "weight_scale").unwrap(), stored);
        }
    }
}
