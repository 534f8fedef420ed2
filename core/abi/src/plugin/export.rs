//! The functions behind the exported table.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::host::{Host, borrow, lend};
use super::output::{RoundOut, view_mut};
use super::site::{Region, Site, slice};
use super::{Algorithm, Factory, Failure, Result, Stage, Status, Suits};
use crate::raw;

/// The algorithms of a library; [`crate::export_plugin!`] makes one.
pub struct Exported {
    factories: &'static [&'static dyn Factory],
    table: OnceLock<Table>,
}

struct Table {
    plugin: raw::Plugin,
    algorithms: Vec<raw::AlgoDesc>,
}

// SAFETY: the pointers in it are to leaked strings that nobody writes to.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Table {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Table {}

/// A C string for the life of the process; text after a NUL is lost.
fn forever(text: &str) -> *const c_char {
    let text = text.split('\0').next().unwrap_or("");
    CString::new(text).map_or(c"".as_ptr(), |c| c.into_raw().cast_const())
}

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of this library from being printed: the host tells of them. What is kept is where they were.
pub fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
            PLACE.with(|p| *p.borrow_mut() = place);
        }));
    });
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("{}{}", text.unwrap_or("a panic"), PLACE.with(|p| p.borrow().clone()))
}

/// Runs the body of a call: errors become codes with text, panics too.
fn contain(host: Option<Host<'_>>, body: impl FnOnce() -> Result<()>) -> i32 {
    let (status, message, hint) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return raw::OK,
        Ok(Err(failure)) => (failure.status.code(), failure.message, failure.hint),
        Err(panic) => {
            let text = text_of(&*panic);
            // A payload may panic when it is dropped.
            std::mem::forget(panic);
            (raw::ERR_PANIC, text, String::new())
        }
    };
    if let Some(host) = host
        && !message.is_empty()
    {
        host.fail(&message, &hint);
    }
    status
}

/// An algorithm as the host holds it.
#[repr(C)]
struct Instance {
    raw: raw::Algo,
    algorithm: Box<dyn Algorithm>,
    options: String,
}

fn absent(what: &str) -> Failure {
    Failure::new(Status::Internal, format!("the host passed no {what}"))
}

impl Exported {
    /// A library of these algorithms.
    pub const fn new(factories: &'static [&'static dyn Factory]) -> Self {
        Self { factories, table: OnceLock::new() }
    }

    /// The exported table, made when it is asked for first. `functions` are those of the library itself.
    pub fn plugin(&self, id: &str, version: &str, functions: impl FnOnce(&mut raw::Plugin)) -> *const raw::Plugin {
        let table = self.table.get_or_init(|| {
            let mut plugin = raw::Plugin {
                size: size_of::<raw::Plugin>() as u32,
                abi: raw::Version { major: raw::MAJOR, minor: raw::MINOR },
                reserved: 0,
                id: forever(id),
                version: forever(version),
                count: None,
                describe: None,
                create: None,
                extension: None,
            };
            functions(&mut plugin);
            Table { plugin, algorithms: self.factories.iter().map(|f| described(*f)).collect() }
        });
        &table.plugin
    }

    /// How many algorithms there are.
    pub fn count(&self) -> u32 {
        self.factories.len() as u32
    }

    /// What is known of one of them.
    pub fn describe(&self, index: u32) -> *const raw::AlgoDesc {
        self.table.get().and_then(|t| t.algorithms.get(index as usize)).map_or(null(), std::ptr::from_ref)
    }

    /// An instance.
    ///
    /// # Safety
    /// The arguments are as the header says of `create`.
    #[allow(unsafe_code, reason = "the border")]
    pub unsafe fn create(&self, host: *const raw::Host, id: *const c_char, options: raw::Str, seed: u64, out: *mut *mut raw::Algo) -> i32 {
        // SAFETY: the caller promises it.
        let host = unsafe { Host::new(host) };
        contain(host, || {
            let host = host.ok_or_else(|| absent("host"))?;
            if id.is_null() || out.is_null() {
                return Err(absent("id"));
            }
            // SAFETY: the header says that it is a C string.
            let id = unsafe { CStr::from_ptr(id) }.to_string_lossy();
            let factory = self.factories.iter().find(|f| f.descriptor().id == id);
            let factory = factory.ok_or_else(|| Failure::new(Status::Internal, format!("there is no algorithm `{id}` in it")))?;
            // SAFETY: the header says that it is valid through the call.
            let algorithm = factory.create(&host, unsafe { borrow(options) }, seed)?;
            let options = algorithm.options();
            let raw = raw::Algo {
                size: size_of::<raw::Algo>() as u32,
                reserved: 0,
                state: null_mut(),
                options: raw::Str { ptr: null(), len: 0 },
                destroy: Some(destroy),
                extension: Some(extension),
            };
            let mut instance = Box::new(Instance { raw, algorithm, options });
            instance.raw.options = lend(&instance.options);
            // SAFETY: a place to write to, says the header.
            unsafe { *out = Box::into_raw(instance).cast() };
            Ok(())
        })
    }
}

