//! The float tensors of a dataset under the names of the model. What else is in the archive keeps its name.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use qfw_core::Result;
use qfw_core::checkpoint::{TensorInfo, TensorSource};

pub(crate) struct Renamed {
    inner: Arc<dyn TensorSource>,
    /// By the name here: what is known of it, and its name in the archive.
    named: BTreeMap<String, (TensorInfo, String)>,
}

impl Renamed {
    /// `names` are pairs of a name here and one in the archive.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub(crate) fn new(inner: Arc<dyn TensorSource>, names: Vec<(String, String)>) -> Result<Self> {
        let mut named = BTreeMap::new();
        for (here, there) in names {
            let mut info = inner.require(&there)?.clone();
            info.name.clone_from(&here);
            named.insert(here, (info, there));
        }
        Ok(Self { inner, named })
    }

    fn there<'a>(&'a self, name: &'a str) -> &'a str {
        self.named.get(name).map_or(name, |(_, there)| there)
    }
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        let mut names = self.inner.names();
        names.extend(self.named.keys().cloned());
        names.sort();
        names.dedup();
        names
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.named.get(name).map_or_else(|| self.inner.info(name), |(info, _)| Some(info))
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        self.inner.read_f32(self.there(name), rows, out)
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.inner.read_bytes(self.there(name))
    }
}
