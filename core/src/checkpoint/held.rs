//! What the codes of a module stand for once a container holds them.
//!
//! Most containers hold codes and scales as they are. Some round scales to a float type of their own, or compute values in another
//! way, which moves them by a little; a container that does says so here, so that what it was meant to write can be recorded, and
//! checked by readers that share no code with it. `q`: a code, `z` its zero point, `s` its scale, `lo` the smallest code; all in f32.

use std::ops::Range;

use crate::algorithm::Rounded;
use crate::error::Result;
use crate::numeric::{decode, with_units};
use crate::scheme::{FloatKind, Grid, ScaleForm};

/// How readers of a container compute values.
#[derive(Clone, Debug, PartialEq)]
pub enum Arithmetic {
    /// As [`Grid`] says: `s·(q − z)`, or `s·v(q)`.
    Scaled,
    /// `s·(q − lo) + m`, with an `m` for each tile.
    Minimum(Vec<f32>),
    /// `f·(s·v(q))`, with an `f` for the whole tensor.
    Factor(f32),
    /// Not at all: what is stored is the value, as a float of this type.
    Floats(FloatKind),
}

/// Codes and parameters as a container holds them.
pub struct Held {
    /// With scales as they are stored.
    pub rounded: Rounded,
    /// What becomes of them.
    pub arithmetic: Arithmetic,
}

impl Held {
    /// As the run found them.
    pub fn exactly(rounded: Rounded) -> Self {
        Self { rounded, arithmetic: Arithmetic::Scaled }
    }

    /// With scales of a form rounded to a float type.
    ///
    /// # Errors
    /// If that type cannot hold one of them.
    pub fn scales_in(mut self, form: ScaleForm, kind: FloatKind) -> Result<Self> {
        for scale in &mut self.rounded.params.scale {
            *scale = form.held_in(kind, *scale)?;
        }
        Ok(self)
    }

    /// The values of rows `rows`, row-major; `out` is cleared first.
    pub fn values(&self, grid: &Grid, rows: Range<usize>, out: &mut Vec<f32>) {
        let r = &self.rounded;
        match &self.arithmetic {
            Arithmetic::Scaled => decode(grid, &r.params, &r.codes, rows, r.group_index.as_deref(), out),
            Arithmetic::Factor(f) => {
                decode(grid, &r.params, &r.codes, rows, r.group_index.as_deref(), out);
                out.iter_mut().for_each(|v| *v *= f);
            }
            Arithmetic::Floats(kind) => {
                decode(grid, &r.params, &r.codes, rows, r.group_index.as_deref(), out);
                out.iter_mut().for_each(|v| *v = kind.round(*v));
            }
            Arithmetic::Minimum(minima) => {
                let layout = r.params.layout;
                out.clear();
                with_units!(&r.codes.data, codes => for row in rows {
                    let codes = &codes[row * layout.cols..][..layout.cols];
                    out.extend(codes.iter().enumerate().map(|(column, above)| {
                        let tile = layout.tile(row, column);
                        r.params.scale[tile] * f32::from(*above) + minima[tile]
                    }));
                });
            }
        }
    }

    /// Whether there are codes in what is stored.
    pub fn has_codes(&self) -> bool {
        !matches!(self.arithmetic, Arithmetic::Floats(_))
    }

    /// The same without scales: `q − z`, or `v(q)`. Containers that hold the same codes agree on them.
    pub fn steps(&self, grid: &Grid, rows: Range<usize>, out: &mut Vec<f32>) {
        let r = &self.rounded;
        let mut params = r.params.clone();
        params.scale.fill(1.0);
        decode(grid, &params, &r.codes, rows, r.group_index.as_deref(), out);
    }
}
