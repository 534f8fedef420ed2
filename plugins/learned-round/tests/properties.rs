//! What learning has to satisfy on every grid, with a linear layer in place of a block: its gradients are written out here.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;
#[path = "../../../tests/fixtures/trained_layer.rs"]
mod trained_layer;

use layer::{Layer, spec, values};
use qfw_core::scheme::{Granularity, QuantSpec};
use qfw_learned_round::{ADAROUND, RECORD};
use serde_json::{Value, json};
use trained_layer::{TOKENS, Went, learn_by};

fn learn(layer: &Layer, spec: &QuantSpec, options: &Value) -> Went {
    learn_by(&RECORD, layer, spec, options)
}

fn layer() -> Layer {
    Layer::random(1, (24, 64), 12 * TOKENS, 0.05)
}

fn grids() -> Vec<QuantSpec> {
    [
        ("int4", Granularity::channel(), true),
        ("int3", Granularity::group(16), true),
        ("int4", Granularity::block(16, 16), true),
        ("uint4", Granularity::group(16), false),
        ("uint2", Granularity::group(16), false),
        ("ternary", Granularity::group(32), true),
        ("nf4", Granularity::group(32), true),
        ("float-e2m1", Granularity::group(32), true),
        ("mxfp4", Granularity::group(32), true),
        ("nvfp4", Granularity::group(16), true),
    ]
    .map(|(format, granularity, symmetric)| spec(format, granularity, symmetric))
    .into()
}

#[test]
fn no_steps_are_rounding_to_nearest() {
    let layer = layer();
    for spec in grids() {
        for method in ["linear-round", "sigmoid"] {
            let went = learn(&layer, &spec, &json!({ "iters": 0, "method": method }));
            let nearest = layer.nearest(&spec);
            assert_eq!(went.rounded.params, nearest.params, "{}", spec.format);
            // A tie may go either way.
            let (a, b) = (values(&spec, &went.rounded), values(&spec, &nearest));
            let gap = |q: &[f32]| q.iter().zip(&layer.weight).map(|(q, w)| (q - w).abs()).collect::<Vec<f32>>();
            assert!(gap(&a).iter().zip(gap(&b)).all(|(a, b)| (a - b).abs() < 1e-6), "{} by {method}", spec.format);
            assert!(went.curve.is_empty() && went.steps == 0);
        }
    }
}

#[test]
fn every_grid_does_better_than_to_nearest_and_says_how_much() {
    let layer = layer();
    for spec in grids() {
        let nearest = layer.error(&spec, &layer.nearest(&spec));
        for options in [json!({ "iters": 200, "batch-size": 6, "learn-scale": false }), json!({ "iters": 200, "batch-size": 6 })] {
            let went = learn(&layer, &spec, &options);
            let learned = layer.error(&spec, &went.rounded);
            assert!(learned < 0.98 * nearest, "{}, {options}: {learned} against {nearest} to nearest", spec.format);
            assert_eq!((went.initial, went.curve.len()), (went.asked[0], 200));
            assert!(went.asked.contains(&went.reached) && went.reached < went.initial);
            // What is reported is the error of the codes that were returned.
            let reached = went.reached / went.initial;
            assert!((learned / nearest / reached - 1.0).abs() < 1e-3, "{}: {learned} of {nearest}, {reached}", spec.format);
        }
    }
}

#[test]
fn soft_rounding_settles() {
    let layer = layer();
    for spec in [spec("int3", Granularity::group(16), true), spec("uint2", Granularity::group(16), false)] {
        let nearest = layer.error(&spec, &layer.nearest(&spec));
        let options = json!({ "iters": 400, "batch-size": 6, "method": "adaround", "lr": 0.02 });
        let learned = layer.error(&spec, &learn(&layer, &spec, &options).rounded);
        assert!(learned < 0.98 * nearest, "{}: {learned} against {nearest} to nearest", spec.format);
    }
}

#[test]
fn a_weight_moves_to_a_neighbour_at_most() {
    let layer = layer();
    for spec in grids() {
        let went = learn(&layer, &spec, &json!({ "iters": 30, "lr": 0.3, "learn-scale": false }));
        let nearest = layer.nearest(&spec);
        assert_eq!(went.rounded.params, nearest.params, "ranges stay where they are not learned");
        let (lo, hi) = spec.grid.limits();
        let mut units: Vec<f32> = (lo..=hi).filter(|c| spec.grid.holds(*c)).map(|c| spec.grid.decode(c, 1.0, 0.0)).collect();
        units.sort_by(f32::total_cmp);
        units.dedup();
        let place = |q: f32, s: f32| units.iter().position(|u| (u * s - q).abs() <= 1e-6 * s.abs().max(q.abs()));
        if spec.symmetric {
            let layout = nearest.params.layout;
            for (i, (a, b)) in values(&spec, &went.rounded).iter().zip(values(&spec, &nearest)).enumerate() {
                let s = nearest.params.scale[layout.tile(i / layout.cols, i % layout.cols)];
                let (Some(a), Some(b)) = (place(*a, s), place(b, s)) else { panic!("{}: {a} or {b} is no value", spec.format) };
                assert!(a.abs_diff(b) <= 1, "{}: weight {i} moved by {} places", spec.format, a.abs_diff(b));
            }
        }
    }
}

