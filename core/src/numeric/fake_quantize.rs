//! Quantizing a tensor and taking the value back at once: what a low-precision kernel would compute with, in floats.

use super::codes::round_values;
use super::vectorize::{Kernel, vectorize};
use crate::observer::ScaleRule;
use crate::scheme::{Coder, Extent, Granularity, Grid, WithCoder};

/// Where the parameters come from.
#[derive(Clone, Copy)]
pub enum Ranges<'a> {
    /// From the values themselves, tile by tile.
    Dynamic(&'a ScaleRule),
    /// Fixed, one scale and zero point for each tile column; tiles hold all rows.
    Fixed {
        /// Scales.
        scale: &'a [f32],
        /// Zero points.
        zero: &'a [f32],
    },
}

/// Replaces every value of the row-major `[rows, cols]` matrix `x` by the one its code stands for.
///
/// # Errors
/// The row and column of the first value that is not finite; `x` is then of no use.
pub fn fake_quantize(x: &mut [f32], cols: usize, granularity: &Granularity, grid: &Grid, ranges: Ranges<'_>) -> Result<(), (usize, usize)> {
    if x.is_empty() {
        return Ok(());
    }
    let (_, _, sound) = vectorize(Extremes(x));
    if !sound {
        let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
        return Err((at / cols, at % cols));
    }
    if granularity.cols == Extent::Of(1) && granularity.rows == Extent::All {
        columns(x, cols, grid, ranges);
        return Ok(());
    }
    let layout = granularity.layout(x.len() / cols, cols);
    let tiles = layout.grid().1;
    for rows in x.chunks_mut(layout.tile_rows * cols) {
        for tile in 0..tiles {
            let span = tile * layout.tile_cols..cols.min((tile + 1) * layout.tile_cols);
            let (s, z) = match ranges {
                Ranges::Fixed { scale, zero } => (scale[tile], zero[tile]),
                Ranges::Dynamic(rule) if tiles == 1 => {
                    let (lo, hi, _) = vectorize(Extremes(rows));
                    rule.params(lo, hi)
                }
                Ranges::Dynamic(rule) => {
                    let each = rows.chunks(cols).map(|row| vectorize(Extremes(&row[span.clone()])));
                    let (lo, hi) = each.fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), (l, h, _)| (lo.min(l), hi.max(h)));
                    rule.params(lo, hi)
                }
            };
            if tiles == 1 {
                round_values(grid, (s, z), rows);
            } else {
                for row in rows.chunks_mut(cols) {
                    round_values(grid, (s, z), &mut row[span.clone()]);
                }
            }
        }
    }
    Ok(())
}

/// One scale for each column: neighbours in memory have different parameters.
fn columns(x: &mut [f32], cols: usize, grid: &Grid, ranges: Ranges<'_>) {
    let (s, z): (Vec<f32>, Vec<f32>) = match ranges {
        Ranges::Fixed { scale, zero } => (scale.to_vec(), zero.to_vec()),
        Ranges::Dynamic(rule) => {
            let (mut lo, mut hi) = (vec![f32::INFINITY; cols], vec![f32::NEG_INFINITY; cols]);
            for row in x.chunks(cols) {
                for ((lo, hi), v) in lo.iter_mut().zip(&mut hi).zip(row) {
                    (*lo, *hi) = (lo.min(*v), hi.max(*v));
                }
            }
            lo.into_iter().zip(hi).map(|(lo, hi)| rule.params(lo, hi)).unzip()
        }
    };
    for row in x.chunks_mut(cols) {
        vectorize(ApplyColumns { x: row, grid, s: &s, z: &z });
    }
}

/// Smallest and largest value, and whether all are finite.
pub(crate) struct Extremes<'a>(pub(crate) &'a [f32]);

