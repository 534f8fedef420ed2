//! A checkpoint as the plan of an export.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::Request;
use crate::checkpoint::native::NativeSite;
use crate::checkpoint::{Adapted, Checkpoint, StoredActivation, StoredDtype, TensorSource, Verdict};
use crate::error::{Error, Result};
use crate::harness::record;
use crate::model::{Model, StoredBranch, model_type};
use crate::plan::raw::RawOutput;
use crate::plan::{
    Failure, HarnessPlan, OutputPlan, Plan, PlannedBranch, PlannedOrigin, PlannedSite, Products, Propagate, Sequence, branches_fit,
    online_fit, turned_branch,
};
use crate::registry::Registry;
use crate::scheme::{FloatKind, Grid, QuantSpec, Zero};
use crate::session::Opened;
use crate::topology::{Linear, Part, Rewrite, Role, SiteId};

/// What is read.
pub(super) struct Source {
    /// Its files; the configuration without what it says of codes.
    pub(super) checkpoint: Checkpoint,
    /// Its tensors, those that are codes as the floats they stand for.
    pub(super) tensors: Arc<dyn TensorSource>,
    /// What it is, as it would be written to a format that holds all of it.
    pub(super) plan: Plan,
    /// Its rounded activations.
    pub(super) activations: Vec<StoredActivation>,
    /// Its branches, and the tensors they are in.
    pub(super) branches: Vec<(PlannedBranch, StoredBranch)>,
    /// One of them that reads what is rotated while the model runs.
    pub(super) turned: Option<PlannedBranch>,
    /// Modules whose groups do not run in storage order.
    pub(super) unordered: BTreeSet<String>,
    /// Modules with float zero points all of which are integers but for the rounding of a minimum.
    pub(super) nearly_whole: BTreeSet<String>,
    /// Tensors in blocks of ggml that no grid holds, by the name of the block.
    pub(super) blocks: BTreeMap<String, &'static str>,
    /// Channels of a head, where they are known.
    pub(super) head_dim: Option<usize>,
    /// The type that the model's floats are in.
    pub(super) dtype: FloatKind,
    /// What made it, if a record says so.
    pub(super) record: Option<Value>,
    /// What there is to know of it.
    pub(super) notes: Vec<String>,
}

