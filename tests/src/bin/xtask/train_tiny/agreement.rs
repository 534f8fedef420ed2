//! The networks trained here and the library's own models are the same function, with the same gradients.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use qfw_core::Result;
use qfw_core::model::{Architecture, BUILTIN, MapWeights, Nothing, Span};

use super::CONTEXT;
use super::checkpoint::config;
use super::network::{Family, LAYERS, Network, loss};

const TOKENS: usize = 48;

/// Logits `[T, V]` by the library's blocks over the given tensors: variables, so that gradients reach them, or constants.
fn library_logits(family: Family, tensors: &BTreeMap<String, Tensor>, ids: &[u32]) -> Result<Tensor> {
    let config = config(family);
    let id = config["model_type"].as_str().unwrap();
    let architecture: &dyn Architecture = BUILTIN.iter().find(|record| record.id == id).unwrap().architecture;
    let dims = architecture.parse(&config, &|name| tensors.contains_key(name))?;
    let mut weights = MapWeights::default();
    for p in architecture.topology(&dims).params {
        let tensor = &tensors[&p.tensor];
        weights.insert(p.site, p.part, if p.transposed { tensor.t()?.contiguous()? } else { tensor.clone() });
    }
    let weights = Arc::new(weights);
    let edges = architecture.edges(&dims, Arc::clone(&weights) as _)?;
    let mut flow = edges.embed(ids, 0, &mut Nothing)?;
    for b in 0..LAYERS as u32 {
        flow = architecture.block(&dims, b, &*weights)?.run(Span::BLOCK, flow, &mut Nothing)?;
    }
    let hidden = edges.finish(flow, &mut Nothing)?;
    Ok(hidden.matmul(&edges.head_rows(0..edges.vocab())?.t()?)?)
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn networks_are_the_library_s_models() {
    let text: Vec<u32> = (0..=TOKENS as u32).map(|i| i * i % 1021).collect();
    let targets = text[1..].to_vec();
    for family in [Family::Llama, Family::Gpt2] {
        let network = Network::new(family, 7).unwrap();
        let variables = network.weights.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let ids = Tensor::new(&text[..TOKENS], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let ours = network.logits(&ids).unwrap();
        let theirs = library_logits(family, &variables, &text[..TOKENS]).unwrap();
        let gap = largest(&(&ours - &theirs).unwrap());
        assert!(gap < 1e-4 * largest(&theirs), "{family:?}: logits differ by {gap}");
        let ours = loss(&ours, targets.clone()).unwrap().backward().unwrap();
        let theirs = loss(&theirs, targets.clone()).unwrap().backward().unwrap();
        for (name, var) in &network.weights {
            let ours = ours.get(var).unwrap_or_else(|| panic!("{name} has no gradient here"));
            let theirs = theirs.get(var).unwrap_or_else(|| panic!("{name} has no gradient in the library"));
            let gap = largest(&(ours - theirs).unwrap());
            assert!(gap < 1e-3 * largest(theirs), "{family:?}: the gradients of `{name}` differ by {gap} of {}", largest(theirs));
        }
    }
}

/// The stored models, run by the library, have the perplexity that the `README.md` beside them claims.
#[test]
fn the_assets_are_as_good_as_they_say() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets");
    let readme = std::fs::read_to_string(assets.join("README.md")).unwrap();
    let text = std::fs::read_to_string(assets.join("text/evaluation.txt")).unwrap();
    for family in [Family::Llama, Family::Gpt2] {
        let folder = assets.join(family.folder());
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{}`", family.folder()))).unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let claimed: f64 = cells[7].parse().unwrap();
        let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
        let ids = super::tokenizer::encode(&tokenizer, &text).unwrap();
        assert_eq!(cells[9], ids.len().to_string());
        let stored = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let tensors = stored.into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap())).collect();
        let windows = ids.chunks_exact(CONTEXT);
        let count = windows.len() as f64;
        let total: f64 = windows
            .map(|window| {
                let logits = library_logits(family, &tensors, &window[..CONTEXT - 1]).unwrap();
                f64::from(loss(&logits, window[1..].to_vec()).unwrap().to_scalar::<f32>().unwrap())
            })
            .sum();
        assert!((total / count - claimed).abs() < 2e-4, "{family:?}: the loss is {}, the README says {claimed}", total / count);
    }
}
