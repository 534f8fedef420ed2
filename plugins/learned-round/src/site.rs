//! One layer: its weights, the numbers of the grid around them, and ranges that may be learned.
//!
//! A range is that of the codes: `lo = s·(q_min − z)`, `hi = s·(q_max − z)`. Learned factors `β` act on its ends,
//!
//! ```text
//! affine      s = (β_hi·hi − β_lo·lo) / (q_max − q_min),   z = q_min − β_lo·lo / s
//! symmetric   s = β·s₀
//! ```
//!
//! and gradients come from those of the weights, `g`, with rounding passed straight through: `∂s = Σ g·(ŵ − w)/s` for what the range
//! holds, `Σ g·ŵ/s` beyond it, `∂z = −Σ g·s` beyond it.

use qfw_core::Result;
use qfw_core::algorithm::SiteContext;
use qfw_core::numeric::{nearest_values, round_values};
use qfw_core::observer::ScaleRule;
use qfw_core::scheme::{Grid, QParams};
use rayon::prelude::*;

use crate::options::{Options, ScaleOptimizer};

/// Rows of a task.
const ROWS: usize = 16;
/// Fewest tiles of a task.
const TILES: usize = 64;
/// Sums side by side: one after the other they would wait for each other.
const LANES: usize = 8;

/// How far a range may be moved.
const LEAST: f64 = 0.25;
const MOST: f64 = 1.75;

/// A layer under work.
#[derive(Clone)]
pub(crate) struct Site<'a> {
    pub(crate) weight: &'a [f32],
    rule: ScaleRule,
    base: QParams,
    /// Values of the grid in increasing order, in units of the scale; of integers none: their gap is 1.
    units: Vec<f32>,
    /// For each tile the factors on the ends of its range.
    factors: Vec<(f64, f64)>,
    speed: Vec<(f64, f64)>,
}

impl<'a> Site<'a> {
    pub(crate) fn new(cx: &SiteContext<'a>) -> Result<Self> {
        let base = cx.ranges()?;
        let grid = &cx.spec.grid;
        let units = if matches!(grid, Grid::Int { .. }) {
            Vec::new()
        } else {
            let (lo, hi) = grid.limits();
            let mut units: Vec<f32> = (lo..=hi).filter(|c| grid.holds(*c)).map(|c| grid.decode(c, 1.0, 0.0)).collect();
            units.sort_by(f32::total_cmp);
            units.dedup();
            units
        };
        let tiles = base.scale.len();
        Ok(Self { weight: cx.weight, rule: cx.scale_rule(), base, units, factors: vec![(1.0, 1.0); tiles], speed: vec![(0.0, 0.0); tiles] })
    }

    pub(crate) fn grid(&self) -> &Grid {
        &self.rule.grid
    }

    /// Scales and zero points under the factors as they are.
    pub(crate) fn params(&self) -> QParams {
        let mut params = self.base.clone();
        for (tile, (scale, zero)) in params.scale.iter_mut().zip(&mut params.zero).enumerate() {
            let (low, high) = self.factors[tile];
            if (low, high) == (1.0, 1.0) {
                continue;
            }
            if self.rule.symmetric() {
                *scale = self.rule.stored(*scale * high as f32);
            } else {
                let ((q_lo, q_hi), (lo, hi)) = (self.grid().limits(), self.range(tile));
                let steps = f64::from(q_hi - q_lo);
                *scale = self.rule.stored(((high * hi - low * lo) / steps) as f32);
                *zero = self.rule.stored_zero((f64::from(q_lo) - low * lo / f64::from(*scale)) as f32);
            }
        }
        params
    }

    /// The ends of a tile's range as it was fitted.
    fn range(&self, tile: usize) -> (f64, f64) {
        let ((q_lo, q_hi), s, z) = (self.grid().limits(), f64::from(self.base.scale[tile]), f64::from(self.base.zero[tile]));
        (s * (f64::from(q_lo) - z), s * (f64::from(q_hi) - z))
    }

    /// Calls `part(tile, row-major index of the first, out)` for what each row of `out` has in each tile, in parallel.
    fn parts(params: &QParams, out: &mut [f32], part: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let layout = params.layout;
        out.par_chunks_mut(ROWS * layout.cols).enumerate().for_each(|(task, out)| {
            for (r, out) in out.chunks_mut(layout.cols).enumerate() {
                let row = task * ROWS + r;
                for (t, out) in out.chunks_mut(layout.tile_cols).enumerate() {
                    let column = t * layout.tile_cols;
                    part(layout.tile(row, column), row * layout.cols + column, out);
                }
            }
        });
    }

    /// Calls `each(row-major index, w, gap)` for all of `out`, in parallel; `gap` is the distance between the two numbers of the grid around
    /// `w`, nothing where it lies beyond them.
    pub(crate) fn each(&self, params: &QParams, out: &mut [f32], each: impl Fn(usize, f32, f32) -> f32 + Sync) {
        Self::parts(params, out, |tile, first, out| {
            let s = params.scale[tile].abs();
            for (i, out) in out.iter_mut().enumerate() {
                let w = self.weight[first + i];
                *out = each(first + i, w, s * self.unit_gap(w, s));
            }
        });
    }

    /// `w + v·gap` for numbers of one tile, from the row-major index `first` on.
    fn move_part(&self, s: f32, first: usize, offsets: &[f32], out: &mut [f32]) {
        let s = s.abs();
        let each = out.iter_mut().zip(&self.weight[first..]).zip(&offsets[first..]);
        if self.units.is_empty() {
            each.for_each(|((out, w), v)| *out = w + v * s);
        } else {
            each.for_each(|((out, w), v)| *out = w + v * (s * self.unit_gap(*w, s)));
        }
    }

