//! An instance as the plugin has made it: who may call it when, and when it is not called any more.

use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use qfw_abi::raw::{self, Grows};
use qfw_core::{Error, Result};

use crate::call::{Call, Told, heard, lend};
use crate::contract::violation;
use crate::given::given;
use crate::guest::Guest;
use crate::library::Library;
use crate::plugin_error;

/// An instance.
pub(super) struct Instance {
    guest: Guest,
    algo: *mut raw::Algo,
    table: raw::Algo,
    /// Calls of an instance that is not reentrant take turns.
    turn: Option<Mutex<()>>,
    /// The panic after which it is not called again.
    broken: OnceLock<String>,
}

// SAFETY: the header says of each function of an instance which threads may call it, and `turn` sees to the rest.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Instance {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Instance {}

impl Drop for Instance {
    fn drop(&mut self) {
        // One that has panicked is left alone: its state may be anything.
        if let (Some(destroy), None) = (self.table.destroy, self.broken.get()) {
            let destroyed = Call::new(&self.guest, "", Vec::new()).run_even_if_cancelled(|host| {
                // SAFETY: made by `create`, destroyed once.
                #[allow(unsafe_code, reason = "the border")]
                unsafe {
                    destroy(self.algo, host);
                }
                raw::OK
            });
            if let Err(e) = destroyed {
                (self.guest.host.log)(1, &e.to_string());
            }
        }
    }
}

impl Instance {
    /// An instance with these options, as JSON.
    ///
    /// # Errors
    /// What the plugin tells, or that what it made is none.
    pub(super) fn create(library: &Library, id: &str, options: &str, reentrant: bool) -> Result<Self> {
        let guest = library.guest.clone();
        let name = CString::new(id).map_err(|e| Error::internal(e.to_string()))?;
        let create = library.plugin.create.ok_or_else(|| Error::internal("a library without `create`"))?;
        let mut algo = null_mut();
        // SAFETY: the header's `create`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        Call::new(&guest, "", Vec::new()).run(|host| unsafe { create(host, name.as_ptr(), lend(options), 0, &mut algo) })?;
        let table = given(algo.cast_const()).map_err(|e| violation(format!("`{id}`: its instance {e}")).within(guest.name()))?;
        let turn = (!reentrant).then(Mutex::default);
        Ok(Self { guest, algo, table, turn, broken: OnceLock::new() })
    }

    /// What functions of the plugin are called with.
    pub(super) fn pointer(&self) -> *mut raw::Algo {
        self.algo
    }

    /// Its options with defaults filled in, as JSON; empty: as they were given.
    pub(super) fn options(&self) -> String {
        // SAFETY: a string of the instance's, says the header.
        #[allow(unsafe_code, reason = "the border")]
        unsafe {
            heard(self.table.options)
        }
    }

    pub(super) fn extension_pointer(&self, id: &CStr) -> *const c_void {
        let _flying = self.guest.enter("");
        // SAFETY: the header's `extension`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        self.table.extension.map_or(std::ptr::null(), |f| unsafe { f(self.algo, id.as_ptr()) })
    }

    /// The functions of an extension, if it has it.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn extension<T: Grows>(&self, id: &CStr) -> std::result::Result<Option<T>, String> {
        let pointer = self.extension_pointer(id).cast::<T>();
        if pointer.is_null() {
            return Ok(None);
        }
        given(pointer).map(Some).map_err(|e| format!("its `{}` {e}", id.to_string_lossy()))
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.as_ref().map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a call of it in its turn; `id` is what errors call it.
    ///
    /// # Errors
    /// Those of the call, and that it has panicked before.
    pub(super) fn call(&self, id: &str, run: impl FnOnce() -> Result<Told>) -> Result<Told> {
        let _turn = self.turn();
        if let Some(panic) = self.broken.get() {
            return Err(plugin_error("plugin::panic", format!("{panic}; `{id}` is not called again after that")));
        }
        run().inspect_err(|e| {
            if e.code() == "plugin::panic" {
                self.broken.get_or_init(|| e.to_string());
            }
        })
    }
}
