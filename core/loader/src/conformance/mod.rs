//! The conformance kit: what an algorithm or a number format has to do right on sites of every shape, whatever it is for.
//!
//! Cases have names, such as `near.round.one-by-one`, and are independent: a front end runs each in a process of its own, so that one that
//! crashes or hangs is one case. [`cases`] lists those of a package from its manifest alone, and [`run`] runs one, through the interface of
//! run-time plugins. [`record_cases`] and [`run_record`] are the same for an algorithm that is linked: for `cargo test`.
//!
//! | group | what is tried |
//! |---|---|
//! | library | opens, soon; says the same twice; knows no extension that does not exist |
//! | options | the schema; defaults, left out and given; unknown names; values out of range; reading activations as it says |
//! | shapes | sites, or regions of a small model, that break things: see [`Kind`] |
//! | repeats | the same site twice; one thread and four; sites in another order |
//! | safety | what was lent is as it was; weights that are no numbers; asked to stop; memory comes back |
//! | phase | what its phase promises: codes of the grid, a fixed point, a smaller weight, an unchanged model |
//! | fuzz | shapes, formats and groups drawn from the seed |
//!
//! Every phase has the same list; a case that means nothing for one is skipped, and says why.

mod fuzz;
mod library;
mod model;
mod options;
mod phases;
mod regions;
mod repeats;
mod safety;
mod sample;
mod shapes;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use qfw_abi::raw;
use qfw_core::algorithm::{AlgorithmRecord, Maker, Phase, PtqAlgorithm};
use qfw_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::algorithm::Loadable;
use crate::guest::Host;
use crate::library::{Lazy, first_cause};
use crate::package::Package;

pub use sample::{Kind, Sample};
pub use shapes::may_be_used;

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "status", content = "reason")]
pub enum Outcome {
    /// As it should.
    Success,
    /// Allowed, but not what one would expect.
    Warning(String),
    /// The contract is broken.
    Failed(String),
    /// The process ended without an answer; only a front end can tell.
    Crashed(String),
    /// There is nothing to try.
    Skipped(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Warning(why) => write!(f, "warning: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Crashed(why) => write!(f, "crashed: {why}"),
            Self::Skipped(why) => write!(f, "skipped: {why}"),
        }
    }
}

impl Outcome {
    /// Whether the plugin may ship.
    pub fn is_fine(&self) -> bool {
        !matches!(self, Self::Failed(_) | Self::Crashed(_))
    }

    /// What an error is where none is allowed.
    fn of(e: &Error) -> Self {
        let cause = first_cause(e).map_or_else(String::new, |cause| format!(" ({cause})"));
        Self::Failed(format!("{e}{cause}"))
    }

    /// What an error is on a site: one that cannot be solved is data, and so is a plan that an algorithm refuses.
    fn of_site(e: &Error) -> Self {
        match e.kind() {
            ErrorKind::Numeric => Self::Warning(format!("it cannot solve this: {e}")),
            ErrorKind::Plan => Self::Skipped(e.to_string()),
            _ => Self::of(e),
        }
    }
}

/// The cases of the package in `dir`; nothing of it is run.
///
/// # Errors
/// If it is no package.
pub fn cases(dir: &Path) -> Result<Vec<String>> {
    let manifest = Package::open(dir)?.manifest;
    let mut all: Vec<String> = library::CASES.iter().map(|case| format!("library.{case}")).collect();
    for algo in &manifest.algos {
        all.extend(library::OF_INSTANCES.iter().map(|case| format!("{}.{case}", algo.id)));
        all.extend(of_algorithm(&algo.id, algo.phase));
    }
    all.extend(manifest.formats.iter().flat_map(|f| library::OF_FORMATS.iter().map(|case| format!("{}.format.{case}", f.id))));
    Ok(all)
}

/// The cases of an algorithm that is linked.
pub fn record_cases(record: &AlgorithmRecord) -> Vec<String> {
    of_algorithm(record.id, record.phase)
}

fn of_algorithm(id: &str, phase: Phase) -> Vec<String> {
    let options = options::CASES.iter().map(|case| format!("{id}.options.{case}"));
    options.chain(phases::cases().into_iter().map(|case| format!("{id}.{phase}.{case}"))).collect()
}