    /// `w + v·gap`
    pub(crate) fn moved(&self, params: &QParams, offsets: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; offsets.len()];
        Self::parts(params, &mut out, |tile, first, out| self.move_part(params.scale[tile], first, offsets, out));
        out
    }

    /// The same, rounded to nearest.
    pub(crate) fn rounded(&self, params: &QParams, offsets: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; offsets.len()];
        Self::parts(params, &mut out, |tile, first, out| {
            let s = params.scale[tile];
            self.move_part(s, first, offsets, out);
            round_values(self.grid(), (s, params.zero[tile]), out);
        });
        out
    }

    #[inline(always)]
    fn unit_gap(&self, w: f32, s: f32) -> f32 {
        if self.units.is_empty() {
            return 1.0;
        }
        let above = self.units.partition_point(|u| u * s <= w);
        if above == 0 || above == self.units.len() { 0.0 } else { self.units[above] - self.units[above - 1] }
    }

    /// `moved`, rounded to nearest.
    pub(crate) fn nearest(&self, params: &QParams, moved: &[f32]) -> Vec<f32> {
        nearest_values(self.grid(), params, moved)
    }

    /// Moves the ranges against the gradient `g` of what weights moved by `offsets` were rounded to.
    pub(crate) fn step(&mut self, offsets: &[f32], g: &[f32], o: &Options, done: f64) {
        let params = &self.params();
        let layout = params.layout;
        let (q_lo, q_hi) = self.grid().limits();
        let steps = f64::from(q_hi - q_lo);
        let lr = o.scale_lr_at(done);
        let (tile_rows, tiles) = layout.grid();
        let slopes: Vec<(f64, f64)> = (0..tile_rows * tiles)
            .into_par_iter()
            .with_min_len(TILES)
            .map_init(<[Vec<f32>; 2]>::default, |[moved, rounded], tile| {
                let ends = self.ends(params, tile);
                let (mut ds, mut dz) = ([0.0; LANES], [0.0; LANES]);
                let (tr, tc) = (tile / tiles, tile % tiles);
                for row in tr * layout.tile_rows..layout.rows.min((tr + 1) * layout.tile_rows) {
                    let columns = tc * layout.tile_cols..layout.cols.min((tc + 1) * layout.tile_cols);
                    let first = row * layout.cols + columns.start;
                    moved.resize(columns.len(), 0.0);
                    self.move_part(params.scale[tile], first, offsets, moved);
                    rounded.clone_from(moved);
                    round_values(self.grid(), (params.scale[tile], params.zero[tile]), rounded);
                    let (w, g) = (&self.weight[first..][..columns.len()], &g[first..][..columns.len()]);
                    let parts = moved.chunks(LANES).zip(rounded.chunks(LANES)).zip(w.chunks(LANES).zip(g.chunks(LANES)));
                    for ((moved, rounded), (w, g)) in parts {
                        for (((m, q), (w, g)), (ds, dz)) in moved.iter().zip(rounded).zip(w.iter().zip(g)).zip(ds.iter_mut().zip(&mut dz)) {
                            let (g, q) = (f64::from(*g), f64::from(*q));
                            let beyond = *m < ends.0 || *m > ends.1;
                            *ds += g * if beyond { q } else { q - f64::from(*w) };
                            *dz -= if beyond { g } else { 0.0 };
                        }
                    }
                }
                let (s, z) = (f64::from(params.scale[tile]), f64::from(params.zero[tile]));
                let (ds, dz) = (ds.iter().sum::<f64>() / s, dz.iter().sum::<f64>() * s);
                if self.rule.symmetric() {
                    return (0.0, ds * f64::from(self.base.scale[tile]));
                }
                let ((lo, hi), below) = (self.range(tile), f64::from(q_lo) - z);
                // z = q_min − lo/s, and lo/s = q_min − z where it was not rounded.
                let (ds_hi, ds_lo) = (1.0 / steps, -1.0 / steps);
                let (dz_hi, dz_lo) = (below / s * ds_hi, below / s * ds_lo - 1.0 / s);
                (lo * (ds * ds_lo + dz * dz_lo), hi * (ds * ds_hi + dz * dz_hi))
            })
            .collect();
        let units: Vec<(f64, f64)> = (0..slopes.len())
            .map(|tile| if self.rule.symmetric() { (1.0, f64::from(self.base.scale[tile])) } else { self.range(tile) })
            .collect();
        for (((factors, speed), slope), unit) in self.factors.iter_mut().zip(&mut self.speed).zip(slopes).zip(units) {
            let update = |factor: &mut f64, speed: &mut f64, slope: f64, unit: f64| {
                let by = match o.optimizer() {
                    _ if slope == 0.0 => 0.0,
                    ScaleOptimizer::Sign => slope.signum(),
                    // The step is one of the scale itself, not of its share.
                    ScaleOptimizer::Sgd => {
                        *speed = o.momentum() * *speed + slope / (unit * unit);
                        *speed
                    }
                };
                *factor = (*factor - lr * by).clamp(LEAST, MOST);
            };
            update(&mut factors.0, &mut speed.0, slope.0, unit.0);
            update(&mut factors.1, &mut speed.1, slope.1, unit.1);
        }
    }

    /// The least and the greatest value that are not cut off in a tile.
    fn ends(&self, params: &QParams, tile: usize) -> (f32, f32) {
        let (s, z) = (params.scale[tile], params.zero[tile]);
        let (lo, hi) = match self.units.as_slice() {
            [least, .., greatest] => (least * s, greatest * s),
            _ => {
                let (q_lo, q_hi) = self.grid().limits();
                (s * (q_lo as f32 - z - 0.5), s * (q_hi as f32 - z + 0.5))
            }
        };
        (lo.min(hi), lo.max(hi))
    }
}
