//! Blocks that llama.cpp quantized, with the values that its own library reads from them (`tests/fixtures/containers/ggml_cases.py`).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use qfw_core::checkpoint::{Checkpoint, open_tensors};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/containers")
}

/// To the last bit, whole and by rows.
#[test]
fn blocks_of_llama_cpp_are_read_as_it_reads_them() {
    let expected = open_tensors(&fixtures().join("ggml-expected.safetensors")).unwrap();
    for (file, types) in [
        ("ggml-blocks.gguf", &["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "NVFP4"][..]),
        ("ggml-k.gguf", &["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]),
    ] {
        let checkpoint = Checkpoint::open(&fixtures().join(file)).unwrap();
        for (i, kind) in types.iter().enumerate() {
            let name = format!("model.layers.{i}.mlp.up_proj.weight");
            for rows in [0..4, 1..3] {
                let (mut ours, mut theirs) = (Vec::new(), Vec::new());
                checkpoint.tensors.read_f32(&name, rows.clone(), &mut ours).unwrap();
                expected.read_f32(kind, rows, &mut theirs).unwrap();
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(&ours) == bits(&theirs), "{kind}: {:?} and {:?}", &ours[..4], &theirs[..4]);
                assert!(theirs.iter().any(|x| *x != 0.0), "{kind}");
            }
        }
    }
}
