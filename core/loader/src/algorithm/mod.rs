//! An algorithm of a library as core knows algorithms: how it is made, and how it is called. What each phase passes and gets back is in a
//! file of its own.

mod condition;
mod instance;
mod needs;
mod phase;
mod round;
mod split;
mod transform;

use std::ffi::CStr;
use std::sync::{Arc, Mutex};

use qfw_abi::raw;
use qfw_core::algorithm::{BuiltAlgorithm, Maker, SiteContext};
use qfw_core::statistic::{StatKind, Stream};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::call::{Call, Told};
use crate::contract::violation;
use crate::describe::Described;
use crate::library::{Lazy, Library};
use crate::options::{filled, readable};
use crate::site::{Layer, LentSite, lend_site, stats};
use crate::tensor::{Watched, unharmed};
use instance::Instance;
use phase::PhaseCalls;

/// What an author does whose options are more than the host checks.
const CHECK_YOURSELF: &str = "its author has to check the options in `create`, and to say so with `QFW_CHECKS_OPTIONS`";

/// Makes instances of one algorithm of a package; the first opens its library.
pub(crate) struct Loadable {
    pub(crate) lazy: Arc<Lazy>,
    pub(crate) id: String,
}

impl Maker for Loadable {
    fn build(&self, options: &Value) -> Result<BuiltAlgorithm> {
        let (loaded, options) = Loaded::new(Arc::clone(&self.lazy), &self.id, options)?;
        Ok((Box::new(loaded), options))
    }

    fn origin(&self) -> String {
        let manifest = &self.lazy.package.manifest;
        let hash = self.lazy.library().map_or_else(|_| "unknown".to_owned(), |l| l.hash.clone());
        format!("{} {} blake3:{hash}", manifest.id, manifest.version)
    }
}

/// An instance, and what is known of it.
pub(crate) struct Loaded {
    lazy: Arc<Lazy>,
    described: Described,
    instance: Instance,
    phase: PhaseCalls,
    /// Whether it was made with its default options.
    by_default: bool,
    /// Statistics that it asked for when the plan was made.
    asked: Mutex<Vec<(StatKind, Stream)>>,
    /// What went wrong where core asks for a plain answer; the next call that can fail fails with it.
    trouble: Mutex<Option<Error>>,
}

impl Loaded {
    pub(crate) fn new(lazy: Arc<Lazy>, id: &str, options: &Value) -> Result<(Self, Value)> {
        let library = lazy.library()?;
        let described = library.algorithm(id).cloned().ok_or_else(|| Error::internal(format!("`{id}` is in no library")))?;
        let broken = |message: String| violation(format!("`{id}`: {message}")).within(library.name());
        let by_default = options.as_object().is_some_and(serde_json::Map::is_empty);
        let options = if described.is(raw::CHECKS_OPTIONS) {
            options.clone()
        } else {
            let schema = serde_json::from_str(&described.schema).map_err(|e| broken(format!("its schema is no JSON: {e}")))?;
            readable(&schema).map_err(|why| broken(format!("its schema cannot be held to: {why}")).hint(CHECK_YOURSELF))?;
            filled(id, &schema, options)?
        };
        let instance = Instance::create(library, id, &options.to_string(), described.is(raw::REENTRANT))?;
        let phase = PhaseCalls::of(&instance, described.phase, &library.guest, &broken)?;
        let options = match instance.options().as_str() {
            "" => options,
            text => serde_json::from_str(text).map_err(|e| broken(format!("its options are no JSON: {e}")))?,
        };
        let (lazy, asked, trouble) = (Arc::clone(&lazy), Mutex::default(), Mutex::default());
        Ok((Self { lazy, described, instance, phase, by_default, asked, trouble }, options))
    }

    fn library(&self) -> Result<&Library> {
        self.lazy.library()
    }

    /// Whether it answers to an extension's name.
    pub(crate) fn has_extension(&self, id: &CStr) -> bool {
        !self.instance.extension_pointer(id).is_null()
    }

    /// A call of this instance about a site or region, with outputs by their names.
    ///
    /// # Errors
    /// What the plugin tells, or that it has written behind the end of an output, whatever it tells.
    fn call_at(&self, call: &Call<'_>, outputs: &[(&str, &dyn Watched)], function: impl FnOnce(*const raw::Host) -> i32) -> Result<Told> {
        let told = self.instance.call(&self.described.id, || call.run_apart(function));
        unharmed(outputs).map_err(|e| e.within(call.guest.name()))?;
        told
    }

    /// Statistics that it wants at the input of its sites.
    fn asked(&self) -> Vec<(StatKind, Stream)> {
        self.asked.lock().map(|a| a.clone()).unwrap_or_default()
    }

    /// A site of the model for the plugin, with the statistics it asked for.
    fn lend<'a>(&self, cx: &SiteContext<'a>, token: u64) -> Result<Box<LentSite<'a>>> {
        lend_site(&Layer::of(cx), stats(cx.stats, cx.linear.input, &self.asked()), token)
    }

    /// The error of calls of another phase than its own, which core does not make.
    fn other_phase(&self) -> Error {
        Error::internal(format!("`{}` is of the phase {}", self.described.id, self.described.phase))
    }
}
