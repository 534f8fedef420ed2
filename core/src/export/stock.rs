//! The codes that a container is given: those of the checkpoint, as the plan of the export has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fit::{Fit, Fitted, moved};
use super::source::{Source, weight};
use crate::algorithm::Rounded;
use crate::checkpoint::TensorSource;
use crate::checkpoint::native::{NativeReader, NativeSite, Stock};
use crate::error::{Error, Result};
use crate::model::StoredBranch;
use crate::numeric::{encode, transpose};
use crate::observer::{Observer, ScaleRule, fit};
use crate::plan::{PlannedActivation, PlannedBranch};
use crate::registry::Registry;
use crate::scheme::{QParams, QuantSpec, ScaleForm};

/// Where they are.
struct Codes {
    tensors: Arc<dyn TensorSource>,
    /// By module: the scheme that its codes have in the checkpoint, and what becomes of them.
    fits: BTreeMap<String, (QuantSpec, Fit)>,
    activations: Vec<(PlannedActivation, QParams)>,
    branches: Vec<StoredBranch>,
    observer: Box<dyn Observer>,
}

/// The model that `fitted` makes of `source`, for its container.
///
/// # Errors
/// If there is nothing to round with.
pub(super) fn reader(source: &Source, fitted: &Fitted, registry: &Registry) -> Result<NativeReader> {
    let of = |s: NativeSite| Some((s.module.clone(), (s.spec, *fitted.fits.get(&s.module)?)));
    let stock = Codes {
        tensors: Arc::clone(&source.tensors),
        fits: source.plan.native_sites().into_iter().filter_map(of).collect(),
        activations: source.activations.iter().filter_map(|a| Some((a.planned.clone(), a.params.clone()?))).collect(),
        branches: source.branches.iter().map(|(_, stored)| stored.clone()).collect(),
        observer: registry.build_observer("minmax", &serde_json::json!({}))?.0,
    };
    let plan = &fitted.plan;
    let tensors = Arc::clone(&fitted.checkpoint.tensors);
    let native = NativeReader::over(tensors, plan.native_sites(), plan.activations.clone(), Arc::new(stock));
    Ok(native.with_config(fitted.checkpoint.config.clone()).with_extras(plan.branches.clone(), plan.online()))
}

/// The floats that a module stands for, `[out, in]`.
///
/// # Errors
/// If they cannot be read.
pub(super) fn values(tensors: &dyn TensorSource, site: &NativeSite) -> Result<Vec<f32>> {
    let ((rows, cols), mut out) = (site.shape, Vec::new());
    if !site.transposed {
        tensors.read_f32(&weight(site), 0..rows, &mut out)?;
        return Ok(out);
    }
    tensors.read_f32(&weight(site), 0..cols, &mut out)?;
    Ok(transpose(&out, cols, rows))
}

impl Codes {
    fn of(&self, module: &str) -> Result<&(QuantSpec, Fit)> {
        self.fits.get(module).ok_or_else(|| Error::internal(format!("`{module}` has no codes")))
    }

    fn nearest(&self, site: &NativeSite) -> Result<Rounded> {
        let values = values(&*self.tensors, site)?;
        let spec = &site.spec;
        let largest = if spec.scale == ScaleForm::TwoLevel { values.iter().fold(0.0f32, |m, x| m.max(x.abs())) } else { 0.0 };
        let layout = spec.granularity.layout(site.shape.0, site.shape.1);
        let params = fit(&*self.observer, &ScaleRule::of(spec, largest), &values, layout)?;
        let codes = encode(&spec.grid, &params, &values);
        Ok(Rounded { codes, params, group_index: None, events: Vec::new() })
    }
}

impl Stock for Codes {
    fn rounded(&self, site: &NativeSite) -> Result<Rounded> {
        let (spec, fit) = self.of(&site.module)?;
        match fit {
            Fit::Nearest => self.nearest(site),
            _ => Ok(moved(spec, &site.spec, self.tensors.rounded(&weight(site))?)),
        }
    }

    fn group_index(&self, site: &NativeSite) -> Result<bool> {
        let (_, fit) = self.of(&site.module)?;
        Ok(*fit == Fit::Codes && self.tensors.rounded(&weight(site))?.group_index.is_some())
    }

    fn activation(&self, activation: &PlannedActivation) -> Result<QParams> {
        let found = self.activations.iter().find(|(a, _)| a.place == activation.place && a.part == activation.part);
        found.map(|(_, p)| p.clone()).ok_or_else(|| Error::internal(format!("`{}` has no parameters", activation.place)))
    }

    fn factors(&self, branch: &PlannedBranch) -> Result<[Vec<f32>; 2]> {
        let stored = self.branches.iter().find(|b| b.module == branch.module);
        let stored = stored.ok_or_else(|| Error::internal(format!("`{}` has no branch", branch.module)))?;
        let read = |name: &str, rows: usize| {
            let mut out = Vec::new();
            self.tensors.read_f32(name, 0..rows, &mut out).map(|()| out)
        };
        Ok([read(&stored.a, branch.rank)?, read(&stored.b, branch.shape.0)?])
    }
}
