//! Whatever breaks in a plugin written in Rust, the functions that it exports return: with a status, and the host is told why.

#![allow(unsafe_code, clippy::unwrap_used, reason = "this test is the host")]

use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::Mutex;

use qfw_abi::plugin::{
    Algorithm, Condition, ConditionOut, Descriptor, Factory, Format, FormatDescriptor, Host, Phase, Result, Site, Stage, Values,
};
use qfw_abi::raw;

/// What the host was told last.
static TOLD: Mutex<String> = Mutex::new(String::new());

struct Breaks(&'static str);

/// A panic whose payload panics when it is dropped.
struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        panic!("a bug in a panic");
    }
}

impl Factory for Breaks {
    fn descriptor(&self) -> Descriptor {
        assert!(self.0 != "descriptor", "a bug in a descriptor");
        Descriptor {
            id: self.0.to_owned(),
            phase: Phase::Condition,
            summary: String::new(),
            options_schema: "{}".to_owned(),
            needs: Vec::new(),
            weight_only: true,
            checks_options: false,
            feeds_back: false,
        }
    }

    fn create(&self, _: &Host<'_>, _: &str, _: u64) -> Result<Box<dyn Algorithm>> {
        assert!(self.0 != "create", "a bug in create");
        Ok(Box::new(Broken))
    }
}

struct Broken;

impl Algorithm for Broken {
    fn stage(&self) -> Stage<'_> {
        Stage::Condition(self)
    }
}

impl Condition for Broken {
    fn condition(&self, _: &Host<'_>, _: &Site<'_>, _: &mut ConditionOut<'_>) -> Result<()> {
        Ok(())
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        std::panic::panic_any(Worse);
    }
}

struct Grid(fn() -> Values);

impl Format for Grid {
    fn descriptor(&self) -> Result<FormatDescriptor> {
        let values = (self.0)();
        Ok(FormatDescriptor { id: "grid".to_owned(), summary: String::new(), values })
    }
}

qfw_abi::export_plugin! {
    id: "org.qfw.contained",
    version: "1.0.0",
    algorithms: [&Breaks("create"), &Breaks("drop"), &Breaks("descriptor")],
    formats: [
        &Grid(|| panic!("a bug in a format")),
        &Grid(|| Values::Levels(Vec::new())),
        &Grid(|| Values::Integers { least: -3, greatest: 3 }),
    ],
}

fn note(text: raw::Str) {
    // SAFETY: the plugin lends it for the time of the call.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len) };
    *TOLD.lock().unwrap() = String::from_utf8_lossy(bytes).into_owned();
}

unsafe extern "C" fn set_error(_: *const raw::Host, message: raw::Str, _: raw::Str) {
    note(message);
}

unsafe extern "C" fn log(_: *const raw::Host, _: u32, message: raw::Str) {
    note(message);
}

fn host() -> raw::Host {
    raw::Host {
        size: size_of::<raw::Host>() as u32,
        abi: raw::Version { major: raw::MAJOR, minor: raw::MINOR },
        threads: 1,
        ctx: null_mut(),
        set_error: Some(set_error),
        log: Some(log),
        cancelled: None,
        progress: None,
        reply: None,
        event: None,
        alloc: None,
        extension: None,
    }
}

/// What the host was told, with the place of a panic cut off.
fn told() -> String {
    let told = std::mem::take(&mut *TOLD.lock().unwrap());
    told.split(" at ").next().unwrap_or_default().to_owned()
}

#[test]
fn every_exported_function_returns() {
    let host = host();
    // SAFETY: the functions of the table, with what the header says that they ask for.
    unsafe {
        let plugin = &*qfw_plugin_entry_v1();
        assert_eq!((plugin.count.unwrap()(), CStr::from_ptr(plugin.id)), (3, c"org.qfw.contained"));
        let mut described = null();
        let describe = plugin.describe.unwrap();
        assert_eq!((describe(&host, 2, &mut described), told().as_str()), (raw::ERR_PANIC, "a bug in a descriptor"));
        assert_eq!((describe(&host, 7, &mut described), told().as_str()), (raw::ERR_INTERNAL, "there is no algorithm 7 in it"));
        assert_eq!((describe(&host, 1, &mut described), CStr::from_ptr((*described).id)), (raw::OK, c"drop"));
        let (create, mut algo, options) = (plugin.create.unwrap(), null_mut(), raw::Str { ptr: null(), len: 0 });
        assert_eq!((create(&host, c"create".as_ptr(), options, 0, &mut algo), told().as_str()), (raw::ERR_PANIC, "a bug in create"));
        assert_eq!(create(&host, c"drop".as_ptr(), options, 0, &mut algo), raw::OK);
        assert!((*algo).extension.unwrap()(algo, c"qfw.round/1".as_ptr()).is_null(), "it has another phase");
        assert!(!(*algo).extension.unwrap()(algo, c"qfw.condition/1".as_ptr()).is_null());
        (*algo).destroy.unwrap()(algo, &host);
        assert_eq!(told(), "it panicked when it was destroyed: a panic");
        let formats = &*plugin.extension.unwrap()(c"qfw.format/1".as_ptr()).cast::<raw::Formats>();
        let (mut format, of) = (null(), formats.describe.unwrap());
        assert_eq!((formats.count.unwrap()(), of(&host, 0, &mut format), told().as_str()), (3, raw::ERR_PANIC, "a bug in a format"));
        assert_eq!((of(&host, 1, &mut format), told().as_str()), (raw::ERR_UNSUPPORTED, "the number format `grid` has no values"));
        assert_eq!(of(&host, 2, &mut format), raw::OK);
        let grid = &*(*format).grid;
        assert_eq!((grid.kind, grid.lo, grid.hi, grid.bits, grid.zero), (raw::GRID_INT, -3, 3, 3, raw::ZERO_NONE));
        assert!(plugin.extension.unwrap()(c"qfw.no-such-extension/1".as_ptr()).is_null());
    }
}