fn described(factory: &dyn Factory) -> raw::AlgoDesc {
    let d = factory.descriptor();
    let flags = [(true, raw::REENTRANT), (d.weight_only, raw::WEIGHT_ONLY), (d.checks_options, raw::CHECKS_OPTIONS)];
    raw::AlgoDesc {
        size: size_of::<raw::AlgoDesc>() as u32,
        phase: d.phase.code(),
        id: forever(&d.id),
        summary: forever(&d.summary),
        options_schema: forever(&d.options_schema),
        needs: d.needs.iter().fold(0, |bits, kind| bits | 1 << (*kind as u32)),
        flags: flags.iter().filter(|(on, _)| *on).fold(0, |bits, (_, flag)| bits | flag),
        reserved: 0,
    }
}

#[allow(unsafe_code, reason = "the border: the host calls these with what `create` gave it")]
mod calls {
    use super::*;

    /// The algorithm behind a pointer that `create` gave out.
    unsafe fn of<'a>(algo: *const raw::Algo) -> Result<&'a dyn Algorithm> {
        // SAFETY: an `Instance` begins with its `Algo`, and the host passes back what it was given.
        unsafe { algo.cast::<Instance>().as_ref() }.map(|i| &*i.algorithm).ok_or_else(|| absent("algorithm"))
    }

    pub(super) unsafe extern "C" fn destroy(algo: *mut raw::Algo) {
        if !algo.is_null() {
            // SAFETY: from `Box::into_raw` in `create`; the host destroys it once.
            let instance = unsafe { Box::from_raw(algo.cast::<Instance>()) };
            let _ = catch_unwind(AssertUnwindSafe(move || drop(instance)));
        }
    }

    pub(super) unsafe extern "C" fn extension(algo: *const raw::Algo, id: *const c_char) -> *const c_void {
        static PLAN: raw::PlanExt = raw::PlanExt { size: size_of::<raw::PlanExt>() as u32, reserved: 0, needs: Some(needs) };
        static ROUND: raw::RoundExt = raw::RoundExt { size: size_of::<raw::RoundExt>() as u32, reserved: 0, round: Some(round) };
        static CONDITION: raw::ConditionExt =
            raw::ConditionExt { size: size_of::<raw::ConditionExt>() as u32, reserved: 0, condition: Some(condition) };
        static SPLIT: raw::SplitExt = raw::SplitExt {
            size: size_of::<raw::SplitExt>() as u32,
            reserved: 0,
            after_rounding: Some(after_rounding),
            split: Some(split),
        };
        static TRANSFORM: raw::TransformExt =
            raw::TransformExt { size: size_of::<raw::TransformExt>() as u32, reserved: 0, suits: Some(suits), solve: Some(solve) };
        if id.is_null() {
            return null();
        }
        // SAFETY: the header says that it is a C string, and of `of` see above.
        let (id, algorithm) = unsafe { (CStr::from_ptr(id), of(algo)) };
        let found = catch_unwind(AssertUnwindSafe(|| match (id.to_bytes(), algorithm.ok()?.stage()) {
            (b"qfw.plan/1", _) => Some(std::ptr::from_ref(&PLAN).cast::<c_void>()),
            (b"qfw.round/1", Stage::Round(_)) => Some(std::ptr::from_ref(&ROUND).cast()),
            (b"qfw.condition/1", Stage::Condition(_)) => Some(std::ptr::from_ref(&CONDITION).cast()),
            (b"qfw.split/1", Stage::Split(_)) => Some(std::ptr::from_ref(&SPLIT).cast()),
            (b"qfw.transform/1", Stage::Transform(_)) => Some(std::ptr::from_ref(&TRANSFORM).cast()),
            _ => None,
        }));
        found.ok().flatten().unwrap_or(null())
    }

    fn other_phase() -> Failure {
        Failure::new(Status::Internal, "the algorithm has another phase")
    }

