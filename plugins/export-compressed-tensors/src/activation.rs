//! Which rounded activations belong to which module.

use std::collections::BTreeMap;

use qfw_core::Result;
use qfw_core::checkpoint::native::NativeReader;
use qfw_core::checkpoint::{ContainerWriter, StoredDtype, TensorDecl};
use qfw_core::plan::PlannedActivation;
use qfw_core::scheme::{Extent, QuantSpec};

use crate::int::{affine, signed_shift};
use crate::layout::decl;

/// What each linear's input is rounded to.
pub(crate) fn inputs(all: &[PlannedActivation]) -> BTreeMap<&str, &QuantSpec> {
    let inputs = all.iter().filter(|a| a.part == "inputs");
    inputs.flat_map(|a| a.modules.iter().map(move |m| (m.as_str(), &a.spec))).collect()
}

/// The letter that readers call keys or values by.
pub(crate) fn cache_letter(a: &PlannedActivation) -> Option<char> {
    match a.part.as_str() {
        "keys" => Some('k'),
        "values" => Some('v'),
        _ => None,
    }
}

/// The attention module whose keys (`letter` k) or values (v) a projection computes.
pub(crate) fn attention(projection: &str, letter: char) -> Option<&str> {
    projection.strip_suffix(&format!(".{letter}_proj"))
}

/// Declares the stored tensors of static activations.
pub(crate) fn declare(native: &NativeReader) -> Result<Vec<TensorDecl>> {
    Ok(stored(native)?.into_iter().map(|(decl, _)| decl).collect())
}

/// Writes what [`declare`] declared, in the same order.
pub(crate) fn write(native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
    stored(native)?.into_iter().try_for_each(|(decl, bytes)| out.write(&decl.name, &bytes))
}

/// `M.input_scale` and `M.input_zero_point` of every linear `M` that reads a rounded tensor, `A.k_scale` and `A.v_scale` of every
/// attention module `A`.
fn stored(native: &NativeReader) -> Result<Vec<(TensorDecl, Vec<u8>)>> {
    let mut out = Vec::new();
    for a in &native.activations {
        let Some(params) = native.activation_params(a)? else { continue };
        let n = params.scale.len();
        let scale: Vec<u8> = params.scale.iter().flat_map(|s| s.to_le_bytes()).collect();
        let zero: Vec<u8> = params.zero.iter().map(|z| (*z as i32 + signed_shift(&a.spec)) as u8).collect();
        for module in &a.modules {
            if let Some(letter) = cache_letter(a) {
                let shape = if a.spec.granularity.cols == Extent::All { vec![1] } else { vec![n, 1, 1] };
                let attention = attention(module, letter).unwrap_or(module);
                out.push((decl(attention, &format!("{letter}_scale"), StoredDtype::F32, shape), scale.clone()));
            } else {
                out.push((decl(module, "input_scale", StoredDtype::F32, vec![n]), scale.clone()));
                if affine(&a.spec) {
                    out.push((decl(module, "input_zero_point", StoredDtype::I8, vec![n]), zero.clone()));
                }
            }
        }
    }
    Ok(out)
}
