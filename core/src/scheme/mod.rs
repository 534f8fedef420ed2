//! What each tensor site becomes: number format, granularity, symmetry, observer. A scheme never names an algorithm.

mod float_grid;
#[cfg(test)]
mod float_grid_tests;
mod granularity;
mod grid;
mod layout;
mod params;
mod scale;
mod spec;

pub use float_grid::{FloatGrid, FloatVariant};
pub use granularity::{Extent, Granularity};
pub(crate) use grid::{Coder, WithCoder};
pub use grid::{Grid, Zero};
pub use layout::TileLayout;
pub use params::QParams;
pub use scale::{FloatKind, PowerRounding, ScaleForm};
pub use spec::{Convention, ObserverChoice, QuantSpec, Reducer, Timing};
