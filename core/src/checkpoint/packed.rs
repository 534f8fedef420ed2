//! What formats have in common that keep a module as `qweight`, `qzeros` and `scales`, with integers packed into words of 32 bits.

use std::sync::Arc;

use super::native::{Dequantized, NativeSite, ReadRounded, VirtualWeight};
use super::{StoredDtype, TensorSource};
use crate::algorithm::Rounded;
use crate::error::{Error, Result};
use crate::scheme::{FloatKind, Granularity, ScaleForm};

fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

/// Presents every module that has a `qweight` as its float weight, and hides its tensors, `suffixes`. `site` says what a module is, from the
/// shapes of its tensors, and `read` what it holds.
///
/// # Errors
/// What `site` returns, or if there is no such module; `method` is what the configuration calls the format.
pub fn packed_modules(
    tensors: Arc<dyn TensorSource>,
    method: &str,
    suffixes: &'static [&'static str],
    site: impl Fn(&dyn TensorSource, &str) -> Result<NativeSite>,
    read: impl Fn(&NativeSite, &dyn TensorSource) -> Result<Rounded> + Clone + Send + Sync + 'static,
) -> Result<Arc<dyn TensorSource>> {
    let mut weights = Vec::new();
    for name in tensors.names() {
        let Some(module) = name.strip_suffix(".qweight") else { continue };
        let (site, read) = (site(&*tensors, module)?, read.clone());
        // A float weight of the same name would be there twice.
        let hidden = suffixes.iter().chain(&["weight"]).map(|s| format!("{module}.{s}")).collect();
        let read: ReadRounded = Box::new(read);
        weights.push((VirtualWeight { site, hidden }, read));
    }
    if weights.is_empty() {
        return Err(bad(format!("config.json says {method}, but there is no tensor `*.qweight`"))
            .hint("are the weights and the configuration of the same checkpoint?"));
    }
    Ok(Arc::new(Dequantized::new(tensors, weights)))
}

/// The two sides of a tensor of words, neither of them 0.
///
/// # Errors
/// If it is missing, or something else.
pub fn matrix_of_words(tensors: &dyn TensorSource, name: &str) -> Result<(usize, usize)> {
    let info = tensors.require(name)?;
    match (&info.dtype, &info.shape[..]) {
        (StoredDtype::I32, [a, b]) if *a > 0 && *b > 0 => Ok((*a, *b)),
        (dtype, shape) => Err(bad(format!("`{name}` is {} {shape:?}, not I32 of two axes", dtype.name()))),
    }
}

/// Scales in the float type that a tensor has.
///
/// # Errors
/// If it is missing, or has none of the three.
pub fn scales_as_stored(tensors: &dyn TensorSource, name: &str) -> Result<ScaleForm> {
    Ok(ScaleForm::Float(match tensors.require(name)?.dtype {
        StoredDtype::F16 => FloatKind::F16,
        StoredDtype::BF16 => FloatKind::Bf16,
        StoredDtype::F32 => FloatKind::F32,
        ref other => return Err(bad(format!("`{name}` is of type {}, not F16, BF16 or F32", other.name()))),
    }))
}

/// Groups of `group` inputs out of `inputs`. One group is a whole row, whatever its number.
pub fn groups_of(group: usize, inputs: usize) -> Granularity {
    match u32::try_from(group) {
        Ok(g) if group < inputs => Granularity::group(g),
        _ => Granularity::channel(),
    }
}
