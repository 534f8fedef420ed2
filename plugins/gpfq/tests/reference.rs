//! `gpfq` against the formula of arXiv:2010.15703 written out in f64: a running error vector over the tokens themselves, no Gram matrix,
//! no blocks, nothing shared with the library.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use layer::{Layer, TextbookRow, order, spec, values, wide};
use qfw_core::algorithm::{Event, Rounded};
use qfw_core::scheme::{Granularity, QuantSpec};
use qfw_gpfq::RECORD;
use serde_json::json;

/// `u ← u + w_t·x_t − q_t·x̃_t` with `q_t` the best for `u`; a column that never fires is zero.
fn textbook<'a>(layer: &Layer, spec: &'a QuantSpec, rounded: &'a Rounded, by_diagonal: bool, row: usize) -> TextbookRow<'a> {
    let n = layer.cols;
    let tokens = layer.quantized.len() / n;
    let (w, v) = (&layer.original()[row * n..], &layer.weight[row * n..]);
    let mut out = TextbookRow::new(spec, rounded, row);
    let mut u = vec![0.0; tokens];
    for j in order(&wide(&layer.gram()), n, by_diagonal) {
        let column = |x: &[f64], t: usize| x[t * n + j];
        let norm: f64 = (0..tokens).map(|t| column(&layer.quantized, t).powi(2)).sum();
        let dot = |f: &dyn Fn(usize) -> f64| (0..tokens).map(|t| column(&layer.quantized, t) * f(t)).sum::<f64>();
        let (w, v) = (f64::from(w[j]), f64::from(v[j]));
        let a = if norm > 0.0 { dot(&|t| u[t] + v * column(&layer.reference, t)) / norm } else { 0.0 };
        let q = out.quantize(j, a);
        for (t, u) in u.iter_mut().enumerate() {
            *u += w * column(&layer.reference, t) - q * column(&layer.quantized, t);
        }
    }
    out
}

#[test]
fn codes_are_those_of_the_textbook_in_f64() {
    let (mut rows, mut compared) = (0, 0);
    for seed in 0..12 {
        let mut layer = Layer::random(seed, (6, 40), 120, 0.3);
        if seed % 3 == 1 {
            // A pass before has moved the weight: the target stays, the column's own term and the scales move.
            layer.original = Some(layer.weight.clone());
            layer.weight.iter_mut().for_each(|w| *w *= 0.9);
        }
        if seed % 3 == 2 {
            layer.quantized.chunks_mut(40).for_each(|x| x[7] = 0.0);
        }
        for (granularity, symmetric) in [
            (Granularity::channel(), true),
            (Granularity::group(8), true),
            (Granularity::group(7), false),
            (Granularity::block(3, 16), true),
        ] {
            let spec = spec("int4", granularity, symmetric);
            for act_order in ["off", "static"] {
                for block in [1, 16, 128] {
                    let rounded = layer.round(&RECORD, &spec, json!({ "act-order": act_order, "block-size": block }), None).unwrap();
                    for row in 0..layer.rows {
                        let expected = textbook(&layer, &spec, &rounded, act_order == "static", row);
                        rows += 1;
                        // The library works on Gram matrices in f32: about 1e-6 of the values, times the length of a row.
                        if let Some(same) = expected.agrees(1e-4) {
                            compared += 1;
                            assert!(same, "seed {seed}, {}, act-order {act_order}, block {block}, row {row}", spec.granularity);
                        }
                    }
                }
            }
        }
    }
    assert!(compared * 100 > rows * 75, "{compared} of {rows} rows are away from ties");
}

#[test]
fn scales_are_those_of_rounding_to_nearest_and_units_do_not_matter() {
    let layer = Layer::random(3, (8, 32), 96, 0.3);
    let spec = spec("int4", Granularity::group(8), true);
    let rounded = layer.round(&RECORD, &spec, json!({}), None).unwrap();
    assert_eq!(rounded.params, layer.nearest(&spec).params);
    assert_ne!(rounded.codes, layer.nearest(&spec).codes);
    let mut scaled = layer.clone();
    scaled.quantized.iter_mut().chain(&mut scaled.reference).for_each(|x| *x *= 8.0);
    assert_eq!(scaled.round(&RECORD, &spec, json!({}), None).unwrap().codes, rounded.codes);
}

#[test]
fn inputs_that_do_not_go_together_leave_rounding_to_nearest() {
    let mut layer = Layer::random(5, (8, 16), 16, 0.0);
    for (i, x) in layer.quantized.iter_mut().enumerate() {
        *x = if i / 16 == i % 16 { 1.0 + (i % 16) as f64 } else { 0.0 };
    }
    layer.reference.clone_from(&layer.quantized);
    let spec = spec("int4", Granularity::group(8), true);
    assert_eq!(layer.round(&RECORD, &spec, json!({}), None).unwrap().codes, layer.nearest(&spec).codes);
}

