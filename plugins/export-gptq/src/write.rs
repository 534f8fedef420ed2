//! Writing tensors.

use qfw_core::Result;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{ContainerWriter, StoredDtype, TensorDecl};
use qfw_core::numeric::pack_row;
use qfw_core::scheme::{FloatKind, QuantSpec};

use crate::Version;
use crate::words::pack_down;

/// What the tensors of a module are called, in the order in which they are stored.
pub(crate) const SUFFIXES: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// What makes codes of a format start at 0.
pub(crate) fn shift(spec: &QuantSpec) -> i32 {
    if spec.grid.limits().0 < 0 { 1 << (spec.bits - 1) } else { 0 }
}

pub(crate) fn declare(native: &NativeReader) -> Vec<TensorDecl> {
    let mut out: Vec<TensorDecl> = native.sites.iter().flat_map(declare_module).collect();
    out.extend(native.plain().into_iter().map(|i| TensorDecl { name: i.name.clone(), dtype: i.dtype.clone(), shape: i.shape.clone() }));
    out
}

fn declare_module(site: &NativeSite) -> [TensorDecl; 4] {
    let ((rows, cols), bits) = (site.shape, site.spec.bits as usize);
    let groups = site.spec.granularity.layout(rows, cols).grid().1;
    SUFFIXES.map(|suffix| {
        let (dtype, shape) = match suffix {
            "qweight" => (StoredDtype::I32, vec![cols * bits / 32, rows]),
            "qzeros" => (StoredDtype::I32, vec![groups, rows * bits / 32]),
            "scales" => (StoredDtype::F16, vec![groups, rows]),
            _ => (StoredDtype::I32, vec![cols]),
        };
        TensorDecl { name: format!("{}.{suffix}", site.module), dtype, shape }
    })
}

pub(crate) fn write(version: Version, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
    for site in &native.sites {
        let rounded = native.rounded(site)?;
        let tensors = encode(version, site, &rounded).map_err(|e| e.within(format!("`{}`", site.site)))?;
        for (suffix, bytes) in SUFFIXES.iter().zip(&tensors) {
            out.write(&format!("{}.{suffix}", site.module), bytes)?;
        }
    }
    for info in native.plain() {
        native.copy_plain(&info.name, out)?;
    }
    Ok(())
}

/// The bytes of a module's tensors, in the order of [`SUFFIXES`].
fn encode(version: Version, site: &NativeSite, rounded: &Rounded) -> Result<[Vec<u8>; 4]> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let (layout, shift) = (rounded.params.layout, shift(&site.spec));
    let codes: Vec<u8> = rounded.codes.iter().map(|c| (c + shift) as u8).collect();
    let less = i32::from(version == Version::One);
    let (mut scales, mut zeros) = (Vec::new(), Vec::new());
    // One value for each group and output, whatever the height of a tile.
    for first in (0..cols).step_by(layout.tile_cols) {
        let tiles: Vec<usize> = (0..rows).map(|row| layout.tile(row, first)).collect();
        let stored: Vec<u8> = tiles.iter().map(|t| (rounded.params.zero[*t] as i32 + shift - less) as u8).collect();
        pack_row(&stored, bits, 4, &mut zeros);
        scales.extend(tiles.iter().map(|t| rounded.params.scale[*t]));
    }
    let scales: Vec<f32> = scales.into_iter().map(|s| site.spec.scale.held_in(FloatKind::F16, s)).collect::<Result<_>>()?;
    let index: Vec<u8> = match &rounded.group_index {
        Some(index) => index.iter().flat_map(|g| g.to_le_bytes()).collect(),
        None => (0..cols).flat_map(|i| ((i / layout.tile_cols) as u32).to_le_bytes()).collect(),
    };
    Ok([pack_down(&codes, cols, bits), zeros, FloatKind::F16.bytes(&scales), index])
}
