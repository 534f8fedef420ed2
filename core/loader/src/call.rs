//! One call of a plugin, and what the host tells and hears during it.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use qfw_abi::raw;
use qfw_core::algorithm::SiteContext;
use qfw_core::harness::Progress;
use qfw_core::numeric::InverseFactor;
use qfw_core::{Error, Result};

use crate::guest::Guest;
use crate::numeric;
use crate::plugin_error;
use crate::tensor::{Element, Output, Watched};

/// What a plugin has said during a call.
#[derive(Default)]
pub(crate) struct Told {
    error: Option<(String, String)>,
    pub(crate) reply: Option<String>,
    pub(crate) events: Vec<String>,
}

/// A factor that is lent: the descriptor points into the factor.
pub(crate) struct LentFactor {
    pub(crate) raw: raw::Factor,
    pub(crate) of: Arc<InverseFactor>,
}

/// What the functions of the host find behind `ctx`.
pub(crate) struct Call<'a> {
    pub(crate) guest: &'a Guest,
    /// The sites of this call, by their tokens.
    pub(crate) sites: Vec<SiteContext<'a>>,
    /// The site or region that it is about; empty: none.
    about: String,
    /// Threads that the plugin may use, and the host for it.
    threads: usize,
    told: Mutex<Told>,
    allocated: Mutex<Vec<Box<dyn Watched>>>,
    #[allow(clippy::vec_box, reason = "pointers to them stay good while the list grows")]
    pub(crate) factors: Mutex<Vec<Box<LentFactor>>>,
}

// SAFETY: what is not `Sync` in it are the descriptors of factors, which nobody writes to once they are in the list.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Call<'_> {}

/// Stack of the thread of a call, in bytes: as a main thread has it.
const STACK: usize = 8 << 20;

/// At most so much is kept of what a plugin says.
const LONGEST: usize = 1 << 20;

/// A string of the plugin's; bytes that are no text are replaced.
///
/// # Safety
/// `text` points to that many bytes, or its length is 0.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn heard(text: raw::Str) -> String {
    if text.ptr.is_null() || text.len == 0 {
        return String::new();
    }
    // SAFETY: the caller promises it; what is longer is cut off.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len.min(LONGEST)) };
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn lend(text: &str) -> raw::Str {
    raw::Str { ptr: text.as_ptr().cast(), len: text.len() }
}

impl<'a> Call<'a> {
    /// A call about a site or region, or about none; `sites` are those whose numerics it may ask for.
    pub(crate) fn new(guest: &'a Guest, about: &str, sites: Vec<SiteContext<'a>>) -> Self {
        let (about, threads) = (about.to_owned(), rayon::current_num_threads());
        Self { guest, sites, about, threads, told: Mutex::default(), allocated: Mutex::default(), factors: Mutex::default() }
    }

    /// Calls `function` with a host, and reads what its status says.
    ///
    /// # Errors
    /// What the plugin told, under its name; or that it wrote where it must not.
    pub(crate) fn run(&self, function: impl FnOnce(*const raw::Host) -> i32) -> Result<Told> {
        if self.guest.host.cancel.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        self.run_even_if_cancelled(function)
    }

