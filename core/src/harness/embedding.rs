//! The token embedding, rounded to nearest before anything reads it.
//!
//! No pass works on it: nothing multiplies an embedding, so there is no error of a product to spread, and the nearest code is the best
//! one. Rows are taken in chunks, and what runs afterwards looks tokens up in the codes: the table is never held as floats unless all of
//! its rows share a scale.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::report::SiteReport;
use super::run::Run;
use super::site_error::WeightError;
use crate::algorithm::Rounded;
use crate::checkpoint::TensorDecl;
use crate::checkpoint::native::{NativeSite, encode_site};
use crate::error::{Error, Result};
use crate::model::{Model, WeightSource};
use crate::numeric::{Codes, decode, encode, with_slice};
use crate::observer::{ScaleRule, fit};
use crate::scheme::{QParams, ScaleForm};
use crate::topology::{Part, Role, SiteId};

/// What a pass-less rounding is called in reports.
const ALGO: &str = "nearest";

/// Rows taken at a time.
const ROWS: usize = 1024;

/// The rounded table.
pub(super) struct Embedding {
    native: NativeSite,
    rounded: Rounded,
    report: SiteReport,
}

impl Embedding {
    /// Rounds it, where the plan asks for it.
    pub(super) fn rounded(run: &Run<'_>) -> Result<Option<Self>> {
        let name = site().to_string();
        let Some(native) = run.natives().iter().find(|n| n.site == name) else { return Ok(None) };
        round(run, native).map(Some).map_err(|e| e.within(format!("`{name}`")))
    }

    /// What is stored of it.
    pub(super) fn tensors(&self) -> Vec<(TensorDecl, Vec<u8>)> {
        encode_site(&self.native, &self.rounded).tensors
    }

    pub(super) fn report(&self) -> &SiteReport {
        &self.report
    }

    /// The model's parameters with this embedding in the place of its own.
    pub(super) fn over(self: &Arc<Self>, model: &Model) -> Arc<dyn WeightSource> {
        let inner = Arc::clone(&model.weights) as Arc<dyn WeightSource>;
        Arc::new(Over { inner, embedding: Arc::clone(self) })
    }

    fn rows(&self, range: Range<usize>, out: &mut Vec<f32>) {
        decode(&self.native.spec.grid, &self.rounded.params, &self.rounded.codes, range, None, out);
    }
}

fn site() -> SiteId {
    SiteId::global(Role::Embed)
}

fn round(run: &Run<'_>, native: &NativeSite) -> Result<Embedding> {
    let (rows, cols) = native.shape;
    let spec = &native.spec;
    let (observer, _) = run.registry().build_observer(&spec.observer.id, &spec.observer.options)?;
    let layout = spec.granularity.layout(rows, cols);
    // Chunks hold whole tiles.
    let step = layout.tile_rows.max(ROWS / layout.tile_rows * layout.tile_rows);
    let chunks = || (0..rows).step_by(step).map(|start| start..rows.min(start + step));
    let read = |range: Range<usize>| -> Result<Tensor> {
        Ok(run.model().weights.rows(site(), Part::Weight, range)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
    };
    let mut amax = 0.0f32;
    if spec.scale == ScaleForm::TwoLevel {
        for range in chunks() {
            with_slice::<f32, _>(&read(range)?, |w| {
                amax = w.iter().fold(amax, |m, x| m.max(x.abs()));
                Ok(())
            })?;
        }
    }
    let rule = ScaleRule::of(spec, amax);
    let mut params = QParams { layout, scale: Vec::new(), zero: Vec::new(), global: rule.global() };
    let mut codes = Codes::new(&spec.grid, 0);
    let (mut error, mut decoded) = (WeightError::default(), Vec::new());
    for range in chunks() {
        with_slice::<f32, _>(&read(range.clone())?, |w| {
            let part = fit(&*observer, &rule, w, spec.granularity.layout(range.len(), cols))?;
            let part_codes = encode(&spec.grid, &part, w);
            decode(&spec.grid, &part, &part_codes, 0..range.len(), None, &mut decoded);
            error.add(w, &decoded);
            params.scale.extend(part.scale);
            params.zero.extend(part.zero);
            codes.extend(&part_codes)
        })?;
    }
    let report = SiteReport {
        site: native.site.clone(),
        algo: ALGO.to_owned(),
        weight_error: error.relative(),
        output_error: None,
        events: Vec::new(),
    };
    let rounded = Rounded { codes, params, group_index: None, events: Vec::new() };
    Ok(Embedding { native: native.clone(), rounded, report })
}

/// A model's parameters with another embedding.
struct Over {
    inner: Arc<dyn WeightSource>,
    embedding: Arc<Embedding>,
}

impl Over {
    fn tensor(&self, data: Vec<f32>, rows: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(data, (rows, self.embedding.native.shape.1), &Device::Cpu)?)
    }
}

impl WeightSource for Over {
    fn get(&self, at: SiteId, part: Part) -> Result<Tensor> {
        if at == site() { self.rows(at, part, 0..self.embedding.native.shape.0) } else { self.inner.get(at, part) }
    }

    fn rows(&self, at: SiteId, part: Part, range: Range<usize>) -> Result<Tensor> {
        if at != site() {
            return self.inner.rows(at, part, range);
        }
        let mut data = Vec::new();
        self.embedding.rows(range.clone(), &mut data);
        self.tensor(data, range.len())
    }

    fn gather(&self, at: SiteId, part: Part, ids: &[u32]) -> Result<Tensor> {
        if at != site() {
            return self.inner.gather(at, part, ids);
        }
        let (mut data, mut row) = (Vec::new(), Vec::new());
        for id in ids {
            let id = *id as usize;
            if id >= self.embedding.native.shape.0 {
                return Err(Error::internal(format!("token {id} is outside the embedding")));
            }
            self.embedding.rows(id..id + 1, &mut row);
            data.extend_from_slice(&row);
        }
        self.tensor(data, ids.len())
    }
}
