//! The `quantization_config` of `config.json`.

use qfw_core::plan::Plan;
use qfw_core::scheme::Extent;
use serde_json::{Value, json};

pub(crate) fn config(plan: &Plan) -> Value {
    let group = plan.sites.iter().find_map(|s| s.weights.as_ref()).map_or(-1, |spec| match spec.granularity.cols {
        Extent::All => -1,
        Extent::Of(g) => i64::from(g),
    });
    let kept: Vec<&str> = plan.sites.iter().filter(|s| s.weights.is_none()).map(|s| s.module.as_str()).collect();
    json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        // Symmetric weights too are stored with zero points.
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": if kept.is_empty() { Value::Null } else { json!(kept) },
    })
}
