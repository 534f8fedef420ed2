//! What conditions give to the rounding behind them, from the command line.

use std::path::Path;

use serde_json::Value;

use super::apply;

/// `Σ (‖Y − Ŷ‖/‖Y‖)²` over the sites, on the calibration data.
fn output_error(dir: &Path, name: &str, words: &str) -> f64 {
    let out = dir.join(name);
    apply("tiny-llama", &out, &format!("--format qfw --set scheme.weights.granularity.group=32 {words}"));
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
    record["sites"].as_array().unwrap().iter().map(|s| s["output-error"].as_f64().unwrap_or_else(|| panic!("{name}: {s}")).powi(2)).sum()
}

/// The clamp chooses ranges, and the weight that errors are measured from stays: otherwise error feedback would be blind for what the clamp
/// took away, and GPTQ came out worse with `clip` than without.
#[test]
fn ranges_that_clipping_chose_help_error_feedback() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["int3", "int2"] {
        for (order, options) in [("static", ""), ("off", "")] {
            let of = |algo: &str| {
                let words = format!("--set scheme.weights.format={format} --algo {algo} --set gptq.act-order={order} {options}");
                output_error(dir.path(), &format!("{format}-{algo}-{order}"), &words)
            };
            let (plain, clipped) = (of("gptq"), of("clip,gptq"));
            assert!(clipped < plain, "{format}, order {order}: {clipped} with clipping, {plain} without");
        }
    }
}
