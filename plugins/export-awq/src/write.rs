//! Writing tensors.

use qfw_core::Result;
use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{ContainerWriter, StoredDtype, TensorDecl};
use qfw_core::scheme::{FloatKind, QuantSpec};

use crate::nibbles::pack;
use crate::turn::turn;

/// What the tensors of a module are called, in the order in which they are stored.
pub(crate) const SUFFIXES: [&str; 3] = ["qweight", "qzeros", "scales"];

/// What makes codes of a format start at 0.
pub(crate) fn shift(spec: &QuantSpec) -> i32 {
    if spec.grid.limits().0 < 0 { 8 } else { 0 }
}

pub(crate) fn declare(native: &NativeReader) -> Vec<TensorDecl> {
    let mut out: Vec<TensorDecl> = native.sites.iter().flat_map(declare_module).collect();
    out.extend(native.plain().into_iter().map(|i| TensorDecl { name: i.name.clone(), dtype: i.dtype.clone(), shape: i.shape.clone() }));
    out
}

fn declare_module(site: &NativeSite) -> [TensorDecl; 3] {
    let (rows, cols) = site.shape;
    let groups = site.spec.granularity.layout(rows, cols).grid().1;
    SUFFIXES.map(|suffix| {
        let (dtype, shape) = match suffix {
            "qweight" => (StoredDtype::I32, vec![cols, rows / 8]),
            "qzeros" => (StoredDtype::I32, vec![groups, rows / 8]),
            _ => (StoredDtype::F16, vec![groups, rows]),
        };
        TensorDecl { name: format!("{}.{suffix}", site.module), dtype, shape }
    })
}

pub(crate) fn write(native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
    for site in &native.sites {
        let rounded = native.rounded(site)?;
        let tensors = encode(site, &rounded).map_err(|e| e.within(format!("`{}`", site.site)))?;
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
fn encode(site: &NativeSite, rounded: &Rounded) -> Result<[Vec<u8>; 3]> {
    let (rows, cols) = site.shape;
    let (layout, shift) = (rounded.params.layout, shift(&site.spec));
    let codes: Vec<u8> = rounded.codes.iter().map(|c| (c + shift) as u8).collect();
    let (mut words, mut scales, mut zeros) = (Vec::with_capacity(rows * cols / 2), Vec::new(), Vec::new());
    pack(&turn(&codes, rows, cols), &mut words);
    // One value for each group and output, whatever the height of a tile.
    for first in (0..cols).step_by(layout.tile_cols) {
        let tiles: Vec<usize> = (0..rows).map(|row| layout.tile(row, first)).collect();
        let stored: Vec<u8> = tiles.iter().map(|t| (rounded.params.zero[*t] as i32 + shift) as u8).collect();
        pack(&stored, &mut zeros);
        scales.extend(tiles.iter().map(|t| rounded.params.scale[*t]));
    }
    let scales: Vec<f32> = scales.into_iter().map(|s| site.spec.scale.held_in(FloatKind::F16, s)).collect::<Result<_>>()?;
    Ok([words, zeros, FloatKind::F16.bytes(&scales)])
}