/// Runs a case of the package in `dir`; `seed` is that of everything random in it.
///
/// # Errors
/// If there is no such case.
pub fn run(dir: &Path, case: &str, seed: u64, host: &Host) -> Result<Outcome> {
    let package = Package::open(&dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?)?;
    let manifest = package.manifest.clone();
    let lazy = Arc::new(Lazy::new(package, true, host.clone()));
    if let Some(name) = case.strip_prefix("library.").filter(|name| library::CASES.contains(name)) {
        return Ok(library::run(&lazy, name));
    }
    if let Err(e) = lazy.library() {
        return Ok(Outcome::of(&e));
    }
    // Ids may have dots: the longest that fits.
    let rest = |id: &str| case.strip_prefix(id).and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
    let of_format = |id: &str| rest(id).and_then(|rest| rest.strip_prefix("format.").map(str::to_owned));
    for id in manifest.formats.iter().map(|f| &f.id) {
        if let Some(name) = of_format(id).filter(|name| library::OF_FORMATS.contains(&name.as_str())) {
            return library::format(&lazy, id, &name, seed);
        }
    }
    let algo = manifest.algos.iter().filter(|a| rest(&a.id).is_some()).max_by_key(|a| a.id.len());
    let algo = algo.ok_or_else(|| unknown(case))?;
    let on = Try { id: algo.id.clone(), phase: algo.phase, seed, subject: Subject::Loaded(Arc::clone(&lazy)) };
    let name = rest(&algo.id).unwrap_or_default();
    if library::OF_INSTANCES.contains(&name.as_str()) {
        return Ok(library::unknown_extension(&lazy, &algo.id));
    }
    on.case(&name)
}

/// Runs a case of an algorithm that is linked, as [`run`] does.
///
/// # Errors
/// If there is no such case.
pub fn run_record(record: &'static AlgorithmRecord, case: &str, seed: u64) -> Result<Outcome> {
    let name = case.strip_prefix(record.id).and_then(|rest| rest.strip_prefix('.')).ok_or_else(|| unknown(case))?;
    Try { id: record.id.to_owned(), phase: record.phase, seed, subject: Subject::Linked(record) }.case(name)
}

fn unknown(case: &str) -> Error {
    Error::config("registry::unknown", format!("there is no case `{case}`"))
}

/// Where an algorithm on trial comes from.
enum Subject {
    Loaded(Arc<Lazy>),
    Linked(&'static AlgorithmRecord),
}

/// An algorithm on trial.
struct Try {
    id: String,
    phase: Phase,
    seed: u64,
    subject: Subject,
}

impl Try {
    fn case(&self, name: &str) -> Result<Outcome> {
        let ended = match name.strip_prefix("options.").filter(|n| options::CASES.contains(n)) {
            Some(name) => options::run(self, name),
            None => {
                let name = name.strip_prefix(&format!("{}.", self.phase)).filter(|n| phases::cases().contains(n));
                phases::run(self, name.ok_or_else(|| unknown(&format!("{}.{}", self.id, name.unwrap_or_default())))?)
            }
        };
        Ok(ended.unwrap_or_else(|e| Outcome::of_site(&e)))
    }

    /// An instance, and its options with defaults filled in.
    fn build(&self, options: &Value) -> Result<(Box<dyn PtqAlgorithm>, Value)> {
        match &self.subject {
            Subject::Loaded(lazy) => Loadable { lazy: Arc::clone(lazy), id: self.id.clone() }.build(options),
            Subject::Linked(record) => (record.build)(options),
        }
    }

    /// An instance with its defaults.
    fn instance(&self) -> Result<Box<dyn PtqAlgorithm>> {
        Ok(self.build(&json!({}))?.0)
    }

    /// The schema of its options, as text.
    fn schema(&self) -> Result<String> {
        Ok(match &self.subject {
            Subject::Loaded(lazy) => lazy.library()?.algorithm(&self.id).map(|d| d.schema.clone()).unwrap_or_default(),
            Subject::Linked(record) => (record.schema)().to_string(),
        })
    }

    /// Whether it checks its options itself.
    fn checks_options(&self) -> Result<bool> {
        Ok(match &self.subject {
            Subject::Loaded(lazy) => lazy.library()?.algorithm(&self.id).is_some_and(|d| d.is(raw::CHECKS_OPTIONS)),
            Subject::Linked(_) => true,
        })
    }

    /// Whether it says that it reads no activations.
    fn weight_only(&self) -> Result<bool> {
        Ok(match &self.subject {
            Subject::Loaded(lazy) => lazy.library()?.algorithm(&self.id).is_some_and(|d| d.is(raw::WEIGHT_ONLY)),
            Subject::Linked(record) => record.weight_only,
        })
    }

    /// What asks it to stop, where it can hear that in the middle of a site.
    fn cancel(&self) -> Option<&'static AtomicBool> {
        match &self.subject {
            Subject::Loaded(lazy) => Some(lazy.host.cancel),
            Subject::Linked(_) => None,
        }
    }
}
