//! A checkpoint's tensors as a run wants them: in another float type, with one of them under a second name, or with more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::{StoredDtype, TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::scheme::FloatKind;

/// Rows converted at a time.
const ROWS: usize = 1024;

/// Tensors over others.
pub struct Adapted {
    inner: Arc<dyn TensorSource>,
    /// What differs, and how it appears.
    changed: BTreeMap<String, (TensorInfo, Origin)>,
    /// What does not appear.
    hidden: BTreeSet<String>,
}

/// Where the numbers of a changed tensor come from.
enum Origin {
    /// The tensor of the same name, rounded to this type.
    Cast(FloatKind),
    /// Another tensor.
    Copy(String),
    /// Nowhere: they are all this one, in this type.
    All(f32, FloatKind),
}

impl Adapted {
    /// Every float tensor of `inner` in the type `kind`. Others, and those that have the type, stay.
    pub fn cast(inner: Arc<dyn TensorSource>, kind: FloatKind) -> Self {
        let names = inner.names();
        Self::cast_some(inner, names, kind)
    }

    /// The same of these tensors alone.
    pub fn cast_some(inner: Arc<dyn TensorSource>, names: impl IntoIterator<Item = String>, kind: FloatKind) -> Self {
        let dtype = StoredDtype::from(kind);
        let mut changed = BTreeMap::new();
        for name in names {
            let Some(info) = inner.info(&name) else { continue };
            let float =
                matches!(info.dtype, StoredDtype::F64 | StoredDtype::F32 | StoredDtype::F16 | StoredDtype::BF16 | StoredDtype::Ggml(_));
            if float && info.dtype != dtype {
                let bytes = info.shape.iter().product::<usize>() as u64 * dtype.size().unwrap_or(0);
                let info = TensorInfo { dtype: dtype.clone(), bytes: 0..bytes, ..info.clone() };
                changed.insert(name, (info, Origin::Cast(kind)));
            }
        }
        Self { inner, changed, hidden: BTreeSet::new() }
    }

    /// The same without these tensors.
    #[must_use]
    pub fn without(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.hidden.extend(names);
        self
    }

    /// The tensors of `inner`, and `from` once more as `to`.
    ///
    /// # Errors
    /// If there is no `from`.
    pub fn copy(inner: Arc<dyn TensorSource>, from: &str, to: &str) -> Result<Self> {
        let info = TensorInfo { name: to.to_owned(), ..inner.require(from)?.clone() };
        let changed = BTreeMap::from([(to.to_owned(), (info, Origin::Copy(from.to_owned())))]);
        Ok(Self { inner, changed, hidden: BTreeSet::new() })
    }

    /// The tensors of `inner`, and vectors of zeros: each with its name, its length, and the tensor whose type it takes.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn zeros(inner: Arc<dyn TensorSource>, vectors: &[(String, usize, String)]) -> Result<Self> {
        let like = |dtype: &StoredDtype| match dtype {
            StoredDtype::F16 => FloatKind::F16,
            StoredDtype::BF16 => FloatKind::Bf16,
            _ => FloatKind::F32,
        };
        Self::vectors(inner, vectors, 0.0, like)
    }

    /// The tensors of `inner`, and vectors of ones in f32: each with its name, its length, and the tensor that it lies beside.
    ///
    /// # Errors
    /// If there is no such tensor, or already one of that name.
    pub fn ones(inner: Arc<dyn TensorSource>, vectors: &[(String, usize, String)]) -> Result<Self> {
        if let Some((taken, ..)) = vectors.iter().find(|(name, ..)| inner.info(name).is_some()) {
            let message = format!("the checkpoint has a tensor `{taken}` already, and a vector of that name is to be added");
            return Err(Error::input("checkpoint::name-taken", message).hint("rename or remove the tensor, if the model does not read it"));
        }
        Self::vectors(inner, vectors, 1.0, |_| FloatKind::F32)
    }

    fn vectors(
        inner: Arc<dyn TensorSource>,
        vectors: &[(String, usize, String)],
        value: f32,
        kind: impl Fn(&StoredDtype) -> FloatKind,
    ) -> Result<Self> {
        let mut changed = BTreeMap::new();
        for (name, length, beside) in vectors {
            let beside = inner.require(beside)?;
            let kind = kind(&beside.dtype);
            let dtype = StoredDtype::from(kind);
            let bytes = *length as u64 * dtype.size().unwrap_or(0);
            let info = TensorInfo { name: name.clone(), dtype, shape: vec![*length], bytes: 0..bytes, file: beside.file.clone() };
            changed.insert(name.clone(), (info, Origin::All(value, kind)));
        }
        Ok(Self { inner, changed, hidden: BTreeSet::new() })
    }
}

impl TensorSource for Adapted {
    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.extend(self.changed.keys().cloned());
        names.retain(|n| !self.hidden.contains(n));
        names.sort();
        names.dedup();
        names
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        if self.hidden.contains(name) {
            return None;
        }
        self.changed.get(name).map_or_else(|| self.inner.info(name), |(info, ..)| Some(info))
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        match self.changed.get(name) {
            None => self.inner.read_f32(name, rows, out),
            Some((_, Origin::Copy(behind))) => self.inner.read_f32(behind, rows, out),
            Some((info, Origin::All(value, _))) => {
                out.clear();
                out.resize(rows.len() * info.shape.iter().skip(1).product::<usize>(), *value);
                Ok(())
            }
            Some((_, Origin::Cast(kind))) => {
                self.inner.read_f32(name, rows, out)?;
                out.iter_mut().try_for_each(|x| rounded(name, *kind, *x).map(|y| *x = y))
            }
        }
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let (info, kind) = match self.changed.get(name) {
            None => return self.inner.read_bytes(name),
            Some((_, Origin::Copy(behind))) => return self.inner.read_bytes(behind),
            Some((info, Origin::All(_, kind) | Origin::Cast(kind))) => (info, kind),
        };
        let rows = info.shape.first().copied().unwrap_or(1);
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(ROWS) {
            self.read_f32(name, start..rows.min(start + ROWS), &mut values)?;
            bytes.extend(kind.bytes(&values));
        }
        Ok(bytes)
    }
}

