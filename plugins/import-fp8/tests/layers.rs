//! Layers whose weights an independent script has computed from the definitions of their formats (`tests/fixtures/fp8/generate.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qfw_core::checkpoint::{Container, TensorSource, open_tensors};
use qfw_import_fp8::{FP8, MODELOPT};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/fp8")
}

fn layer(name: &str) -> Arc<dyn TensorSource> {
    open_tensors(&fixtures().join(format!("{name}.safetensors"))).unwrap()
}

fn read(container: &dyn Container, config: &Value, tensors: Arc<dyn TensorSource>) -> qfw_core::Result<Arc<dyn TensorSource>> {
    container.read(config, &BTreeSet::new(), tensors)
}

#[test]
fn layers_are_read_as_their_definitions_say() {
    let table: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    let mut seen = 0;
    for (name, config) in table.as_object().unwrap() {
        let claimed: Vec<&dyn Container> = [FP8.container, MODELOPT.container].into_iter().filter(|c| c.claims(config)).collect();
        let [container] = claimed[..] else { panic!("{name}: {} containers claim it", claimed.len()) };
        let tensors = read(container, config, layer(name)).unwrap();
        assert_eq!(tensors.names(), ["expected", "m.weight"], "{name}");
        assert_eq!(tensors.info("m.weight").unwrap().shape, [32, 64], "{name}");
        let (mut weight, mut expected) = (Vec::new(), Vec::new());
        tensors.read_f32("m.weight", 0..32, &mut weight).unwrap();
        tensors.read_f32("expected", 0..32, &mut expected).unwrap();
        for (i, (a, b)) in weight.iter().zip(&expected).enumerate() {
            // One scale is a product of two in nvfp4, and the order of three factors may move the last bit of the result.
            let most = if name.ends_with("nvfp4") { 3e-7 * b.abs() } else { 0.0 };
            assert!((a - b).abs() <= most, "{name} element {i}: {a} is not {b}");
        }
        assert!(expected.iter().filter(|x| **x != 0.0).count() > 1500, "{name}: nothing was tested");
        let site = tensors.coded("m.weight").unwrap();
        assert!(tensors.rounded("m.weight").unwrap().codes.stand_for(&site.spec.grid), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn what_does_not_fit_is_named() {
    let failure = |name: &str, config: Value| {
        let container = if FP8.container.claims(&config) { FP8.container } else { MODELOPT.container };
        let e = read(container, &config, layer(name)).err().unwrap();
        format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
    };
    assert_eq!(
        failure("fp8-blocks", json!({ "quant_method": "fp8", "weight_block_size": [128, 128] })),
        "`m.weight_scale_inv` has shape [2, 2], but float-ocp-e4m3 block 128x128 asks for [1, 1] | \
         does `quantization_config` belong to these weights?"
    );
    assert_eq!(
        failure("fp8-blocks", json!({ "quant_method": "fp8" })),
        "there is `m.weight_scale_inv`, but no `weight_block_size` that says of what | no hint"
    );
}
