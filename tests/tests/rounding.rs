//! How the rounding methods stand to each other.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../fixtures/layer.rs"]
mod layer;

use layer::{Layer, spec};
use qfw_core::numeric::largest_eigenvalue;
use qfw_core::scheme::Granularity;
use serde_json::json;

#[test]
fn qronos_is_gptq_where_the_streams_agree() {
    for seed in 0..8 {
        let layer = Layer::random(seed, (24, 48), 192, 0.0);
        let (gram, n) = (layer.gram(), layer.cols);
        let mean = (0..n).map(|i| f64::from(gram[i * n + i])).sum::<f64>() / n as f64;
        for (alpha, order) in [(1e-3, "off"), (1e-2, "off"), (1e-3, "static")] {
            let spec = spec("int4", Granularity::group(16), true);
            // λ = α·σ_max(H) is damp·mean(diag H).
            let damp = alpha * largest_eigenvalue(&gram, n) / mean;
            let qronos = json!({ "alpha": alpha, "act-order": order });
            let qronos = layer.round(&qfw_qronos::RECORD, &spec, qronos, None).unwrap();
            let gptq =
                layer.round(&qfw_gptq::RECORD, &spec, json!({ "damp": damp, "act-order": order, "static-groups": true }), None).unwrap();
            assert_eq!(qronos.params, gptq.params);
            assert_eq!(qronos.codes, gptq.codes, "seed {seed}, alpha {alpha}, order {order}");
        }
    }
}

/// Mean relative errors of the layer's output over seeds: to nearest, GPTQ, GPFQ, Qronos.
fn errors(noise: f64) -> [f64; 4] {
    let seeds = 12;
    let spec = spec("int4", Granularity::channel(), true);
    let mut sums = [0.0; 4];
    for seed in 0..seeds {
        let layer = Layer::random(100 + seed, (32, 64), 512, noise);
        let by = |record, options| layer.round(record, &spec, options, None).unwrap();
        let all =
            [layer.nearest(&spec), by(&qfw_gptq::RECORD, json!({})), by(&qfw_gpfq::RECORD, json!({})), by(&qfw_qronos::RECORD, json!({}))];
        for (sum, rounded) in sums.iter_mut().zip(&all) {
            *sum += layer.error(&spec, rounded).sqrt() / seeds as f64;
        }
    }
    sums
}

#[test]
fn with_the_same_inputs_all_beat_rounding_to_nearest() {
    let [nearest, gptq, gpfq, qronos] = errors(0.0);
    assert!(gptq < 0.9 * nearest && gpfq < 0.95 * nearest && qronos < 0.9 * nearest, "{nearest} {gptq} {gpfq} {qronos}");
    assert!(gptq <= gpfq && qronos <= gpfq, "feedback along the inverse does more than the greedy path: {gptq} {gpfq} {qronos}");
}

#[test]
fn with_noisy_inputs_qronos_is_best() {
    let [nearest, gptq, gpfq, qronos] = errors(0.3);
    assert!(gptq < nearest && gpfq < gptq && qronos < gpfq, "{nearest} {gptq} {gpfq} {qronos}");
}