    /// [`Call::run`], for what has to be done also when the run is to stop.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub(crate) fn run_even_if_cancelled(&self, function: impl FnOnce(*const raw::Host) -> i32) -> Result<Told> {
        let host = raw::Host {
            size: size_of::<raw::Host>() as u32,
            abi: raw::Version { major: raw::MAJOR, minor: raw::MINOR },
            threads: u32::try_from(self.threads).unwrap_or(1),
            ctx: std::ptr::from_ref(self).cast_mut().cast(),
            set_error: Some(set_error),
            log: Some(log),
            cancelled: Some(cancelled),
            progress: Some(progress),
            reply: Some(reply),
            event: Some(event),
            alloc: Some(alloc),
            extension: Some(extension),
        };
        let flying = self.guest.enter(&self.about);
        let status = function(&host);
        drop(flying);
        let told = std::mem::take(&mut *self.told.lock().map_err(|_| Error::internal("a function of the host broke"))?);
        self.unharmed()?;
        if status == raw::OK { Ok(told) } else { Err(self.error(status, told)) }
    }

    /// Refuses a call that has written around what it asked for.
    fn unharmed(&self) -> Result<()> {
        let all = self.allocated.lock().map_err(|_| Error::internal("a function of the host broke"))?;
        match all.iter().find(|a| !a.intact()) {
            Some(a) => {
                let message = format!("it wrote behind the end of the tensor of shape {:?} that it had asked for", a.shape());
                Err(plugin_error("plugin::contract", message).within(self.guest.name()))
            }
            None => Ok(()),
        }
    }

    /// [`Call::run`] on a thread of its own, which is waited for.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub(crate) fn run_apart(&self, function: impl FnOnce(*const raw::Host) -> i32) -> Result<Told> {
        struct Task<F>(F);
        // SAFETY: the header says of functions about sites that any thread may call them, one at a time where it matters; this one waits.
        #[allow(unsafe_code, reason = "see above")]
        unsafe impl<F> Send for Task<F> {}
        impl<F: FnOnce(*const raw::Host) -> i32> Task<F> {
            fn run(self, call: &Call<'_>) -> Result<Told> {
                call.run(self.0)
            }
        }
        let task = Task(function);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || task.run(self));
            let thread = thread.map_err(|e| Error::internal("a thread could not be started").with_source(e))?;
            thread.join().unwrap_or_else(|_| Err(Error::internal("a call of a plugin broke")))
        })
    }

    /// Does something in parallel for the plugin: on threads that do nothing else, so that they never wait for a call to end.
    pub(crate) fn in_parallel<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        static POOLS: Mutex<BTreeMap<usize, Arc<rayon::ThreadPool>>> = Mutex::new(BTreeMap::new());
        let broke = || Error::internal("an earlier call broke");
        let pool = {
            let mut pools = POOLS.lock().map_err(|_| broke())?;
            match pools.get(&self.threads) {
                Some(pool) => Arc::clone(pool),
                None => {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads).build();
                    let pool = Arc::new(pool.map_err(|e| Error::internal("threads could not be started").with_source(e))?);
                    pools.insert(self.threads, Arc::clone(&pool));
                    pool
                }
            }
        };
        Ok(pool.install(body))
    }

    fn error(&self, status: i32, told: Told) -> Error {
        let (message, hint) = told.error.unwrap_or_default();
        let message = if message.is_empty() { "it failed without saying why".to_owned() } else { message };
        let error = match status {
            raw::ERR_OPTIONS => Error::config("config::invalid", message),
            raw::ERR_UNSUPPORTED => Error::plan("plan::unsupported", message),
            // There is a site that the run can go on without.
            raw::ERR_NUMERIC if !self.about.is_empty() => Error::numeric("plugin::numeric", message),
            raw::ERR_CANCELLED if self.guest.host.cancel.load(Ordering::Relaxed) => return Error::interrupted(),
            raw::ERR_PANIC => plugin_error("plugin::panic", format!("it panicked: {message}")),
            _ => plugin_error("plugin::failed", message),
        };
        let error = if hint.is_empty() { error } else { error.hint(hint) };
        error.within(self.guest.name())
    }

    /// The numbers of an output that the plugin has asked for in this call, and their shape; `None` if it is none, or of another type.
    pub(crate) fn allocated<T: Element>(&self, tensor: *const raw::Tensor) -> Option<(Vec<usize>, Vec<T>)> {
        let all = self.allocated.lock().ok()?;
        let found = all.iter().find(|a| std::ptr::eq(a.raw(), tensor))?;
        found.as_any().downcast_ref::<Output<T>>().map(|output| (output.shape(), output.numbers().to_vec()))
    }

    pub(crate) fn set_error(&self, message: String, hint: String) {
        if let Ok(mut told) = self.told.lock() {
            told.error = Some((message, hint));
        }
    }

    fn allocate<T: Element>(&self, shape: &[usize]) -> Option<*mut raw::Tensor> {
        let output = Box::new(Output::<T>::asked(shape)?);
        let raw = output.raw();
        self.allocated.lock().ok()?.push(output);
        Some(raw)
    }
}

