//! Layers whose inputs say too little, or nothing that makes sense: `docs/degenerate-layers.md`.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;

use super::{Ran, args, asset, qfw};

/// Every method that solves something with the statistics of a layer's inputs, with the passes before it.
const METHODS: [&str; 10] = [
    "gptq",
    "gpfq",
    "qronos",
    "magr,gptq",
    "clip,gptq",
    "awq,gptq",
    "smoothquant,gptq",
    "svdquant,gptq --set svdquant.rank=4 --set svdquant.compensate=true --set svdquant.gram=true",
    "learned-round --set learned-round.iters=4 --set learned-round.batch-size=2",
    "magr,learned-round --set learned-round.iters=4 --set learned-round.batch-size=2",
];

/// `tiny-llama` with one tensor changed, and stored in f32.
fn changed(dir: &Path, tensor: &str, change: impl Fn(&mut [f32])) -> String {
    let model = dir.join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(asset("tiny-llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let file = model.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let old = tensors.tensor(tensor).unwrap();
    let mut values: Vec<f32> = old.data().as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect();
    change(&mut values);
    let new: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let all = tensors.tensors().into_iter().map(|(name, view)| {
        let view = if name == tensor { TensorView::new(Dtype::F32, old.shape().to_vec(), &new).unwrap() } else { view };
        (name, view)
    });
    let written = safetensors::serialize(all.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(&file, written).unwrap();
    model.display().to_string()
}

fn apply(model: &str, out: &Path, words: &str) -> Ran {
    let mut all = args("apply", &[model, "--data", &asset("text/calibration.txt"), "-o", &out.display().to_string()]);
    let fixed = "--set calibration.samples=4 --set calibration.seq-len=64 --set scheme.weights.format=int4 --format qfw --json";
    all.extend(args(&format!("{fixed} {words}"), &[]));
    qfw(&all)
}

/// What is told of each site, by name.
fn sites(report: &Value) -> Vec<(String, String)> {
    let sites = report["sites"].as_array().unwrap();
    sites.iter().map(|s| (s["name"].as_str().unwrap().to_owned(), s["events"].to_string())).collect()
}

/// Every number that was written is one, and the model still makes something of text.
#[track_caller]
fn sound(out: &Path, what: &str) {
    finite(out, what);
    assert!(super::perplexity(out).is_finite(), "{what}");
}

#[track_caller]
fn finite(out: &Path, what: &str) {
    for entry in std::fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let finite = match view.dtype() {
                Dtype::F32 => view.data().as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
                Dtype::F16 => view.data().as_chunks::<2>().0.iter().all(|b| half::f16::from_le_bytes(*b).is_finite()),
                Dtype::BF16 => view.data().as_chunks::<2>().0.iter().all(|b| half::bf16::from_le_bytes(*b).is_finite()),
                _ => true,
            };
            assert!(finite, "{what}: `{name}` holds numbers that are none");
        }
    }
}

/// A norm before a block's attention lets nothing through.
#[test]
fn inputs_that_are_all_zero() {
    let dir = tempfile::tempdir().unwrap();
    let model = changed(dir.path(), "model.layers.1.input_layernorm.weight", |w| w.fill(0.0));
    // The second is what MagR says, which meets the layer first.
    let whys =
        ["no input of this layer ever fired on the calibration data", "its input was zero, or not finite, on all calibration tokens"];
    let told = |text: &str| whys.iter().any(|why| text.contains(why));
    for (nth, method) in METHODS.iter().enumerate() {
        let out = dir.path().join(format!("{nth}"));
        let report = apply(&model, &out, &format!("--algo {method}")).json();
        for (name, events) in sites(&report) {
            // The output projection of that block reads nothing but zeros either.
            let silent = name.starts_with("blocks.1.attn.") && !method.starts_with("learned-round");
            assert_eq!(told(&events), silent, "{method}, {name}: {events}");
        }
        sound(&out, method);
        if ["gptq", "gpfq", "qronos"].contains(method) {
            let strict = apply(&model, &dir.path().join(format!("{nth}-strict")), &format!("--algo {method} --strict"));
            assert_eq!(strict.code, Some(4), "{}", strict.stderr);
            assert!(strict.stderr.contains("`blocks.1.attn.") && told(&strict.stderr), "{}", strict.stderr);
        }
    }
}

/// One channel alone is let through: a Gram matrix of rank one, and dead columns.
#[test]
fn inputs_of_rank_one() {
    let dir = tempfile::tempdir().unwrap();
    let model = changed(dir.path(), "model.layers.1.input_layernorm.weight", |w| w[1..].fill(0.0));
    for (nth, method) in METHODS.iter().enumerate() {
        let out = dir.path().join(format!("{nth}"));
        let report = apply(&model, &out, &format!("--algo {method}")).json();
        for (name, events) in sites(&report) {
            let dead = ["q", "k", "v"].iter().any(|r| name == format!("blocks.1.attn.{r}"));
            assert!(!dead || method.contains("learned-round") || events.contains("dead-columns"), "{method}, {name}: {events}");
            assert!(!events.contains("fallback"), "{method}, {name}: {events}");
        }
        sound(&out, method);
    }
}

/// All tokens look alike: a Gram matrix of rank one without dead columns.
#[test]
fn tokens_that_are_all_alike() {
    let dir = tempfile::tempdir().unwrap();
    let model = changed(dir.path(), "model.embed_tokens.weight", |w| {
        let (first, others) = w.split_at_mut(128);
        others.chunks_mut(128).for_each(|row| row.copy_from_slice(first));
    });
    for (nth, method) in METHODS.iter().enumerate() {
        let out = dir.path().join(format!("{nth}"));
        let report = apply(&model, &out, &format!("--algo {method}")).json();
        assert!(sites(&report).iter().all(|(_, events)| !events.contains("fallback")), "{method}: {report}");
        sound(&out, method);
    }
}

/// Fewer tokens than input channels.
#[test]
fn fewer_tokens_than_columns() {
    let dir = tempfile::tempdir().unwrap();
    for (nth, method) in METHODS.iter().enumerate() {
        let out = dir.path().join(format!("{nth}"));
        let few = "--set calibration.samples=2 --set calibration.seq-len=16";
        let report = apply(&asset("tiny-llama"), &out, &format!("--algo {method} {few}")).json();
        assert!(sites(&report).iter().all(|(_, events)| !events.contains("fallback")), "{method}: {report}");
        sound(&out, method);
    }
}

/// A weight so large that what comes behind it is not a number.
#[test]
fn activations_that_are_not_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let model = changed(dir.path(), "model.layers.1.mlp.up_proj.weight", |w| w.fill(3e38));
    for (nth, method) in METHODS.iter().enumerate() {
        let out = dir.path().join(format!("{nth}"));
        let report = apply(&model, &out, &format!("--algo {method}")).json();
        for (name, events) in sites(&report) {
            // The layer that overflows may be met before or behind it.
            if name == "blocks.1.mlp.up" {
                continue;
            }
            let names = ["blocks.0.", "blocks.1.attn.", "blocks.1.mlp.gate"];
            let whole_block = method.contains("learned-round") && name.starts_with("blocks.1.");
            let before = names.iter().any(|n| name.starts_with(n)) && !whole_block;
            let told = events.contains("fallback") && ["not finite", "became NaN", "became inf"].iter().any(|why| events.contains(why));
            assert_eq!(told, !before, "{method}, {name}: {events}");
            assert!(!events.contains("\"spread\":null"), "{method}, {name}: {events}");
        }
        finite(&out, method);
        let strict = apply(&model, &dir.path().join(format!("{nth}-strict")), &format!("--algo {method} --strict"));
        assert_eq!(strict.code, Some(4), "{}", strict.stderr);
        assert!(strict.stderr.contains("`blocks.1.mlp.") || strict.stderr.contains("block 1"), "{}", strict.stderr);
    }
}
