//! Integers.
//!
//! * `pack-quantized`: `weight_packed` `I32 [out, ⌈in·b/32⌉]`, `weight_scale` `[out, tiles]`, `weight_shape` `I64 [2]`; affine also
//!   `weight_zero_point` `I32 [⌈out·b/32⌉, tiles]`. Codes and zero points are stored as `q + 2^(b−1)`, little-endian bit streams in
//!   32-bit words, codes along the row, zero points *down the column*.
//! * `int-quantized`: `weight` `I8 [out, in]` and `weight_scale`, affine also `weight_zero_point` `I8`.
//!
//! `ŵ = (q − z)·s`. Since compressed-tensors 0.18 streams have no gaps; readers before it put `⌊32/b⌋` codes in each word, which is the same
//! for 2, 4 and 8 bits only. Other widths are written as since 0.18, which the version in `config.json` says, and refused for their shapes by
//! readers before it. Both are read.

use qfw_core::Result;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::checkpoint::{StoredDtype, TensorDecl, TensorSource};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{Extent, Grid, QParams, QuantSpec, Zero};

use crate::layout::{decl, scale_dtype, scale_kind};
use crate::pack::{pack_columns, pack_rows, unpack, unpack_columns};
use crate::read::{bad, scales};

/// Whether each tile has a zero point.
pub(crate) fn affine(spec: &QuantSpec) -> bool {
    spec.grid.zero() == Zero::Integer
}

pub(crate) fn declare(site: &NativeSite, packed: bool) -> Vec<TensorDecl> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits as usize);
    let (tile_rows, tile_cols) = site.spec.granularity.layout(rows, cols).grid();
    let scale_shape = if site.spec.granularity.rows == Extent::All { vec![1] } else { vec![tile_rows, tile_cols] };
    let decl = |suffix: &str, dtype, shape| decl(&site.module, suffix, dtype, shape);
    let mut out = Vec::new();
    if packed {
        out.push(decl("weight_packed", StoredDtype::I32, vec![rows, (cols * bits).div_ceil(32)]));
        out.push(decl("weight_shape", StoredDtype::I64, vec![2]));
    } else {
        out.push(decl("weight", StoredDtype::I8, vec![rows, cols]));
    }
    out.push(decl("weight_scale", scale_dtype(&site.spec), scale_shape.clone()));
    if affine(&site.spec) {
        out.push(if packed {
            decl("weight_zero_point", StoredDtype::I32, vec![(tile_rows * bits).div_ceil(32), tile_cols])
        } else {
            decl("weight_zero_point", StoredDtype::I8, scale_shape)
        });
    }
    out
}

pub(crate) fn encode(site: &NativeSite, rounded: &Rounded, suffix: &str, packed: bool) -> Vec<u8> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let half = 1i32 << (bits - 1);
    // A format stored unsigned has its codes where the packed form wants them already.
    let shift = unsigned_shift(&site.spec);
    let unsigned = || -> Vec<u8> { rounded.codes.iter().map(|c| (c + shift) as u8).collect() };
    let zeros = || -> Vec<u8> { rounded.params.zero.iter().map(|z| (*z as i32 + shift) as u8).collect() };
    let (tile_rows, tile_cols) = rounded.params.layout.grid();
    match suffix {
        "weight_packed" => pack_rows(&unsigned(), cols, bits),
        "weight_shape" => [rows as i64, cols as i64].iter().flat_map(|d| d.to_le_bytes()).collect(),
        "weight_scale" => scale_kind(&site.spec).bytes(&rounded.params.scale),
        "weight_zero_point" if packed => pack_columns(&zeros(), tile_rows, tile_cols, bits),
        "weight_zero_point" => signed(&zeros(), half),
        _ => signed(&unsigned(), half),
    }
}

/// What makes codes of a format start at 0.
pub(crate) fn unsigned_shift(spec: &QuantSpec) -> i32 {
    if spec.grid.limits().0 < 0 { 1 << (spec.bits - 1) } else { 0 }
}

/// What makes codes of a format lie around 0.
pub(crate) fn signed_shift(spec: &QuantSpec) -> i32 {
    unsigned_shift(spec) - (1 << (spec.bits - 1))
}

fn signed(unsigned: &[u8], half: i32) -> Vec<u8> {
    unsigned.iter().map(|u| (i32::from(*u) - half) as u8).collect()
}

/// The grid of `b`-bit integers.
pub(crate) fn grid(bits: u8, symmetric: bool) -> Grid {
    let half = 1 << (bits - 1);
    Grid::Int { lo: -half, hi: half - 1, zero: if symmetric { Zero::None } else { Zero::Integer } }
}

