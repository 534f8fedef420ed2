//! What each tensor site becomes: number format, granularity, symmetry, observer. A scheme never names an algorithm.

mod grid;
mod layout;
mod params;
mod spec;

pub use grid::{Grid, Zero};
pub use layout::TileLayout;
pub use params::{FloatKind, QParams};
pub use spec::{Convention, Granularity, ObserverChoice, QuantSpec, Timing};
