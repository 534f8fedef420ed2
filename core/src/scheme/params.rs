//! Quantization parameters of a tensor.

use super::TileLayout;

/// Scales and zero points, one per tile of a layout.
#[derive(Clone, Debug, PartialEq)]
pub struct QParams {
    /// The tiles.
    pub layout: TileLayout,
    /// One per tile; finite, not zero, exactly what will be read back from where it is stored.
    pub scale: Vec<f32>,
    /// One per tile, in code units; whole numbers except with float zero points.
    pub zero: Vec<f32>,
    /// The tensor's own factor of [`super::ScaleForm::TwoLevel`]: `scale · global` is the scale stored per tile.
    pub global: Option<f32>,
}
