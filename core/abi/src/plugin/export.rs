//! The table that a library exports, and what is behind it.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use super::calls::{Instance, destroy, extension};
use super::contain::{caught, contain};
use super::format::{Described, Format};
use super::host::{Host, borrow, lend};
use super::{Factory, Failure, Result, Status};
use crate::raw;

/// The algorithms and number formats of a library; [`crate::export_plugin!`] makes one.
pub struct Exported {
    factories: &'static [&'static dyn Factory],
    formats: &'static [&'static dyn Format],
    table: OnceLock<Table>,
}

/// The functions of the library itself that lead here.
pub struct Functions {
    /// See [`Exported::count`].
    pub count: unsafe extern "C" fn() -> u32,
    /// See [`Exported::describe`].
    pub describe: unsafe extern "C" fn(*const raw::Host, u32, *mut *const raw::AlgoDesc) -> i32,
    /// See [`Exported::create`].
    pub create: unsafe extern "C" fn(*const raw::Host, *const c_char, raw::Str, u64, *mut *mut raw::Algo) -> i32,
    /// See [`Exported::extension`].
    pub extension: unsafe extern "C" fn(*const c_char) -> *const c_void,
    /// See [`Exported::format_count`].
    pub format_count: unsafe extern "C" fn() -> u32,
    /// See [`Exported::format_describe`].
    pub format_describe: unsafe extern "C" fn(*const raw::Host, u32, *mut *const raw::FormatDesc) -> i32,
}

struct Table {
    plugin: raw::Plugin,
    formats: raw::Formats,
    /// Made when they are asked for: the code of algorithms and formats runs in a call that can fail.
    algorithms: Vec<OnceLock<raw::AlgoDesc>>,
    described: Vec<OnceLock<Described>>,
}

// SAFETY: the pointers in it are to leaked strings that nobody writes to.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Table {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Table {}

/// A C string for the life of the process; text after a NUL is lost.
pub(super) fn forever(text: &str) -> *const c_char {
    let text = text.split('\0').next().unwrap_or("");
    CString::new(text).map_or(c"".as_ptr(), |c| c.into_raw().cast_const())
}

pub(super) fn absent(what: &str) -> Failure {
    Failure::new(Status::Internal, format!("the host passed no {what}"))
}

impl Exported {
    /// A library of these.
    pub const fn new(factories: &'static [&'static dyn Factory], formats: &'static [&'static dyn Format]) -> Self {
        Self { factories, formats, table: OnceLock::new() }
    }

    /// The exported table, made when it is asked for first; null if that cannot be done. None of the library's own code runs.
    pub fn plugin(&self, id: &str, version: &str, functions: &Functions) -> *const raw::Plugin {
        let made = caught(|| &self.table.get_or_init(|| self.make(id, version, functions)).plugin);
        made.map_or(null(), std::ptr::from_ref)
    }

    fn make(&self, id: &str, version: &str, functions: &Functions) -> Table {
        let plugin = raw::Plugin {
            size: size_of::<raw::Plugin>() as u32,
            abi: raw::Version { major: raw::MAJOR, minor: raw::MINOR },
            reserved: 0,
            id: forever(id),
            version: forever(version),
            count: Some(functions.count),
            describe: Some(functions.describe),
            create: Some(functions.create),
            extension: Some(functions.extension),
        };
        let formats = raw::Formats {
            size: size_of::<raw::Formats>() as u32,
            reserved: 0,
            count: Some(functions.format_count),
            describe: Some(functions.format_describe),
        };
        let algorithms = self.factories.iter().map(|_| OnceLock::new()).collect();
        let described = self.formats.iter().map(|_| OnceLock::new()).collect();
        Table { plugin, formats, algorithms, described }
    }

    /// How many algorithms there are.
    pub fn count(&self) -> u32 {
        self.factories.len() as u32
    }

    /// How many number formats there are.
    pub fn format_count(&self) -> u32 {
        self.formats.len() as u32
    }

    /// What is known of an algorithm.
    fn description(&self, index: usize) -> Result<&raw::AlgoDesc> {
        let cell = self.table.get().and_then(|t| t.algorithms.get(index)).zip(self.factories.get(index));
        let (cell, factory) = cell.ok_or_else(|| Failure::new(Status::Internal, format!("there is no algorithm {index} in it")))?;
        Ok(cell.get_or_init(|| described(*factory)))
    }

    /// Describes an algorithm.
    ///
    /// # Safety
    /// The arguments are as the header says of `describe`.
    #[allow(unsafe_code, reason = "the border")]
    pub unsafe fn describe(&self, host: *const raw::Host, index: u32, out: *mut *const raw::AlgoDesc) -> i32 {
        // SAFETY: the caller promises it.
        let host = unsafe { Host::new(host) };
        contain(host, || {
            if out.is_null() {
                return Err(absent("place for a description"));
            }
            let found: *const raw::AlgoDesc = self.description(index as usize)?;
            // SAFETY: a place to write to, says the header.
            unsafe { *out = found };
            Ok(())
        })
    }

    /// Describes a number format.
    ///
    /// # Safety
    /// The arguments are as the header says of `describe`.
    #[allow(unsafe_code, reason = "the border")]
    pub unsafe fn format_describe(&self, host: *const raw::Host, index: u32, out: *mut *const raw::FormatDesc) -> i32 {
        // SAFETY: the caller promises it.
        let host = unsafe { Host::new(host) };
        contain(host, || {
            if out.is_null() {
                return Err(absent("place for a description"));
            }
            let cell = self.table.get().and_then(|t| t.described.get(index as usize)).zip(self.formats.get(index as usize));
            let (cell, format) = cell.ok_or_else(|| Failure::new(Status::Internal, format!("there is no format {index} in it")))?;
            let found = match cell.get() {
                Some(found) => found,
                None => {
                    let made = Described::of(*format)?;
                    cell.get_or_init(|| made)
                }
            };
            // SAFETY: a place to write to, says the header.
            unsafe { *out = &found.raw };
            Ok(())
        })
    }

    /// What else the library has.
    ///
    /// # Safety
    /// `id` is a C string, or null.
    #[allow(unsafe_code, reason = "the border")]
    pub unsafe fn extension(&self, id: *const c_char) -> *const c_void {
        if id.is_null() {
            return null();
        }
        // SAFETY: the caller promises it.
        let formats = unsafe { CStr::from_ptr(id) } == c"qfw.format/1" && !self.formats.is_empty();
        self.table.get().filter(|_| formats).map_or(null(), |t| std::ptr::from_ref(&t.formats).cast())
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
            // SAFETY: the header says that it is a C string; so is the id of a description.
            let (id, named) = unsafe { (CStr::from_ptr(id), |d: &raw::AlgoDesc| CStr::from_ptr(d.id)) };
            let of_id = |index: &usize| self.description(*index).is_ok_and(|d| named(d) == id);
            let factory = (0..self.factories.len()).find(of_id).map(|index| self.factories[index]);
            let absent = || Failure::new(Status::Internal, format!("there is no algorithm `{}` in it", id.to_string_lossy()));
            // SAFETY: the header says that the text is valid through the call.
            let algorithm = factory.ok_or_else(absent)?.create(&host, unsafe { borrow(options) }, seed)?;
            let (options, phase) = (algorithm.options(), algorithm.stage().extension());
            let raw = raw::Algo {
                size: size_of::<raw::Algo>() as u32,
                reserved: 0,
                state: null_mut(),
                options: raw::Str { ptr: null(), len: 0 },
                destroy: Some(destroy),
                extension: Some(extension),
            };
            let mut instance = Box::new(Instance { raw, algorithm, phase, options });
            instance.raw.options = lend(&instance.options);
            // SAFETY: a place to write to, says the header.
            unsafe { *out = Box::into_raw(instance).cast() };
            Ok(())
        })
    }
}

