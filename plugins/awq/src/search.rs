//! The search for the scales of one region.

use qfw_core::Result;
use qfw_core::algorithm::{Reader, RegionContext};
use qfw_core::numeric::{FactorOptions, gram_energy};
use qfw_core::scheme::Granularity;
use qfw_core::statistic::{Gram, StatKind};
use rayon::prelude::*;

use crate::options::{Loss, Options};
use crate::race::{Best, race};

/// What was found.
pub(crate) struct Found {
    /// `s`, one for each channel of the region.
    pub(crate) factors: Vec<f64>,
    /// The root of the readers' error, relative to that with `s = 1`.
    pub(crate) error: f64,
}

/// The best scales, unless nothing is rounded or nothing is better than doing nothing.
pub(crate) fn search(cx: &RegionContext<'_>, options: &Options) -> Result<Option<Found>> {
    let rounded: Vec<&Reader<'_>> = cx.readers.iter().filter(|r| r.target.is_some()).collect();
    if rounded.is_empty() {
        return Ok(None);
    }
    let gram = cx.gram()?;
    let magnitudes = cx.channels(StatKind::AbsMean)?;
    let compensated = |reader: &Reader<'_>| match options.loss {
        Loss::Auto => reader.feeds_back,
        Loss::Compensated => true,
        Loss::Linear | Loss::Module => false,
    };
    let left = if rounded.iter().any(|r| compensated(r)) { left_over(gram)? } else { Vec::new() };
    let measure = |reader: &Reader<'_>| if compensated(reader) { Measure::Left(&left) } else { Measure::Whole(&gram.lower) };
    let repeat = (magnitudes.len() / cx.region.width) as f64;
    let m: Vec<f64> = cx.region.gather(magnitudes, |a, b| a + b)?.into_iter().map(|x| x / repeat).collect();
    let w = cx.region.gather(&weight_means(&rounded), |a, b| a + b)?.into_iter().map(|x| x / repeat).collect::<Vec<_>>();
    let candidates: Vec<Vec<f64>> = options.candidates().into_iter().map(|(exponent, duo)| factors(&m, &w, exponent, duo)).collect();
    let linear = |factors: &[f64]| -> Result<f64> {
        let spread = cx.region.spread(factors, gram.n)?;
        rounded.iter().map(|reader| error(reader, &spread, gram.n, measure(reader))).sum()
    };
    let best = match cx.replay {
        Some(module) => race(candidates.len(), module.windows(), |candidate, windows| {
            let spread = cx.region.spread(&candidates[candidate], gram.n)?;
            let weights = rounded.iter().map(|r| Ok((r.linear.site, as_rounded(r, &spread, gram.n)?)));
            module.errors(weights.collect::<Result<_>>()?, windows)
        })?,
        // A Gram matrix has seen all windows: one number for each candidate, and nothing to be saved.
        None => race(candidates.len(), 1, |candidate, _| Ok(vec![linear(&candidates[candidate])?]))?,
    };
    let better = best.filter(|best| best.candidate != 0);
    Ok(better.map(|Best { candidate, loss, first }| {
        let factors = candidates.into_iter().nth(candidate).unwrap_or_default();
        Found { factors, error: (loss.max(0.0) / first).sqrt() }
    }))
}

/// `s` for an exponent.
fn factors(m: &[f64], w: &[f64], exponent: f64, duo: bool) -> Vec<f64> {
    let raw = m.iter().zip(w).map(|(m, w)| {
        let s = m.powf(exponent);
        (if duo { s / (w.powf(1.0 - exponent) + 1e-4) } else { s }).max(1e-4)
    });
    let s: Vec<f64> = raw.collect();
    let (least, most) = s.iter().fold((f64::INFINITY, 0.0f64), |(l, m), s| (l.min(*s), m.max(*s)));
    let middle = (least * most).sqrt();
    s.into_iter().map(|s| s / middle).collect()
}

/// Damping of `H`, relative to its mean diagonal; as rounding that compensates does by default.
const DAMP: f64 = 0.01;

/// Rows taken at a time: few enough to stay in cache from scaling to error.
const ROWS: usize = 64;

