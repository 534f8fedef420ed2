//! The range whose codes say most about the distribution of the values: calibration by relative entropy, as TensorRT introduced it
//! (Migacz, "8-bit inference with TensorRT", GTC 2017).
//!
//! Magnitudes are counted in `bins` equal parts of `0 … max |x|`. A candidate keeps the first `i` of them. `P` is their counts with all
//! that lies beyond added to the last; `Q` is what the codes leave of the counts without that: the bins of one code share their mass
//! evenly, empty bins having none. The winner has the least `KL(P‖Q) = Σ P ln(P/Q)`, the widest of equals. A candidate that would end at
//! an empty bin, where `P` has mass and `Q` none, is not one.
//!
//! The reference merges equal runs of bins into 128; here bins merge that round to the same code of the format, which serves every bit
//! width, floats and tables. It has at least as many bins as codes, for with fewer nothing merges. Exact zeros are not counted: every
//! range holds them. In an affine format values of one sign have all codes; otherwise the larger side decides, and both ends are
//! clipped to the same magnitude.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::minmax::extremes;
use super::{Observer, ObserverRecord, ScaleRule, parse};
use crate::error::Error;
use crate::scheme::{Coder, WithCoder};

/// Options of the observer `entropy`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Entropy {
    /// Bins of the histogram.
    bins: u32,
}

impl Default for Entropy {
    fn default() -> Self {
        Self { bins: 2048 }
    }
}

impl Observer for Entropy {
    fn range(&self, values: &[f32], rule: &ScaleRule) -> (f32, f32) {
        let (lo, hi) = extremes(values);
        let largest = lo.abs().max(hi.abs());
        if largest == 0.0 {
            return (lo, hi);
        }
        let histogram = Histogram::of(values, largest, self.bins as usize);
        let all = rule.grid.codes();
        let one_sided = !rule.symmetric() && (lo >= 0.0 || hi <= 0.0);
        let least = (if one_sided { all } else { all / 2 }).max(1);
        let sign = if hi >= -lo { 1.0 } else { -1.0 };
        let mut best = (f64::INFINITY, largest);
        // From the widest: of equals the first stays.
        for kept in (1..=histogram.filled.len()).rev() {
            let bins = if kept == histogram.filled.len() { self.bins as usize } else { histogram.filled[kept - 1].0 + 1 };
            if bins < least.min(self.bins as usize) {
                break;
            }
            let threshold = (bins as f64 * histogram.width) as f32;
            let (low, high) = rule.clipped((lo, hi), threshold);
            let (scale, zero) = rule.params(low, high);
            let divergence = rule.grid.with(Divergence { histogram: &histogram, kept, sign, scale, zero });
            if divergence < best.0 {
                best = (divergence, threshold.min(largest));
            }
        }
        rule.clipped((lo, hi), best.1)
    }
}

/// Counts of magnitudes.
struct Histogram {
    width: f64,
    /// The bins that hold something, and how much.
    filled: Vec<(usize, f64)>,
    /// Of all.
    count: f64,
}

impl Histogram {
    fn of(values: &[f32], largest: f32, bins: usize) -> Self {
        let width = f64::from(largest) / bins as f64;
        let mut counts = vec![0u64; bins];
        for x in values.iter().filter(|x| **x != 0.0) {
            counts[((f64::from(x.abs()) / width) as usize).min(bins - 1)] += 1;
        }
        let filled: Vec<(usize, f64)> = counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(i, n)| (i, *n as f64)).collect();
        let count = filled.iter().map(|(_, n)| n).sum();
        Self { width, filled, count }
    }
}

/// `KL(P‖Q)` of the first `kept` filled bins.
struct Divergence<'a> {
    histogram: &'a Histogram,
    kept: usize,
    sign: f64,
    scale: f32,
    zero: f32,
}

