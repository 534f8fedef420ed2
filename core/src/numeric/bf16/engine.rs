//! Products of rounded rows with panels, on the instructions that there are.

use std::ops::Range;

use super::amx::Tiles;
use super::panels::STRIDE;
use super::tile::{Keep, Line, ROWS, STEP, tile};
use super::{Bf16Unit, Instructions};
use crate::numeric::Onto;

/// Rows whose words have to be readable come in multiples of this.
pub(super) const HIGH: usize = super::amx::HIGH;

/// What multiplies, on this thread, for the length of a call.
pub(super) enum Engine {
    /// `vdpbf16ps`
    Pairs(Bf16Unit),
    /// `tdpbf16ps`
    Tiles(Tiles),
}

impl Engine {
    pub(super) fn new(unit: Bf16Unit) -> Self {
        match unit.0 {
            Instructions::Pairs => Self::Pairs(unit),
            Instructions::Tiles => Self::Tiles(Tiles::new()),
        }
    }

    /// How many panels of B share the rows of A that lie in the first cache; with one, it is the panel that lies there.
    pub(super) fn together(&self) -> usize {
        match self {
            Self::Pairs(_) => 1,
            Self::Tiles(_) => 8,
        }
    }

    /// The parts of `pairs` that are multiplied between two visits to C, and what becomes of C at each. Tiles read a strip of A and a panel of B
    /// faster than the second cache gives them, so that the strip and what passes beside it have to fit in the first. It changes no bit: what
    /// is added to C is added in f32 either way.
    pub(super) fn depths(&self, pairs: usize, onto: Onto) -> impl Iterator<Item = (Range<usize>, Onto)> + use<> {
        const MOST: usize = 9 * STEP;
        let depth = match self {
            Self::Pairs(_) => pairs,
            Self::Tiles(_) => pairs.div_ceil(pairs.div_ceil(MOST).max(1)).next_multiple_of(STEP),
        };
        let parts = (0..pairs).step_by(depth.max(1)).map(move |first| first..pairs.min(first + depth));
        parts.map(move |part| if part.start == 0 { (part, onto) } else { (part, Onto::Add) })
    }

    /// The rows that these panels see at once.
    pub(super) fn strips(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = match self {
            Self::Pairs(_) => rows.max(1),
            Self::Tiles(_) => HIGH,
        };
        (0..rows).step_by(step).map(move |row| row..rows.min(row + step))
    }

    /// `C ← A·B`, or added to C, for some rows and the columns of one panel: row `r` of A is the pairs from `a[r·STRIDE]` on, and as many
    /// rows are readable as the next multiple of [`HIGH`]. `c` begins at the first element written, and has rows `stride` long.
    ///
    /// # Panics
    /// If a slice is too short: a bug of the caller.
    pub(super) fn panel(&self, rows: usize, a: &[u32], b: &[Line], (c, stride): (&mut [f32], usize), keep: Keep, onto: Onto) {
        match self {
            Self::Pairs(unit) => {
                for row in (0..rows).step_by(ROWS) {
                    let (a, c) = (&a[row * STRIDE..], &mut c[row * stride..]);
                    tile::<STRIDE, 1>(*unit, ROWS.min(rows - row), a, b, (c, stride), keep.from(row), onto);
                }
            }
            Self::Tiles(tiles) => {
                for row in (0..rows).step_by(HIGH) {
                    let (a, c) = (&a[row * STRIDE..], &mut c[row * stride..]);
                    tiles.block(HIGH.min(rows - row), a, b, (c, stride), keep.from(row), onto);
                }
            }
        }
    }
}