/// How much an error counts.
#[derive(Clone, Copy)]
enum Measure<'a> {
    /// By the Gram matrix `H`: its lower triangle.
    Whole(&'a [f32]),
    /// Each channel by itself, by [`left_over`].
    Left(&'a [f64]),
}

/// For each channel the part of `H_jj` that the channels after it, by falling diagonal, cannot stand in for: `1/U_jj²` of `H⁻¹ = UᵀU`. A
/// dead channel has none.
fn left_over(gram: &Gram) -> Result<Vec<f64>> {
    let factor = gram.inverse_factor(&FactorOptions { damp: DAMP, by_diagonal: true })?;
    let mut left = vec![0.0; gram.n];
    for place in 0..gram.n {
        let column = factor.order.as_ref().map_or(place, |o| o[place] as usize);
        left[column] = f64::from(factor.u[place * gram.n + place]).powi(-2);
    }
    factor.dead.iter().for_each(|column| left[*column as usize] = 0.0);
    Ok(left)
}

/// The error of a reader whose input is divided by `s`.
fn error(reader: &Reader<'_>, s: &[f64], n: usize, measure: Measure<'_>) -> Result<f64> {
    let part = |rows: &[f32], mut delta: Vec<f32>| {
        delta.iter_mut().zip(rows).for_each(|(d, w)| *d -= w);
        match measure {
            Measure::Whole(lower) => gram_energy(&delta, lower, n),
            Measure::Left(left) => {
                delta.chunks_exact(n).map(|row| row.iter().zip(left).map(|(d, l)| f64::from(*d).powi(2) * l).sum::<f64>()).sum()
            }
        }
    };
    Ok(pieces(reader, s, n, part)?.iter().sum())
}

/// What a reader whose input is divided by `s` amounts to once it is rounded, for inputs that are not divided.
fn as_rounded(reader: &Reader<'_>, s: &[f64], n: usize) -> Result<Vec<f32>> {
    Ok(pieces(reader, s, n, |_, rounded| rounded)?.concat())
}

/// Some rows of a reader after the other: `f` sees them as they are, and rounded behind an input that is divided by `s`.
fn pieces<T: Send>(reader: &Reader<'_>, s: &[f64], n: usize, f: impl Fn(&[f32], Vec<f32>) -> T + Sync) -> Result<Vec<T>> {
    let times: Vec<f32> = s.iter().map(|s| *s as f32).collect();
    let over: Vec<f32> = s.iter().map(|s| (1.0 / s) as f32).collect();
    let scaled = |rows: &[f32]| -> Vec<f32> {
        let mut scaled = rows.to_vec();
        scaled.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&times).for_each(|(w, s)| *w *= s));
        scaled
    };
    let amax = reader.weight.par_chunks(n).map(|row| row.iter().zip(&times).fold(0.0f32, |m, (w, s)| m.max((w * s).abs())));
    let amax = amax.reduce(|| 0.0, f32::max);
    let tile = reader.rows_at_once();
    let step = tile.max(ROWS / tile * tile) * n;
    let piece = |rows: &[f32]| {
        let mut rounded = reader.nearest(&scaled(rows), amax)?.unwrap_or_else(|| scaled(rows));
        rounded.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&over).for_each(|(w, o)| *w *= o));
        Ok(f(rows, rounded))
    };
    reader.weight.par_chunks(step).map(piece).collect()
}

/// For each input channel the mean over all rows of `|w| / max|w|` of the range it is in.
fn weight_means(readers: &[&Reader<'_>]) -> Vec<f64> {
    let n = readers.first().map_or(0, |r| r.linear.shape.1);
    let (mut sums, mut rows) = (vec![0.0f64; n], 0usize);
    for reader in readers {
        let granularity = reader.target.map(|(spec, _)| &spec.granularity);
        let width = granularity.map_or(n, |g: &Granularity| g.layout(reader.linear.shape.0, n).tile_cols);
        for row in reader.weight.chunks_exact(n) {
            for (sums, range) in sums.chunks_mut(width).zip(row.chunks(width)) {
                let most = range.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                if most > 0.0 {
                    sums.iter_mut().zip(range).for_each(|(s, w)| *s += f64::from(w.abs() / most));
                }
            }
        }
        rows += reader.linear.shape.0;
    }
    sums.into_iter().map(|s| s / rows as f64).collect()
}