impl Source {
    /// Reads the checkpoint at `path`: its configuration, and all of its codes once.
    ///
    /// # Errors
    /// If it is not sound.
    pub(super) fn open(path: &Path, registry: &Registry, request: &Request) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let record = record_of(&checkpoint)?;
        let container = match checkpoint.container(registry) {
            Some(record) => record.id,
            None if path_is_gguf(&checkpoint) => "gguf",
            None => "floats",
        };
        let (opened, notes) = Opened::for_weights(checkpoint, registry)?;
        let Opened { mut checkpoint, model } = opened;
        let activations = checkpoint.stored_activations(registry, &model.topology)?;
        let online = checkpoint.online(registry, &model.topology)?;
        let branches = checkpoint.branches(registry, &model.topology)?;
        let hash = checkpoint.content_hash()?;
        let tensors = Arc::clone(model.weights.tensors());
        // From here on the checkpoint is the model that its codes stand for; branches are no tensors of it.
        let beside = branches.iter().flat_map(|b| [b.a.clone(), b.b.clone()]);
        checkpoint.tensors = Arc::new(Adapted::cast_some(Arc::clone(&tensors), [], FloatKind::F32).without(beside));
        if let Some(config) = checkpoint.config.as_object_mut() {
            config.shift_remove("quantization_config");
            if let Some(kind) = request.dtype {
                kind.state_in(config);
            }
        }
        let mut plan = Plan {
            version: 1,
            qfw: env!("CARGO_PKG_VERSION").to_owned(),
            model_type: model_type(&checkpoint.config)?.to_owned(),
            tensorwise: model.is_tensorwise(),
            model_hash: hash,
            blocks: model.topology.blocks,
            sites: sites(&model, &*tensors),
            activations: activations.iter().map(|a| a.planned.clone()).collect(),
            origin: Some(PlannedOrigin { container: container.to_owned(), group_index: false }),
            passes: Vec::new(),
            rewrites: online.into_iter().map(Rewrite::from).collect(),
            branches: Vec::new(),
            calibration: None,
            harness: nothing_runs(),
            output: OutputPlan { formats: request.formats.clone(), max_shard: RawOutput::default().max_shard.bytes(), keep_native: false },
        };
        let branches = planned_branches(&plan, branches, &*tensors)?;
        plan.branches = branches.iter().map(|(planned, _)| planned.clone()).collect();
        let turned = turned_branch(&plan.branches, &plan.online(), &model.topology.linears).cloned();
        let blocks = tensors.names().into_iter().filter_map(|n| Some((n.clone(), blocks_of(&*tensors, &n)?))).collect();
        let dtype = request.dtype.or_else(|| FloatKind::of_config(&checkpoint.config)).unwrap_or(FloatKind::F32);
        let head_dim = Some(model.dims.head_dim).filter(|d| *d > 0);
        let mut source = Self {
            checkpoint,
            tensors,
            plan,
            activations,
            branches,
            turned,
            unordered: BTreeSet::new(),
            nearly_whole: BTreeSet::new(),
            blocks,
            head_dim,
            dtype,
            record,
            notes,
        };
        source.survey()?;
        Ok(source)
    }

    /// Reads all codes, for what their specs do not say.
    fn survey(&mut self) -> Result<()> {
        let mut centred = true;
        for site in self.plan.native_sites() {
            let name = weight(&site);
            let r = self.tensors.rounded(&name)?;
            let damaged = |what: &str| {
                Error::input("checkpoint::malformed", format!("`{name}` holds {what}")).hint("the checkpoint is damaged; get it again")
            };
            if !r.codes.stand_for(&site.spec.grid) {
                return Err(damaged(&format!("codes that {} has not", site.spec.format)));
            }
            if r.params.scale.iter().chain(&r.params.zero).any(|x| !x.is_finite()) {
                return Err(damaged("scales that are no finite numbers"));
            }
            if r.group_index.is_some() {
                self.unordered.insert(site.module.clone());
            }
            let middle = middle(&site.spec.grid);
            match site.spec.grid.zero() {
                Zero::Integer => centred &= r.params.zero.iter().all(|z| *z == middle),
                Zero::Float if nearly_whole(&site.spec.grid, &r.params.scale, &r.params.zero) => {
                    self.nearly_whole.insert(site.module.clone());
                }
                _ => {}
            }
        }
        if let Some(origin) = &mut self.plan.origin {
            origin.group_index = !self.unordered.is_empty();
        }
        let integers = self.plan.sites.iter_mut().filter_map(|s| s.weights.as_mut()).filter(|w| w.grid.zero() == Zero::Integer);
        let integers: Vec<&mut QuantSpec> = integers.collect();
        if centred && !integers.is_empty() {
            let n = integers.len();
            integers.into_iter().for_each(without_zero_points);
            self.notes.push(format!("every zero point of {n} layers is in the middle of the codes: they are taken as symmetric"));
        }
        Ok(())
    }

    /// Formats that hold it as it is.
    pub(super) fn holders(&self, registry: &Registry) -> Vec<&'static str> {
        let holds = |plan: &Plan, r: &&'static crate::checkpoint::ContainerRecord| {
            online_fit(plan, r.container).is_ok()
                && branches_fit(plan, self.turned.as_ref(), r.container).is_ok()
                && !matches!(r.container.accepts(plan), Verdict::Refused(_))
                && r.container.file_form(plan, &self.checkpoint).is_ok()
        };
        registry.containers().filter(|r| holds(&self.plan, r)).map(|r| r.id).collect()
    }
}

/// The name of the tensor that a module appears as.
pub(super) fn weight(site: &NativeSite) -> String {
    format!("{}.weight", site.module)
}

fn path_is_gguf(checkpoint: &Checkpoint) -> bool {
    checkpoint.path.extension().is_some_and(|e| e == "gguf")
}

/// The record beside a checkpoint, or of one of several formats in its parent, without what it says of the bytes that were written.
fn record_of(checkpoint: &Checkpoint) -> Result<Option<Value>> {
    let path = std::fs::canonicalize(&checkpoint.path).map_err(|e| Error::io(&checkpoint.path, "find", e))?;
    let dir = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(&path) };
    let mut found = record::read(dir)?;
    if let (None, Some(parent), Some(name)) = (&found, dir.parent(), dir.file_name().and_then(|n| n.to_str())) {
        let lists = |r: &Value| r["plan"]["output"]["formats"].as_array().is_some_and(|f| f.iter().any(|f| *f == name));
        found = record::read(parent)?.filter(lists);
    }
    if let Some(record) = found.as_mut().and_then(Value::as_object_mut) {
        record.shift_remove("fingerprints");
    }
    Ok(found)
}

