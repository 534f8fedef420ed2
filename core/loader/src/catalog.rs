//! Which packages there are, and what of them a run may use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qfw_core::algorithm::{AlgorithmRecord, BuiltAlgorithm, Maker};
use qfw_core::format::{Ask, FormatRecord, Meaning, QuantFormat};
use qfw_core::registry::Registry;
use qfw_core::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::added::Added;
use crate::algorithm::Loadable;
use crate::format::LoadedFormat;
use crate::guest::Host;
use crate::library::Lazy;
use crate::manifest::{FILE, ManifestAlgo, ManifestFormat};
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
    /// Id of an algorithm or a number format to the plugin that is to provide it.
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

/// Text for a record, which lives as long as the process.
pub(crate) fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// An error of configuration about the choice of plugins.
fn choice(message: String, hint: &str) -> Error {
    Error::new(ErrorKind::Plugin, "plugin::required", message).hint(hint)
}

/// Stands for an id that several offer: an error for who uses it, and for nobody else.
struct Conflict {
    /// What it is an id of.
    kind: &'static str,
    id: String,
    sources: Vec<String>,
}

/// A setting of `plugins.prefer`, as a shell takes it: an id with dots is quoted.
fn preferring(id: &str, source: &str) -> String {
    if id.contains('.') { format!("--set 'plugins.prefer.\"{id}\"={source}'") } else { format!("--set plugins.prefer.{id}={source}") }
}

impl Conflict {
    fn error(&self) -> Error {
        let list = |of: &dyn Fn(&String) -> String, word: &str| self.sources.iter().map(of).collect::<Vec<_>>().join(word);
        let times = if self.sources.len() == 2 { "twice".to_owned() } else { format!("{} times", self.sources.len()) };
        let message = format!("{} `{}` is offered {times}: by {}", self.kind, self.id, list(&|s| format!("`{s}`"), " and by "));
        let choices = list(&|s| format!("`{}`", preferring(&self.id, s)), " or ");
        let last = self.sources.last().map_or("", String::as_str);
        plugin_error("plugin::duplicate", message).hint(format!("choose with {choices}, or run `qfw plugin remove {last}`"))
    }

    /// Where it may come from, for listings.
    fn offered(&self) -> String {
        self.sources.join(" or ")
    }
}

impl Maker for Conflict {
    fn build(&self, _: &Value) -> Result<BuiltAlgorithm> {
        Err(self.error())
    }

    fn origin(&self) -> String {
        self.offered()
    }
}

impl QuantFormat for Conflict {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn bits(&self) -> u8 {
        // It has no values, and so no width; `resolve` says why.
        1
    }

    fn resolve(&self, _: &Ask) -> Result<Meaning> {
        Err(self.error())
    }
}

