//! Observers: rules that choose the range of a tile, and the scale and zero point that follow from a range.

mod absmean;
mod entropy;
mod half_quadratic;
mod hqo;
mod hqq;
mod loss;
mod minmax;
mod mse;
mod percentile;
mod range;
#[cfg(test)]
mod range_tests;

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use range::ScaleRule;

use crate::error::{Error, Result};
use crate::scheme::{Grid, QParams, ScaleForm, TileLayout};

/// A rule that chooses the parameters of one tile from its values. Pure: no state, no order.
pub trait Observer: Send + Sync {
    /// The range for `values`, which are finite and not empty. `rule` turns ranges into parameters.
    fn range(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32);

    /// Scale and zero point for `values`. Rules that choose them directly, not by way of a range, say so here.
    fn fit(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let (lo, hi) = self.range(values, rule);
        rule.params(lo, hi)
    }

    /// Whether [`Observer::range`] is all there is to it, so that ranges of several windows can be made one.
    fn chooses_ranges(&self) -> bool {
        true
    }

    /// Whether it can choose parameters of such a format.
    ///
    /// # Errors
    /// If it cannot; the message says why.
    fn suits(&self, _grid: &Grid, _form: ScaleForm) -> Result<()> {
        Ok(())
    }
}

/// An observer, and its options with defaults filled in.
pub type BuiltObserver = (Box<dyn Observer>, Value);

/// The record of an observer in the registry.
pub struct ObserverRecord {
    /// Its id.
    pub id: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// JSON Schema of its options.
    pub schema: fn() -> Value,
    /// Builds it from its options; an empty object means the defaults. Also returns the options with defaults filled in.
    pub build: fn(&Value) -> Result<BuiltObserver>,
}

inventory::collect!(ObserverRecord);

/// The observers of this crate.
pub const BUILTIN: &[ObserverRecord] =
    &[absmean::RECORD, entropy::RECORD, hqo::RECORD, hqq::RECORD, minmax::RECORD, mse::RECORD, percentile::RECORD];

/// Options of an observer; `known` lists them for the hint.
fn parse<T: DeserializeOwned>(id: &str, known: &str, options: &Value) -> Result<T> {
    serde_json::from_value(options.clone())
        .map_err(|e| Error::config("config::invalid", format!("options of observer `{id}`: {e}")).hint(format!("its options: {known}")))
}

/// Why an observer cannot choose parameters of a format.
fn refuse(id: &str, why: &str, hint: &str) -> Result<()> {
    Err(Error::plan("plan::unsupported", format!("observer `{id}` cannot be used here: {why}")).hint(hint))
}

/// Parameters of every tile of a row-major `[rows, cols]` matrix.
///
/// # Errors
/// If the matrix does not fit the layout, or a value is not finite.
pub fn fit(observer: &dyn Observer, rule: &ScaleRule, weight: &[f32], layout: TileLayout) -> Result<QParams> {
    if weight.len() != layout.rows * layout.cols {
        return Err(Error::internal(format!("{} values for a {}x{} layout", weight.len(), layout.rows, layout.cols)));
    }
    if let Some(i) = weight.iter().position(|x| !x.is_finite()) {
        let message = format!("the weight holds {} at row {}, column {}", weight[i], i / layout.cols, i % layout.cols);
        return Err(Error::numeric("numeric::not-finite", message));
    }
    let (_, tile_cols) = layout.grid();
    let one = |values: &mut Vec<f32>, tile: usize| {
        let (tr, tc) = (tile / tile_cols, tile % tile_cols);
        values.clear();
        let columns = tc * layout.tile_cols..layout.cols.min((tc + 1) * layout.tile_cols);
        for row in tr * layout.tile_rows..layout.rows.min((tr + 1) * layout.tile_rows) {
            values.extend_from_slice(&weight[row * layout.cols..][columns.clone()]);
        }
        observer.fit(values, rule)
    };
    // A tile's parameters depend on nothing but its values: threads cannot be told from the result.
    let pairs: Vec<(f32, f32)> = (0..layout.tiles()).into_par_iter().map_init(Vec::new, one).collect();
    let (scale, zero) = pairs.into_iter().unzip();
    Ok(QParams { layout, scale, zero, global: rule.global() })
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::scheme::{Convention, FloatKind, Granularity, Grid, ObserverChoice, QuantSpec, Reducer, ScaleForm, Timing, Zero};

    /// Values with tails, on both sides, a little more above.
    pub(super) fn heavy_tailed(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.618_034).fract() - 0.45).map(|u| 0.02 * u + 4.0 * u * u * u * u * u).collect()
    }

    /// Affine uint4 with one scale for all.
    pub(super) fn uint4() -> QuantSpec {
        QuantSpec { format: "uint4".to_owned(), grid: Grid::Int { lo: 0, hi: 15, zero: Zero::Integer }, symmetric: false, ..int4() }
    }

    /// Symmetric int4 with one scale for all.
    pub(crate) fn int4() -> QuantSpec {
        QuantSpec {
            format: "int4".to_owned(),
            bits: 4,
            grid: Grid::Int { lo: -8, hi: 7, zero: Zero::None },
            granularity: Granularity::tensor(),
            symmetric: true,
            convention: Convention::HalfRange,
            observer: ObserverChoice { id: "minmax".to_owned(), options: serde_json::json!({}) },
            timing: Timing::Static,
            reduce: Reducer::Mean,
            rescale: 1.0,
            min_threshold: 0.0,
            scale: ScaleForm::Float(FloatKind::F32),
        }
    }
}
