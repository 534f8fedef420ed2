//! The structs of `qfw_plugin.h`, member by member; what they mean is said there.
//!
//! Functions are optional everywhere: a null pointer that should not be one is an error to report, not undefined behaviour.

#![allow(missing_docs, reason = "the header documents every member")]

use std::ffi::{c_char, c_void};

/// Version of the interface: a plugin of another major is refused.
pub const MAJOR: u32 = 1;
/// A plugin of a newer minor is refused too, as it may count on what is not there.
pub const MINOR: u32 = 0;
/// The one symbol that a plugin exports.
pub const ENTRY: &str = "qfw_plugin_entry_v1";

/// A struct that a plugin gives out, and that later versions append to.
///
/// # Safety
/// It is `repr(C)`, begins with `size: u32`, and is a value where all of its bytes are zero.
#[allow(unsafe_code, reason = "the host reads memory by it")]
pub unsafe trait Grows: Copy {
    /// Its size in the version that had it first: one that is smaller cannot be read. To append a member, put its offset here.
    const FIRST: usize;
}

macro_rules! grows {
    ($($type:ty = $first:expr),* $(,)?) => {
        $(
            // SAFETY: numbers, pointers and optional functions, behind a size.
            #[allow(unsafe_code, reason = "see above")]
            unsafe impl Grows for $type {
                const FIRST: usize = $first;
            }
        )*
    };
}
grows! {
    Grid = size_of::<Grid>(),
    AlgoDesc = size_of::<AlgoDesc>(),
    Algo = size_of::<Algo>(),
    PlanExt = size_of::<PlanExt>(),
    RoundExt = size_of::<RoundExt>(),
    ConditionExt = size_of::<ConditionExt>(),
    SplitExt = size_of::<SplitExt>(),
    TransformExt = size_of::<TransformExt>(),
    FormatDesc = size_of::<FormatDesc>(),
    Formats = size_of::<Formats>(),
    Plugin = size_of::<Plugin>(),
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    pub ptr: *const c_char,
    pub len: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlDevice {
    pub device_type: i32,
    pub device_id: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DlDataType {
    pub code: u8,
    pub bits: u8,
    pub lanes: u16,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlTensor {
    pub data: *mut c_void,
    pub device: DlDevice,
    pub ndim: i32,
    pub dtype: DlDataType,
    pub shape: *mut i64,
    pub strides: *mut i64,
    pub byte_offset: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub version: Version,
    pub manager_ctx: *mut c_void,
    pub deleter: Option<unsafe extern "C" fn(*mut Tensor)>,
    pub flags: u64,
    pub dl_tensor: DlTensor,
}

/// DLPack's flag for views that must not be written to.
pub const READ_ONLY: u64 = 1;
/// DLPack's device type of host memory.
pub const CPU: i32 = 1;
/// The DLPack version of [`Tensor`].
pub const DLPACK: Version = Version { major: 1, minor: 1 };

pub const OK: i32 = 0;
pub const ERR_OPTIONS: i32 = 1;
pub const ERR_UNSUPPORTED: i32 = 2;
pub const ERR_NUMERIC: i32 = 3;
pub const ERR_CANCELLED: i32 = 4;
pub const ERR_PANIC: i32 = 5;
pub const ERR_INTERNAL: i32 = 6;

pub const TRANSFORM: u32 = 0;
pub const CONDITION: u32 = 1;
pub const SPLIT: u32 = 2;
pub const ROUND: u32 = 3;
pub const CORRECT: u32 = 4;

pub const REENTRANT: u32 = 1;
pub const WEIGHT_ONLY: u32 = 2;
pub const CHECKS_OPTIONS: u32 = 4;
pub const FEEDS_BACK: u32 = 8;

/// A bit of [`Site::flags`].
pub const SITE_FEEDS_BACK: u32 = 1;

pub const GRID_INT: u32 = 0;
pub const GRID_FLOAT: u32 = 1;
pub const GRID_LEVELS: u32 = 2;

pub const ZERO_NONE: u32 = 0;
pub const ZERO_FIXED: u32 = 1;
pub const ZERO_INTEGER: u32 = 2;
pub const ZERO_FLOAT: u32 = 3;

#[repr(C)]
pub struct Host {
    pub size: u32,
    pub abi: Version,
    pub threads: u32,
    pub ctx: *mut c_void,
    pub set_error: Option<unsafe extern "C" fn(*const Host, Str, Str)>,
    pub log: Option<unsafe extern "C" fn(*const Host, u32, Str)>,
    pub cancelled: Option<unsafe extern "C" fn(*const Host) -> i32>,
    pub progress: Option<unsafe extern "C" fn(*const Host, u64, u64)>,
    pub reply: Option<unsafe extern "C" fn(*const Host, Str)>,
    pub event: Option<unsafe extern "C" fn(*const Host, Str)>,
    #[allow(clippy::type_complexity, reason = "one function of the header")]
    pub alloc: Option<unsafe extern "C" fn(*const Host, u8, u8, i32, *const i64, *mut *mut Tensor) -> i32>,
    pub extension: Option<unsafe extern "C" fn(*const Host, *const c_char) -> *const c_void>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub size: u32,
    pub kind: u32,
    pub lo: i32,
    pub hi: i32,
    pub bits: u32,
    pub zero: u32,
    pub fixed_zero: i32,
    pub exponent: u32,
    pub mantissa: u32,
    pub variant: u32,
    pub levels: *const f32,
    pub n_levels: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    pub size: u32,
    pub reserved: u32,
    pub rows: u64,
    pub cols: u64,
    pub tile_rows: u64,
    pub tile_cols: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub size: u32,
    pub kind: u32,
    pub stream: u32,
    pub reserved: u32,
    pub tokens: u64,
    pub id: u64,
    pub tensor: *const Tensor,
}

#[repr(C)]
pub struct Site {
    pub size: u32,
    pub stream: u32,
    pub token: u64,
    pub name: Str,
    pub role: Str,
    pub block: i64,
    pub seed: u64,
    pub weight: *const Tensor,
    pub original: *const Tensor,
    pub ranged: *const Tensor,
    pub stats: *const *const Stat,
    pub n_stats: usize,
    pub grid: *const Grid,
    pub tiles: *const Tiles,
    pub spec: Str,
    pub input: Str,
    pub linear: Str,
    pub amax: f32,
    pub flags: u32,
}

#[repr(C)]
pub struct Factor {
    pub size: u32,
    pub reserved: u32,
    pub n: u64,
    pub u: *const f32,
    pub order: *const u32,
    pub dead: *const u32,
    pub n_dead: usize,
    pub damp: f64,
}

/// A task of [`Numeric::parallel_for`].
pub type Body = unsafe extern "C" fn(*mut c_void, usize) -> i32;

#[repr(C)]
#[allow(clippy::type_complexity, reason = "the functions of the header")]
pub struct Numeric {
    pub size: u32,
    pub reserved: u32,
    pub gemm: Option<
        unsafe extern "C" fn(*const Host, usize, usize, usize, i32, *mut f32, usize, *const f32, i32, usize, *const f32, i32, usize) -> i32,
    >,
    pub fit: Option<unsafe extern "C" fn(*const Host, *const Site, *const f32, *mut f32, *mut f32) -> i32>,
    pub nearest: Option<unsafe extern "C" fn(*const Host, *const Site, *const f32, *const f32, *const f32, *const Tensor) -> i32>,
    pub expand: Option<unsafe extern "C" fn(*const Host, *const Site, *const Tensor, *const f32, *const f32, *mut f32) -> i32>,
    pub factor: Option<unsafe extern "C" fn(*const Host, *const Tensor, f64, i32, *mut *const Factor) -> i32>,
    pub sweep: Option<
        unsafe extern "C" fn(*const Host, *const Site, *const f32, *const Factor, *const f32, *const f32, usize, *const Tensor) -> i32,
    >,
    pub random: Option<unsafe extern "C" fn(*const u64, usize) -> u64>,
    pub parallel_for: Option<unsafe extern "C" fn(*const Host, usize, *mut c_void, Option<Body>) -> i32>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct AlgoDesc {
    pub size: u32,
    pub phase: u32,
    pub id: *const c_char,
    pub summary: *const c_char,
    pub options_schema: *const c_char,
    pub needs: u64,
    pub flags: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Algo {
    pub size: u32,
    pub reserved: u32,
    pub state: *mut c_void,
    pub options: Str,
    pub destroy: Option<unsafe extern "C" fn(*mut Algo, *const Host)>,
    pub extension: Option<unsafe extern "C" fn(*const Algo, *const c_char) -> *const c_void>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PlanExt {
    pub size: u32,
    pub reserved: u32,
    pub needs: Option<unsafe extern "C" fn(*mut Algo, *const Host, Str) -> i32>,
}

#[repr(C)]
pub struct RoundOut {
    pub size: u32,
    pub reserved: u32,
    pub codes: *mut Tensor,
    pub scale: *mut Tensor,
    pub zero: *mut Tensor,
    pub group_index: *const Tensor,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RoundExt {
    pub size: u32,
    pub reserved: u32,
    pub round: Option<unsafe extern "C" fn(*mut Algo, *const Host, *const Site, *mut RoundOut) -> i32>,
}

#[repr(C)]
pub struct ConditionOut {
    pub size: u32,
    pub reserved: u32,
    pub weight: *mut Tensor,
    pub ranged: *const Tensor,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConditionExt {
    pub size: u32,
    pub reserved: u32,
    pub condition: Option<unsafe extern "C" fn(*mut Algo, *const Host, *const Site, *mut ConditionOut) -> i32>,
}

#[repr(C)]
pub struct SplitOut {
    pub size: u32,
    pub stored: u32,
    pub rank: u64,
    pub a: *mut Tensor,
    pub b: *const *mut Tensor,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SplitExt {
    pub size: u32,
    pub reserved: u32,
    pub after_rounding: Option<unsafe extern "C" fn(*mut Algo, *const Host, *mut u32) -> i32>,
    pub split: Option<unsafe extern "C" fn(*mut Algo, *const Host, *const *const Site, usize, *mut SplitOut) -> i32>,
}

#[repr(C)]
pub struct Region {
    pub size: u32,
    pub space: u32,
    pub name: Str,
    pub block: i64,
    pub width: u64,
    pub head_width: u64,
    pub repeat: u64,
    pub rotated: u64,
    pub allows: u32,
    pub stream: u32,
    pub seed: u64,
    pub readers: *const *const Site,
    pub n_readers: usize,
    pub stats: *const *const Stat,
    pub n_stats: usize,
}

#[repr(C)]
pub struct TransformOut {
    pub size: u32,
    pub reserved: u32,
    pub factor: *mut Tensor,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct TransformExt {
    pub size: u32,
    pub reserved: u32,
    pub suits: Option<unsafe extern "C" fn(*mut Algo, *const Host, *const Region, *mut u32) -> i32>,
    pub solve: Option<unsafe extern "C" fn(*mut Algo, *const Host, *const Region, *mut TransformOut) -> i32>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FormatDesc {
    pub size: u32,
    pub reserved: u32,
    pub id: *const c_char,
    pub summary: *const c_char,
    pub grid: *const Grid,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Formats {
    pub size: u32,
    pub reserved: u32,
    pub count: Option<unsafe extern "C" fn() -> u32>,
    pub describe: Option<unsafe extern "C" fn(*const Host, u32, *mut *const FormatDesc) -> i32>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Plugin {
    pub size: u32,
    pub abi: Version,
    pub reserved: u32,
    pub id: *const c_char,
    pub version: *const c_char,
    pub count: Option<unsafe extern "C" fn() -> u32>,
    pub describe: Option<unsafe extern "C" fn(*const Host, u32, *mut *const AlgoDesc) -> i32>,
    pub create: Option<unsafe extern "C" fn(*const Host, *const c_char, Str, u64, *mut *mut Algo) -> i32>,
    pub extension: Option<unsafe extern "C" fn(*const c_char) -> *const c_void>,
}

/// The type of the function behind [`ENTRY`].
pub type Entry = unsafe extern "C" fn() -> *const Plugin;