/// The shape that `weight_shape` states.
pub(crate) fn packed_shape(tensors: &dyn TensorSource, module: &str) -> Result<(usize, usize)> {
    let name = format!("{module}.weight_shape");
    let bytes = tensors.read_bytes(&name)?;
    let info = tensors.info(&name).ok_or_else(|| bad(format!("there is no `{name}`")))?;
    let dims: Vec<usize> = match info.dtype {
        StoredDtype::I64 => {
            bytes.chunks_exact(8).map(|c| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]) as usize).collect()
        }
        StoredDtype::I32 => bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]) as usize).collect(),
        _ => Vec::new(),
    };
    match dims[..] {
        [rows, cols] if rows.checked_mul(cols).is_some_and(|n| n > 0 && n < 1 << 40) => Ok((rows, cols)),
        _ => Err(bad(format!("`{name}` holds {dims:?}, which is no shape"))),
    }
}

/// Codes and parameters of a module.
pub(crate) fn read(site: &NativeSite, packed: bool, tensors: &dyn TensorSource) -> Result<Rounded> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let half = 1i32 << (bits - 1);
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(rows, cols);
    let tile_cols = layout.grid().1;
    let data = if packed {
        let bytes = tensors.read_bytes(&name("weight_packed"))?;
        let words = bytes.len() / 4 / rows;
        let padded = padded(words, cols, bits, &name("weight_packed"))?;
        let mut data = Vec::with_capacity(rows * cols);
        for row in bytes.chunks_exact(words * 4) {
            data.extend(unpack(row, cols, bits, padded)?);
        }
        data
    } else {
        let bytes = tensors.read_bytes(&name("weight"))?;
        if let Some(b) = bytes.iter().find(|b| !(-half..half).contains(&i32::from(**b as i8))) {
            return Err(bad(format!("`{}` holds the code {}, which is none of {bits} bits", name("weight"), *b as i8)));
        }
        bytes.into_iter().map(|b| (i32::from(b as i8) + half) as u8).collect()
    };
    if data.len() != rows * cols {
        return Err(bad(format!("{} codes for {rows}x{cols}", data.len())));
    }
    let scale = scales(tensors, &name("weight_scale"), layout.tiles())?;
    let zero = if site.spec.symmetric { vec![0.0; layout.tiles()] } else { zeros(site, tensors)? };
    let group_index = match tensors.info(&name("weight_g_idx")) {
        Some(_) => {
            let bytes = tensors.read_bytes(&name("weight_g_idx"))?;
            let index: Vec<u32> = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
            // An index of -1 throughout means "not used" to some writers.
            if index.len() != cols || index.iter().any(|g| *g as usize >= tile_cols) { None } else { Some(index) }
        }
        None => None,
    };
    Ok(Rounded {
        codes: Codes { lo: -half, data: Units::Narrow(data) },
        params: QParams { layout, scale, zero, global: None },
        group_index,
        events: Vec::new(),
    })
}

fn zeros(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Vec<f32>> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let half = 1i32 << (bits - 1);
    let layout = site.spec.granularity.layout(rows, cols);
    let (tile_rows, tile_cols) = layout.grid();
    let name = format!("{}.weight_zero_point", site.module);
    let info = tensors.info(&name).ok_or_else(|| bad(format!("there is no `{name}`")))?;
    let bytes = tensors.read_bytes(&name)?;
    let unsigned = if info.dtype == StoredDtype::I8 {
        bytes.into_iter().map(|b| (i32::from(b as i8) + half) as u8).collect()
    } else {
        let padded = padded(bytes.len() / 4 / tile_cols, tile_rows, bits, &name)?;
        unpack_columns(&bytes, tile_rows, tile_cols, bits, padded)?
    };
    if unsigned.len() != layout.tiles() {
        return Err(bad(format!("`{name}` holds {} values for {} tiles", unsigned.len(), layout.tiles())));
    }
    Ok(unsigned.into_iter().map(|u: u8| (i32::from(u) - half) as f32).collect())
}

/// Whether `words` 32-bit words hold `n` codes in the padded layout rather than the dense one.
fn padded(words: usize, n: usize, bits: u8, name: &str) -> Result<bool> {
    if words == (n * bits as usize).div_ceil(32) {
        Ok(false)
    } else if words == n.div_ceil(32 / bits as usize) {
        Ok(true)
    } else {
        Err(bad(format!("`{name}` has {words} words for {n} codes of {bits} bits")))
    }
}
