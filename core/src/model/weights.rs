//! Where a forward pass gets its parameters.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Tensor;

use super::Branch;
use crate::error::{Error, Result};
use crate::numeric::{Bf16Unit, Matrix};
use crate::topology::{Part, SiteId};

/// Parameters by role, in the layout the forward pass uses (`[out, in]`), of the run's float type and device.
pub trait WeightSource: Send + Sync {
    /// A whole parameter.
    ///
    /// # Errors
    /// If it does not exist or cannot be read.
    fn get(&self, site: SiteId, part: Part) -> Result<Tensor>;

    /// What rounds the operands of products with these weights to bf16; by default nothing does.
    fn bf16(&self) -> Option<Bf16Unit> {
        None
    }

    /// The weight of a linear layer, ready for products.
    ///
    /// # Errors
    /// As [`WeightSource::get`].
    fn matrix(&self, site: SiteId) -> Result<Matrix> {
        Matrix::new(self.get(site, Part::Weight)?, self.bf16())
    }

    /// The branch beside a linear layer, where it has one.
    ///
    /// # Errors
    /// If it cannot be read.
    fn branch(&self, site: SiteId) -> Result<Option<Branch>> {
        let _ = site;
        Ok(None)
    }

    /// Rows of a matrix, for tensors too large to hold.
    ///
    /// # Errors
    /// As [`WeightSource::get`].
    fn rows(&self, site: SiteId, part: Part, range: Range<usize>) -> Result<Tensor> {
        Ok(self.get(site, part)?.narrow(0, range.start, range.len())?)
    }

    /// The rows `ids` of a matrix, `[ids, columns]`; every id is within range.
    ///
    /// # Errors
    /// As [`WeightSource::get`].
    fn gather(&self, site: SiteId, part: Part, ids: &[u32]) -> Result<Tensor> {
        let table = self.get(site, part)?;
        Ok(table.index_select(&Tensor::new(ids, table.device())?, 0)?)
    }
}

/// Parameters in memory.
#[derive(Clone, Debug, Default)]
pub struct MapWeights {
    tensors: BTreeMap<(SiteId, Part), Tensor>,
    branches: BTreeMap<SiteId, Branch>,
    bf16: Option<Bf16Unit>,
}

impl MapWeights {
    /// Adds or replaces a parameter.
    pub fn insert(&mut self, site: SiteId, part: Part, tensor: Tensor) {
        self.tensors.insert((site, part), tensor);
    }

    /// Puts a branch beside a linear layer, or replaces it.
    pub fn insert_branch(&mut self, site: SiteId, branch: Branch) {
        self.branches.insert(site, branch);
    }

    /// The same parameters, for products in bf16 where a unit is given.
    #[must_use]
    pub fn rounding_products(self, bf16: Option<Bf16Unit>) -> Self {
        Self { bf16, ..self }
    }

    /// The parameter, if it is here.
    pub fn find(&self, site: SiteId, part: Part) -> Option<&Tensor> {
        self.tensors.get(&(site, part))
    }

    /// Everything, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&(SiteId, Part), &Tensor)> {
        self.tensors.iter()
    }
}

impl WeightSource for MapWeights {
    fn get(&self, site: SiteId, part: Part) -> Result<Tensor> {
        self.find(site, part).cloned().ok_or_else(|| Error::internal(format!("{part:?} of `{site}` is not loaded").to_lowercase()))
    }

    fn bf16(&self) -> Option<Bf16Unit> {
        self.bf16
    }

    fn branch(&self, site: SiteId) -> Result<Option<Branch>> {
        Ok(self.branches.get(&site).cloned())
    }
}
