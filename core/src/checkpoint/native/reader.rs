//! A finished model as containers see it: quantized modules by role, everything else by stored name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::{BRANCH, NativeSite, decode_activation, decode_site, encode_branch, exact_bytes};
use crate::algorithm::Rounded;
use crate::checkpoint::{ContainerWriter, TensorDecl, TensorInfo, TensorSource, open_tensors};
use crate::error::{Error, Result};
use crate::plan::{PlannedActivation, PlannedBranch};
use crate::scheme::{QParams, ScaleForm, Timing};
use crate::topology::OnlineStep;

/// Where the codes of a finished model are, and what else is not in the tensors it was made from.
pub trait Stock: Send + Sync {
    /// Codes and parameters of a module.
    ///
    /// # Errors
    /// If they cannot be read.
    fn rounded(&self, site: &NativeSite) -> Result<Rounded>;

    /// What scales of two levels have in common, where that can be had without the codes beside it.
    ///
    /// # Errors
    /// If it cannot be read.
    fn global(&self, site: &NativeSite) -> Result<Option<f32>> {
        Ok(self.rounded(site)?.params.global)
    }

    /// Whether the groups of a module do not run in storage order, so that [`Stock::rounded`] has an index of them.
    ///
    /// # Errors
    /// If that cannot be known.
    fn group_index(&self, site: &NativeSite) -> Result<bool>;

    /// The parameters of static activations.
    ///
    /// # Errors
    /// If they cannot be read.
    fn activation(&self, activation: &PlannedActivation) -> Result<QParams>;

    /// The factors of a branch: `A`, `[rank, in]`, and `B`, `[out, rank]`.
    ///
    /// # Errors
    /// If they cannot be read.
    fn factors(&self, branch: &PlannedBranch) -> Result<[Vec<f32>; 2]>;

    /// The tensors that hold `name`, which is no codes, where it is not what it was.
    ///
    /// # Errors
    /// If they cannot be opened.
    fn changed(&self, name: &str) -> Result<Option<Arc<dyn TensorSource>>> {
        let _ = name;
        Ok(None)
    }
}

/// What a run leaves: native shards.
struct Shards {
    /// By module, and by place of static activations.
    holds: BTreeMap<String, PathBuf>,
    /// By tensors that have changed without becoming codes.
    changed: BTreeMap<String, PathBuf>,
}

impl Shards {
    fn open(&self, what: &str) -> Result<Arc<dyn TensorSource>> {
        open_tensors(self.holds.get(what).ok_or_else(|| Error::internal(format!("no native shard holds `{what}`")))?)
    }
}

impl Stock for Shards {
    fn rounded(&self, site: &NativeSite) -> Result<Rounded> {
        decode_site(site, &*self.open(&site.module)?)
    }

    fn global(&self, site: &NativeSite) -> Result<Option<f32>> {
        let bytes = exact_bytes(&*self.open(&site.module)?, &format!("{}.global", site.module), 4)?;
        Ok(bytes.first_chunk().map(|w| f32::from_le_bytes(*w)))
    }

    fn group_index(&self, site: &NativeSite) -> Result<bool> {
        Ok(self.open(&site.module)?.info(&format!("{}.group_index", site.module)).is_some())
    }

    fn activation(&self, activation: &PlannedActivation) -> Result<QParams> {
        decode_activation(activation, &*self.open(&activation.place.to_string())?)
    }

    fn factors(&self, branch: &PlannedBranch) -> Result<[Vec<f32>; 2]> {
        let read = |module: &str, suffix: &str, rows: usize| -> Result<Vec<f32>> {
            let mut out = Vec::new();
            self.open(module)?.read_f32(&format!("{module}.{suffix}"), 0..rows, &mut out)?;
            Ok(out)
        };
        Ok([read(&branch.a, BRANCH[0], branch.rank)?, read(&branch.module, BRANCH[1], branch.shape.0)?])
    }

    fn changed(&self, name: &str) -> Result<Option<Arc<dyn TensorSource>>> {
        self.changed.get(name).map(|shard| open_tensors(shard)).transpose()
    }
}

