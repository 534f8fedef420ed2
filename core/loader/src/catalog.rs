//! Which packages there are, and what of them a run may use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qfw_core::algorithm::{AlgorithmRecord, BuiltAlgorithm, Maker};
use qfw_core::format::FormatRecord;
use qfw_core::registry::Registry;
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::added::Added;
use crate::algorithm::Loadable;
use crate::format::LoadedFormat;
use crate::library::{Host, Lazy, choice};
use crate::manifest::FILE;
use crate::package::{Origin, Package};
use crate::plugin_error;

/// Where packages are looked for. The program around the library fills it in; the current directory is never in it.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The list of plugins that were added.
    pub added: Option<PathBuf>,
    /// Directories, in order: each may be a package or hold packages. Those that are not absolute are skipped.
    pub search: Vec<PathBuf>,
}

/// What a run says about plugins.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Id of an algorithm to the plugin that is to provide it.
    pub prefer: BTreeMap<String, String>,
    /// Id of a plugin to the versions that will do.
    pub require: BTreeMap<String, String>,
    /// Packages may be loaded that were found, but not added.
    pub allow_unpinned: bool,
}

/// The packages that were found.
#[derive(Debug, Default)]
pub struct Catalog {
    /// Those that can be read, each id once.
    pub packages: Vec<Package>,
    /// Why others cannot.
    pub problems: Vec<Error>,
}

