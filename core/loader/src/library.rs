//! Opening a library, once: hash, symbol, version of the interface, what it declares.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use qfw_abi::raw;
use qfw_core::algorithm::Phase;
use qfw_core::harness::Progress;
use qfw_core::scheme::Grid;
use qfw_core::{Error, ErrorKind, Result};

use crate::format;
use crate::in_flight::{Flying, InFlight};
use crate::manifest::{Manifest, abi_fits};
use crate::package::Package;
use crate::plugin_error;

/// What loaded plugins have of the program they are in.
#[derive(Clone)]
pub struct Host {
    /// Set when the run is to stop.
    pub cancel: &'static AtomicBool,
    /// Calls that have not returned.
    pub in_flight: InFlight,
    /// Where plugins' lines go; the level is 1 (error) to 4 (debug).
    pub log: fn(u32, &str),
    /// Where it is told how far a call is: [`Progress::Call`].
    pub progress: fn(&Progress),
}

/// An open library. There is one for each package, and it stays.
pub(crate) struct Library {
    pub(crate) id: String,
    pub(crate) version: String,
    pub(crate) hash: String,
    pub(crate) host: Host,
    pub(crate) plugin: &'static raw::Plugin,
    pub(crate) algorithms: Vec<Described>,
    formats: Vec<(String, Grid)>,
}

// SAFETY: its pointers are to constants of a library that stays open.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Library {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Library {}

/// An algorithm as its library describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) id: String,
    pub(crate) phase: Phase,
    pub(crate) schema: String,
    pub(crate) needs: u64,
    pub(crate) flags: u32,
}

/// A package, opened at most once.
pub(crate) struct Lazy {
    pub(crate) package: Package,
    pub(crate) allow_unpinned: bool,
    pub(crate) host: Host,
    opened: OnceLock<std::result::Result<Library, Error>>,
}

impl Lazy {
    pub(crate) fn new(package: Package, allow_unpinned: bool, host: Host) -> Self {
        Self { package, allow_unpinned, host, opened: OnceLock::new() }
    }

    /// The library; the first call opens it.
    ///
    /// # Errors
    /// Why it cannot be used; the same each time.
    pub(crate) fn library(&self) -> Result<&Library> {
        let opened = self.opened.get_or_init(|| Library::open(&self.package, self.allow_unpinned, &self.host));
        opened.as_ref().map_err(|e| {
            let copy = Error::new(e.kind(), e.code(), e.to_string());
            let copy = if let Some(hint) = e.hint_text() { copy.hint(hint) } else { copy };
            if let Some(cause) = first_cause(e) { copy.with_source(cause) } else { copy }
        })
    }
}

/// What lies at the bottom of an error: the one line of the system's that says why.
pub(crate) fn first_cause(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error)?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

impl Library {
    /// What errors call it.
    pub(crate) fn name(&self) -> String {
        format!("plugin `{}` {}", self.id, self.version)
    }

    /// A call of it, and what it is about: a site, a region, or nothing.
    pub(crate) fn what(&self, about: &str) -> String {
        if about.is_empty() { self.name() } else { format!("{} in `{about}`", self.name()) }
    }

    /// Says that a call of it has begun, until what it returns is dropped.
    pub(crate) fn enter(&self, about: &str) -> Flying {
        self.host.in_flight.enter(self.what(about))
    }

    fn open(package: &Package, allow_unpinned: bool, host: &Host) -> Result<Self> {
        let (path, hash) = package.trusted(allow_unpinned)?;
        let manifest = &package.manifest;
        let broken = |message: String| plugin_error("plugin::contract", format!("plugin `{}`: {message}", manifest.id));
        let plugin = entry(&path, &manifest.id)?;
        let text = |what: &str, text: *const c_char| read(text).ok_or_else(|| broken(format!("its {what} is missing")));
        let (id, version) = (text("id", plugin.id)?, text("version", plugin.version)?);
        if id != manifest.id || version != manifest.version {
            let message = format!("its library says `{id}` {version}, and its manifest `{}` {}", manifest.id, manifest.version);
            return Err(broken(message));
        }
        if plugin.create.is_none() && !manifest.algos.is_empty() {
            return Err(broken("it has no `create`".to_owned()));
        }
        let algorithms = algorithms(plugin, manifest).map_err(broken)?;
        let formats = format::described(plugin, manifest).map_err(broken)?;
        Ok(Self { id, version, hash, host: host.clone(), plugin, algorithms, formats })
    }

    /// Asked again, it declares what it did at first.
    ///
    /// # Errors
    /// What has changed.
    pub(crate) fn says_the_same(&self, manifest: &Manifest) -> std::result::Result<(), String> {
        let again = (algorithms(self.plugin, manifest)?, format::described(self.plugin, manifest)?);
        if again == (self.algorithms.clone(), self.formats.clone()) {
            Ok(())
        } else {
            Err("it describes itself otherwise the second time".to_owned())
        }
    }

    /// The values of one of its formats.
    pub(crate) fn format(&self, id: &str) -> Option<&Grid> {
        self.formats.iter().find(|(known, _)| known == id).map(|(_, grid)| grid)
    }

    /// One of its algorithms.
    pub(crate) fn algorithm(&self, id: &str) -> Option<&Described> {
        self.algorithms.iter().find(|a| a.id == id)
    }
}