/// A finished model, for containers: quantized modules by role, everything else by stored name.
pub struct NativeReader {
    /// The original checkpoint's tensors.
    pub source: Arc<dyn TensorSource>,
    /// The quantized modules, in order of execution.
    pub sites: Vec<NativeSite>,
    /// The rounded activations, in order of execution.
    pub activations: Vec<PlannedActivation>,
    /// The configuration of the model, for containers that store tensors by it; null if nobody gave one.
    pub config: Value,
    /// The branches beside the codes, in the order of the sites.
    pub branches: Vec<PlannedBranch>,
    /// What is done to activations while the model runs. The vectors of multipliers are among the tensors that are no codes.
    pub online: Vec<OnlineStep>,
    stock: Arc<dyn Stock>,
}

impl NativeReader {
    /// A reader over block shards: `shards` maps each module, and each place of static activations, to the file that holds it, and
    /// `changed` each tensor of the source that the run has changed without making codes of it.
    pub fn new(
        source: Arc<dyn TensorSource>,
        sites: Vec<NativeSite>,
        activations: Vec<PlannedActivation>,
        shards: BTreeMap<String, PathBuf>,
        changed: BTreeMap<String, PathBuf>,
    ) -> Self {
        Self::over(source, sites, activations, Arc::new(Shards { holds: shards, changed }))
    }

    /// A reader over codes that lie elsewhere.
    pub fn over(source: Arc<dyn TensorSource>, sites: Vec<NativeSite>, activations: Vec<PlannedActivation>, stock: Arc<dyn Stock>) -> Self {
        Self { source, sites, activations, config: Value::Null, branches: Vec::new(), online: Vec::new(), stock }
    }

    /// The same with the configuration of the model.
    #[must_use]
    pub fn with_config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// The same with what the model computes beside the codes.
    #[must_use]
    pub fn with_extras(mut self, branches: Vec<PlannedBranch>, online: Vec<OnlineStep>) -> Self {
        (self.branches, self.online) = (branches, online);
        self
    }

    /// The factors of a branch: `A`, `[rank, in]`, and `B`, `[out, rank]`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn branch(&self, branch: &PlannedBranch) -> Result<[Vec<f32>; 2]> {
        self.stock.factors(branch)
    }

    /// The parameters of activations, where they are static.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn activation_params(&self, activation: &PlannedActivation) -> Result<Option<QParams>> {
        if activation.spec.timing != Timing::Static {
            return Ok(None);
        }
        self.stock.activation(activation).map(Some)
    }

    /// Codes and parameters of a module.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn rounded(&self, site: &NativeSite) -> Result<Rounded> {
        self.stock.rounded(site)
    }

    /// What scales of two levels have in common.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn global(&self, site: &NativeSite) -> Result<Option<f32>> {
        if site.spec.scale == ScaleForm::TwoLevel { self.stock.global(site) } else { Ok(None) }
    }

    /// Whether the groups of a module do not run in storage order.
    ///
    /// # Errors
    /// If that cannot be known.
    pub fn group_index(&self, site: &NativeSite) -> Result<bool> {
        self.stock.group_index(site)
    }

    /// The tensors of branches, with their values.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(in crate::checkpoint) fn branches(&self) -> Result<Vec<(TensorDecl, Vec<f32>)>> {
        let mut out = Vec::new();
        for branch in &self.branches {
            let [a, b] = self.branch(branch)?;
            let decls = encode_branch(branch, &a, &b).into_iter().map(|(decl, _)| decl);
            let own = branch.a == branch.module;
            out.extend(decls.zip(if own { vec![a, b] } else { vec![b] }));
        }
        Ok(out)
    }

    /// The tensors that are no codes, in the order of their names: those that pass through unchanged, and those that a pass has changed.
    pub fn plain(&self) -> Vec<&TensorInfo> {
        let replaced: BTreeSet<String> = self.sites.iter().map(|s| format!("{}.weight", s.module)).collect();
        self.source.names().iter().filter(|n| !replaced.contains(*n)).filter_map(|n| self.source.info(n)).collect()
    }

    /// Where one of them can be read, in parts if need be.
    ///
    /// # Errors
    /// If what holds it cannot be opened.
    pub fn plain_source(&self, name: &str) -> Result<Arc<dyn TensorSource>> {
        Ok(self.stock.changed(name)?.unwrap_or_else(|| Arc::clone(&self.source)))
    }

    /// Copies one of them.
    ///
    /// # Errors
    /// If reading or writing fails.
    pub fn copy_plain(&self, name: &str, out: &mut dyn ContainerWriter) -> Result<()> {
        out.write(name, &self.plain_source(name)?.read_bytes(name)?)
    }
}
