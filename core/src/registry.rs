//! What is available, and from where.
//!
//! Records are data; building the registry runs no plugin code. [`Registry::linked`] holds everything linked into the program;
//! an embedder that wants no globals starts from [`Registry::builtin`] and adds what it chooses.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::algorithm::{AlgorithmRecord, BuiltAlgorithm, Maker};
use crate::checkpoint::{ContainerRecord, gguf};
use crate::error::{Error, ErrorKind, Result, did_you_mean};
use crate::format::{self, FormatRecord, QuantFormat};
use crate::granularity::{self, GranularityRecord, Shape};
use crate::model::{self, Architecture, ArchitectureRecord};
use crate::observer::{self, BuiltObserver, ObserverRecord};
use crate::scheme::Granularity;

/// Everything that can be chosen by name.
#[derive(Default)]
pub struct Registry {
    algorithms: BTreeMap<&'static str, &'static AlgorithmRecord>,
    formats: BTreeMap<&'static str, &'static FormatRecord>,
    granularities: BTreeMap<&'static str, &'static GranularityRecord>,
    observers: BTreeMap<&'static str, &'static ObserverRecord>,
    containers: BTreeMap<&'static str, &'static ContainerRecord>,
    architectures: BTreeMap<&'static str, &'static ArchitectureRecord>,
    /// Who makes algorithms that are not constants of this program, by the id of their record.
    makers: BTreeMap<&'static str, Arc<dyn Maker>>,
    /// Number formats that are no constants of this program, by id; one of them comes before those of a family.
    loaded_formats: BTreeMap<&'static str, Arc<dyn QuantFormat>>,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listing {
    /// `algorithm`, `format`, …
    pub kind: &'static str,
    /// Its id.
    pub id: &'static str,
    /// Other ids it answers to.
    pub aliases: Vec<&'static str>,
    /// The phase, for algorithms.
    pub phase: Option<String>,
    /// One line about it.
    pub summary: &'static str,
    /// The crate it comes from.
    pub source: &'static str,
    /// That crate's version.
    pub version: &'static str,
}

fn add<R>(
    map: &mut BTreeMap<&'static str, &'static R>,
    kind: &str,
    id: &'static str,
    source: fn(&R) -> &str,
    record: &'static R,
) -> Result<()> {
    if let Some(other) = map.insert(id, record) {
        let message = format!("{kind} `{id}` is registered twice: by `{}` and by `{}`", source(other), source(record));
        return Err(Error::new(ErrorKind::Plugin, "plugin::duplicate", message).hint("leave one of them out"));
    }
    Ok(())
}

fn find<'a, R>(map: &'a BTreeMap<&'static str, &'static R>, kind: &str, id: &str) -> Result<&'a &'static R> {
    map.get(id).ok_or_else(|| unknown(kind, id, map.keys().copied().collect()))
}

fn unknown(kind: &str, id: &str, known: Vec<&str>) -> Error {
    Error::config("registry::unknown", format!("unknown {kind} `{id}`{}", did_you_mean(id, known.iter().copied()))).hint(format!(
        "known {}: {}",
        plural(kind),
        known.join(", ")
    ))
}

/// Names of block types are no names here: what makes them is told.
fn of_gguf(id: &str, unknown: Error) -> Error {
    match gguf::wanted(id) {
        Some(hint) => unknown.hint(hint),
        None => unknown,
    }
}

fn plural(kind: &str) -> String {
    kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"))
}

impl Registry {
    /// What this crate itself provides: formats, observers, architectures and the native container.
    ///
    /// # Errors
    /// If two records share an id.
    pub fn builtin() -> Result<Self> {
        let mut r = Self::default();
        for x in format::BUILTIN.iter().copied().flatten() {
            r.add_format(x)?;
        }
        for x in granularity::BUILTIN {
            r.add_granularity(x)?;
        }
        for x in observer::BUILTIN {
            r.add_observer(x)?;
        }
        for x in model::BUILTIN {
            r.add_architecture(x)?;
        }
        for x in crate::checkpoint::BUILTIN {
            r.add_container(x)?;
        }
        Ok(r)
    }

