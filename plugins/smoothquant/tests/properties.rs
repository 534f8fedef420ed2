//! Factors against the paper's formula in f64, written from the paper.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;
#[path = "../../../tests/fixtures/region.rs"]
mod region;

use qfw_core::topology::Symmetry;
use qfw_smoothquant::RECORD;
use serde_json::json;

use layer::numbers;
use region::Readers;

fn readers(width: usize, repeat: usize) -> Readers {
    let mut uniform = numbers(7);
    let n = width * repeat;
    let weights = [3, 5].map(|rows| (0..rows * n).map(|_| uniform() as f32).collect()).to_vec();
    let input = (0..40 * n).map(|k| uniform() * (1 + k % n) as f64 + 0.3).collect();
    Readers { width, repeat, weights, input, feeds_back: false }
}

#[test]
fn activations_and_weights_share_their_range_by_alpha() {
    for (width, repeat) in [(6, 1), (4, 3)] {
        let r = readers(width, repeat);
        let n = r.columns();
        // The largest magnitudes over everything that belongs to a channel of the region.
        let (mut a, mut lo, mut hi, mut w) = (vec![0.0f64; width], vec![0.0f64; width], vec![0.0f64; width], vec![0.0f64; width]);
        for (k, x) in r.input.iter().enumerate() {
            let c = r.home(k % n);
            (a[c], lo[c], hi[c]) = (a[c].max(x.abs()), lo[c].min(*x), hi[c].max(*x));
        }
        for weight in &r.weights {
            weight.iter().enumerate().for_each(|(k, x)| w[r.home(k % n)] = w[r.home(k % n)].max(f64::from(x.abs())));
        }
        for alpha in [0.0f64, 0.5, 0.85] {
            let solved = r.solve(&RECORD, None, &json!({ "alpha": alpha })).unwrap().unwrap();
            let Symmetry::Diagonal(factors) = solved.symmetry else { panic!("a scaling") };
            for c in 0..width {
                let expected = w[c].powf(1.0 - alpha) / a[c].powf(alpha);
                assert!((factors[c] / expected - 1.0).abs() < 1e-9, "channel {c}: {} and {expected}", factors[c]);
            }
        }
        if repeat == 1 {
            let solved = r.solve(&RECORD, None, &json!({ "variant": "llm-compressor", "smoothing_strength": 0.5 })).unwrap().unwrap();
            let Symmetry::Diagonal(factors) = solved.symmetry else { panic!("a scaling") };
            for c in 0..width {
                let expected = ((2.0 * w[c]) / (hi[c] - lo[c])).sqrt();
                assert!((factors[c] / expected - 1.0).abs() < 1e-9, "channel {c}");
            }
        }
    }
}