impl Catalog {
    /// Reads the manifests. Nothing of the packages is run. What cannot be read, be it a package or the list of those that were added, is
    /// a [problem](Self::problems): it is nobody's who does not use it.
    pub fn scan(places: &Places) -> Self {
        let mut catalog = Self::default();
        if let Some(file) = &places.added {
            let added = Added::read(file).unwrap_or_else(|e| {
                catalog.problems.push(e);
                Added::default()
            });
            for plugin in added.plugins {
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
            let packages = packages_in(dir).unwrap_or_else(|e| {
                catalog.problems.push(e);
                Vec::new()
            });
            for found in packages {
                match Package::open(&found) {
                    Ok(package) => catalog.found(package),
                    Err(e) => catalog.problems.push(e),
                }
            }
        }
        catalog
    }

    /// A package of a directory that is searched: the first of an id is the one, and an added one comes before all.
    fn found(&mut self, package: Package) {
        let Some(first) = self.find(&package.manifest.id) else { return self.packages.push(package) };
        let here = |p: &Package| p.dir.canonicalize().unwrap_or_else(|_| p.dir.clone());
        if here(first) != here(&package) {
            let (m, how) = (&package.manifest, if first.origin == Origin::Found { "comes first" } else { "was added" });
            let message = format!(
                "plugin `{}` {} in `{}`: {} in `{}` {how}",
                m.id,
                m.version,
                package.dir.display(),
                first.manifest.version,
                first.dir.display()
            );
            self.problems.push(plugin_error("plugin::duplicate", message));
        }
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
        // Who offers an id, before those that follow. Number formats of the program come in families, which are asked.
        let linked_format = |id: &str| registry.format_record(id).map(|r| r.source.to_owned());
        let preferred = policy.prefer.keys().chain(self.packages.iter().flat_map(|p| p.manifest.formats.iter().map(|f| &f.id)));
        let mut formats: BTreeMap<String, Vec<String>> =
            preferred.map(|id| (id.clone(), linked_format(id).into_iter().collect())).collect();
        let mut offers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in registry.list().into_iter().filter(|l| l.kind == "algorithm") {
            for id in std::iter::once(line.id).chain(line.aliases) {
                offers.entry(id.to_owned()).or_default().push(line.source.to_owned());
            }
        }
        for package in &self.packages {
            let lazy = Arc::new(Lazy::new(package.clone(), policy.allow_unpinned, host.clone()));
            for algo in &package.manifest.algos {
                let before = offers.entry(algo.id.clone()).or_default();
                algorithm(registry, policy, &lazy, algo, before)?;
                before.push(package.manifest.id.clone());
            }
            for f in &package.manifest.formats {
                let before = formats.entry(f.id.clone()).or_default();
                format(registry, policy, &lazy, f, before)?;
                before.push(package.manifest.id.clone());
            }
        }
        for (id, wanted) in &policy.prefer {
            let there: Vec<String> = [&offers, &formats].into_iter().filter_map(|of| of.get(id)).flatten().cloned().collect();
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
            let package = self.find(id);
            let usable = package.filter(|p| p.usable(policy.allow_unpinned)).map(|p| p.manifest.version.clone());
            let linked = || registry.list().into_iter().find(|l| l.source == id.as_str()).map(|l| l.version.to_owned());
            let Some(there) = usable.or_else(linked) else {
                return Err(match package {
                    Some(p) => {
                        choice(format!("plugin `{id}` is required; it lies in `{}`, but was not added", p.dir.display()), &p.how_to_add())
                    }
                    None => choice(format!("plugin `{id}` is required, and is not there"), "run `qfw plugin add DIR` with its package"),
                });
            };
            if !semver::Version::parse(&there).is_ok_and(|v| requirement.matches(&v)) {
                let message = format!("plugin `{id}` is required as `{wanted}`, and version {there} is there");
                return Err(choice(message, "add another version of it"));
            }
        }
        Ok(())
    }
}

/// Makes an entry for an algorithm of a package; `before` are those that offer its id already, in order.
fn algorithm(registry: &mut Registry, policy: &Policy, lazy: &Arc<Lazy>, algo: &ManifestAlgo, before: &[String]) -> Result<()> {
    let manifest = &lazy.package.manifest;
    let record = AlgorithmRecord {
        id: leak(&algo.id),
        aliases: &[],
        phase: algo.phase,
        summary: leak(&algo.summary),
        version: leak(&manifest.version),
        source: leak(&manifest.id),
        weight_only: algo.weight_only,
        schema: || Value::Null,
        build: |_| Err(Error::internal("an algorithm of a library was built without it")),
    };
    let maker = Arc::new(Loadable { lazy: Arc::clone(lazy), id: algo.id.clone() });
    let Ok(taken) = registry.algorithm(&algo.id) else {
        return registry.add_made(Box::leak(Box::new(record)), maker, false);
    };
    match policy.prefer.get(&algo.id) {
        Some(wanted) if is_from(&manifest.id, wanted) => registry.add_made(Box::leak(Box::new(record)), maker, true),
        Some(_) => Ok(()),
        // What merely lies about cannot spoil what is there.
        None if !lazy.package.usable(policy.allow_unpinned) => Ok(()),
        None => {
            let sources = before.iter().chain([&manifest.id]).cloned().collect();
            let conflict = Arc::new(Conflict { kind: "algorithm", id: algo.id.clone(), sources });
            // Of what is there keeps all but the name in question: that may be one of its aliases.
            let AlgorithmRecord { phase, summary, version, weight_only, schema, build, .. } = *taken;
            let source = leak(&conflict.offered());
            let aliases = if taken.id == algo.id { taken.aliases } else { &[] };
            let stands_in = AlgorithmRecord { id: record.id, aliases, phase, summary, version, source, weight_only, schema, build };
            registry.add_made(Box::leak(Box::new(stands_in)), conflict, true)
        }
    }
}

/// Makes an entry for a number format of a package, as [`algorithm`] does.
fn format(registry: &mut Registry, policy: &Policy, lazy: &Arc<Lazy>, format: &ManifestFormat, before: &[String]) -> Result<()> {
    let (manifest, id) = (&lazy.package.manifest, &format.id);
    // The name of a family, such as `intN`, is that of none of its formats: what took its place would take all of them away.
    if registry.format(id).is_err() && registry.list().iter().any(|l| l.kind == "format" && l.id == id) {
        let message = format!("plugin `{}` names a number format `{id}`, as a family of formats is named: it is left out", manifest.id);
        (lazy.host.log)(2, &message);
        return Ok(());
    }
    let loaded = Arc::new(LoadedFormat::new(Arc::clone(lazy), id));
    let record = loaded.record(&format.summary);
    let Some(taken) = registry.format_record(id) else { return registry.add_loaded_format(record, loaded, false) };
    match policy.prefer.get(id) {
        Some(wanted) if is_from(&manifest.id, wanted) => registry.add_loaded_format(record, loaded, true),
        Some(_) => Ok(()),
        None if !lazy.package.usable(policy.allow_unpinned) => Ok(()),
        None => {
            let sources = before.iter().chain([&manifest.id]).cloned().collect();
            let conflict = Arc::new(Conflict { kind: "number format", id: id.clone(), sources });
            let (summary, version, source) = (taken.summary, taken.version, leak(&conflict.offered()));
            let stands_in = FormatRecord { id: record.id, summary, version, source, find: |_| None };
            registry.add_loaded_format(Box::leak(Box::new(stands_in)), conflict, true)
        }
    }
}

/// The packages in a directory: itself, or those that lie in it, by name. One that is not there has none.
fn packages_in(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.join(FILE).is_file() {
        return Ok(vec![dir.to_owned()]);
    }
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(dir, "look for plugins in", e)),
    };
    let mut found: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|path| path.join(FILE).is_file()).collect();
    found.sort();
    Ok(found)
}