    unsafe extern "C" fn needs(algo: *mut raw::Algo, host: *const raw::Host, plan: raw::Str) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, plan) = unsafe { (Host::new(host), of(algo), borrow(plan)) };
        contain(host, || {
            let host = host.ok_or_else(|| absent("host"))?;
            if let Some(reply) = algorithm?.needs(plan)? {
                host.reply(&reply);
            }
            Ok(())
        })
    }

    unsafe extern "C" fn round(algo: *mut raw::Algo, host: *const raw::Host, site: *const raw::Site, out: *mut raw::RoundOut) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, site) = unsafe { (Host::new(host), of(algo), Site::new(site)) };
        contain(host, || {
            let (host, site) = (host.ok_or_else(|| absent("host"))?, site.ok_or_else(|| absent("site"))?);
            // SAFETY: as above.
            let mut out = unsafe { RoundOut::new(out, host) }.ok_or_else(|| absent("outputs"))?;
            let Stage::Round(stage) = algorithm?.stage() else { return Err(other_phase()) };
            stage.round(&host, &site, &mut out)
        })
    }

    unsafe extern "C" fn condition(algo: *mut raw::Algo, host: *const raw::Host, site: *const raw::Site, weight: *mut raw::Tensor) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, site) = unsafe { (Host::new(host), of(algo), Site::new(site)) };
        contain(host, || {
            let (host, site) = (host.ok_or_else(|| absent("host"))?, site.ok_or_else(|| absent("site"))?);
            let Stage::Condition(stage) = algorithm?.stage() else { return Err(other_phase()) };
            // SAFETY: an output of the call's own.
            stage.condition(&host, &site, unsafe { view_mut(weight) })
        })
    }

    unsafe extern "C" fn after_rounding(algo: *const raw::Algo) -> i32 {
        // SAFETY: see `of`.
        let algorithm = unsafe { of(algo) };
        let after = catch_unwind(AssertUnwindSafe(|| matches!(algorithm.map(|a| a.stage()), Ok(Stage::Split(s)) if s.after_rounding())));
        i32::from(after.unwrap_or(false))
    }

    unsafe extern "C" fn split(
        algo: *mut raw::Algo,
        host: *const raw::Host,
        sites: *const *const raw::Site,
        n_sites: usize,
        rank: u64,
        stored: u32,
        a: *mut raw::Tensor,
        b: *const *mut raw::Tensor,
    ) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, sites, b) = unsafe { (Host::new(host), of(algo), slice(sites, n_sites), slice(b, n_sites)) };
        contain(host, || {
            let host = host.ok_or_else(|| absent("host"))?;
            // SAFETY: as above.
            let sites: Vec<Site<'_>> = sites.iter().filter_map(|s| unsafe { Site::new(*s) }).collect();
            // SAFETY: outputs of the call's own, each another.
            let (a, mut b): (&mut [f32], Vec<&mut [f32]>) = unsafe { (view_mut(a), b.iter().map(|t| view_mut(*t)).collect()) };
            let Stage::Split(stage) = algorithm?.stage() else { return Err(other_phase()) };
            stage.split(&host, &sites, rank as usize, stored, a, &mut b)
        })
    }

    unsafe extern "C" fn suits(algo: *const raw::Algo, region: *const raw::Region) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (algorithm, region) = unsafe { (of(algo), Region::new(region)) };
        let suits = catch_unwind(AssertUnwindSafe(|| match (algorithm.map(|a| a.stage()), region) {
            (Ok(Stage::Transform(stage)), Some(region)) => stage.suits(&region),
            _ => Suits::Never,
        }));
        match suits {
            Ok(Suits::ByDefault) => 2,
            Ok(Suits::IfNamed) => 1,
            _ => 0,
        }
    }

    unsafe extern "C" fn solve(algo: *mut raw::Algo, host: *const raw::Host, region: *const raw::Region, factor: *mut raw::Tensor) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, region) = unsafe { (Host::new(host), of(algo), Region::new(region)) };
        contain(host, || {
            let (host, region) = (host.ok_or_else(|| absent("host"))?, region.ok_or_else(|| absent("region"))?);
            let Stage::Transform(stage) = algorithm?.stage() else { return Err(other_phase()) };
            // SAFETY: an output of the call's own.
            stage.solve(&host, &region, unsafe { view_mut(factor) })
        })
    }
}
use calls::{destroy, extension};

/// Exports the library's one symbol.
///
/// ```ignore
/// qfw_abi::export_plugin! { id: "com.example.nearest", version: env!("CARGO_PKG_VERSION"), algorithms: [&Nearest] }
/// ```
///
/// Each algorithm is a `&'static dyn` [`Factory`](crate::plugin::Factory).
#[macro_export]
macro_rules! export_plugin {
    (id: $id:expr, version: $version:expr, algorithms: [$($factory:expr),* $(,)?] $(,)?) => {
        static QFW_EXPORTED: $crate::plugin::Exported = $crate::plugin::Exported::new(&[$($factory),*]);

        extern "C" fn qfw_count() -> u32 {
            QFW_EXPORTED.count()
        }

        extern "C" fn qfw_describe(index: u32) -> *const $crate::raw::AlgoDesc {
            QFW_EXPORTED.describe(index)
        }

        #[allow(unsafe_code, reason = "the border of the plugin")]
        unsafe extern "C" fn qfw_create(
            host: *const $crate::raw::Host,
            id: *const std::ffi::c_char,
            options: $crate::raw::Str,
            seed: u64,
            out: *mut *mut $crate::raw::Algo,
        ) -> i32 {
            // SAFETY: the host calls it as the header says.
            unsafe { QFW_EXPORTED.create(host, id, options, seed, out) }
        }

        /// What the host asks for first.
        // SAFETY: no other function of that name is in the library.
        #[allow(unsafe_code, reason = "the symbol that the host looks for")]
        #[unsafe(no_mangle)]
        pub extern "C" fn qfw_plugin_entry_v1() -> *const $crate::raw::Plugin {
            $crate::plugin::quiet_panics();
            QFW_EXPORTED.plugin($id, $version, |plugin| {
                plugin.count = Some(qfw_count);
                plugin.describe = Some(qfw_describe);
                plugin.create = Some(qfw_create);
            })
        }
    };
}
