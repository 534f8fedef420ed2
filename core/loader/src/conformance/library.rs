//! The cases of a library as such, and of its number formats.

use std::sync::Arc;
use std::time::{Duration, Instant};

use qfw_core::Result;
use qfw_core::numeric::{decode, encode};
use qfw_core::registry::Registry;
use qfw_core::scheme::{Granularity, Grid};
use serde_json::json;

use super::{Kind, Outcome, Sample, unknown};
use crate::algorithm::Loaded;
use crate::format::LoadedFormat;
use crate::library::Lazy;

/// Cases of every library.
pub(super) const CASES: [&str; 3] = ["loads", "stable", "extension"];

/// Cases of an instance that no phase has to do with.
pub(super) const OF_INSTANCES: [&str; 1] = ["extension.unknown"];

/// Cases of a number format.
pub(super) const OF_FORMATS: [&str; 3] = ["grid", "fixed-point", "nearest"];

/// Opening a library should take no longer.
const SOON: Duration = Duration::from_millis(100);

const NO_SUCH: &std::ffi::CStr = c"qfw.no-such-extension/1";

pub(super) fn run(lazy: &Lazy, name: &str) -> Outcome {
    let start = Instant::now();
    // Opening it compares its version, and all that it declares, with this program and with its manifest.
    let library = match lazy.library() {
        Ok(library) => library,
        Err(e) => return Outcome::of(&e),
    };
    let took = start.elapsed();
    match name {
        "loads" if took > SOON => Outcome::Warning(format!("loading takes {} ms", took.as_millis())),
        "stable" => match library.says_the_same(&lazy.package.manifest) {
            Ok(()) => Outcome::Success,
            Err(what) => Outcome::Failed(what),
        },
        "extension" => match library.plugin.extension {
            // SAFETY: a function of the table, with a C string.
            #[allow(unsafe_code, reason = "the border")]
            Some(f) if !unsafe { f(NO_SUCH.as_ptr()) }.is_null() => {
                Outcome::Failed("it answers to an extension that does not exist".to_owned())
            }
            _ => Outcome::Success,
        },
        _ => Outcome::Success,
    }
}

pub(super) fn unknown_extension(lazy: &Arc<Lazy>, id: &str) -> Outcome {
    match Loaded::new(Arc::clone(lazy), id, &json!({})) {
        Ok((loaded, _)) if loaded.has_extension(NO_SUCH) => Outcome::Failed("it answers to an extension that does not exist".to_owned()),
        Ok(_) => Outcome::Success,
        Err(e) => Outcome::of(&e),
    }
}

/// A registry of this program's formats, and this one.
fn registry(lazy: &Arc<Lazy>, id: &str) -> Result<Registry> {
    let mut registry = Registry::builtin()?;
    let loaded = LoadedFormat::new(Arc::clone(lazy), id);
    registry.add_loaded_format(loaded.record(""), Arc::new(loaded), true)?;
    Ok(registry)
}

pub(super) fn format(lazy: &Arc<Lazy>, id: &str, name: &str, seed: u64) -> Result<Outcome> {
    let registry = match registry(lazy, id) {
        Ok(registry) => registry,
        Err(e) => return Ok(Outcome::of(&e)),
    };
    let site = Sample::of_registry(&registry, seed, Kind::Plain, (12, 40), id, Granularity::group(16));
    let site = match site {
        Ok(site) => site,
        Err(e) => return Ok(Outcome::of(&e)),
    };
    Ok(match name {
        "grid" => grid(&site.spec.grid),
        "fixed-point" => fixed_point(&site),
        "nearest" => nearest(&site),
        other => return Err(unknown(&format!("{id}.format.{other}"))),
    })
}

/// What can be, but is seldom meant.
fn grid(grid: &Grid) -> Outcome {
    let (lo, hi) = grid.limits();
    let values: Vec<f32> = (lo..=hi).map(|code| grid.decode(code, 1.0, 0.0)).collect();
    let no = |what: &str| Outcome::Warning(format!("{what}; dead channels and padding will not stay zero, or one side clips"));
    match (values.contains(&0.0), values.iter().any(|v| *v < 0.0) && values.iter().any(|v| *v > 0.0)) {
        (false, _) => no("zero is none of its values"),
        (_, false) => no("its values are on one side of zero"),
        _ => Outcome::Success,
    }
}

/// A value of the grid has a code that stands for it.
fn fixed_point(site: &Sample) -> Outcome {
    let (cx, mut values, mut again) = (site.context(&site.weight), Vec::new(), Vec::new());
    let rounded = match cx.nearest() {
        Ok(rounded) => rounded,
        Err(e) => return Outcome::of(&e),
    };
    let (grid, params, rows) = (&site.spec.grid, &rounded.params, 0..site.linear.shape.0);
    decode(grid, params, &rounded.codes, rows.clone(), None, &mut values);
    decode(grid, params, &encode(grid, params, &values), rows, None, &mut again);
    match values.iter().zip(&again).position(|(a, b)| a != b) {
        Some(i) => Outcome::Failed(format!("the value {} is rounded to {}", values[i], again[i])),
        None => Outcome::Success,
    }
}

/// No other code stands for anything nearer; by trying them all.
fn nearest(site: &Sample) -> Outcome {
    let (cx, mut values) = (site.context(&site.weight), Vec::new());
    let rounded = match cx.nearest() {
        Ok(rounded) => rounded,
        Err(e) => return Outcome::of(&e),
    };
    let (grid, params, layout) = (&site.spec.grid, &rounded.params, rounded.params.layout);
    decode(grid, params, &rounded.codes, 0..layout.rows, None, &mut values);
    let (lo, hi) = grid.limits();
    for (i, (w, v)) in site.weight.iter().zip(&values).enumerate() {
        let tile = layout.tile(i / layout.cols, i % layout.cols);
        let (scale, zero) = (params.scale[tile], params.zero[tile]);
        let best = (lo..=hi).map(|code| grid.decode(code, scale, zero)).min_by(|a, b| (a - w).abs().total_cmp(&(b - w).abs()));
        if let Some(best) = best.filter(|best| (best - w).abs() < (v - w).abs() * (1.0 - 1e-6)) {
            return Outcome::Failed(format!("{w} is rounded to {v}, though {best} is one of its values"));
        }
    }
    Outcome::Success
}
