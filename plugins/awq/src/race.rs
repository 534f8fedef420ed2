//! Finding the best of some candidates without seeing each on all windows (Maron & Moore 1994, "Hoeffding races", with paired differences
//! in place of Hoeffding's bound).
//!
//! All candidates see the same windows, a few at first and twice as many in each heat. With `d` the differences of a candidate's losses from
//! the leader's, window by window, it is out after a heat if
//!
//! ```text
//! mean(d) > 4 · sd(d) / √windows
//! ```
//!
//! Windows differ far more than candidates do on one of them, so that most candidates are out after the first heat, and a candidate that
//! is nearly as good as the best sees all.

use std::ops::Range;

use qfw_core::Result;

/// Windows of the first heat, at least: fewer say nothing of how much differences vary.
const FIRST: usize = 4;

/// Of all windows, that the first heat sees.
const FIRST_PART: usize = 8;

/// Standard errors by which a candidate must lose to be out.
const ERRORS: f64 = 4.0;

/// The best of a race.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Best {
    /// Which candidate it is.
    pub(crate) candidate: usize,
    /// Its loss, summed over all windows.
    pub(crate) loss: f64,
    /// The same of the first candidate, which is never out.
    pub(crate) first: f64,
}

/// The candidate of least loss over `windows` windows; the first of those that are equal. `losses` are a candidate's, for each window of a
/// range. None if there are no candidates, or the losses of the first are not finite.
pub(crate) fn race(
    candidates: usize,
    windows: usize,
    mut losses: impl FnMut(usize, Range<usize>) -> Result<Vec<f64>>,
) -> Result<Option<Best>> {
    let mut running: Vec<(usize, Vec<f64>)> = (0..candidates).map(|c| (c, Vec::with_capacity(windows))).collect();
    let mut seen = 0;
    while seen < windows {
        let heat = seen..windows.min((2 * seen).max(FIRST).max(windows.div_ceil(FIRST_PART)));
        seen = heat.end;
        for (candidate, all) in &mut running {
            all.extend(losses(*candidate, heat.clone())?);
        }
        running.retain(|(candidate, all)| *candidate == 0 || all.iter().all(|l| l.is_finite()));
        if let Some(leader) = leader(&running).filter(|_| seen < windows).map(<[f64]>::to_vec) {
            running.retain(|(candidate, all)| *candidate == 0 || !is_behind(all, &leader));
        }
    }
    let Some(first) = running.first().map(|(_, all)| total(all)).filter(|f| f.is_finite()) else { return Ok(None) };
    let mut best = Best { candidate: 0, loss: first, first };
    for (candidate, all) in &running {
        if total(all) < best.loss {
            best = Best { candidate: *candidate, loss: total(all), first };
        }
    }
    Ok(Some(best))
}

fn total(losses: &[f64]) -> f64 {
    losses.iter().sum()
}

/// The losses of the candidate that has lost least.
fn leader(running: &[(usize, Vec<f64>)]) -> Option<&[f64]> {
    running.iter().map(|(_, all)| all.as_slice()).min_by(|a, b| total(a).total_cmp(&total(b)))
}

/// Whether losses are beyond doubt larger than the leader's.
fn is_behind(losses: &[f64], leader: &[f64]) -> bool {
    let n = losses.len() as f64;
    let d: Vec<f64> = losses.iter().zip(leader).map(|(a, b)| a - b).collect();
    let mean = d.iter().sum::<f64>() / n;
    let variance = d.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    mean > ERRORS * (variance / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of very different weight, on which candidate `c` loses by `(c − best)²`, give or take what the window and the candidate make.
    fn loss(best: usize, noise: f64) -> impl Fn(usize, usize) -> f64 {
        move |c, w| {
            let window = 1.0 + 10.0 * (w as f64 * 1.7).sin().powi(2);
            window * (1.0 + 0.01 * (c as f64 - best as f64).powi(2)) + noise * ((c * 31 + w * 17) as f64).sin()
        }
    }

    fn run(candidates: usize, windows: usize, loss: impl Fn(usize, usize) -> f64) -> (Option<Best>, usize) {
        let mut ran = 0;
        let best = race(candidates, windows, |c, heat| {
            ran += heat.len();
            Ok(heat.map(|w| loss(c, w)).collect())
        });
        (best.unwrap(), ran)
    }

    #[test]
    fn the_best_of_all_windows_wins_and_most_see_few() {
        for (best, noise) in [(0, 0.0), (7, 0.0), (19, 0.0), (7, 0.01)] {
            let loss = loss(best, noise);
            let sums: Vec<f64> = (0..20).map(|c| (0..32).map(|w| loss(c, w)).sum()).collect();
            let (found, ran) = run(20, 32, &loss);
            let found = found.unwrap();
            assert_eq!((found.candidate, found.first), (best, sums[0]));
            assert!((found.loss - sums[best]).abs() < 1e-9);
            assert!(ran < 20 * 32 / 2, "{ran} of {}", 20 * 32);
        }
    }

    #[test]
    fn candidates_that_cannot_be_told_apart_see_everything() {
        let noisy = |c: usize, w: usize| 1.0 + ((c * 31 + w * 17) as f64).sin();
        let (found, ran) = run(5, 32, noisy);
        let sum = |c: usize| (0..32).map(|w| noisy(c, w)).sum::<f64>();
        let best = (0..5).min_by(|a, b| sum(*a).total_cmp(&sum(*b))).unwrap();
        assert_eq!((found.unwrap().candidate, ran), (best, 5 * 32));
        // Equal to the bit: the first, which is to do nothing.
        assert_eq!(run(5, 32, |_, w| w as f64).0.unwrap().candidate, 0);
    }

    #[test]
    fn few_windows_none_and_losses_that_are_no_numbers() {
        for windows in 1..=FIRST {
            let (found, ran) = run(3, windows, |c, _| [2.0, 1.0, 3.0][c]);
            assert_eq!((found.unwrap().candidate, ran), (1, 3 * windows));
        }
        assert_eq!(run(3, 0, |_, _| 1.0).0, Some(Best { candidate: 0, loss: 0.0, first: 0.0 }));
        assert_eq!(run(0, 8, |_, _| 1.0).0, None);
        assert_eq!(run(3, 16, |c, _| [2.0, f64::NAN, 1.0][c]).0.unwrap().candidate, 2);
        assert_eq!(run(3, 16, |c, _| [f64::INFINITY, 1.0, 1.0][c]).0, None);
    }
}
