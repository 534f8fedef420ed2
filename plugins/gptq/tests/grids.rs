//! `gptq` on every kind of grid, on inputs that are hardly any, and held to accumulators.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use layer::{Layer, observed, spec, values};
use qfw_core::algorithm::Event;
use qfw_core::scheme::{Extent, Granularity, QuantSpec};
use qfw_gptq::RECORD;
use serde_json::{Value, json};

/// Mean over seeds of the error in the layer's output, of round-to-nearest and of `gptq`.
fn errors(spec: &QuantSpec, options: &Value) -> (f64, f64) {
    let seeds = 8;
    let (mut nearest, mut gptq) = (0.0, 0.0);
    for seed in 0..seeds {
        let layer = Layer::random(seed, (32, 64), 256, 0.0);
        nearest += layer.error(spec, &layer.nearest(spec)) / f64::from(seeds as u32);
        gptq += layer.error(spec, &layer.round(&RECORD, spec, options.clone(), None).unwrap()) / f64::from(seeds as u32);
    }
    (nearest, gptq)
}

#[test]
fn every_grid_does_better_than_to_nearest() {
    let out = Granularity::new("group-out", Extent::Of(8), Extent::Of(1));
    for (format, granularity, symmetric) in [
        ("int4", Granularity::tensor(), true),
        ("int4", Granularity::channel(), true),
        ("int4", Granularity::block(16, 16), true),
        ("int4", out, true),
        ("uint4", Granularity::group(16), false),
        ("int3", Granularity::group(16), true),
        ("int2", Granularity::group(16), true),
        ("int8", Granularity::channel(), true),
        ("ternary", Granularity::group(32), true),
        ("nf4", Granularity::group(32), true),
        ("float-ocp-e4m3", Granularity::channel(), true),
        ("float-e2m1", Granularity::group(32), true),
        ("mxfp4", Granularity::group(32), true),
        ("mxfp8-e4m3", Granularity::group(32), true),
        ("mxfp6-e2m3", Granularity::group(32), true),
        ("mxint8", Granularity::group(32), true),
        ("nvfp4", Granularity::group(16), true),
    ] {
        let spec = spec(format, granularity, symmetric);
        for options in [json!({}), json!({ "act-order": "off", "num-blocks": 3 })] {
            let (nearest, gptq) = errors(&spec, &options);
            assert!(gptq < 0.98 * nearest, "{format} by {}, {options}: {gptq} against {nearest} to nearest", spec.granularity);
        }
    }
}

#[test]
fn ranges_are_searched_inside_groups_as_they_are_reached() {
    for options in [json!({ "act-order": "group" }), json!({ "act-order": "off" })] {
        for (observer, settings) in [("minmax", json!({})), ("mse", json!({}))] {
            let spec = observed("int3", Granularity::group(16), true, observer, settings);
            let (nearest, gptq) = errors(&spec, &options);
            assert!(gptq < nearest, "{observer}, {options}: {gptq} against {nearest} to nearest");
            let layer = Layer::random(0, (32, 64), 256, 0.0);
            let rounded = layer.round(&RECORD, &spec, options.clone(), None).unwrap();
            assert_ne!(rounded.params, layer.nearest(&spec).params, "groups are fitted to the weights as updated");
        }
    }
    // Searched ranges of the original weight stay what round-to-nearest has, and are used.
    let spec = observed("int3", Granularity::group(16), true, "mse", json!({}));
    let layer = Layer::random(0, (32, 64), 256, 0.0);
    assert_eq!(layer.round(&RECORD, &spec, json!({}), None).unwrap().params, layer.nearest(&spec).params);
}

#[test]
fn degenerate_inputs_end_as_documented() {
    let spec = spec("int4", Granularity::group(8), true);
    let layer = |seed| Layer::random(seed, (4, 16), 48, 0.0);
    let error = |layer: &Layer| layer.round(&RECORD, &spec, json!({}), None).map(|_| ()).unwrap_err();
    let mut silent = layer(0);
    silent.quantized.fill(0.0);
    assert_eq!(error(&silent).code(), "numeric::zero-gram");
    let mut broken = layer(1);
    broken.quantized[5] = f64::NAN;
    assert_eq!(error(&broken).code(), "numeric::not-finite");
    let mut dead = layer(2);
    dead.quantized.chunks_mut(16).for_each(|x| x[3] = 0.0);
    let rounded = dead.round(&RECORD, &spec, json!({}), None).unwrap();
    assert_eq!(rounded.events, [Event::DeadColumns { count: 1 }]);
    assert!(values(&spec, &rounded).chunks(16).all(|row| row[3] == 0.0));
    for tokens in [1, 5, 15] {
        let mut few = layer(3);
        few.quantized.truncate(16 * tokens);
        few.reference.truncate(16 * tokens);
        let rounded = few.round(&RECORD, &spec, json!({}), None).unwrap();
        assert_eq!(rounded.events, [], "damping makes up for what is missing");
        assert!(few.error(&spec, &rounded) < few.error(&spec, &few.nearest(&spec)));
        // Without any damping there is no factor; what it took is told.
        let rounded = few.round(&RECORD, &spec, json!({ "damp": 0.0 }), None).unwrap();
        assert!(matches!(rounded.events[..], [Event::Damped { asked: 0.0, used }] if used > 0.0), "{:?}", rounded.events);
        assert!(few.error(&spec, &rounded) < few.error(&spec, &few.nearest(&spec)));
    }
}

#[test]
fn codes_fit_the_accumulator_that_was_asked_for() {
    let layer = Layer::random(4, (16, 64), 192, 0.0);
    for (format, symmetric, inputs) in [("int8", true, (-128, 127)), ("uint8", false, (0, 255))] {
        let input = spec(format, Granularity::channel(), symmetric);
        let spec = spec("int4", Granularity::group(16), true);
        for act_order in ["off", "static"] {
            let options = |more: Value| {
                let mut options = json!({ "act-order": act_order, "static-groups": true, "use-quant-activations": true });
                options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                options
            };
            let free = layer.round(&RECORD, &spec, options(json!({})), Some(&input)).unwrap();
            let more = json!({ "accumulator-bits": 13, "accumulator-tile": 16 });
            let held = layer.round(&RECORD, &spec, options(more), Some(&input)).unwrap();
            assert_ne!(held.codes, free.codes);
            let codes: Vec<i32> = held.codes.iter().collect();
            for tile in codes.chunks(16) {
                let reach = |f: fn(i32, i32) -> i32| tile.iter().map(|q| f(f(inputs.0 * q, inputs.1 * q), 0)).sum::<i32>();
                assert!(reach(i32::max) <= 4095 && reach(i32::min) >= -4095, "{format}, {act_order}: {tile:?}");
            }
            let ample = layer.round(&RECORD, &spec, options(json!({ "accumulator-bits": 30, "accumulator-tile": 16 })), Some(&input));
            assert_eq!(ample.unwrap().codes, free.codes);
        }
    }
}