/// The nearest number of the type; what it is too small for is an error rather than an infinity.
fn rounded(name: &str, kind: FloatKind, x: f32) -> Result<f32> {
    let y = kind.round(x);
    if y.is_finite() || !x.is_finite() {
        return Ok(y);
    }
    Err(Error::numeric("checkpoint::overflow", format!("tensor `{name}` holds {x}, which the type of `model.dtype` cannot hold"))
        .hint("set `model.dtype` to \"bfloat16\", \"float32\" or \"auto\""))
}

#[cfg(test)]
mod tests {
    use super::super::{TensorDecl, open_tensors, write_small};
    use super::*;

    fn stored(values: &[f32]) -> (tempfile::TempDir, Arc<dyn TensorSource>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let floats = TensorDecl { name: "w".to_owned(), dtype: StoredDtype::F32, shape: vec![values.len() / 2, 2] };
        let integers = TensorDecl { name: "i".to_owned(), dtype: StoredDtype::I32, shape: vec![1] };
        write_small(&path, vec![(floats, FloatKind::F32.bytes(values)), (integers, vec![1, 2, 3, 4])]).unwrap();
        (dir, open_tensors(&path).unwrap())
    }

    #[test]
    fn floats_are_rounded_and_integers_are_not_touched() {
        // 1 + 2^-9 lies below half a step of bfloat16 and above half of one of f16.
        let (_dir, inner) = stored(&[1.0, 1.0 + 1.0 / 512.0, -0.1, 3e38]);
        let cast = Adapted::cast(Arc::clone(&inner), FloatKind::Bf16);
        let info = cast.info("w").unwrap();
        assert_eq!((info.dtype.clone(), info.byte_len()), (StoredDtype::BF16, 8));
        let mut values = Vec::new();
        cast.read_f32("w", 0..2, &mut values).unwrap();
        assert_eq!(values[..3], [1.0, 1.0, half::bf16::from_f32(-0.1).to_f32()]);
        assert_eq!(cast.read_bytes("w").unwrap(), FloatKind::Bf16.bytes(&values));
        assert_eq!(cast.read_bytes("i").unwrap(), [1, 2, 3, 4]);
        assert_eq!(cast.names(), ["i", "w"]);
    }

    #[test]
    fn what_the_type_cannot_hold_is_named() {
        let (_dir, inner) = stored(&[1.0, -70000.0]);
        let error = Adapted::cast(inner, FloatKind::F16).read_bytes("w").unwrap_err();
        assert_eq!(error.to_string(), "tensor `w` holds -70000, which the type of `model.dtype` cannot hold");
        assert_eq!(error.hint_text(), Some("set `model.dtype` to \"bfloat16\", \"float32\" or \"auto\""));
    }

    #[test]
    fn added_vectors_have_a_value_and_a_name_that_is_free() {
        let (_dir, inner) = stored(&[1.0, 2.0]);
        let half: Arc<dyn TensorSource> = Arc::new(Adapted::cast(inner, FloatKind::F16));
        let vectors = |name: &str| [(name.to_owned(), 3, "w".to_owned())];
        // Zeros take the type of what they lie beside, ones are exact factors in f32.
        let zeros = Adapted::zeros(Arc::clone(&half), &vectors("b")).unwrap();
        assert_eq!((zeros.info("b").unwrap().dtype.clone(), zeros.read_bytes("b").unwrap()), (StoredDtype::F16, vec![0; 6]));
        let ones = Adapted::ones(Arc::clone(&half), &vectors("m")).unwrap();
        assert_eq!((ones.info("m").unwrap().dtype.clone(), ones.info("m").unwrap().byte_len()), (StoredDtype::F32, 12));
        assert_eq!(ones.read_bytes("m").unwrap(), FloatKind::F32.bytes(&[1.0; 3]));
        let mut values = Vec::new();
        ones.read_f32("m", 1..3, &mut values).unwrap();
        assert_eq!((values, ones.names()), (vec![1.0, 1.0], ["i", "m", "w"].map(ToOwned::to_owned).to_vec()));
        let error = Adapted::ones(half, &vectors("i")).err().unwrap();
        assert_eq!(error.to_string(), "the checkpoint has a tensor `i` already, and a vector of that name is to be added");
    }

    #[test]
    fn a_copy_has_a_name_of_its_own() {
        let (_dir, inner) = stored(&[1.0, 2.0]);
        let copy = Adapted::copy(Arc::clone(&inner), "w", "v").unwrap();
        assert_eq!(copy.names(), ["i", "v", "w"]);
        assert_eq!(copy.info("v").unwrap().name, "v");
        assert_eq!(copy.read_bytes("v").unwrap(), copy.read_bytes("w").unwrap());
        assert!(Adapted::copy(inner, "x", "v").is_err());
    }
}