#[test]
fn degenerate_inputs_end_as_documented() {
    let spec = spec("int4", Granularity::group(8), true);
    let layer = |seed| Layer::random(seed, (4, 16), 48, 0.1);
    let error = |layer: &Layer| layer.round(&RECORD, &spec, json!({}), None).map(|_| ()).unwrap_err();
    let mut silent = layer(0);
    silent.quantized.fill(0.0);
    assert_eq!(error(&silent).code(), "numeric::zero-gram");
    for stream in [true, false] {
        let mut broken = layer(1);
        (if stream { &mut broken.quantized } else { &mut broken.reference })[5] = f64::NAN;
        assert_eq!(error(&broken).code(), "numeric::not-finite");
    }
    let mut dead = layer(2);
    dead.quantized.chunks_mut(16).for_each(|x| x[3] = 0.0);
    let rounded = dead.round(&RECORD, &spec, json!({}), None).unwrap();
    assert_eq!(rounded.events, [Event::DeadColumns { count: 1 }]);
    assert!(values(&spec, &rounded).chunks(16).all(|row| row[3] == 0.0));
    // One token, rank one: the first columns do what they can, and nothing is lost or invented.
    let mut rank_one = layer(3);
    rank_one.quantized.truncate(16);
    rank_one.reference.truncate(16);
    let rounded = rank_one.round(&RECORD, &spec, json!({}), None).unwrap();
    assert!(rank_one.error(&spec, &rounded) <= rank_one.error(&spec, &rank_one.nearest(&spec)));
    assert!(values(&spec, &rounded).iter().all(|v| v.is_finite()));
}

#[test]
fn codes_fit_the_accumulator_that_was_asked_for() {
    let input = spec("int8", Granularity::channel(), true);
    let layer = Layer::random(4, (16, 64), 192, 0.2);
    let spec = spec("int4", Granularity::channel(), true);
    let free = layer.round(&RECORD, &spec, json!({}), Some(&input)).unwrap();
    for (bits, tile) in [(12, 16), (12, 64), (14, 64)] {
        let options = json!({ "accumulator-bits": bits, "accumulator-tile": tile });
        let held = layer.round(&RECORD, &spec, options, Some(&input)).unwrap();
        let codes: Vec<i64> = held.codes.iter().map(i64::from).collect();
        let largest = (1i64 << (bits - 1)) - 1;
        for row in codes.chunks(64) {
            for tile in row.chunks(tile) {
                // Inputs of -128 where it hurts most, 127 elsewhere.
                let most: i64 = tile.iter().map(|q| (127 * q).max(-128 * q)).sum();
                let least: i64 = tile.iter().map(|q| (127 * q).min(-128 * q)).sum();
                assert!(most <= largest && least >= -largest, "{bits} bits over {}: {least} to {most}", tile.len());
            }
        }
        assert_ne!(held.codes, free.codes);
    }
    // Room for everything changes nothing.
    let ample = layer.round(&RECORD, &spec, json!({ "accumulator-bits": 30 }), Some(&input)).unwrap();
    assert_eq!(ample.codes, free.codes);
}

#[test]
fn accumulators_want_integers_of_known_width() {
    let layer = Layer::random(4, (4, 32), 96, 0.2);
    let message = |weights: &QuantSpec, input: Option<&QuantSpec>, tile: usize| {
        let options = json!({ "accumulator-bits": 16, "accumulator-tile": tile });
        layer.round(&RECORD, weights, options, input).map(|_| ()).unwrap_err().to_string()
    };
    let (int4, int8) = (spec("int4", Granularity::channel(), true), spec("int8", Granularity::channel(), true));
    assert!(
        message(&spec("nf4", Granularity::channel(), true), Some(&int8), 32).starts_with("`accumulator-bits` wants weights of symmetric")
    );
    assert!(
        message(&spec("uint4", Granularity::channel(), false), Some(&int8), 32).starts_with("`accumulator-bits` wants weights of symm")
    );
    assert_eq!(message(&int4, None, 32), "`accumulator-bits` needs to know the inputs, and the scheme rounds none");
    let float = spec("float-ocp-e4m3", Granularity::channel(), true);
    assert!(message(&int4, Some(&float), 32).starts_with("`accumulator-bits` wants inputs of integers"));
    let grouped = spec("int4", Granularity::group(8), true);
    assert_eq!(message(&grouped, Some(&int8), 32), "`accumulator-bits` sums 32 channels, but weights have one scale for 8");
    let inputs = spec("int8", Granularity::group(16), true);
    assert_eq!(message(&int4, Some(&inputs), 32), "`accumulator-bits` sums 32 channels, but inputs have one scale for 16");
    assert!(layer.round(&RECORD, &grouped, json!({ "accumulator-bits": 16, "accumulator-tile": 8 }), Some(&int8)).is_ok());
}
