//! `svdquant` against its definition, and what holds for any weight.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use qfw_core::algorithm::{Branches, Event};
use qfw_core::scheme::{FloatKind, Granularity, QuantSpec};
use serde_json::{Value, json};

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use layer::{Layer, numbers, spec, values, wide};

const SHAPE: (usize, usize) = (40, 48);
const F32: FloatKind = FloatKind::F32;

fn int4() -> QuantSpec {
    spec("int4", Granularity::group(16), true)
}

/// Random weights with a few directions that stand out.
fn layer(seed: u64) -> Layer {
    let mut layer = Layer::random(seed, SHAPE, 120, 0.0);
    let mut uniform = numbers(seed + 1);
    for _ in 0..3 {
        let (left, right): (Vec<f64>, Vec<f64>) =
            ((0..SHAPE.0).map(|_| 6.0 * uniform()).collect(), (0..SHAPE.1).map(|_| uniform()).collect());
        for (ij, w) in layer.weight.iter_mut().enumerate() {
            *w += (left[ij / SHAPE.1] * right[ij % SHAPE.1]) as f32;
        }
    }
    layer
}

fn split(layer: &Layer, spec: &QuantSpec, options: &Value, rank: usize, stored: FloatKind) -> Branches {
    layer.split(&qfw_svdquant::RECORD, spec, options, (rank, stored)).unwrap()
}

/// `W − B·A`
fn left(weight: &[f32], found: &Branches) -> Vec<f32> {
    let rank = found.a.len() / SHAPE.1;
    let product = |ij: usize| -> f64 {
        (0..rank).map(|k| f64::from(found.b[0][ij / SHAPE.1 * rank + k]) * f64::from(found.a[k * SHAPE.1 + ij % SHAPE.1])).sum()
    };
    weight.iter().enumerate().map(|(ij, w)| (f64::from(*w) - product(ij)) as f32).collect()
}