    /// [`Registry::builtin`] and every record linked into the program.
    ///
    /// # Errors
    /// If two records share an id.
    pub fn linked() -> Result<Self> {
        let mut r = Self::builtin()?;
        for x in inventory::iter::<AlgorithmRecord> {
            r.add_algorithm(x)?;
        }
        for x in inventory::iter::<FormatRecord> {
            r.add_format(x)?;
        }
        for x in inventory::iter::<GranularityRecord> {
            r.add_granularity(x)?;
        }
        for x in inventory::iter::<ObserverRecord> {
            r.add_observer(x)?;
        }
        for x in inventory::iter::<ContainerRecord> {
            r.add_container(x)?;
        }
        for x in inventory::iter::<ArchitectureRecord> {
            r.add_architecture(x)?;
        }
        Ok(r)
    }

    /// Adds an algorithm under its id and aliases.
    ///
    /// # Errors
    /// If an id is taken.
    pub fn add_algorithm(&mut self, record: &'static AlgorithmRecord) -> Result<()> {
        for id in std::iter::once(&record.id).chain(record.aliases) {
            add(&mut self.algorithms, "algorithm", id, |r| r.source, record)?;
        }
        Ok(())
    }

    /// Adds an algorithm that `maker` makes: one that is loaded at run time. `record` says what is known of it before; its own functions are
    /// not called. It takes the place of one of the same id, and its aliases, if `replace` says so.
    ///
    /// # Errors
    /// If an id is taken.
    pub fn add_made(&mut self, record: &'static AlgorithmRecord, maker: Arc<dyn Maker>, replace: bool) -> Result<()> {
        if replace {
            self.algorithms.retain(|id, r| *id != record.id && r.id != record.id);
        }
        self.add_algorithm(record)?;
        self.makers.insert(record.id, maker);
        Ok(())
    }

