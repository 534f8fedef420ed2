//! The `quantization_config` of `config.json`.
//!
//! Which layers are kept stands in it twice: `modules_to_not_convert` is what transformers and vLLM read, and `dynamic` what GPTQModel
//! does, which would else take such a layer for a quantized one whose tensors are missing, without an error.

use qfw_core::plan::Plan;
use qfw_core::scheme::Extent;
use qfw_core::topology::{Role, SiteId};
use serde_json::{Value, json};

pub(crate) fn config(plan: &Plan) -> Value {
    let group = plan.sites.iter().find_map(|s| s.weights.as_ref()).map_or(-1, |spec| match spec.granularity.cols {
        Extent::All => -1,
        Extent::Of(g) => i64::from(g),
    });
    let kept = || plan.sites.iter().filter(|s| s.weights.is_none());
    let all: Vec<&str> = kept().map(|s| s.module.as_str()).collect();
    let mut config = json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        // Symmetric weights too are stored with zero points.
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": if all.is_empty() { Value::Null } else { json!(all) },
    });
    // Everyone keeps the head.
    let head = SiteId::global(Role::Head).to_string();
    let inside: Vec<String> = kept().filter(|s| s.site != head).map(|s| s.module.replace('.', r"\.")).collect();
    if !inside.is_empty() {
        config["dynamic"] = json!({ format!("-:^(?:{})$", inside.join("|")): {} });
    }
    config
}