impl Kernel for Extremes<'_> {
    type Output = (f32, f32, bool);
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) -> Self::Output {
        const LANES: usize = 16;
        // All bits of the exponent set: neither comparison below would notice a NaN.
        const EXPONENT: u32 = 0x7f80_0000;
        let (mut lo, mut hi, mut bad) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0u32; LANES]);
        let (whole, rest) = self.0.as_chunks::<LANES>();
        for chunk in whole {
            for i in 0..LANES {
                let v = chunk[i];
                lo[i] = if v < lo[i] { v } else { lo[i] };
                hi[i] = if v > hi[i] { v } else { hi[i] };
                bad[i] |= u32::from(v.to_bits() & EXPONENT == EXPONENT);
            }
        }
        for (i, v) in rest.iter().enumerate() {
            (lo[i], hi[i]) = (lo[i].min(*v), hi[i].max(*v));
            bad[i] |= u32::from(!v.is_finite());
        }
        let lo = lo.into_iter().fold(f32::INFINITY, f32::min);
        (lo, hi.into_iter().fold(f32::NEG_INFINITY, f32::max), bad.iter().all(|b| *b == 0))
    }
}

struct ApplyColumns<'a> {
    x: &'a mut [f32],
    grid: &'a Grid,
    s: &'a [f32],
    z: &'a [f32],
}

impl Kernel for ApplyColumns<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        self.grid.with(ApplyColumnsWith { x: self.x, s: self.s, z: self.z });
    }
}

struct ApplyColumnsWith<'a> {
    x: &'a mut [f32],
    s: &'a [f32],
    z: &'a [f32],
}

impl WithCoder for ApplyColumnsWith<'_> {
    type Output = ();
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) {
        for ((v, s), z) in self.x.iter_mut().zip(self.s).zip(self.z) {
            *v = coder.nearest(*v, *s, *z);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::tests::int4;
    use crate::scheme::QuantSpec;

    fn spec(granularity: Granularity, symmetric: bool) -> QuantSpec {
        let zero = if symmetric { crate::scheme::Zero::None } else { crate::scheme::Zero::Integer };
        QuantSpec { granularity, symmetric, grid: Grid::Int { lo: -8, hi: 7, zero }, ..int4() }
    }

    /// Against the definition: every tile's own extremes, found by asking each element for its tile.
    #[test]
    fn every_tile_is_rounded_by_its_own_extremes() {
        let (rows, cols) = (7, 45);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (1.0 + (i % 11) as f32)).collect();
        for (r, c) in [
            (Extent::All, Extent::All),
            (Extent::Of(1), Extent::All),
            (Extent::Of(1), Extent::Of(16)),
            (Extent::All, Extent::Of(1)),
            (Extent::All, Extent::Of(15)),
            (Extent::Of(2), Extent::Of(20)),
        ] {
            for symmetric in [true, false] {
                let spec = spec(Granularity::new("t", r, c), symmetric);
                let (rule, layout) = (ScaleRule::of(&spec, 0.0), spec.granularity.layout(rows, cols));
                let mut got = x.clone();
                fake_quantize(&mut got, cols, &spec.granularity, &spec.grid, Ranges::Dynamic(&rule)).unwrap();
                let tile = |i: usize| layout.tile(i / cols, i % cols);
                for (i, got) in got.iter().enumerate() {
                    let same: Vec<f32> = (0..x.len()).filter(|j| tile(*j) == tile(i)).map(|j| x[j]).collect();
                    let (s, z) = rule
                        .params(same.iter().copied().fold(f32::INFINITY, f32::min), same.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    assert_eq!(*got, spec.grid.nearest(x[i], s, z), "{r:?} {c:?} at {i}");
                }
            }
        }
    }

    #[test]
    fn fixed_parameters_are_used_as_they_are_and_bad_numbers_are_found() {
        let spec = spec(Granularity::new("head", Extent::All, Extent::Of(2)), true);
        let mut x = [0.4, 0.6, 40.0, 60.0, -0.9, 9.0, -90.0, 14.0];
        let fixed = Ranges::Fixed { scale: &[1.0, 10.0], zero: &[0.0, 0.0] };
        fake_quantize(&mut x, 4, &spec.granularity, &spec.grid, fixed).unwrap();
        assert_eq!(x, [0.0, 1.0, 40.0, 60.0, -1.0, 7.0, -80.0, 10.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 37, 99] {
                let mut x = vec![1.0; 100];
                x[at] = bad;
                assert_eq!(fake_quantize(&mut x, 10, &spec.granularity, &spec.grid, fixed), Err((at / 10, at % 10)));
            }
        }
    }
}
