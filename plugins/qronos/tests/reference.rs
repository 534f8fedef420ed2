//! `qronos` against the formulas of arXiv:2505.11695 written out in f64: the inverse by Gauss-Jordan elimination, the Schur complement
//! formed from it, the weight reset as the paper has it, and one column eliminated after the other.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use layer::{Layer, TextbookRow, inverse, order, spec, values, wide};
use qfw_core::algorithm::{Event, Rounded};
use qfw_core::scheme::{Granularity, QuantSpec};
use qfw_qronos::RECORD;
use serde_json::json;

/// `σ_max`, by more steps than the library takes.
fn largest_eigenvalue(h: &[f64], n: usize) -> f64 {
    let mut x = vec![1.0; n];
    let mut norm = 0.0;
    for _ in 0..300 {
        let y: Vec<f64> = (0..n).map(|i| (0..n).map(|j| h[i * n + j] * x[j]).sum()).collect();
        norm = y.iter().map(|y: &f64| y * y).sum::<f64>().sqrt();
        x = y.iter().map(|y| y / norm).collect();
    }
    norm
}

fn textbook<'a>(layer: &Layer, spec: &'a QuantSpec, rounded: &'a Rounded, alpha: f64, by_diagonal: bool, row: usize) -> TextbookRow<'a> {
    let n = layer.cols;
    let (stored, cross) = (wide(&layer.gram()), wide(&layer.cross()));
    let perm = order(&stored, n, by_diagonal);
    let h = |i: usize, j: usize| stored[perm[i] * n + perm[j]];
    // G = XᵀX̃ is the transpose of what the library is given.
    let g = |i: usize, j: usize| cross[perm[j] * n + perm[i]];
    let lambda = alpha * largest_eigenvalue(&stored, n);
    let of = |x: &[f32]| -> Vec<f64> { perm.iter().map(|j| f64::from(x[row * n + j])).collect() };
    let (w, mut v) = (of(layer.original()), of(&layer.weight));
    let mut out = TextbookRow::new(spec, rounded, row);

    let a = ((0..n).map(|i| w[i] * g(i, 0)).sum::<f64>() - (1..n).map(|j| v[j] * h(0, j)).sum::<f64>()) / h(0, 0);
    let q0 = out.quantize(perm[0], a);
    let damped: Vec<f64> = (0..n * n).map(|i| h(i / n, i % n) + if i / n == i % n { lambda } else { 0.0 }).collect();
    let p = inverse(&damped, n);
    let m = n - 1;
    let schur: Vec<f64> = (0..m * m).map(|i| p[(i / m + 1) * n + i % m + 1] - p[(i / m + 1) * n] * p[i % m + 1] / p[0]).collect();
    let target: Vec<f64> =
        (1..n).map(|j| (0..n).map(|i| w[i] * (g(i, j) + if i == j { lambda } else { 0.0 })).sum::<f64>() - q0 * h(0, j)).collect();
    for j in 0..m {
        v[j + 1] = (0..m).map(|i| target[i] * schur[i * m + j]).sum();
    }
    let (mut v, mut inv) = (v.split_off(1), schur);
    for j in 0..m {
        let q = out.quantize(perm[j + 1], v[j]);
        let e = (v[j] - q) / inv[j * m + j];
        let line: Vec<f64> = inv[j * m..(j + 1) * m].to_vec();
        for k in 0..m {
            v[k] -= e * line[k];
        }
        for i in 0..m {
            let factor = inv[i * m + j] / line[j];
            for k in 0..m {
                inv[i * m + k] -= factor * line[k];
            }
        }
    }
    out
}

#[test]
fn codes_are_those_of_the_textbook_in_f64() {
    let (mut rows, mut compared) = (0, 0);
    for seed in 0..10 {
        let mut layer = Layer::random(seed, (6, 32), 128, 0.3);
        if seed % 2 == 1 {
            // A pass before has moved the weight: the target stays, the first column and the scales see it.
            layer.original = Some(layer.weight.clone());
            layer.weight.iter_mut().for_each(|w| *w *= 0.9);
        }
        for (granularity, symmetric) in
            [(Granularity::channel(), true), (Granularity::group(8), true), (Granularity::group(7), false), (Granularity::tensor(), true)]
        {
            let spec = spec("int4", granularity, symmetric);
            for (act_order, alpha) in [("off", 1e-3), ("static", 1e-3), ("static", 1e-6)] {
                for block in [1, 16, 128] {
                    let options = json!({ "act-order": act_order, "alpha": alpha, "block-size": block });
                    let rounded = layer.round(&RECORD, &spec, options, None).unwrap();
                    assert_eq!(rounded.events, [], "nothing is to be damped");
                    for row in 0..layer.rows {
                        let expected = textbook(&layer, &spec, &rounded, alpha, act_order == "static", row);
                        rows += 1;
                        // f32 in the sweep, and 30 steps of the power iteration: about 1e-4 of a step.
                        if let Some(same) = expected.agrees(1e-3) {
                            compared += 1;
                            assert!(same, "seed {seed}, {}, act-order {act_order}, alpha {alpha}, row {row}", spec.granularity);
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
    // Fewer tokens than columns, down to one: damped as far as it takes. What it is worth depends on `alpha`: inputs that are nearly
    // linear dependent make the correction large, and codes have an end.
    for tokens in [1, 5, 15] {
        let mut few = layer(3);
        few.quantized.truncate(16 * tokens);
        few.reference.truncate(16 * tokens);
        let rounded = few.round(&RECORD, &spec, json!({}), None).unwrap();
        assert!(rounded.events.iter().all(|e| matches!(e, Event::Damped { asked, used } if *asked == 1e-6 && *used <= 1.0)));
        assert!(values(&spec, &rounded).iter().all(|v| v.is_finite()));
        let rounded = few.round(&RECORD, &spec, json!({ "alpha": 0.01 }), None).unwrap();
        let (error, nearest) = (few.error(&spec, &rounded), few.error(&spec, &few.nearest(&spec)));
        assert!(error <= nearest, "{tokens} tokens: {error} against {nearest}");
    }
}
