//! Tables of values: `nf4`, sixteen quantiles of a normal distribution scaled to ±1 (QLoRA, arXiv:2305.14314, appendix E).

use std::sync::Arc;

use super::float::no_zero_point;
use super::{Ask, FormatRecord, Meaning, QuantFormat, symmetric_scale};
use crate::error::Result;
use crate::scheme::{Convention, Grid};

/// As bitsandbytes stores them.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

struct Nf4;

impl QuantFormat for Nf4 {
    fn id(&self) -> String {
        "nf4".to_owned()
    }

    fn bits(&self) -> u8 {
        4
    }

    fn resolve(&self, ask: &Ask) -> Result<Meaning> {
        if !ask.symmetric {
            return Err(no_zero_point("nf4"));
        }
        let grid = Grid::Levels(NF4.to_vec());
        Ok(Meaning { grid, scale: symmetric_scale(ask, 0), symmetric: true, convention: Convention::default() })
    }
}

pub(super) const RECORDS: &[FormatRecord] = &[FormatRecord {
    id: "nf4",
    summary: "sixteen quantiles of a normal distribution",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    find: |name| if name == "nf4" { Some(Arc::new(Nf4)) } else { None },
}];

#[cfg(test)]
mod tests {
    use super::*;

    /// The construction in the paper: quantiles of N(0, 1), eight on the negative and nine on the positive side with the shared zero,
    /// from probabilities evenly spaced between ½ and `1 − ½(1/30 + 1/32)`, scaled to ±1. Φ⁻¹ is found here by bisection of Φ.
    #[test]
    fn the_levels_are_quantiles_of_the_normal_distribution() {
        let quantile = |p: f64| {
            let (mut lo, mut hi) = (-9.0, 9.0);
            for _ in 0..200 {
                let mid = 0.5 * (lo + hi);
                if 0.5 * libm::erfc(-mid / std::f64::consts::SQRT_2) < p { lo = mid } else { hi = mid }
            }
            lo
        };
        let offset = 0.967_708_4;
        let side = |n: usize| (0..n).map(move |i| quantile(offset + (0.5 - offset) * i as f64 / n as f64)).collect::<Vec<f64>>();
        let mut levels: Vec<f64> = side(7).into_iter().map(|x| -x).chain([0.0]).chain(side(8)).collect();
        levels.sort_by(f64::total_cmp);
        let most = levels.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (level, want) in NF4.iter().zip(levels) {
            assert!((f64::from(*level) - want / most).abs() < 2e-6, "{level} {}", want / most);
        }
    }
}