fn energy(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// `‖R − Q(R)‖²` with `Q` to nearest.
fn rounding_error(layer: &Layer, spec: &QuantSpec, residual: Vec<f32>) -> f64 {
    let q = values(spec, &Layer { weight: residual.clone(), ..layer.clone() }.nearest(spec));
    energy(&residual.iter().zip(q).map(|(r, q)| r - q).collect::<Vec<_>>())
}

/// `Σ_{i≤rank} σᵢ²` by power iteration and deflation in f64.
fn leading_energy(w: &[f64], rank: usize) -> f64 {
    let (mut w, mut sum) = (w.to_vec(), 0.0);
    for _ in 0..rank {
        let mut v = vec![1.0; SHAPE.1];
        let mut u = vec![0.0; SHAPE.0];
        for _ in 0..2000 {
            u = w.chunks(SHAPE.1).map(|row| row.iter().zip(&v).map(|(w, v)| w * v).sum()).collect();
            let norm = u.iter().map(|x| x * x).sum::<f64>().sqrt();
            u.iter_mut().for_each(|x| *x /= norm);
            v = (0..SHAPE.1).map(|j| (0..SHAPE.0).map(|i| w[i * SHAPE.1 + j] * u[i]).sum()).collect();
        }
        sum += v.iter().map(|x| x * x).sum::<f64>();
        w.iter_mut().enumerate().for_each(|(ij, w)| *w -= u[ij / SHAPE.1] * v[ij % SHAPE.1]);
    }
    sum
}

#[test]
fn the_branch_is_the_best_approximation_of_the_weight() {
    let layer = layer(3);
    for rank in [1, 4, 9] {
        let found = split(&layer, &int4(), &json!({}), rank, F32);
        let least = energy(&layer.weight) - leading_energy(&wide(&layer.weight), rank);
        let is = energy(&left(&layer.weight, &found));
        assert!((is / least - 1.0).abs() < 1e-3, "rank {rank}: {is} for {least}");
    }
}

#[test]
fn the_error_falls_with_the_rank() {
    for seed in 0..4 {
        let (layer, spec) = (layer(seed), int4());
        let without = rounding_error(&layer, &spec, layer.weight.clone());
        let mut last = (energy(&layer.weight), without);
        for rank in [1, 2, 4, 8, 16, 32, 40] {
            let found = split(&layer, &spec, &json!({}), rank, F32);
            let residual = left(&layer.weight, &found);
            let now = (energy(&residual), rounding_error(&layer, &spec, residual));
            assert!(now.0 <= last.0 && now.1 <= last.1, "seed {seed}, rank {rank}: {now:?} after {last:?}");
            let [Event::Branched { left, error }] = found.events[0][..] else { panic!("{:?}", found.events) };
            let expected = [(now.0 / energy(&layer.weight)).sqrt(), (now.1 / without).sqrt()];
            assert!((left - expected[0]).abs() < 1e-4 && (error - expected[1]).abs() < 1e-3, "{left} {error} for {expected:?}");
            last = now;
        }
        assert!(last.1 < 1e-9 * energy(&layer.weight), "a branch of full rank is the weight: {last:?}");
    }
}

#[test]
fn of_all_iterates_the_best_is_kept() {
    let mut gained = 0;
    for seed in 0..4 {
        let (layer, spec) = (layer(seed), spec("int2", Granularity::channel(), true));
        let mut last = rounding_error(&layer, &spec, layer.weight.clone());
        for iters in [1, 2, 5, 20] {
            let found = split(&layer, &spec, &json!({ "iters": iters }), 6, F32);
            let now = rounding_error(&layer, &spec, left(&layer.weight, &found));
            assert!(now <= last * (1.0 + 1e-6), "seed {seed}, {iters} iterations: {now} after {last}");
            gained += usize::from(iters > 1 && now < 0.999 * last);
            last = now;
        }
    }
    assert!(gained > 0, "iterations never helped");
}

/// What is compared has been rounded to what will be stored, and the residual makes up for it.
#[test]
fn factors_are_numbers_of_their_stored_type() {
    let (layer, spec) = (layer(5), int4());
    for stored in [FloatKind::Bf16, FloatKind::F16] {
        let found = split(&layer, &spec, &json!({}), 8, stored);
        assert!(found.a.iter().chain(&found.b[0]).all(|x| stored.round(*x) == *x));
        let [Event::Branched { error, .. }] = found.events[0][..] else { panic!() };
        let expected = rounding_error(&layer, &spec, left(&layer.weight, &found)) / rounding_error(&layer, &spec, layer.weight.clone());
        assert!((error - expected.sqrt()).abs() < 1e-3, "{error} {expected}");
    }
}

/// `tr ΔHΔᵀ`
fn output_energy(layer: &Layer, delta: &[f32]) -> f64 {
    let (h, n) = (wide(&layer.gram()), SHAPE.1);
    delta.chunks(n).map(|d| (0..n * n).map(|ij| f64::from(d[ij / n]) * h[ij] * f64::from(d[ij % n])).sum::<f64>()).sum()
}

/// The weight stands for an error here: that is what the pass sees then.
#[test]
fn a_compensating_branch_takes_most_of_the_error_out_and_of_outputs_with_the_inputs_known() {
    for seed in 0..3 {
        let (layer, spec) = (layer(seed), int4());
        let of = |options: Value| {
            let found = split(&layer, &spec, &options, 5, F32);
            assert!(matches!(found.events[0].last(), Some(Event::Branched { left, .. }) if *left == 1.0));
            left(&layer.weight, &found)
        };
        let (plain, weighted) = (of(json!({ "compensate": true })), of(json!({ "compensate": true, "gram": true, "damp": 0.0001 })));
        let least = energy(&layer.weight) - leading_energy(&wide(&layer.weight), 5);
        assert!((energy(&plain) / least - 1.0).abs() < 1e-3);
        let (p, w) = (output_energy(&layer, &plain), output_energy(&layer, &weighted));
        assert!(w < 0.95 * p && p < output_energy(&layer, &layer.weight), "{w} {p}");
    }
}

/// Inputs that say nothing cannot weigh anything.
#[test]
fn inputs_that_never_fire_are_an_error() {
    let zero = Layer { quantized: vec![0.0; 2 * SHAPE.1], reference: vec![0.0; 2 * SHAPE.1], ..layer(1) };
    let e = zero.split(&qfw_svdquant::RECORD, &int4(), &json!({ "gram": true }), (4, F32)).err().unwrap();
    assert_eq!(e.code(), "numeric::zero-gram");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever the weight, no branch leaves more to err than none.
    #[test]
    fn no_branch_makes_it_worse(seed in 0u64..1000, rank in 1usize..20, scale in 1e-3f32..1e3, iters in 1usize..4) {
        let mut layer = layer(seed);
        layer.weight.iter_mut().for_each(|w| *w *= scale);
        let spec = spec("int3", Granularity::group(16), false);
        let found = split(&layer, &spec, &json!({ "iters": iters }), rank, FloatKind::Bf16);
        let without = rounding_error(&layer, &spec, layer.weight.clone());
        let with = rounding_error(&layer, &spec, left(&layer.weight, &found));
        prop_assert!(with <= without * (1.0 + 1e-4), "{with} {without}");
    }
}
