//! The conformance kit: what a plugin has to do right on sites of every shape, whatever it is for.
//!
//! Cases have names, such as `near.round.one-by-one`, and are independent: a front end runs each in a process of its own, so that one that
//! crashes or hangs is one case. [`cases`] lists them from the manifest alone; [`run`] runs one.

mod phases;
mod regions;
mod sample;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qfw_core::algorithm::{Maker, Phase};
use qfw_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::algorithm::{Loadable, Loaded};
use crate::library::{Host, Lazy};
use crate::manifest::ManifestAlgo;
use crate::package::Package;

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
}

/// Cases of every algorithm, beside those of its phase.
const COMMON: [&str; 4] = ["options.schema", "options.defaults", "options.unknown", "extension.unknown"];

/// The cases of the package in `dir`; nothing of it is run.
///
/// # Errors
/// If it is no package.
pub fn cases(dir: &Path) -> Result<Vec<String>> {
    let package = Package::open(dir)?;
    let mut all = vec!["library.loads".to_owned()];
    for algo in &package.manifest.algos {
        all.extend(COMMON.iter().map(|case| format!("{}.{case}", algo.id)));
        all.extend(phases::cases(algo.phase).into_iter().map(|case| format!("{}.{}.{case}", algo.id, algo.phase)));
    }
    Ok(all)
}

/// Runs a case; `seed` is that of everything random in it.
///
/// # Errors
/// If there is no such case.
pub fn run(dir: &Path, case: &str, seed: u64, host: &Host) -> Result<Outcome> {
    let package = Package::open(&dir.canonicalize().map_err(|e| Error::io(dir, "open", e))?)?;
    let algos = package.manifest.algos.clone();
    let start = Instant::now();
    let lazy = Arc::new(Lazy::new(package, true, host.clone()));
    if let Err(e) = lazy.library() {
        return Ok(failed(&e));
    }
    if case == "library.loads" {
        let took = start.elapsed();
        let slow = took > Duration::from_millis(500);
        return Ok(if slow { Outcome::Warning(format!("loading takes {} ms", took.as_millis())) } else { Outcome::Success });
    }
    // Ids may have dots: the longest that fits.
    let algo = algos.iter().filter(|a| case.strip_prefix(a.id.as_str()).is_some_and(|r| r.starts_with('.'))).max_by_key(|a| a.id.len());
    let unknown = || Error::config("registry::unknown", format!("there is no case `{case}`"));
    let algo = algo.ok_or_else(unknown)?;
    let rest = &case[algo.id.len() + 1..];
    let try_ = Try { lazy, algo: algo.clone(), seed };
    match rest {
        "options.schema" => try_.schema(),
        "options.defaults" => Ok(try_.build(&json!({})).map_or_else(|e| failed(&e), |_| Outcome::Success)),
        "options.unknown" => Ok(try_.unknown_option()),
        "extension.unknown" => Ok(try_.unknown_extension()),
        _ => {
            let name =
                rest.strip_prefix(&format!("{}.", algo.phase)).filter(|n| phases::cases(algo.phase).contains(n)).ok_or_else(unknown)?;
            phases::run(&try_, name)
        }
    }
}

fn failed(e: &Error) -> Outcome {
    Outcome::Failed(e.to_string())
}

/// An algorithm on trial.
struct Try {
    lazy: Arc<Lazy>,
    algo: ManifestAlgo,
    seed: u64,
}

impl Try {
    fn build(&self, options: &Value) -> Result<Box<dyn qfw_core::algorithm::PtqAlgorithm>> {
        Ok(Loadable { lazy: Arc::clone(&self.lazy), id: self.algo.id.clone() }.build(options)?.0)
    }

    fn schema(&self) -> Result<Outcome> {
        let described = self.lazy.library()?.algorithm(&self.algo.id).cloned();
        let text = described.map(|d| d.schema).unwrap_or_default();
        Ok(match serde_json::from_str::<Value>(&text) {
            Err(e) => Outcome::Failed(format!("the schema is no JSON: {e}")),
            Ok(schema) if !schema.is_object() => Outcome::Failed("the schema is no object".to_owned()),
            Ok(schema) => {
                let properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
                match properties.iter().find(|(_, p)| p.get("description").is_none_or(|d| d.as_str().is_none_or(str::is_empty))) {
                    Some((name, _)) => Outcome::Warning(format!("option `{name}` has no description")),
                    None => Outcome::Success,
                }
            }
        })
    }

    fn unknown_option(&self) -> Outcome {
        let name = "no-such-option-is-there";
        match self.build(&json!({ name: 1 })) {
            Ok(_) => Outcome::Failed(format!("an unknown option, `{name}`, is accepted")),
            Err(e) if e.kind() == ErrorKind::Config && e.to_string().contains(name) => Outcome::Success,
            Err(e) if e.kind() == ErrorKind::Config => Outcome::Warning(format!("the message does not name the option: {e}")),
            Err(e) => failed(&e),
        }
    }

    fn unknown_extension(&self) -> Outcome {
        let loaded = match Loaded::new(Arc::clone(&self.lazy), &self.algo.id, &json!({})) {
            Ok((loaded, _)) => loaded,
            Err(e) => return failed(&e),
        };
        if loaded.has_extension("qfw.no-such-extension/1") {
            Outcome::Failed("it answers to an extension that does not exist".to_owned())
        } else {
            Outcome::Success
        }
    }
}

/// The phase has no cases of its own.
fn nothing_for(phase: Phase) -> Outcome {
    Outcome::Skipped(format!("the kit has no cases for the phase {phase}"))
}