/// Every linear, and the embedding if it is codes.
fn sites(model: &Model, tensors: &dyn TensorSource) -> Vec<PlannedSite> {
    let coded = |module: &str| tensors.coded(&format!("{module}.weight")).cloned();
    let embedding = model.topology.param(SiteId::global(Role::Embed), Part::Weight).and_then(|p| coded(p.tensor.strip_suffix(".weight")?));
    let embedding = embedding.map(|c| PlannedSite {
        site: SiteId::global(Role::Embed).to_string(),
        module: c.module,
        shape: c.shape,
        transposed: c.transposed,
        weights: Some(c.spec),
    });
    let of_linear = |l: &Linear| PlannedSite {
        site: l.site.to_string(),
        module: l.module.clone(),
        shape: l.shape,
        transposed: l.transposed,
        weights: coded(&l.module).map(|c| c.spec),
    };
    embedding.into_iter().chain(model.topology.linears.iter().map(of_linear)).collect()
}

fn planned_branches(plan: &Plan, stored: Vec<StoredBranch>, tensors: &dyn TensorSource) -> Result<Vec<(PlannedBranch, StoredBranch)>> {
    let module_of = |a: &str| stored.iter().find(|b| b.a == a).map(|b| b.module.clone());
    let of = |b: &StoredBranch| {
        let site = plan.sites.iter().find(|s| s.module == b.module);
        let site =
            site.ok_or_else(|| Error::input("checkpoint::malformed", format!("the branch of `{}` runs beside nothing", b.module)))?;
        let kept = match tensors.require(&b.b)?.dtype {
            StoredDtype::F16 => FloatKind::F16,
            StoredDtype::BF16 => FloatKind::Bf16,
            _ => FloatKind::F32,
        };
        Ok(PlannedBranch {
            site: site.site.clone(),
            module: b.module.clone(),
            shape: site.shape,
            rank: b.rank,
            stored: kept,
            a: module_of(&b.a).unwrap_or_else(|| b.module.clone()),
        })
    };
    let planned = stored.iter().map(of).collect::<Result<Vec<_>>>()?;
    Ok(planned.into_iter().zip(stored).collect())
}

/// The block format of a tensor that is not codes here.
fn blocks_of(tensors: &dyn TensorSource, name: &str) -> Option<&'static str> {
    match tensors.info(name)?.dtype {
        StoredDtype::Ggml(block) if tensors.coded(name).is_none() => Some(block),
        _ => None,
    }
}

/// The part of a plan that is about sweeps, of which there are none.
fn nothing_runs() -> HarnessPlan {
    HarnessPlan {
        sequence: Sequence::Block,
        propagate: Propagate::Quantized,
        products: Products::F32,
        on_failure: Failure::Error,
        seed: 0,
        device: "cpu".to_owned(),
        instructions: crate::numeric::instructions(None),
    }
}

/// The zero point of a symmetric grid of these integers.
fn middle(grid: &Grid) -> f32 {
    let (lo, hi) = grid.limits();
    ((lo + hi + 1) / 2) as f32
}

/// The same integers without zero points.
fn without_zero_points(spec: &mut QuantSpec) {
    let z = middle(&spec.grid) as i32;
    if let Grid::Int { zero, .. } = &mut spec.grid {
        *zero = if z == 0 { Zero::None } else { Zero::Fixed(z) };
    }
    spec.symmetric = true;
}

/// Whether float zero points come from integers: those of a minimum `m = −s·(z − lo)` that was rounded to f16.
fn nearly_whole(grid: &Grid, scale: &[f32], zero: &[f32]) -> bool {
    let (lo, hi) = grid.limits();
    scale.iter().zip(zero).all(|(s, z)| {
        let (whole, minimum) = (z.round_ties_even(), |z: f32| half::f16::from_f32(-s * (z - lo as f32)));
        (lo as f32..=hi as f32).contains(&whole) && minimum(whole) == minimum(*z)
    })
}
