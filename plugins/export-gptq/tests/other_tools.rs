//! Layers packed by GPTQModel and AutoRound, as those tools themselves read them (`tests/fixtures/containers/generate.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use qfw_core::checkpoint::open_tensors;
use qfw_export_gptq::GPTQ;
use serde_json::Value;

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/containers")
}

#[test]
fn layers_of_other_tools_are_read_to_the_last_bit() {
    let table: Value = serde_json::from_slice(&std::fs::read(fixtures().join("cases.json")).unwrap()).unwrap();
    let mut seen = 0;
    for (name, config) in table.as_object().unwrap() {
        if !GPTQ.container.claims(config) {
            continue;
        }
        let stored = open_tensors(&fixtures().join(format!("{name}.safetensors"))).unwrap();
        let mut expected = Vec::new();
        stored.read_f32("expected", 0..32, &mut expected).unwrap();
        // Whatever a configuration leaves out is told by the tensors, but not the version, and not the width where there is no index.
        let mut bare = config.clone();
        for key in ["group_size", "sym", "desc_act", "quant_method"] {
            bare.as_object_mut().unwrap().remove(key);
        }
        for config in [config, &bare] {
            let read = GPTQ.container.read(config, &BTreeSet::new(), Arc::clone(&stored)).unwrap();
            assert_eq!(read.names(), ["expected", "m.bias", "m.weight"], "{name}");
            assert_eq!(read.info("m.weight").unwrap().shape, [32, 64], "{name}");
            let mut weight = Vec::new();
            read.read_f32("m.weight", 0..32, &mut weight).unwrap();
            assert_eq!(weight, expected, "{name} by {config}");
            // Some rows, as embeddings and heads are read.
            let mut rows = Vec::new();
            read.read_f32("m.weight", 5..7, &mut rows).unwrap();
            assert_eq!(rows, expected[5 * 64..7 * 64], "{name}");
        }
        // A model that stores its weights the other way round.
        let turned = GPTQ.container.read(config, &BTreeSet::from(["m".to_owned()]), Arc::clone(&stored)).unwrap();
        assert_eq!(turned.info("m.weight").unwrap().shape, [64, 32], "{name}");
        let mut weight = Vec::new();
        turned.read_f32("m.weight", 0..64, &mut weight).unwrap();
        assert!((0..32 * 64).all(|i| weight[i % 64 * 32 + i / 64] == expected[i]), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}
