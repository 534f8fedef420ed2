//! Output formats: how a finished native checkpoint becomes a container that an engine loads, and how such a container is read back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use super::held::Held;
use super::native::{NativeReader, NativeSite};
use super::{Checkpoint, ContainerWriter, TensorDecl, TensorSource, gguf};
use crate::algorithm::Rounded;
use crate::error::{Error, Result};
use crate::model::StoredBranch;
use crate::plan::{Plan, PlannedActivation};
use crate::scheme::{FloatKind, QParams};
use crate::topology::{OnlineStep, Topology};

/// What a container can make of a plan.
#[derive(Debug)]
pub enum Verdict {
    /// Holds it as it is.
    Exact,
    /// Holds it as it is, in more bits than the plan says; the text says why.
    Larger(String),
    /// Holds something else; the text says what changes.
    Changes(String),
    /// Cannot hold it; the error names the site, the reason and the nearest that works.
    Refused(Error),
}

/// Where a container has the low-rank branches of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchPlace {
    /// It has no room for them, and engines that load it have no other.
    Nowhere,
    /// Among its tensors.
    Inside,
    /// In an adapter that engines load over it: a branch then reads what the layer is called with, before anything inside of the layer.
    Beside,
}

/// Activations that a stored model rounds.
#[derive(Clone, Debug)]
pub struct StoredActivation {
    /// Where, how, and for which modules.
    pub planned: PlannedActivation,
    /// The parameters, where they are static.
    pub params: Option<QParams>,
}

/// The files that a container's tensors lie in.
#[derive(Clone, Debug, PartialEq)]
pub enum FileForm {
    /// Shards of safetensors, with `config.json` beside them.
    Safetensors,
    /// One GGUF file, which holds configuration and tokenizer too: its keys in their order. There is no `config.json`.
    Gguf(Vec<(String, gguf::Value)>),
    /// One file with the tensors' bytes, and one that says what they are, which [`Container::describe`] makes. `config.json` beside them
    /// is the source's.
    Described {
        /// What is loaded.
        file: &'static str,
        /// What it refers to.
        data: &'static str,
    },
    /// One parameter archive of IREE, which says itself what its tensors are. `config.json` beside it is the source's.
    Archive {
        /// Its name.
        file: &'static str,
    },
}

/// A container format. It declares and fills tensors; files, shards, side files and `config.json` are core's.
pub trait Container: Send + Sync {
    /// Whether it can hold what the plan produces.
    fn accepts(&self, plan: &Plan) -> Verdict;

    /// Whether anything is written in it. What other tools alone write is read.
    fn is_written(&self) -> bool {
        true
    }

    /// Where low-rank branches lie that run beside the codes.
    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Nowhere
    }

    /// Whether it can state a thing that a model does to activations while it runs. Plans with what it cannot are refused before
    /// [`Self::accepts`] is asked.
    fn carries(&self, step: &OnlineStep) -> bool {
        let _ = step;
        false
    }

    /// The files that the tensors go in. What else of the checkpoint has to be held is checked here, before the run: its configuration
    /// and its tokenizer, where the files have them inside.
    ///
    /// # Errors
    /// If the configuration or the tokenizer cannot be held.
    fn file_form(&self, plan: &Plan, checkpoint: &Checkpoint) -> Result<FileForm> {
        let _ = (plan, checkpoint);
        Ok(FileForm::Safetensors)
    }

    /// Every tensor of the finished container, in the order to be stored.
    ///
    /// # Errors
    /// If the native checkpoint cannot be read.
    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>>;

    /// Writes every declared tensor.
    ///
    /// # Errors
    /// If reading or writing fails.
    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()>;

    /// The file that says what the tensors are, for [`FileForm::Described`]: `places` has the bytes of each in the file beside it, and
    /// `provenance` what is to be known of the run.
    ///
    /// # Errors
    /// If the native checkpoint cannot be read.
    fn describe(
        &self,
        native: &NativeReader,
        places: &BTreeMap<String, Range<u64>>,
        provenance: &BTreeMap<String, String>,
    ) -> Result<Vec<u8>> {
        let _ = (native, places, provenance);
        Err(Error::internal("this container has no file that describes another"))
    }

    /// Tensors of f32 that follow from the configuration and the plan, and stand for no tensor of the model, such as tables of rotary
    /// positions: writes their numbers to `out`, and says what they are called and what shape they have.
    ///
    /// # Errors
    /// If the native checkpoint cannot be read.
    fn made(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<Vec<(String, Vec<usize>)>> {
        let _ = (native, out);
        Ok(Vec::new())
    }

    /// The codes of a module of `native` as they are held: with scales as rounded as they are stored, and with the arithmetic of those who
    /// read them.
    ///
    /// # Errors
    /// If they cannot be held.
    fn held(&self, native: &NativeReader, site: &NativeSite, rounded: Rounded) -> Result<Held> {
        let _ = (native, site);
        Ok(Held::exactly(rounded))
    }

    /// The type that all floats have in it, where it has one for all: `config.json` then says so.
    fn float_type(&self) -> Option<FloatKind> {
        None
    }

    /// The value of `quantization_config` in `config.json`; null where there is none.
    ///
    /// # Errors
    /// If the plan has parts it cannot state.
    fn quantization_config(&self, plan: &Plan) -> Result<Value>;

    /// Whether a `quantization_config` is of this format.
    fn claims(&self, quantization_config: &Value) -> bool;

    /// Presents the stored tensors as the float tensors they stand for, under their original names. `transposed` names the modules
    /// whose float weight the model stores as `[in, out]`.
    ///
    /// # Errors
    /// If the configuration or a tensor is malformed.
    fn read(&self, config: &Value, transposed: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>>;

    /// The activations that the stored model rounds. A container that holds weights only has none.
    ///
    /// # Errors
    /// If the configuration or a tensor is malformed.
    fn activations(&self, config: &Value, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
        let _ = (config, tensors, topology);
        Ok(Vec::new())
    }

    /// What the stored model does to activations while it runs. A container that [carries](Self::carries) nothing has nothing.
    ///
    /// # Errors
    /// If the configuration is malformed.
    fn online(&self, config: &Value, topology: &Topology) -> Result<Vec<OnlineStep>> {
        let _ = (config, topology);
        Ok(Vec::new())
    }

    /// The branches that run beside the codes of the stored model, by the names of their tensors in what [`Container::read`] returns. A
    /// container without room for them has none.
    ///
    /// # Errors
    /// If the configuration is malformed.
    fn branches(&self, config: &Value) -> Result<Vec<StoredBranch>> {
        let _ = config;
        Ok(Vec::new())
    }
}

/// The record of a container in the registry.
pub struct ContainerRecord {
    /// Its id, as `--format` takes it.
    pub id: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// The implementation.
    pub container: &'static dyn Container,
}

inventory::collect!(ContainerRecord);
