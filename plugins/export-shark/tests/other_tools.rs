//! A dataset that Brevitas exported, against what sharktank makes of it. `fixtures/make_brevitas.py` made both.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use qfw_core::checkpoint::gguf::Architecture;
use qfw_core::checkpoint::{Checkpoint, open_tensors};
use qfw_core::registry::Registry;
use qfw_core::scheme::Zero;
use qfw_export_shark as _;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

#[test]
fn weights_of_brevitas_are_those_of_sharktank_to_the_last_bit() {
    let registry = Registry::linked().unwrap();
    let checkpoint = Checkpoint::open(&fixtures().join("brevitas")).unwrap();
    assert_eq!(checkpoint.container(&registry).unwrap().id, "shark");
    let tensors = checkpoint.float_tensors(&registry).unwrap();
    let expected = open_tensors(&fixtures().join("brevitas.safetensors")).unwrap();
    let names = Architecture::named("llama").unwrap();
    let (mut weights, mut values, mut theirs) = (0, Vec::new(), Vec::new());
    for name in expected.names().into_iter().filter(|n| !n.ends_with("q_input")) {
        let ours = names.name_of(&name).unwrap();
        let info = tensors.info(&ours).unwrap();
        assert_eq!(info.shape, expected.info(&name).unwrap().shape, "{name}");
        tensors.read_f32(&ours, 0..info.shape[0], &mut values).unwrap();
        expected.read_f32(&name, 0..info.shape[0], &mut theirs).unwrap();
        assert!(values.iter().zip(&theirs).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        weights += 1;
    }
    assert_eq!((weights, tensors.names().len()), (12, 12));
    let spec = |name: &str| tensors.coded(&format!("model.layers.0.{name}.weight")).unwrap().spec.clone();
    assert_eq!((spec("self_attn.q_proj").format, spec("self_attn.q_proj").granularity.to_string()), ("int8".into(), "channel".into()));
    assert_eq!((spec("self_attn.o_proj").grid.zero(), spec("self_attn.o_proj").granularity.to_string()), (Zero::None, "tensor".into()));
    assert_eq!(spec("mlp.down_proj").format, "float-ocp-e4m3");
    assert!(tensors.coded("lm_head.weight").is_none());
}

#[test]
fn inputs_of_brevitas_are_rounded_where_its_layers_are() {
    let registry = Registry::linked().unwrap();
    let checkpoint = Checkpoint::open(&fixtures().join("brevitas")).unwrap();
    let architecture = registry.architecture("llama").unwrap();
    let floats = checkpoint.float_tensors(&registry).unwrap();
    let dims = architecture.parse(&checkpoint.config, &|name| floats.info(name).is_some()).unwrap();
    let inputs = checkpoint.stored_activations(&registry, &architecture.topology(&dims)).unwrap();
    let said: Vec<(String, usize, String)> =
        inputs.iter().map(|a| (a.planned.place.to_string(), a.planned.modules.len(), a.planned.spec.format.clone())).collect();
    assert_eq!(said, [("blocks.0.attn.in".into(), 3, "int8".into()), ("blocks.0.mlp.in".into(), 2, "float-ocp-e4m3".into())]);
    let expected = open_tensors(&fixtures().join("brevitas.safetensors")).unwrap();
    let mut scale = Vec::new();
    for (input, name) in inputs.iter().zip(["blk.0.attn_q.q_input", "blk.0.ffn_up.q_input"]) {
        expected.read_f32(name, 0..1, &mut scale).unwrap();
        assert_eq!(input.params.as_ref().unwrap().scale, scale, "{name}");
    }
}