/// The call behind a host.
///
/// # Safety
/// `host` is one that [`Call::run`] has made, and its call has not returned.
#[allow(unsafe_code, reason = "the border")]
pub(crate) unsafe fn call_of<'a>(host: *const raw::Host) -> Option<&'a Call<'a>> {
    // SAFETY: the caller promises it.
    unsafe { host.as_ref() }.and_then(|h| unsafe { h.ctx.cast_const().cast::<Call<'a>>().as_ref() })
}

/// Runs the body of a function of the host; a panic stays here.
pub(crate) fn contain<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

#[allow(unsafe_code, reason = "the border: plugins call these with the host of their call, as the header says")]
mod functions {
    use super::*;

    pub(super) unsafe extern "C" fn set_error(host: *const raw::Host, message: raw::Str, hint: raw::Str) {
        // SAFETY: see above.
        let (call, message, hint) = unsafe { (call_of(host), heard(message), heard(hint)) };
        contain((), || {
            if let Some(call) = call {
                call.set_error(message, hint);
            }
        });
    }

    pub(super) unsafe extern "C" fn log(host: *const raw::Host, level: u32, message: raw::Str) {
        // SAFETY: see above.
        let (call, message) = unsafe { (call_of(host), heard(message)) };
        contain((), || {
            if let Some(call) = call {
                (call.guest.host.log)(level, &format!("{}: {message}", call.guest.name()));
            }
        });
    }

    pub(super) unsafe extern "C" fn cancelled(host: *const raw::Host) -> i32 {
        // SAFETY: see above.
        let call = unsafe { call_of(host) };
        i32::from(call.is_some_and(|c| c.guest.host.cancel.load(Ordering::Relaxed)))
    }

    pub(super) unsafe extern "C" fn progress(host: *const raw::Host, done: u64, total: u64) {
        // SAFETY: see above.
        let call = unsafe { call_of(host) };
        contain((), || {
            if let Some(call) = call {
                let what = call.guest.what(&call.about);
                (call.guest.host.progress)(&Progress::Call { what, done, total: total.max(done) });
            }
        });
    }

    pub(super) unsafe extern "C" fn reply(host: *const raw::Host, json: raw::Str) {
        // SAFETY: see above.
        let (call, json) = unsafe { (call_of(host), heard(json)) };
        if let Some(mut told) = call.and_then(|c| c.told.lock().ok()) {
            told.reply = Some(json);
        }
    }

    pub(super) unsafe extern "C" fn event(host: *const raw::Host, json: raw::Str) {
        // SAFETY: see above.
        let (call, json) = unsafe { (call_of(host), heard(json)) };
        if let Some(mut told) = call.and_then(|c| c.told.lock().ok()) {
            told.events.push(json);
        }
    }

    pub(super) unsafe extern "C" fn alloc(
        host: *const raw::Host,
        code: u8,
        bits: u8,
        ndim: i32,
        shape: *const i64,
        out: *mut *mut raw::Tensor,
    ) -> i32 {
        // SAFETY: see above.
        let Some(call) = (unsafe { call_of(host) }) else { return raw::ERR_INTERNAL };
        contain(raw::ERR_INTERNAL, || {
            let n = usize::try_from(ndim).unwrap_or(usize::MAX);
            if shape.is_null() || !shape.is_aligned() || out.is_null() || !out.is_aligned() || !(1..=8).contains(&n) {
                call.set_error(format!("it asked for a tensor of {ndim} dimensions"), String::new());
                return raw::ERR_INTERNAL;
            }
            // SAFETY: the header says that there are `ndim` extents.
            let shape: Vec<usize> =
                unsafe { std::slice::from_raw_parts(shape, n) }.iter().map(|e| usize::try_from(*e).unwrap_or(usize::MAX)).collect();
            let made = match (code, bits) {
                (1, 8) => call.allocate::<u8>(&shape),
                (1, 16) => call.allocate::<u16>(&shape),
                (1, 32) => call.allocate::<u32>(&shape),
                (2, 32) => call.allocate::<f32>(&shape),
                (2, 64) => call.allocate::<f64>(&shape),
                _ => None,
            };
            let Some(made) = made else {
                call.set_error(format!("it asked for a tensor of type ({code}, {bits}) and shape {shape:?}"), String::new());
                return raw::ERR_INTERNAL;
            };
            // SAFETY: a place to write to, says the header.
            unsafe { *out = made };
            raw::OK
        })
    }

    pub(super) unsafe extern "C" fn extension(_host: *const raw::Host, id: *const c_char) -> *const c_void {
        if id.is_null() {
            return null();
        }
        // SAFETY: the header says that it is a C string.
        match unsafe { CStr::from_ptr(id) }.to_bytes() {
            b"qfw.numeric/1" => std::ptr::from_ref(&numeric::TABLE).cast(),
            _ => null(),
        }
    }
}
use functions::{alloc, cancelled, event, extension, log, progress, reply, set_error};
