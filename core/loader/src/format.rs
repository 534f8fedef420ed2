//! Number formats of libraries: `qfw.format/1` returns a grid.

use std::sync::{Arc, OnceLock};

use qfw_abi::raw;
use qfw_core::format::{Ask, Meaning, QuantFormat};
use qfw_core::scheme::{Convention, Grid, ScaleForm, Zero};
use qfw_core::{Error, Result};

use crate::library::{Lazy, read, sized};
use crate::plugin_error;

/// A format of a package; its library is opened when the grid is asked for.
pub(crate) struct LoadedFormat {
    lazy: Arc<Lazy>,
    id: String,
    grid: OnceLock<Option<Grid>>,
}

impl LoadedFormat {
    pub(crate) fn new(lazy: Arc<Lazy>, id: &str) -> Self {
        Self { lazy, id: id.to_owned(), grid: OnceLock::new() }
    }

    fn describe(&self) -> Result<Grid> {
        let library = self.lazy.library()?;
        let broken = |what: String| plugin_error("plugin::contract", format!("format `{}`: {what}", self.id)).within(library.name());
        // SAFETY: a function of the table, with a C string.
        #[allow(unsafe_code, reason = "the border")]
        let table = library.plugin.extension.map(|f| unsafe { f(c"qfw.format/1".as_ptr()) });
        let table = sized(table.unwrap_or(std::ptr::null()).cast::<raw::Formats>());
        let table = table.map_err(|e| broken(format!("its `qfw.format/1` {e}")))?;
        let (Some(count), Some(describe)) = (table.count, table.describe) else {
            return Err(broken("its `qfw.format/1` lacks functions".to_owned()));
        };
        // SAFETY: functions of the table, which take no pointers.
        #[allow(unsafe_code, reason = "the border")]
        let all = unsafe { (0..count()).map(|i| describe(i)).collect::<Vec<_>>() };
        let found = all.into_iter().filter_map(|d| sized(d).ok()).find(|d| read(d.id).as_deref() == Some(&self.id));
        grid(&found.ok_or_else(|| broken("its library does not have it".to_owned()))?.grid).map_err(broken)
    }
}

/// The grid behind a description.
fn grid(raw: &raw::Grid) -> std::result::Result<Grid, String> {
    match raw.kind {
        raw::GRID_INT if raw.zero == raw::ZERO_NONE && raw.lo < raw.hi && raw.hi.abs_diff(raw.lo) < 1 << 16 => {
            Ok(Grid::Int { lo: raw.lo, hi: raw.hi, zero: Zero::None })
        }
        raw::GRID_INT => Err(format!("integers {} to {} with zero points of kind {} are none that it can be", raw.lo, raw.hi, raw.zero)),
        raw::GRID_LEVELS if (2..=256).contains(&raw.n_levels) && !raw.levels.is_null() => {
            // SAFETY: the header says that there are as many.
            #[allow(unsafe_code, reason = "the border")]
            let levels = unsafe { std::slice::from_raw_parts(raw.levels, raw.n_levels) };
            if levels.iter().any(|l| !l.is_finite()) || levels.windows(2).any(|w| w[0] >= w[1]) {
                return Err("its levels do not rise, or are not finite".to_owned());
            }
            Ok(Grid::Levels(levels.to_vec()))
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
        let grid = self.grid.get_or_init(|| self.describe().ok());
        let codes = grid.as_ref().map_or(2, Grid::codes);
        u8::try_from(codes.next_power_of_two().trailing_zeros()).unwrap_or(16).max(1)
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        let grid = self.describe()?;
        if !ask.symmetric {
            return Err(Error::config("config::invalid", format!("`{}` has no zero points", self.id)).hint("set `symmetric = true`"));
        }
        if ask.power_of_two.is_some() {
            return Err(Error::config("config::invalid", format!("`{}` has no scales that are powers of two", self.id)));
        }
        Ok(Meaning { grid, scale: ScaleForm::Float(ask.stored), symmetric: true, convention: Convention::default() })
    }
}