/// A plugin may be asked for by its id, or by the beginning of it.
fn is_from(source: &str, wanted: &str) -> bool {
    source == wanted || source.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'))
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// Stands for an id that two plugins offer.
struct Conflict {
    id: String,
    sources: [String; 2],
}

impl Maker for Conflict {
    fn build(&self, _: &Value) -> Result<BuiltAlgorithm> {
        let [first, second] = &self.sources;
        let message = format!("algorithm `{}` is offered twice: by `{first}` and by plugin `{second}`", self.id);
        Err(plugin_error("plugin::duplicate", message)
            .hint(format!("choose with `--set plugins.prefer.{}={second}`, or run `qfw plugin remove {second}`", self.id)))
    }

    fn origin(&self) -> String {
        self.sources.join(" or ")
    }
}

impl Catalog {
    /// Reads the manifests. Nothing of the packages is run.
    ///
    /// # Errors
    /// If the list of added plugins cannot be read. A package that cannot be is a [problem](Self::problems).
    pub fn scan(places: &Places) -> Result<Self> {
        let mut catalog = Self::default();
        if let Some(file) = &places.added {
            for plugin in Added::read(file)?.plugins {
                match Package::open(&plugin.path) {
                    Ok(package) if package.manifest.id == plugin.id => {
                        catalog.packages.push(Package { origin: Origin::Added(plugin.blake3), ..package });
                    }
                    Ok(package) => {
                        let message = format!(
                            "`{}` was plugin `{}` when it was added, and is `{}`",
                            plugin.path.display(),
                            plugin.id,
                            package.manifest.id
                        );
                        catalog.problems.push(plugin_error("plugin::manifest", message));
                    }
                    Err(e) => catalog.problems.push(e.within(format!("plugin `{}`", plugin.id))),
                }
            }
        }
        for dir in places.search.iter().filter(|d| d.is_absolute()) {
            for found in packages_in(dir) {
                match Package::open(&found) {
                    Ok(package) if catalog.packages.iter().any(|p| p.manifest.id == package.manifest.id) => {}
                    Ok(package) => catalog.packages.push(package),
                    Err(e) => catalog.problems.push(e),
                }
            }
        }
        Ok(catalog)
    }

    /// A package by its id.
    pub fn find(&self, id: &str) -> Option<&Package> {
        self.packages.iter().find(|p| p.manifest.id == id)
    }

    /// Makes entries of `registry` for all that the packages offer. Libraries are opened when they are used first, and then checked.
    ///
    /// # Errors
    /// If a plugin that the policy names is not there.
    pub fn register(&self, registry: &mut Registry, policy: &Policy, host: &Host) -> Result<()> {
        self.required(registry, policy)?;
        let mut offers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in registry.list().into_iter().filter(|l| l.kind == "algorithm") {
            for id in std::iter::once(line.id).chain(line.aliases) {
                offers.entry(id.to_owned()).or_default().push(line.source.to_owned());
            }
        }
        for package in &self.packages {
            let lazy = Arc::new(Lazy::new(package.clone(), policy.allow_unpinned, host.clone()));
            for algo in &package.manifest.algos {
                offers.entry(algo.id.clone()).or_default().push(package.manifest.id.clone());
                self.algorithm(registry, policy, &lazy, &algo.id)?;
            }
            for format in &package.manifest.formats {
                self.format(registry, &lazy, &format.id)?;
            }
        }
        for (id, wanted) in &policy.prefer {
            let there = offers.get(id).map(Vec::as_slice).unwrap_or_default();
            if !there.iter().any(|source| is_from(source, wanted)) {
                let list = if there.is_empty() { "nobody".to_owned() } else { there.join(", ") };
                let message = format!("`plugins.prefer` takes `{id}` from `{wanted}`, which does not offer it");
                return Err(choice(message, &format!("it is offered by: {list}")));
            }
        }
        Ok(())
    }

    fn required(&self, registry: &Registry, policy: &Policy) -> Result<()> {
        for (id, wanted) in &policy.require {
            let requirement = semver::VersionReq::parse(wanted).map_err(|e| {
                Error::config("config::invalid", format!("`plugins.require.{id}` is `{wanted}`: {e}")).hint("write it as \">=0.1, <0.3\"")
            })?;
            let package = self.find(id).map(|p| p.manifest.version.clone());
            let linked = || registry.list().into_iter().find(|l| l.source == id.as_str()).map(|l| l.version.to_owned());
            let Some(there) = package.or_else(linked) else {
                return Err(choice(format!("plugin `{id}` is required, and is not there"), "run `qfw plugin add DIR` with its package"));
            };
            if !semver::Version::parse(&there).is_ok_and(|v| requirement.matches(&v)) {
                let message = format!("plugin `{id}` is required as `{wanted}`, and version {there} is there");
                return Err(choice(message, "add another version of it"));
            }
        }
        Ok(())
    }

    fn algorithm(&self, registry: &mut Registry, policy: &Policy, lazy: &Arc<Lazy>, id: &str) -> Result<()> {
        let manifest = &lazy.package.manifest;
        let Some(algo) = manifest.algos.iter().find(|a| a.id == id) else { return Ok(()) };
        let record = AlgorithmRecord {
            id: leak(id),
            aliases: &[],
            phase: algo.phase,
            summary: leak(&algo.summary),
            version: leak(&manifest.version),
            source: leak(&manifest.id),
            weight_only: algo.weight_only,
            schema: || Value::Null,
            build: |_| Err(Error::internal("an algorithm of a library was built without it")),
        };
        let maker = Arc::new(Loadable { lazy: Arc::clone(lazy), id: id.to_owned() });
        let Ok(taken) = registry.algorithm(id) else {
            return registry.add_made(Box::leak(Box::new(record)), maker, false);
        };
        match policy.prefer.get(id) {
            Some(wanted) if is_from(&manifest.id, wanted) => registry.add_made(Box::leak(Box::new(record)), maker, true),
            Some(_) => Ok(()),
            // What merely lies about cannot spoil what is there.
            None if lazy.package.origin == Origin::Found && !policy.allow_unpinned => Ok(()),
            None => {
                let sources = [taken.source.to_owned(), manifest.id.clone()];
                let conflict = Arc::new(Conflict { id: id.to_owned(), sources });
                registry.add_made(taken, conflict, true)
            }
        }
    }

    fn format(&self, registry: &mut Registry, lazy: &Arc<Lazy>, id: &str) -> Result<()> {
        let manifest = &lazy.package.manifest;
        let Some(format) = manifest.formats.iter().find(|f| f.id == id) else { return Ok(()) };
        let record = FormatRecord {
            id: leak(id),
            summary: leak(&format.summary),
            version: leak(&manifest.version),
            source: leak(&manifest.id),
            find: |_| None,
        };
        registry.add_loaded_format(Box::leak(Box::new(record)), Arc::new(LoadedFormat::new(Arc::clone(lazy), id)))
    }
}

/// The packages in a directory: itself, or those that lie in it, by name.
fn packages_in(dir: &Path) -> Vec<PathBuf> {
    if dir.join(FILE).is_file() {
        return vec![dir.to_owned()];
    }
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| e.ok().map(|e| e.path()));
    let mut found: Vec<PathBuf> = entries.filter(|path| path.join(FILE).is_file()).collect();
    found.sort();
    found
}
