//! Number formats of libraries: `qfw.format/1` returns a grid. Grids are read once, when the library is opened, and kept.

use std::sync::Arc;

use qfw_abi::raw;
use qfw_core::format::{Ask, FormatRecord, Meaning, QuantFormat};
use qfw_core::scheme::{Convention, Grid, ScaleForm, Zero};
use qfw_core::{Error, Result};

use crate::catalog::leak;
use crate::contract::violation;
use crate::describe::{asked, read};
use crate::given::given;
use crate::guest::Guest;
use crate::library::Lazy;
use crate::manifest::Manifest;

/// A format of a package; its library is opened when the grid is asked for.
pub(crate) struct LoadedFormat {
    lazy: Arc<Lazy>,
    id: String,
}

impl LoadedFormat {
    pub(crate) fn new(lazy: Arc<Lazy>, id: &str) -> Self {
        Self { lazy, id: id.to_owned() }
    }

    /// Its line in listings.
    pub(crate) fn record(&self, summary: &str) -> &'static FormatRecord {
        let manifest = &self.lazy.package.manifest;
        Box::leak(Box::new(FormatRecord {
            id: leak(&self.id),
            summary: leak(summary),
            version: leak(&manifest.version),
            source: leak(&manifest.id),
            find: |_| None,
        }))
    }

    fn grid(&self) -> Result<&Grid> {
        let library = self.lazy.library()?;
        // Opening it has compared its formats with the manifest's.
        library.format(&self.id).ok_or_else(|| Error::internal(format!("format `{}` is in no library", self.id)))
    }
}

/// The formats that a library declares, which have to be those of its manifest.
///
/// # Errors
/// What is wrong with one of them.
pub(crate) fn described(plugin: &raw::Plugin, manifest: &Manifest, guest: &Guest) -> Result<Vec<(String, Grid)>> {
    let broken = |message: String| -> Error { violation(message).within(guest.name()) };
    // SAFETY: a function of the table, with a C string.
    #[allow(unsafe_code, reason = "the border")]
    let table = plugin.extension.map_or(std::ptr::null(), |f| unsafe { f(c"qfw.format/1".as_ptr()) });
    if table.is_null() && manifest.formats.is_empty() {
        return Ok(Vec::new());
    }
    let table = given(table.cast::<raw::Formats>()).map_err(|e| broken(format!("its `qfw.format/1` {e}")))?;
    let (Some(count), Some(describe)) = (table.count, table.describe) else {
        return Err(broken("its `qfw.format/1` lacks functions".to_owned()));
    };
    // SAFETY: a function of the table, which takes no pointers.
    #[allow(unsafe_code, reason = "the border")]
    let count = unsafe { count() };
    if count as usize != manifest.formats.len() {
        return Err(broken(format!("it declares {count} formats, and its manifest {}", manifest.formats.len())));
    }
    let mut found: Vec<(String, Grid)> = Vec::new();
    for index in 0..count {
        let mut pointer = std::ptr::null();
        // SAFETY: the header's `describe`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        asked(guest, |host| unsafe { describe(host, index, &mut pointer) })?;
        let (id, grid) = one(pointer, index, manifest).map_err(broken)?;
        if found.iter().any(|(known, _)| *known == id) {
            return Err(broken(format!("it declares the format `{id}` twice")));
        }
        found.push((id, grid));
    }
    Ok(found)
}

/// One of them: its id and its grid.
fn one(pointer: *const raw::FormatDesc, index: u32, manifest: &Manifest) -> std::result::Result<(String, Grid), String> {
    let described = given(pointer).map_err(|e| format!("its format {index} {e}"))?;
    let id = read(described.id).ok_or_else(|| format!("its format {index} has no id"))?;
    if !manifest.formats.iter().any(|f| f.id == id) {
        return Err(format!("it declares the format `{id}`, which its manifest does not name"));
    }
    let raw = given(described.grid).map_err(|e| format!("format `{id}`: its grid {e}"))?;
    let grid = grid(&raw).map_err(|e| format!("format `{id}`: {e}"))?;
    Ok((id, grid))
}

/// The grid behind a description.
fn grid(raw: &raw::Grid) -> std::result::Result<Grid, String> {
    match raw.kind {
        raw::GRID_INT if raw.zero == raw::ZERO_NONE && raw.lo < raw.hi && raw.hi.abs_diff(raw.lo) < 1 << 16 => {
            Ok(Grid::Int { lo: raw.lo, hi: raw.hi, zero: Zero::None })
        }
        raw::GRID_INT => Err(format!("integers {} to {} with zero points of kind {} are none that it can be", raw.lo, raw.hi, raw.zero)),
        raw::GRID_LEVELS if (2..=256).contains(&raw.n_levels) && !raw.levels.is_null() && raw.levels.is_aligned() => {
            // SAFETY: the header says that there are as many.
            #[allow(unsafe_code, reason = "the border")]
            let levels = unsafe { std::slice::from_raw_parts(raw.levels, raw.n_levels) };
            if levels.iter().any(|l| !l.is_finite()) || levels.windows(2).any(|w| w[0] >= w[1]) {
                return Err("its levels do not rise, or are not finite".to_owned());
            }
            Ok(Grid::Levels(levels.to_vec()))
        }
        raw::GRID_LEVELS if raw.levels.is_null() || !raw.levels.is_aligned() => {
            Err("its levels are missing, or lie at an odd address".to_owned())
        }
        raw::GRID_LEVELS => Err(format!("{} levels are none that it can be", raw.n_levels)),
        other => Err(format!("grids of kind {other} are for formats of the program")),
    }
}

impl QuantFormat for LoadedFormat {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn bits(&self) -> u8 {
        // Without a grid there is no width, and `resolve` says why.
        let codes = self.grid().map_or(2, Grid::codes);
        u8::try_from(codes.next_power_of_two().trailing_zeros()).unwrap_or(16).max(1)
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        let grid = self.grid()?.clone();
        if !ask.symmetric {
            return Err(Error::config("config::invalid", format!("`{}` has no zero points", self.id)).hint("set `symmetric = true`"));
        }
        if ask.power_of_two.is_some() {
            return Err(Error::config("config::invalid", format!("`{}` has no scales that are powers of two", self.id)));
        }
        Ok(Meaning { grid, scale: ScaleForm::Float(ask.stored), symmetric: true, convention: Convention::default() })
    }
}
