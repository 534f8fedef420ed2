//! A model whose architecture nobody here knows: methods that read weights only run on it, everything else says why not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{apply, args, asset, qfw};

/// The tiny LLaMA under another name.
fn mystery(dir: &Path) -> PathBuf {
    let model = dir.join("mystery");
    std::fs::create_dir(&model).unwrap();
    let llama = PathBuf::from(asset("tiny-llama"));
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(llama.join(file), model.join(file)).unwrap();
    }
    let config = std::fs::read_to_string(llama.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), config.replace("\"model_type\": \"llama\"", "\"model_type\": \"mystery\"")).unwrap();
    model
}

/// Every tensor of a file; its metadata names the plan, which differs.
fn tensors(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (format!("{name} {:?} {:?}", view.dtype(), view.shape()), view.data().to_vec())).collect()
}

/// Tensor by tensor is the same arithmetic as block by block.
#[test]
fn rtn_rounds_it_as_it_would_the_known_one_and_says_what_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (dir.path().join("known"), dir.path().join("unknown"));
    let scheme = "--algo rtn --set scheme.weights.format=int4 --set scheme.weights.granularity.group=64";
    apply("tiny-llama", &known, scheme);
    let (model, out) = (mystery(dir.path()).display().to_string(), unknown.display().to_string());
    let ran = qfw(&args(&format!("apply {scheme}"), &[&model, "-o", &out])).ok();
    for part in [
        "note: model_type `mystery` is unknown: its matrices are taken one by one, as [out, in]",
        "note: left as it is: `model.embed_tokens.weight`, an embedding",
        "model.layers.N.self_attn.q_proj      128x128  ×6    int4 group 64 symmetric",
        "rtn (round) on 42 sites",
    ] {
        assert!(ran.stderr.contains(part), "`{part}` is not in\n{}", ran.stderr);
    }
    assert_eq!(tensors(&known.join("model.safetensors")), tensors(&unknown.join("model.safetensors")));
    // A reader must not take linears that nobody listed, such as a tied head, for quantized: the modules are named one by one.
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(unknown.join("config.json")).unwrap()).unwrap();
    let targets = config["quantization_config"]["config_groups"]["group_0"]["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 42);
    assert!(targets.contains(&"model.layers.5.mlp.down_proj".into()), "{targets:?}");
}

/// A preset skips `head`, which such a model does not list; stored names select.
#[test]
fn presets_and_stored_names_work_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = mystery(dir.path()).display().to_string();
    let plan = qfw(&args("plan --preset w8a16 --algo rtn --json --set", &["scheme.skip=['head', '.*\\.mlp\\.down_proj']", &model])).json();
    let kept: Vec<&str> = plan["plan"]["sites"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|s| s["weights"].is_null())
        .map(|s| s["module"].as_str().unwrap())
        .collect();
    assert_eq!(kept.len(), 6);
    assert!(kept.iter().all(|m| m.ends_with("mlp.down_proj")), "{kept:?}");
}

#[test]
fn whatever_runs_the_model_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = mystery(dir.path()).display().to_string();
    let data = asset("text/calibration.txt");
    for words in ["plan --preset w4a16 --data", "eval --data"] {
        let ran = qfw(&args(words, &[&data, &model]));
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        for part in [
            "error[qfw::model::unknown-type]: unknown model_type `mystery`",
            "hint: known model types: gpt2, llama, mistral, opt, qwen2, qwen3; methods that read weights only, such as `rtn`, need none of them",
        ] {
            assert!(ran.stderr.contains(part), "{}", ran.stderr);
        }
    }
}
