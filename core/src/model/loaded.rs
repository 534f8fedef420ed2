//! A model on disk, ready to run block by block.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::{Activations, Architecture, Block, Branch, Dims, Edges, MapWeights, Online, StoredBranch, WeightSource, branch};
use crate::checkpoint::TensorSource;
use crate::error::{Error, Result};
use crate::numeric::transpose;
use crate::topology::{OnlineStep, ParamDecl, Part, Role, SiteId, Topology};

/// Where every family here stores a head of its own.
const HEAD: &str = "lm_head.weight";

/// A model whose weights stay on disk until a block is asked for.
#[derive(Clone)]
pub struct Model {
    pub(super) architecture: &'static dyn Architecture,
    /// Its numbers.
    pub dims: Dims,
    /// What it is made of.
    pub topology: Arc<Topology>,
    /// Its parameters by role, read on demand.
    pub weights: Arc<StoredWeights>,
    /// Where activations are rotated or multiplied.
    pub online: Online,
    /// Where activations are rounded, behind that.
    pub activations: Activations,
}

impl Model {
    /// A model from its configuration and tensors. `dtype` is what it computes in: f32, or f64 for exact checks.
    ///
    /// # Errors
    /// If the configuration is not understood, or a tensor is missing or has the wrong shape.
    pub fn new(
        architecture: &'static dyn Architecture,
        config: &Value,
        tensors: Arc<dyn TensorSource>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::doing(architecture, config, tensors, dtype, device, &[])
    }

    /// The same model, whose blocks run on `device`.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        let weights = StoredWeights { device: device.clone(), ..StoredWeights::clone(&self.weights) };
        Self { weights: Arc::new(weights), ..self }
    }

    /// As [`Self::new`], of a model that does something to some of its activations.
    ///
    /// # Errors
    /// As [`Self::new`], or if there is no such place or rotation.
    pub fn doing(
        architecture: &'static dyn Architecture,
        config: &Value,
        tensors: Arc<dyn TensorSource>,
        dtype: DType,
        device: &Device,
        online: &[OnlineStep],
    ) -> Result<Self> {
        let has = |name: &str| tensors.info(name).is_some();
        let mut dims = architecture.parse(config, &has)?;
        let stored_head = has(HEAD);
        if !stored_head && !dims.tied_head {
            return Err(Error::input("checkpoint::no-head", format!("config.json does not tie the head, and there is no `{HEAD}`"))
                .hint("is every shard there? If the head is the embedding, say `\"tie_word_embeddings\": true` in config.json"));
        }
        if stored_head && dims.tied_head {
            // transformers uses a head that differs from the embedding although the configuration ties them.
            let tied = architecture.topology(&dims);
            let embedding = tied.params.iter().find(|p| p.site == SiteId::global(Role::Embed)).map(|p| p.tensor.as_str());
            dims.tied_head = embedding.map_or(Ok(true), |embedding| same_values(&*tensors, embedding, HEAD))?;
        }
        let mut topology = architecture.topology(&dims);
        topology.doing(online, dims.head_dim).map_err(|e| {
            Error::input("checkpoint::malformed", format!("the rotations or multipliers that config.json lists: {e}"))
                .hint("does config.json belong to these weights?")
        })?;
        let weights = StoredWeights::new(tensors, &topology, dtype, device.clone())?;
        let online = Online::new(online, &topology)?;
        let (topology, weights) = (Arc::new(topology), Arc::new(weights));
        Ok(Self { architecture, dims, topology, weights, online, activations: Activations::default() })
    }

    /// The same model with branches beside some of its linears.
    ///
    /// # Errors
    /// If there is no such linear in a block, or a tensor is missing or has the wrong shape.
    pub fn with_branches(mut self, branches: Vec<StoredBranch>) -> Result<Self> {
        if !branches.is_empty() {
            self.weights = Arc::new((*self.weights).clone().with_branches(branches, &self.topology)?);
        }
        Ok(self)
    }

    /// The `model_type`.
    pub fn architecture_id(&self) -> &'static str {
        self.architecture.id()
    }

    /// The architecture.
    pub fn architecture(&self) -> &'static dyn Architecture {
        self.architecture
    }

    /// Loads the parameters of block `b`.
    ///
    /// # Errors
    /// If reading fails or a value is not finite.
    pub fn load_block(&self, b: u32) -> Result<MapWeights> {
        let mut loaded = MapWeights::default();
        for p in self.topology.block_params(b) {
            loaded.insert(p.site, p.part, self.weights.get(p.site, p.part)?);
        }
        self.weights.block_branches(b)?.into_iter().for_each(|(site, branch)| loaded.insert_branch(site, branch));
        Ok(loaded)
    }

    /// Block `b` over the given parameters.
    ///
    /// # Errors
    /// If one is missing.
    pub fn block(&self, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        let block = self.online.in_block(b, self.architecture.block(&self.dims, b, weights)?, weights)?;
        Ok(self.activations.in_block(b, branch::in_block(b, &self.topology, weights, block)?))
    }

    /// The parts around the blocks, over the stored parameters.
    ///
    /// # Errors
    /// If reading fails.
    pub fn edges(&self) -> Result<Box<dyn Edges>> {
        self.edges_over(Arc::clone(&self.weights) as Arc<dyn WeightSource>)
    }

    /// The parts around the blocks, over the given parameters.
    ///
    /// # Errors
    /// If one is missing.
    pub fn edges_over(&self, weights: Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        let edges = self.architecture.edges(&self.dims, Arc::clone(&weights))?;
        Ok(self.activations.at_edges(self.online.at_edges(edges, &*weights)?))
    }
}

