//! A checkpoint's tensors after a rewriting of the whole model, each rewritten as it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::{StoredDtype, TensorInfo, TensorSource, check_finite};
use crate::error::{Error, Result};
use crate::numeric::transpose;
use crate::scheme::FloatKind;
use crate::topology::{ParamDecl, Part, Rewriting, SiteId, Topology};

/// Rows converted at a time.
const ROWS: usize = 1024;

/// Rewritten tensors over stored ones.
///
/// What is going to be rounded to codes is shown in f32, so that it is rounded once; everything else keeps its type, and is rounded to it.
pub struct Rewritten {
    inner: Arc<dyn TensorSource>,
    rewriting: Rewriting,
    params: BTreeMap<(SiteId, Part), ParamDecl>,
    /// The parameters that change, by stored name.
    changed: BTreeMap<String, Changed>,
}

struct Changed {
    site: SiteId,
    part: Part,
    info: TensorInfo,
    kind: FloatKind,
}

impl Rewritten {
    /// The tensors of `inner`, which are those of `topology`, rewritten to those of `after`; `codes` are the names of tensors that will
    /// become codes.
    ///
    /// # Errors
    /// If a tensor that changes cannot be stored again in its type, or belongs to two parameters.
    pub fn new(
        inner: Arc<dyn TensorSource>,
        topology: &Topology,
        after: &Topology,
        rewriting: Rewriting,
        codes: &BTreeSet<String>,
    ) -> Result<Self> {
        let mut changed = BTreeMap::new();
        for p in topology.params.iter().filter(|p| rewriting.touches(p.site, p.part)) {
            let stored = inner.require(&p.tensor)?;
            let kind = match (&stored.dtype, codes.contains(&p.tensor)) {
                (_, true) | (StoredDtype::F32, _) => FloatKind::F32,
                (StoredDtype::BF16, _) => FloatKind::Bf16,
                (StoredDtype::F16, _) => FloatKind::F16,
                _ => {
                    return Err(Error::input(
                        "checkpoint::dtype",
                        format!("tensor `{}` changes, and cannot be stored again in its type", p.tensor),
                    )
                    .hint("set `model.dtype = \"float32\"`"));
                }
            };
            let dtype = StoredDtype::from(kind);
            let mut shape = after.param(p.site, p.part).map_or_else(|| p.shape.clone(), |p| p.shape.clone());
            if p.transposed {
                shape.reverse();
            }
            let bytes = shape.iter().product::<usize>() as u64 * dtype.size().unwrap_or(0);
            let info = TensorInfo { dtype, shape, bytes: 0..bytes, ..stored.clone() };
            if topology.params.iter().any(|other| other.tensor == p.tensor && other.site != p.site) {
                return Err(Error::internal(format!("`{}` belongs to two parameters, and one of them changes", p.tensor)));
            }
            changed.insert(p.tensor.clone(), Changed { site: p.site, part: p.part, info, kind });
        }
        let params = topology.params.iter().map(|p| ((p.site, p.part), p.clone())).collect();
        Ok(Self { inner, rewriting, params, changed })
    }

    /// A parameter as it is stored, in the layout of the forward pass.
    fn stored(&self, site: SiteId, part: Part) -> Result<Vec<f64>> {
        let p = self.params.get(&(site, part)).ok_or_else(|| Error::internal(format!("no such parameter: {site} {part:?}")))?;
        let rows = self.inner.require(&p.tensor)?.shape.first().copied().unwrap_or(1);
        let mut values = Vec::new();
        self.inner.read_f32(&p.tensor, 0..rows, &mut values)?;
        if p.transposed {
            values = transpose(&values, p.shape[1], p.shape[0]);
        }
        Ok(values.into_iter().map(f64::from).collect())
    }

    /// Whether rows of a changed tensor, as it is stored, can be computed alone.
    fn by_row(&self, c: &Changed) -> bool {
        let transposed = self.params.get(&(c.site, c.part)).is_some_and(|p| p.transposed);
        !transposed && self.rewriting.by_row(c.site, c.part)
    }

    /// Rows of a changed tensor in the layout it is stored in.
    fn rewritten(&self, name: &str, c: &Changed, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let transposed = self.params.get(&(c.site, c.part)).is_some_and(|p| p.transposed);
        let some = self.by_row(c);
        let mut values: Vec<f64> = if some {
            self.inner.read_f32(name, rows.clone(), out)?;
            out.iter().map(|x| f64::from(*x)).collect()
        } else {
            self.stored(c.site, c.part)?
        };
        self.rewriting.apply(c.site, c.part, &mut values, &|site, part| self.stored(site, part))?;
        let columns: usize = c.info.shape.iter().skip(1).product();
        if transposed {
            values = transpose(&values, columns, c.info.shape[0]);
        }
        let kept = if some { &values[..] } else { &values[rows.start * columns..rows.end * columns] };
        out.clear();
        out.extend(kept.iter().map(|x| c.kind.round(*x as f32)));
        let Some(x) = out.iter().find(|x| !x.is_finite()) else { return Ok(()) };
        let overflow = Error::numeric("numeric::overflow", format!("`{name}` would hold {x} in the type it is stored in"))
            .hint("set `model.dtype = \"float32\"`");
        // Unless the checkpoint is damaged.
        let stored: Vec<f32> = self.stored(c.site, c.part)?.into_iter().map(|x| x as f32).collect();
        check_finite(name, &stored)?;
        Err(overflow)
    }
}

impl TensorSource for Rewritten {
    fn names(&self) -> Vec<String> {
        self.inner.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.changed.get(name).map(|c| &c.info).or_else(|| self.inner.info(name))
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        match self.changed.get(name) {
            Some(c) => self.rewritten(name, c, rows, out),
            None => self.inner.read_f32(name, rows, out),
        }
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let Some(c) = self.changed.get(name) else { return self.inner.read_bytes(name) };
        let rows = c.info.shape.first().copied().unwrap_or(1);
        // What needs all of the tensor anyway is computed once.
        let step = if self.by_row(c) { ROWS } else { rows.max(1) };
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(step) {
            self.read_f32(name, start..rows.min(start + step), &mut values)?;
            bytes.extend(c.kind.bytes(&values));
        }
        Ok(bytes)
    }
}
