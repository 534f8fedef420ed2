//! Opening a library, once: hash, symbol, version of the interface, what it declares.

use std::ffi::c_char;
use std::path::Path;
use std::sync::OnceLock;

use qfw_abi::raw;
use qfw_core::scheme::Grid;
use qfw_core::{Error, Result};

use crate::describe::{Described, algorithms, read};
use crate::format;
use crate::given::given;
use crate::guest::{Guest, Host};
use crate::manifest::{Manifest, abi_fits};
use crate::package::Package;
use crate::plugin_error;

/// An open library. There is one for each package, and it stays.
pub(crate) struct Library {
    pub(crate) guest: Guest,
    pub(crate) hash: String,
    pub(crate) plugin: raw::Plugin,
    pub(crate) algorithms: Vec<Described>,
    formats: Vec<(String, Grid)>,
}

// SAFETY: its pointers are to constants of a library that stays open.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Library {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Library {}

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
    fn open(package: &Package, allow_unpinned: bool, host: &Host) -> Result<Self> {
        let (path, hash) = package.trusted(allow_unpinned)?;
        let manifest = &package.manifest;
        let guest = Guest::of(manifest, host);
        let _opening = guest.opening();
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
        let algorithms = algorithms(&plugin, manifest, &guest)?;
        let formats = format::described(&plugin, manifest, &guest)?;
        Ok(Self { guest, hash, plugin, algorithms, formats })
    }

    /// What errors call it.
    pub(crate) fn name(&self) -> String {
        self.guest.name()
    }

    /// Asked again, it declares what it did at first.
    ///
    /// # Errors
    /// What has changed.
    pub(crate) fn says_the_same(&self, manifest: &Manifest) -> std::result::Result<(), String> {
        let (algorithms, formats) =
            (algorithms(&self.plugin, manifest, &self.guest), format::described(&self.plugin, manifest, &self.guest));
        let again = (algorithms.map_err(|e| e.to_string())?, formats.map_err(|e| e.to_string())?);
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

/// Opens a library and asks for its table.
fn entry(path: &Path, id: &str) -> Result<raw::Plugin> {
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
    given(plugin).map_err(|e| plugin_error("plugin::contract", format!("plugin `{id}`: its table {e}")))
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
