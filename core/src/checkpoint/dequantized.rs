//! Checkpoints whose weights exist only as codes, presented as the floats they stand for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::native::NativeSite;
use super::{StoredDtype, TensorInfo, TensorSource};
use crate::algorithm::Rounded;
use crate::error::{Error, Result};
use crate::numeric::{decode, transpose};

/// A weight that exists only as codes. It appears as `M.weight` of its module `M`, with the shape that the original had.
pub struct VirtualWeight {
    /// What it is.
    pub site: NativeSite,
    /// Stored tensors that it stands for, which disappear.
    pub hidden: Vec<String>,
}

/// Reads the codes of a module.
pub type ReadRounded = Box<dyn Fn(&NativeSite, &dyn TensorSource) -> Result<Rounded> + Send + Sync>;

struct Weight {
    info: TensorInfo,
    site: NativeSite,
    read: ReadRounded,
}

/// A name, and the codes behind it.
type Last = (String, Arc<Rounded>);

/// Tensors of a quantized checkpoint, with every quantized module presented as the float weight it stands for.
pub struct Dequantized {
    inner: Arc<dyn TensorSource>,
    weights: BTreeMap<String, Weight>,
    hidden: BTreeSet<String>,
    /// What was read last: rows of an embedding or a head are asked for a few at a time.
    last: Mutex<Option<Last>>,
}

impl Dequantized {
    /// Presents `weights` over `inner`.
    pub fn new(inner: Arc<dyn TensorSource>, weights: Vec<(VirtualWeight, ReadRounded)>) -> Self {
        let mut all = BTreeSet::new();
        let mut map = BTreeMap::new();
        for (VirtualWeight { site, hidden }, read) in weights {
            let file = hidden.iter().find_map(|h| inner.info(h)).map(|i| i.file.clone()).unwrap_or_default();
            all.extend(hidden);
            let (rows, cols) = site.shape;
            let shape = if site.transposed { vec![cols, rows] } else { vec![rows, cols] };
            let info = TensorInfo::new(format!("{}.weight", site.module), StoredDtype::F32, shape, file);
            map.insert(info.name.clone(), Weight { info, site, read });
        }
        Self { inner, weights: map, hidden: all, last: Mutex::default() }
    }

    /// The same without these tensors, which are no part of the model.
    #[must_use]
    pub fn without(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.hidden.extend(names);
        self
    }

    /// The codes behind a weight, read unless they were the last to be.
    fn kept(&self, name: &str, weight: &Weight) -> Result<Arc<Rounded>> {
        let mut last = self.last.lock().map_err(|_| Error::internal("a thread panicked while it read codes"))?;
        if let Some((_, codes)) = last.as_ref().filter(|(n, _)| n == name) {
            return Ok(Arc::clone(codes));
        }
        // The old ones go first, so that never two are held.
        *last = None;
        let codes = Arc::new((weight.read)(&weight.site, &*self.inner)?);
        *last = Some((name.to_owned(), Arc::clone(&codes)));
        Ok(codes)
    }
}

impl TensorSource for Dequantized {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner.names().into_iter().filter(|n| !self.hidden.contains(n)).collect();
        names.extend(self.weights.keys().cloned());
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self.weights.get(name) {
            Some(weight) => Some(&weight.info),
            None if self.hidden.contains(name) => None,
            None => self.inner.info(name),
        }
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let Some(weight) = self.weights.get(name) else { return self.inner.read_f32(name, rows, out) };
        let r = &*self.kept(name, weight)?;
        let site = &weight.site;
        let (all, cols) = site.shape;
        if site.transposed {
            decode(&site.spec.grid, &r.params, &r.codes, 0..all, r.group_index.as_deref(), out);
            *out = transpose(out, all, cols)[rows.start * all..rows.end * all].to_vec();
        } else {
            decode(&site.spec.grid, &r.params, &r.codes, rows, r.group_index.as_deref(), out);
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        if !self.weights.contains_key(name) {
            return self.inner.read_bytes(name);
        }
        let rows = self.weights.get(name).map_or(0, |w| w.info.shape[0]);
        let mut values = Vec::new();
        self.read_f32(name, 0..rows, &mut values)?;
        Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn coded(&self, name: &str) -> Option<&NativeSite> {
        self.weights.get(name).map_or_else(|| self.inner.coded(name), |w| Some(&w.site))
    }

    fn rounded(&self, name: &str) -> Result<Rounded> {
        self.weights.get(name).map_or_else(|| self.inner.rounded(name), |w| (w.read)(&w.site, &*self.inner))
    }
}