/// A step that cannot but do harm leaves everything as it was.
#[test]
fn the_end_is_never_worse_than_the_start() {
    let layer = layer();
    let spec = spec("int8", Granularity::channel(), true);
    for options in [
        json!({ "iters": 3, "lr": 100.0, "schedule": "constant", "learn-scale": false }),
        json!({ "iters": 3, "lr": 1e-9, "scale-lr": 50.0 }),
    ] {
        let went = learn(&layer, &spec, &options);
        assert!(went.reached <= went.initial, "{options}: {} after {}", went.reached, went.initial);
        assert!(layer.error(&spec, &went.rounded) <= layer.error(&spec, &layer.nearest(&spec)) * (1.0 + 1e-9));
    }
}

#[test]
fn batches_are_drawn_by_seed_and_block_alone() {
    let layer = layer();
    let spec = spec("int4", Granularity::group(16), true);
    let options = json!({ "iters": 10, "batch-size": 3 });
    let (a, b) = (learn(&layer, &spec, &options), learn(&layer, &spec, &options));
    assert_eq!((a.batches.clone(), a.rounded.codes), (b.batches, b.rounded.codes));
    assert!(a.batches.iter().all(|b| b.len() == 3 && b.is_sorted_by(|x, y| x < y)));
    assert_ne!(a.batches[0], a.batches[1]);
}

#[test]
fn options_have_the_names_of_the_sources() {
    let read = |options: Value| qfw_learned_round::Options::read(&options);
    let ours =
        read(json!({ "iters": 50, "lr": 0.01, "learn-scale": true, "scale-lr": 0.02, "scale-optimizer": "sgd", "scale-momentum": 0.5 }))
            .unwrap();
    let theirs = json!({
        "learned-round": "linear_round", "learned-round-iters": 50, "learned-round-lr": 0.01, "learned-round-scale": true,
        "learned-round-scale-lr": 0.02, "scale-optimizer": "sgd", "learned-round-scale-momentum": 0.5, "learned-round-fast-update": true,
    });
    assert_eq!(read(theirs).unwrap(), ours);
    let refused = |options: Value| read(options).unwrap_err().to_string();
    assert!(refused(json!({ "batch-size": 0 })).contains("`batch-size`"));
    assert!(refused(json!({ "lr": 0.0 })).contains("`lr`"));
    assert!(refused(json!({ "scale-momentum": 1.0 })).contains("`scale-momentum`"));
    assert!(refused(json!({ "itres": 3 })).contains("itres"));
}

#[test]
fn what_would_change_nothing_is_refused() {
    let refused = |options: Value| qfw_learned_round::Options::read(&options).unwrap_err().to_string();
    for (options, name) in [
        (json!({ "method": "sigmoid", "learn-scale": true }), "learn-scale"),
        (json!({ "method": "sigmoid", "scale-lr": 0.1 }), "scale-lr"),
        (json!({ "learn-scale": false, "scale-optimizer": "sgd" }), "scale-optimizer"),
        (json!({ "scale-momentum": 0.5 }), "scale-momentum"),
        (json!({ "regularization": 0.1 }), "regularization"),
        (json!({ "warmup": 0.1 }), "warmup"),
    ] {
        let message = refused(options);
        assert!(message.contains(&format!("option `{name}` of `learned-round` would change nothing")), "{message}");
    }
}

#[test]
fn adaround_is_soft_rounding() {
    let (layer, spec) = (layer(), spec("int4", Granularity::group(16), true));
    let soft = learn(&layer, &spec, &json!({ "iters": 20, "method": "sigmoid" }));
    let offsets = learn(&layer, &spec, &json!({ "iters": 20 }));
    let named = learn_by(&ADAROUND, &layer, &spec, &json!({ "iters": 20 }));
    assert_eq!((&named.curve, &named.rounded.codes), (&soft.curve, &soft.rounded.codes));
    assert_ne!(named.curve, offsets.curve);
    let Err(refused) = (ADAROUND.build)(&json!({ "method": "linear-round" })) else { panic!("it is not AdaRound") };
    assert!(refused.to_string().contains("option `method` of `adaround`"), "{refused}");
}
