//! What a library declares, which has to be what its manifest says.

use std::ffi::{CStr, c_char};

use qfw_abi::raw;
use qfw_core::algorithm::Phase;
use qfw_core::{Error, ErrorKind, Result};

use crate::call::Call;
use crate::contract::violation;
use crate::given::given;
use crate::guest::Guest;
use crate::manifest::Manifest;
use crate::plugin_error;

/// An algorithm as its library describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) id: String,
    pub(crate) phase: Phase,
    pub(crate) schema: String,
    pub(crate) needs: u64,
    pub(crate) flags: u32,
}

impl Described {
    /// Whether its description has that flag.
    pub(crate) fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
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

/// Calls a function that describes something. Whatever it fails for, the plugin is what is wrong.
///
/// # Errors
/// What it tells.
pub(crate) fn asked(guest: &Guest, function: impl FnOnce(*const raw::Host) -> i32) -> Result<()> {
    let told = Call::new(guest, "", Vec::new()).run(function);
    told.map(|_| ()).map_err(|e| match e.kind() {
        ErrorKind::Plugin | ErrorKind::Interrupted => e,
        _ => {
            let failed = plugin_error("plugin::failed", e.to_string());
            if let Some(hint) = e.hint_text() { failed.hint(hint) } else { failed }
        }
    })
}

/// The algorithms that a library declares.
///
/// # Errors
/// What is wrong with one of them, or how they differ from the manifest's.
pub(crate) fn algorithms(plugin: &raw::Plugin, manifest: &Manifest, guest: &Guest) -> Result<Vec<Described>> {
    let broken = |message: String| -> Error { violation(message).within(guest.name()) };
    let (Some(count), Some(describe)) = (plugin.count, plugin.describe) else {
        return Err(broken("its table lacks functions".to_owned()));
    };
    // SAFETY: a function of the table, which takes no pointers.
    #[allow(unsafe_code, reason = "the border")]
    let count = unsafe { count() };
    if count as usize != manifest.algos.len() {
        return Err(broken(format!("it declares {count} algorithms, and its manifest {}", manifest.algos.len())));
    }
    let mut found: Vec<Described> = Vec::new();
    for index in 0..count {
        let mut pointer = std::ptr::null();
        // SAFETY: the header's `describe`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        asked(guest, |host| unsafe { describe(host, index, &mut pointer) })?;
        let one = algorithm(pointer, index, manifest).map_err(broken)?;
        if found.iter().any(|f| f.id == one.id) {
            return Err(broken(format!("it declares `{}` twice", one.id)));
        }
        found.push(one);
    }
    Ok(found)
}

/// One of them.
fn algorithm(pointer: *const raw::AlgoDesc, index: u32, manifest: &Manifest) -> std::result::Result<Described, String> {
    let described = given(pointer).map_err(|e| format!("its description {index} {e}"))?;
    let id = read(described.id).ok_or_else(|| format!("its description {index} has no id"))?;
    let phase = match described.phase {
        raw::TRANSFORM => Phase::Transform,
        raw::CONDITION => Phase::Condition,
        raw::SPLIT => Phase::Split,
        raw::ROUND => Phase::Round,
        other => return Err(format!("`{id}` has the phase {other}, which plugins that are loaded at run time cannot have")),
    };
    let Some(said) = manifest.algos.iter().find(|a| a.id == id) else {
        return Err(format!("it declares `{id}`, which its manifest does not name"));
    };
    if said.phase != phase {
        return Err(format!("it declares `{id}` for the phase {phase}, and its manifest for {}", said.phase));
    }
    let schema = read(described.options_schema).unwrap_or_default();
    let found = Described { id, phase, schema, needs: described.needs, flags: described.flags };
    if said.weight_only != found.is(raw::WEIGHT_ONLY) {
        return Err(format!("its manifest says `weight-only = {}` of `{}`, and the library the opposite", said.weight_only, found.id));
    }
    if said.weight_only && found.needs != 0 {
        return Err(format!("it says that `{}` reads no activations, and that it needs statistics of them", found.id));
    }
    Ok(found)
}