fn described(factory: &dyn Factory) -> raw::AlgoDesc {
    let d = factory.descriptor();
    let flags = [
        (true, raw::REENTRANT),
        (d.weight_only, raw::WEIGHT_ONLY),
        (d.checks_options, raw::CHECKS_OPTIONS),
        (d.feeds_back, raw::FEEDS_BACK),
    ];
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

/// Exports the library's one symbol.
///
/// ```ignore
/// qfw_abi::export_plugin! { id: "com.example.nearest", version: env!("CARGO_PKG_VERSION"), algorithms: [&Nearest], formats: [&Seven] }
/// ```
///
/// Id and version are constants. Each algorithm is a `&'static dyn` [`Factory`](crate::plugin::Factory), each number format a
/// `&'static dyn` [`Format`](crate::plugin::Format); either list may be left out.
#[macro_export]
macro_rules! export_plugin {
    (
        id: $id:expr, version: $version:expr
        $(, algorithms: [$($factory:expr),* $(,)?])?
        $(, formats: [$($format:expr),* $(,)?])?
        $(,)?
    ) => {
        static QFW_EXPORTED: $crate::plugin::Exported = $crate::plugin::Exported::new(&[$($($factory),*)?], &[$($($format),*)?]);

        extern "C" fn qfw_count() -> u32 {
            QFW_EXPORTED.count()
        }

        extern "C" fn qfw_format_count() -> u32 {
            QFW_EXPORTED.format_count()
        }

        #[allow(unsafe_code, reason = "the border of the plugin")]
        unsafe extern "C" fn qfw_describe(host: *const $crate::raw::Host, index: u32, out: *mut *const $crate::raw::AlgoDesc) -> i32 {
            // SAFETY: the host calls it as the header says.
            unsafe { QFW_EXPORTED.describe(host, index, out) }
        }

        #[allow(unsafe_code, reason = "the border of the plugin")]
        unsafe extern "C" fn qfw_format_describe(
            host: *const $crate::raw::Host,
            index: u32,
            out: *mut *const $crate::raw::FormatDesc,
        ) -> i32 {
            // SAFETY: the host calls it as the header says.
            unsafe { QFW_EXPORTED.format_describe(host, index, out) }
        }

        #[allow(unsafe_code, reason = "the border of the plugin")]
        unsafe extern "C" fn qfw_extension(id: *const std::ffi::c_char) -> *const std::ffi::c_void {
            // SAFETY: the host calls it as the header says.
            unsafe { QFW_EXPORTED.extension(id) }
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
            const ID: &str = $id;
            const VERSION: &str = $version;
            $crate::plugin::quiet_panics();
            QFW_EXPORTED.plugin(
                ID,
                VERSION,
                &$crate::plugin::Functions {
                    count: qfw_count,
                    describe: qfw_describe,
                    create: qfw_create,
                    extension: qfw_extension,
                    format_count: qfw_format_count,
                    format_describe: qfw_format_describe,
                },
            )
        }
    };
}
