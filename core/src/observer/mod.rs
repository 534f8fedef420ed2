//! Observers: rules that choose the range of a tile, and the scale and zero point that follow from a range.

mod minmax;
mod mse;
mod range;

use serde_json::Value;

pub use range::ScaleRule;

use crate::error::{Error, Result};
use crate::scheme::{QParams, QuantSpec, TileLayout};

/// A rule that chooses the parameters of one tile from its values. Pure: no state, no order.
pub trait Observer: Send + Sync {
    /// Scale and zero point for `values`, which are finite and not empty. `rule` turns ranges into parameters.
    fn fit(&self, values: &[f32], rule: &ScaleRule) -> (f32, i32);
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
pub const BUILTIN: &[ObserverRecord] = &[minmax::RECORD, mse::RECORD];

/// Parameters of every tile of a row-major `[rows, cols]` matrix.
///
/// # Errors
/// If the matrix does not fit the layout, or a value is not finite.
pub fn fit(observer: &dyn Observer, spec: &QuantSpec, weight: &[f32], layout: TileLayout) -> Result<QParams> {
    if weight.len() != layout.rows * layout.cols {
        return Err(Error::internal(format!("{} values for a {}x{} layout", weight.len(), layout.rows, layout.cols)));
    }
    if let Some(i) = weight.iter().position(|x| !x.is_finite()) {
        let message = format!("the weight holds {} at row {}, column {}", weight[i], i / layout.cols, i % layout.cols);
        return Err(Error::numeric("numeric::not-finite", message));
    }
    let rule = ScaleRule::of(spec);
    let (tile_rows, tile_cols) = layout.grid();
    let mut params = QParams { layout, scale: Vec::with_capacity(layout.tiles()), zero: Vec::with_capacity(layout.tiles()) };
    let mut values = Vec::new();
    for tr in 0..tile_rows {
        for tc in 0..tile_cols {
            values.clear();
            let columns = tc * layout.tile_cols..layout.cols.min((tc + 1) * layout.tile_cols);
            for row in tr * layout.tile_rows..layout.rows.min((tr + 1) * layout.tile_rows) {
                values.extend_from_slice(&weight[row * layout.cols..][columns.clone()]);
            }
            let (scale, zero) = observer.fit(&values, &rule);
            params.scale.push(scale);
            params.zero.push(zero);
        }
    }
    Ok(params)
}
