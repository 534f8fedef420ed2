//! What distillation has to satisfy on every grid, with a linear layer in place of a block.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;
#[path = "../../../tests/fixtures/trained_layer.rs"]
mod trained_layer;

use layer::{Layer, spec, values};
use qfw_core::algorithm::{PtqAlgorithm, Stage};
use qfw_core::scheme::{Granularity, QuantSpec};
use qfw_core::topology::Role;
use qfw_zeroquant::{Options, RECORD};
use serde_json::{Value, json};
use trained_layer::{TOKENS, learn_by};

/// Both streams are the original model's.
fn layer() -> Layer {
    Layer::random(1, (24, 64), 12 * TOKENS, 0.0)
}

fn grids() -> Vec<QuantSpec> {
    [
        ("int4", Granularity::channel(), true),
        ("int3", Granularity::group(16), true),
        ("uint4", Granularity::group(16), false),
        ("nf4", Granularity::group(32), true),
        ("mxfp4", Granularity::group(32), true),
        ("nvfp4", Granularity::group(16), true),
    ]
    .map(|(format, granularity, symmetric)| spec(format, granularity, symmetric))
    .into()
}

fn algorithm(options: &Value) -> Box<dyn PtqAlgorithm> {
    (RECORD.build)(options).unwrap().0
}

#[test]
fn without_distillation_it_rounds_to_nearest_and_reads_no_activations() {
    let layer = layer();
    for spec in grids() {
        let algorithm = algorithm(&json!({}));
        assert!(!algorithm.reads_activations());
        let rounded = layer.with(Role::MlpDown, &spec, None, |cx| {
            let Stage::Round(round) = algorithm.stage() else { panic!("it rounds layer by layer") };
            round.round(cx).unwrap()
        });
        let nearest = layer.nearest(&spec);
        assert_eq!((rounded.codes, rounded.params), (nearest.codes, nearest.params), "{}", spec.format);
    }
    assert!(algorithm(&json!({ "lkd": true })).reads_activations());
}

#[test]
fn no_steps_are_rounding_to_nearest() {
    let layer = layer();
    for spec in grids() {
        let went = learn_by(&RECORD, &layer, &spec, &json!({ "lkd": { "iters": 0 } }));
        let nearest = layer.nearest(&spec);
        assert_eq!((went.rounded.codes, went.rounded.params), (nearest.codes, nearest.params), "{}", spec.format);
        assert!(went.curve.is_empty());
    }
}

#[test]
fn distillation_does_better_than_to_nearest_on_every_grid_and_says_how_much() {
    let layer = layer();
    for spec in grids() {
        let nearest = layer.error(&spec, &layer.nearest(&spec));
        let went = learn_by(&RECORD, &layer, &spec, &json!({ "lkd": { "iters": 200, "batch-size": 6, "lr": 2e-3 } }));
        let learned = layer.error(&spec, &went.rounded);
        assert!(learned < 0.98 * nearest, "{}: {learned} against {nearest} to nearest", spec.format);
        // What is reported is the error of the codes that were returned.
        assert!((learned / nearest / (went.reached / went.initial) - 1.0).abs() < 1e-3, "{}", spec.format);
    }
}

#[test]
fn steps_that_are_too_large_leave_what_was_there() {
    let (layer, spec) = (layer(), spec("int4", Granularity::group(16), true));
    let went = learn_by(&RECORD, &layer, &spec, &json!({ "lkd": { "iters": 3, "lr": 50.0 } }));
    assert_eq!((went.steps, went.reached), (0, went.initial));
    assert_eq!(values(&spec, &went.rounded), values(&spec, &layer.nearest(&spec)));
}

#[test]
fn a_gradient_is_shortened_and_weights_decay() {
    let (layer, spec) = (layer(), spec("uint4", Granularity::group(16), false));
    let curve = |lkd: Value| learn_by(&RECORD, &layer, &spec, &json!({ "lkd": lkd })).curve;
    let plain = curve(json!({ "iters": 8, "lr": 2e-3 }));
    assert_eq!(plain, curve(json!({ "iters": 8, "lr": 2e-3, "max-grad-norm": 1.0 })));
    assert_ne!(plain, curve(json!({ "iters": 8, "lr": 2e-3, "clip": 1e-9 })));
    assert_ne!(plain, curve(json!({ "iters": 8, "lr": 2e-3, "weight-decay": 0.5 })));
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    let refused = |options: Value| Options::read(&options).unwrap_err().to_string();
    assert!(refused(json!({ "lkd": { "lr": 0.0 } })).contains("option `lkd.lr` of `zeroquant` is 0"));
    assert!(refused(json!({ "lkd": { "batch-size": 0 } })).contains("`lkd.batch-size`"));
    assert!(refused(json!({ "lkd": { "weight-decay": 1.0 } })).contains("`lkd.weight-decay`"));
    assert!(refused(json!({ "lkd": { "itres": 3 } })).contains("unknown field `itres`"));
    assert!(refused(json!({ "lkd": "yes" })).contains("zeroquant"));
    assert!(refused(json!({ "groupsize": 64 })).contains("the size of groups is set elsewhere"));
    assert_eq!(Options::read(&json!({ "lkd": true })).unwrap().distillation(), Some(qfw_zeroquant::Lkd::default()));
}