/// A C string of a plugin's, if it is text.
pub(crate) fn read(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the header says that strings of descriptions are C strings that stay.
    #[allow(unsafe_code, reason = "the border")]
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().ok().map(ToOwned::to_owned)
}

/// The size that a struct of a plugin's gives itself, if it can be read at all and has every member that this version knows.
pub(crate) fn sized<T>(pointer: *const T) -> std::result::Result<&'static T, String> {
    if pointer.is_null() {
        return Err("is missing".to_owned());
    }
    if !pointer.is_aligned() {
        return Err("lies at an odd address".to_owned());
    }
    // SAFETY: every struct of the interface begins with its size; what plugins give out stays.
    #[allow(unsafe_code, reason = "the border")]
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < size_of::<T>() {
        return Err(format!("has {size} bytes, and version {}.{} of the interface wants {}", raw::MAJOR, raw::MINOR, size_of::<T>()));
    }
    // SAFETY: it says of itself that it has all members.
    #[allow(unsafe_code, reason = "the border")]
    Ok(unsafe { &*pointer })
}

/// Opens a library and asks for its table.
fn entry(path: &Path, id: &str) -> Result<&'static raw::Plugin> {
    let failed = |what: &str, e: libloading::Error| {
        plugin_error("plugin::load", format!("plugin `{id}`: {what} in `{}`", path.display())).with_source(e)
    };
    // SAFETY: it runs the library's constructors, which is what the user has asked for by adding it.
    #[allow(unsafe_code, reason = "the border")]
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| failed("there is no library that can be loaded", e))?;
    // Never unloaded: its threads and thread-local destructors may outlive any count of references.
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: the header says what the symbol is.
    #[allow(unsafe_code, reason = "the border")]
    let entry = unsafe { library.get::<raw::Entry>(raw::ENTRY) }.map_err(|e| {
        failed(&format!("there is no symbol `{}`", raw::ENTRY), e).hint("it is no plugin of qfw, or was built without `export_plugin!`")
    })?;
    // SAFETY: as above.
    #[allow(unsafe_code, reason = "the border")]
    let plugin = unsafe { entry() };
    version(plugin, id)?;
    sized(plugin).map_err(|e| plugin_error("plugin::contract", format!("plugin `{id}`: its table {e}")))
}

/// The version comes before anything else, as later members may not be there.
fn version(plugin: *const raw::Plugin, id: &str) -> Result<()> {
    const READ: usize = size_of::<u32>() + size_of::<raw::Version>();
    if plugin.is_null() || !plugin.is_aligned() {
        return Err(plugin_error("plugin::contract", format!("plugin `{id}`: its table is missing")));
    }
    // SAFETY: size and version come first, for ever.
    #[allow(unsafe_code, reason = "the border")]
    let (size, abi) = unsafe { (plugin.cast::<u32>().read(), plugin.cast::<u32>().add(1).cast::<raw::Version>().read_unaligned()) };
    if (size as usize) < READ {
        return Err(plugin_error("plugin::contract", format!("plugin `{id}`: its table has {size} bytes")));
    }
    abi_fits(id, abi.major, abi.minor)
}

/// What it declares, which has to be what its manifest says.
fn algorithms(plugin: &raw::Plugin, manifest: &Manifest) -> std::result::Result<Vec<Described>, String> {
    let (Some(count), Some(describe)) = (plugin.count, plugin.describe) else { return Err("its table lacks functions".to_owned()) };
    // SAFETY: functions of the table, which take no pointers.
    #[allow(unsafe_code, reason = "the border")]
    let count = unsafe { count() };
    let mut found: Vec<Described> = Vec::new();
    if count as usize != manifest.algos.len() {
        return Err(format!("it declares {count} algorithms, and its manifest {}", manifest.algos.len()));
    }
    for index in 0..count {
        // SAFETY: as above.
        #[allow(unsafe_code, reason = "the border")]
        let described = sized(unsafe { describe(index) }).map_err(|e| format!("its description {index} {e}"))?;
        let id = read(described.id).ok_or_else(|| format!("its description {index} has no id"))?;
        let phase = match described.phase {
            raw::TRANSFORM => Phase::Transform,
            raw::CONDITION => Phase::Condition,
            raw::SPLIT => Phase::Split,
            raw::ROUND => Phase::Round,
            other => return Err(format!("`{id}` has the phase {other}, which plugins that are loaded at run time cannot have")),
        };
        if found.iter().any(|f| f.id == id) {
            return Err(format!("it declares `{id}` twice"));
        }
        let Some(said) = manifest.algos.iter().find(|a| a.id == id) else {
            return Err(format!("it declares `{id}`, which its manifest does not name"));
        };
        if said.phase != phase {
            return Err(format!("it declares `{id}` for the phase {phase}, and its manifest for {}", said.phase));
        }
        let weight_only = described.flags & raw::WEIGHT_ONLY != 0;
        if said.weight_only != weight_only {
            return Err(format!("its manifest says `weight-only = {}` of `{id}`, and the library the opposite", said.weight_only));
        }
        let schema = read(described.options_schema).unwrap_or_default();
        found.push(Described { id, phase, schema, needs: described.needs, flags: described.flags });
    }
    Ok(found)
}

/// An error of configuration about the choice of plugins.
pub(crate) fn choice(message: String, hint: &str) -> Error {
    Error::new(ErrorKind::Plugin, "plugin::required", message).hint(hint)
}