/// Whether two stored matrices hold the same numbers. Reads them side by side and stops at the first difference.
fn same_values(tensors: &dyn TensorSource, a: &str, b: &str) -> Result<bool> {
    const ROWS: usize = 1024;
    let (Some(first), Some(second)) = (tensors.info(a), tensors.info(b)) else { return Ok(false) };
    if first.shape != second.shape {
        return Ok(false);
    }
    let rows = first.shape.first().copied().unwrap_or(0);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(ROWS) {
        let range = start..rows.min(start + ROWS);
        tensors.read_f32(a, range.clone(), &mut x)?;
        tensors.read_f32(b, range, &mut y)?;
        if x != y {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Parameters by role, over stored tensors by name.
#[derive(Clone)]
pub struct StoredWeights {
    tensors: Arc<dyn TensorSource>,
    params: BTreeMap<(SiteId, Part), ParamDecl>,
    branches: BTreeMap<SiteId, StoredBranch>,
    dtype: DType,
    device: Device,
}

impl StoredWeights {
    /// Where its tensors are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn new(tensors: Arc<dyn TensorSource>, topology: &Topology, dtype: DType, device: Device) -> Result<Self> {
        let mut params = BTreeMap::new();
        for p in &topology.params {
            let info = tensors.info(&p.tensor).ok_or_else(|| {
                Error::input("checkpoint::missing-tensor", format!("the checkpoint has no tensor `{}` (for `{}`)", p.tensor, p.site))
                    .hint("is every shard there, and does config.json belong to these weights?")
            })?;
            let mut expected = p.shape.clone();
            if p.transposed {
                expected.reverse();
            }
            if info.shape != expected {
                let message = format!(
                    "tensor `{}` in `{}` has shape {:?}, but config.json asks for {expected:?}",
                    p.tensor,
                    info.file.display(),
                    info.shape
                );
                return Err(Error::input("checkpoint::wrong-shape", message).hint("does config.json belong to these weights?"));
            }
            params.insert((p.site, p.part), p.clone());
        }
        Ok(Self { tensors, params, branches: BTreeMap::new(), dtype, device })
    }

    fn with_branches(mut self, branches: Vec<StoredBranch>, topology: &Topology) -> Result<Self> {
        for branch in branches {
            let malformed = |what: String| Err(Error::input("checkpoint::malformed", format!("the branch of `{}` {what}", branch.module)));
            let Some(l) = topology.linears.iter().find(|l| l.module == branch.module && l.site.block.is_some()) else {
                return malformed("runs beside no linear layer of a block".to_owned());
            };
            for (name, shape) in [(&branch.a, [branch.rank, l.shape.1]), (&branch.b, [l.shape.0, branch.rank])] {
                match self.tensors.info(name) {
                    Some(info) if info.shape == shape => {}
                    Some(info) => return malformed(format!("should be {shape:?} in `{name}`, which is {:?}", info.shape)),
                    None => return malformed(format!("should be in `{name}`, which is not there")),
                }
            }
            self.branches.insert(l.site, branch);
        }
        Ok(self)
    }

    /// The branches of block `b`; an `A` that several share is one tensor.
    fn block_branches(&self, b: u32) -> Result<Vec<(SiteId, Branch)>> {
        let mut shared: BTreeMap<&str, Tensor> = BTreeMap::new();
        let of_block = self.branches.iter().filter(|(site, _)| site.block == Some(b));
        of_block
            .map(|(site, s)| {
                let a = match shared.get(s.a.as_str()) {
                    Some(a) => a.clone(),
                    None => self.factor(&s.a)?,
                };
                shared.insert(&s.a, a.clone());
                Ok((*site, Branch { a, b: self.factor(&s.b)? }))
            })
            .collect()
    }

    fn factor(&self, name: &str) -> Result<Tensor> {
        let shape = self.tensors.require(name)?.shape.clone();
        let mut data = Vec::new();
        self.tensors.read_f32(name, 0..shape[0], &mut data)?;
        crate::checkpoint::check_finite(name, &data)?;
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    /// The stored tensors.
    pub fn tensors(&self) -> &Arc<dyn TensorSource> {
        &self.tensors
    }

    fn param(&self, site: SiteId, part: Part) -> Result<&ParamDecl> {
        self.params.get(&(site, part)).ok_or_else(|| Error::internal(format!("no such parameter: {site} {part:?}")))
    }

    fn tensor(&self, p: &ParamDecl, data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        if let Some(i) = data.iter().position(|x| !x.is_finite()) {
            let message = format!("tensor `{}` (`{}`) holds {} at flat index {i}", p.tensor, p.site, data[i]);
            return Err(
                Error::numeric("checkpoint::not-finite", message).hint("the checkpoint is damaged, or was saved from a diverged run")
            );
        }
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)?)
    }
}

impl WeightSource for StoredWeights {
    fn branch(&self, site: SiteId) -> Result<Option<Branch>> {
        let stored = self.branches.get(&site);
        stored.map(|s| Ok(Branch { a: self.factor(&s.a)?, b: self.factor(&s.b)? })).transpose()
    }

    fn get(&self, site: SiteId, part: Part) -> Result<Tensor> {
        let p = self.param(site, part)?;
        let rows = if p.transposed { p.shape[p.shape.len() - 1] } else { p.shape[0] };
        let mut data = Vec::new();
        self.tensors.read_f32(&p.tensor, 0..rows, &mut data)?;
        if p.transposed {
            data = transpose(&data, p.shape[1], p.shape[0]);
        }
        self.tensor(p, data, &p.shape)
    }

    fn rows(&self, site: SiteId, part: Part, range: Range<usize>) -> Result<Tensor> {
        let p = self.param(site, part)?;
        if p.transposed {
            return Ok(self.get(site, part)?.narrow(0, range.start, range.len())?.contiguous()?);
        }
        let mut data = Vec::new();
        self.tensors.read_f32(&p.tensor, range.clone(), &mut data)?;
        self.tensor(p, data, &[range.len(), p.shape[1]])
    }

    fn gather(&self, site: SiteId, part: Part, ids: &[u32]) -> Result<Tensor> {
        let p = self.param(site, part)?;
        let width = p.shape[1];
        let mut data = Vec::with_capacity(ids.len() * width);
        let mut row = Vec::new();
        for id in ids {
            let id = *id as usize;
            self.tensors.read_f32(&p.tensor, id..id + 1, &mut row)?;
            data.extend_from_slice(&row);
        }
        self.tensor(p, data, &[ids.len(), width])
    }
}