    /// Adds a number format.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_format(&mut self, record: &'static FormatRecord) -> Result<()> {
        add(&mut self.formats, "format", record.id, |r| r.source, record)
    }

    /// Adds a number format that is no constant of this program. `record` is for listings; its own function is not called. It takes the
    /// place of one of the same id if `replace` says so.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_loaded_format(&mut self, record: &'static FormatRecord, format: Arc<dyn QuantFormat>, replace: bool) -> Result<()> {
        if replace {
            self.formats.remove(record.id);
        } else if self.format(record.id).is_ok() {
            let message = format!("format `{}` of `{}` is there already", record.id, record.source);
            return Err(Error::new(ErrorKind::Plugin, "plugin::duplicate", message).hint("leave one of them out"));
        }
        self.add_format(record)?;
        self.loaded_formats.insert(record.id, format);
        Ok(())
    }

    /// Adds a granularity.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_granularity(&mut self, record: &'static GranularityRecord) -> Result<()> {
        add(&mut self.granularities, "granularity", record.id, |r| r.source, record)
    }

    /// Adds an observer.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_observer(&mut self, record: &'static ObserverRecord) -> Result<()> {
        add(&mut self.observers, "observer", record.id, |r| r.source, record)
    }

    /// Adds a container.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_container(&mut self, record: &'static ContainerRecord) -> Result<()> {
        add(&mut self.containers, "output format", record.id, |r| r.source, record)
    }

    /// Adds an architecture.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_architecture(&mut self, record: &'static ArchitectureRecord) -> Result<()> {
        add(&mut self.architectures, "architecture", record.id, |r| r.source, record)
    }

    /// The record of an algorithm, by id or alias.
    ///
    /// # Errors
    /// If there is none; the message lists the known ones.
    pub fn algorithm(&self, id: &str) -> Result<&'static AlgorithmRecord> {
        find(&self.algorithms, "algorithm", id).copied()
    }

    /// Builds an algorithm; also returns its options with defaults filled in.
    ///
    /// # Errors
    /// If the id or an option is unknown.
    pub fn build_algorithm(&self, id: &str, options: &Value) -> Result<BuiltAlgorithm> {
        let record = self.algorithm(id)?;
        match self.makers.get(record.id) {
            Some(maker) => maker.build(options),
            None => (record.build)(options),
        }
    }

    /// A number format.
    ///
    /// # Errors
    /// If there is none of that id.
    pub fn format(&self, id: &str) -> Result<Arc<dyn QuantFormat>> {
        let linked = || self.formats.values().find_map(|r| (r.find)(id));
        let found = self.loaded_formats.get(id).cloned().or_else(linked);
        found.ok_or_else(|| of_gguf(id, unknown("format", id, self.formats.keys().copied().collect())))
    }

    /// The record of a number format, or of the family that it is of.
    pub fn format_record(&self, id: &str) -> Option<&'static FormatRecord> {
        self.formats.get(id).or_else(|| self.formats.values().find(|r| (r.find)(id).is_some())).copied()
    }

    /// The tiles that a granularity makes of a shape; `value` is what stands behind its name.
    ///
    /// # Errors
    /// If the id is unknown, or it does not suit the shape.
    pub fn granularity(&self, id: &str, shape: &Shape, value: &Value) -> Result<Granularity> {
        (find(&self.granularities, "granularity", id)?.tiles)(shape, value)
    }

    /// Builds an observer; also returns its options with defaults filled in.
    ///
    /// # Errors
    /// If the id or an option is unknown.
    pub fn build_observer(&self, id: &str, options: &Value) -> Result<BuiltObserver> {
        (find(&self.observers, "observer", id)?.build)(options)
    }

    /// The record of a container.
    ///
    /// # Errors
    /// If there is none of that id.
    pub fn container(&self, id: &str) -> Result<&'static ContainerRecord> {
        find(&self.containers, "output format", id).copied().map_err(|e| of_gguf(id, e))
    }

    /// All containers, by id.
    pub fn containers(&self) -> impl Iterator<Item = &'static ContainerRecord> + '_ {
        self.containers.values().copied()
    }

    /// The architecture for a `model_type`.
    ///
    /// # Errors
    /// If there is none; the message lists the known ones.
    pub fn architecture(&self, model_type: &str) -> Result<&'static dyn Architecture> {
        let known: Vec<&str> = self.architectures.keys().copied().collect();
        Ok(self.architectures.get(model_type).ok_or_else(|| model::unknown_architecture(model_type, &known))?.architecture)
    }

    /// What an algorithm that is loaded at run time comes from: its plugin, version and hash.
    pub fn origin(&self, id: &str) -> Option<String> {
        self.makers.get(self.algorithms.get(id)?.id).map(|m| m.origin())
    }

    /// JSON Schema of the options of every algorithm and observer, by kind and id. Those that are loaded at run time are left out, as
    /// asking them runs their code.
    pub fn schemas(&self) -> Value {
        let linked = self.algorithms.iter().filter(|(_, r)| !self.makers.contains_key(r.id));
        let algorithms: serde_json::Map<String, Value> = linked.map(|(id, r)| ((*id).to_owned(), (r.schema)())).collect();
        let observers: serde_json::Map<String, Value> = self.observers.iter().map(|(id, r)| ((*id).to_owned(), (r.schema)())).collect();
        serde_json::json!({ "algorithms": algorithms, "observers": observers })
    }

    /// Every registered thing, sorted by kind and id.
    pub fn list(&self) -> Vec<Listing> {
        let mut out = Vec::new();
        macro_rules! lines {
            ($map:expr, $kind:literal) => {
                for r in $map.values() {
                    out.push(Listing {
                        kind: $kind,
                        id: r.id,
                        aliases: Vec::new(),
                        phase: None,
                        summary: r.summary,
                        source: r.source,
                        version: r.version,
                    });
                }
            };
        }
        for (id, r) in &self.algorithms {
            if *id == r.id {
                out.push(Listing {
                    kind: "algorithm",
                    id: r.id,
                    aliases: r.aliases.to_vec(),
                    phase: Some(r.phase.to_string()),
                    summary: r.summary,
                    source: r.source,
                    version: r.version,
                });
            }
        }
        lines!(self.architectures, "architecture");
        lines!(self.formats, "format");
        lines!(self.granularities, "granularity");
        lines!(self.observers, "observer");
        lines!(self.containers, "output-format");
        for line in out.iter_mut().filter(|l| l.kind == "output-format") {
            if self.containers.get(line.id).is_some_and(|r| !r.container.is_written()) {
                line.kind = "input-format";
            }
        }
        out.sort_by_key(|l| l.kind);
        out
    }
}