impl WithCoder for Divergence<'_> {
    type Output = f64;
    /// With `c` the counts, `n` those kept, `N` all, `o = N − n` beyond: `P = c/N`, `Q = (mass/filled bins of the code)/n`, so
    /// `KL = (Σ c ln c − Σ c ln Q̃)/N − ln N + ln n`, with `o` added to the last count and `Q̃` not yet divided by `n`.
    #[inline(always)]
    fn run<C: Coder + ?Sized>(self, coder: &C) -> f64 {
        let kept = &self.histogram.filled[..self.kept];
        let inside: f64 = kept.iter().map(|(_, c)| c).sum();
        let beyond = self.histogram.count - inside;
        let (mut own, mut shared) = (0.0, 0.0);
        let (mut code, mut mass, mut bins) = (None, 0.0, 0.0);
        for (i, c) in kept {
            let centre = (self.sign * (*i as f64 + 0.5) * self.histogram.width) as f32;
            let next = Some(coder.encode(centre, self.scale, self.zero));
            if next != code && bins > 0.0 {
                shared += mass * f64::ln(mass / bins);
                (mass, bins) = (0.0, 0.0);
            }
            code = next;
            mass += c;
            bins += 1.0;
            own += c * c.ln();
        }
        let last = kept.last().map_or(0.0, |(_, c)| *c);
        own += (last + beyond) * (last + beyond).ln() - last * last.ln();
        shared += (mass + beyond) * f64::ln(mass / bins);
        (own - shared) / self.histogram.count - self.histogram.count.ln() + inside.ln()
    }
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "entropy",
    summary: "the range whose codes say most about the values (KL)",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || schemars::schema_for!(Entropy).to_value(),
    build: |options| {
        let entropy: Entropy = parse("entropy", "bins", options)?;
        if !(2..=65_536).contains(&entropy.bins) {
            let message = format!("option `bins` of observer `entropy` is {}", entropy.bins);
            return Err(Error::config("config::invalid", message).hint("it must be from 2 to 65536; 2048 is usual"));
        }
        let resolved = serde_json::to_value(&entropy).map_err(|e| Error::internal(e.to_string()))?;
        Ok((Box::new(entropy), resolved))
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observer::tests::{heavy_tailed, int4, uint4};

    /// Quadratic and literal: both histograms written out, `Σ P ln(P/Q)` over the bins of `P`.
    fn divergence(counts: &[f64], kept: usize, code: impl Fn(usize) -> i32) -> f64 {
        let beyond: f64 = counts[kept..].iter().sum();
        let mut p = counts[..kept].to_vec();
        p[kept - 1] += beyond;
        let same = |i: usize| (0..kept).filter(move |j| counts[*j] > 0.0).filter(|j| code(*j) == code(i)).collect::<Vec<usize>>();
        let q: Vec<f64> = (0..kept)
            .map(|i| if counts[i] > 0.0 { same(i).iter().map(|j| counts[*j]).sum::<f64>() / same(i).len() as f64 } else { 0.0 })
            .collect();
        let (p_sum, q_sum) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
        p.iter().zip(&q).filter(|(p, _)| **p > 0.0).map(|(p, q)| p / p_sum * (p / p_sum / (q / q_sum)).ln()).sum()
    }

    #[test]
    fn the_threshold_has_the_least_divergence_of_the_definition() {
        let values = heavy_tailed(3000);
        let rule = ScaleRule::of(&int4(), 0.0);
        let bins = 64;
        let (lo, hi) = extremes(&values);
        let largest = lo.abs().max(hi.abs());
        let width = f64::from(largest) / bins as f64;
        let mut counts = vec![0.0; bins];
        values.iter().for_each(|x| counts[((f64::from(x.abs()) / width) as usize).min(bins - 1)] += 1.0);
        let sign = if hi >= -lo { 1.0 } else { -1.0 };
        let mut best = (f64::INFINITY, 0.0);
        for kept in (8..=bins).rev().filter(|kept| counts[kept - 1] > 0.0) {
            let threshold = kept as f64 * width;
            let (s, z) = rule.params(-threshold as f32, threshold as f32);
            let error = divergence(&counts, kept, |i| rule.grid.encode((sign * (i as f64 + 0.5) * width) as f32, s, z));
            if error < best.0 - 1e-12 {
                best = (error, threshold as f32);
            }
        }
        let (low, high) = Entropy { bins: bins as u32 }.range(&values, &rule);
        assert_eq!((low, high), (-best.1, best.1));
        assert!(high < largest, "tails are clipped");
    }

    #[test]
    fn affine_ranges_have_the_side_of_their_values() {
        let rule = ScaleRule::of(&uint4(), 0.0);
        let positive: Vec<f32> = heavy_tailed(3000).iter().map(|x| x.abs()).collect();
        let (low, high) = Entropy::default().range(&positive, &rule);
        assert!((0.0..0.1).contains(&low) && high <= extremes(&positive).1, "{low} {high}");
        let negative: Vec<f32> = positive.iter().map(|x| -x).collect();
        assert_eq!(Entropy::default().range(&negative, &rule), (-high, -low));
        assert_eq!(Entropy::default().range(&[0.0; 4], &rule), (0.0, 0.0));
        assert_eq!(Entropy::default().range(&[-3.0], &rule), (-3.0, -3.0));
    }

    #[test]
    fn options_are_checked() {
        let refused = |options| (RECORD.build)(&options).err().unwrap().to_string();
        assert!(refused(json!({ "bins": 1 })).contains("option `bins` of observer `entropy` is 1"));
        assert!(refused(json!({ "levels": 128 })).contains("unknown field `levels`"));
    }
}
