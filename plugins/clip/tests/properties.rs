//! `clip` against AWQ's definition, with explicit tokens instead of the Gram matrix.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use qfw_core::algorithm::{Conditioned, Event};
use qfw_core::scheme::Granularity;
use qfw_core::topology::Role;
use serde_json::{Value, json};

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use layer::{Layer, numbers, spec};

const ROWS: usize = 70;
const COLS: usize = 40;
const TOKENS: usize = 100;

/// Weights with a few large ones, inputs of unlike sizes.
fn problem(seed: u64) -> Layer {
    let mut uniform = numbers(seed);
    let weight = (0..ROWS * COLS).map(|_| (2.0 * uniform()).powi(5) as f32).collect();
    let x: Vec<f64> = (0..TOKENS * COLS).map(|i| uniform() * (1.0 + (i % COLS) as f64 % 7.0)).collect();
    Layer { rows: ROWS, cols: COLS, weight, original: None, quantized: x.clone(), reference: x }
}

fn clipped(p: &Layer, role: Role, granularity: Granularity, format: &str, symmetric: bool, options: &Value) -> Conditioned {
    p.condition(&qfw_clip::RECORD, role, &spec(format, granularity, symmetric), options).unwrap()
}

/// AWQ's search in f64: symmetric int4 in the half-range convention, the error over tokens formed explicitly.
fn by_tokens(p: &Layer, group: usize) -> Vec<f32> {
    let mut out = p.weight.clone();
    for row in out.chunks_exact_mut(COLS) {
        for (g, w) in row.chunks_mut(group).enumerate() {
            let original = w.to_vec();
            let largest = original.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let mut best = (f64::INFINITY, 1.0f32);
            for i in 0..10 {
                let limit = (1.0 - f64::from(i) / 20.0) as f32 * largest;
                let step = limit / 7.5;
                let delta: Vec<f64> =
                    original.iter().map(|x| f64::from((x / step).round_ties_even().clamp(-8.0, 7.0) * step - x)).collect();
                let error: f64 = (0..TOKENS)
                    .map(|t| delta.iter().zip(&p.reference[t * COLS + g * group..]).map(|(d, x)| d * x).sum::<f64>().powi(2))
                    .sum();
                if error < best.0 {
                    best = (error, limit);
                }
            }
            w.iter_mut().for_each(|x| *x = x.clamp(-best.1, best.1));
        }
    }
    out
}

#[test]
fn limits_are_those_of_a_search_over_tokens() {
    for seed in 0..4 {
        for (granularity, group) in [(Granularity::group(16), 16), (Granularity::channel(), COLS)] {
            let p = problem(seed);
            let Conditioned { weight, ranged, events } = clipped(&p, Role::MlpDown, granularity, "int4", true, &json!({}));
            let expected = by_tokens(&p, group);
            assert_eq!(weight, p.weight, "rounding aims at the weight itself");
            let ranged = ranged.unwrap();
            // A tie broken by the last bit of an f32 sum may take the neighbouring limit.
            let differing = ranged.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > 1e-6).count();
            assert!(differing * 200 <= weight.len(), "{differing} of {} differ", weight.len());
            let Event::Clipped { ranges, error } = events[0] else { panic!("{events:?}") };
            assert!(ranges > 0 && error < 1.0, "{ranges} {error}");
        }
    }
}

/// Whatever the format and the tiles: weights only shrink towards zero, by at most half of the largest of their range, and the error that is
/// reported does not rise.
#[test]
fn any_format_and_granularity_clips() {
    let p = problem(9);
    let all = [
        (Granularity::group(16), "int2", true),
        (Granularity::group(16), "uint4", false),
        (Granularity::tensor(), "int4", true),
        (Granularity::channel(), "float-ocp-e2m1", true),
        (Granularity::channel(), "nf4", true),
    ];
    for (granularity, format, symmetric) in all {
        let Conditioned { ranged, events, .. } = clipped(&p, Role::MlpUp, granularity, format, symmetric, &json!({}));
        let Event::Clipped { error, .. } = events[0] else { panic!("{events:?}") };
        assert!(error <= 1.0, "{format}: {error}");
        for (a, b) in ranged.unwrap().iter().zip(&p.weight) {
            assert!(a.abs() <= b.abs() && a * b >= 0.0 && (a == b || a.abs() > 0.0), "{format}: {a} from {b}");
        }
    }
}

#[test]
fn queries_and_keys_are_left_alone_unless_asked_for() {
    let p = problem(2);
    for role in [Role::AttnQ, Role::AttnK, Role::AttnQkv] {
        assert_eq!(clipped(&p, role, Granularity::group(16), "int4", true, &json!({})).ranged, None);
        assert_ne!(clipped(&p, role, Granularity::group(16), "int4", true, &json!({ "queries-keys": true })).ranged, None);
    }
}
