//! What holds of everything that is linked into the program.

use std::collections::BTreeMap;
use std::path::Path;

use qfw_bridge::link_time_only;
use qfw_bridge::wire::NeedsWire;
use qfw_core::algorithm::{AlgorithmRecord, PlanContext};
use qfw_core::registry::Registry;
use qfw_core::scheme::Granularity;
use qfw_core::statistic::Stream;
use qfw_core::topology::Linear;
use qfw_loader::conformance::{self, Kind, Sample};
use serde_json::{Value, json};

/// Every algorithm, by its id.
fn algorithms() -> BTreeMap<&'static str, &'static AlgorithmRecord> {
    let registry = Registry::linked().unwrap();
    let ids = registry.list().into_iter().filter(|l| l.kind == "algorithm").map(|l| l.id);
    ids.map(|id| (id, registry.algorithm(id).unwrap())).collect()
}

#[test]
fn every_plugin_of_the_workspace_is_linked() {
    let registry = Registry::linked().unwrap();
    for id in [
        "rtn",
        "gptq",
        "gpfq",
        "qronos",
        "fold-norms",
        "center-residual",
        "spinquant",
        "smoothquant",
        "awq",
        "weight-equalization",
        "learned-round",
        "adaround",
        "magr",
        "clip",
        "svdquant",
        "bias-correction",
        "zeroquant",
    ] {
        assert!(registry.algorithm(id).is_ok(), "{id}");
    }
    for id in [
        "qfw",
        "compressed-tensors",
        "compressed-tensors-int8",
        "compressed-tensors-online",
        "gptq",
        "gptq-v2",
        "awq",
        "gguf",
        "onnx",
        "onnx-qdq",
        "onnx-qcdq",
        "onnx-matmulnbits",
        "safetensors-float",
        "safetensors-f32",
        "safetensors-f16",
        "safetensors-bf16",
        "shark",
        "fp8",
        "modelopt",
    ] {
        assert!(registry.container(id).is_ok(), "{id}");
    }
}

/// `qfw schema` says of each option what it is for and what it is without being set.
#[test]
fn every_option_has_a_description_and_a_default() {
    let schemas = Registry::linked().unwrap().schemas();
    let (mut options, mut bare) = (0, Vec::new());
    for (kind, of_kind) in schemas.as_object().unwrap() {
        for (id, schema) in of_kind.as_object().unwrap() {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                options += 1;
                let described = property["description"].as_str().is_some_and(|d| !d.is_empty());
                if !described || property.get("default").is_none() {
                    bare.push(format!("{kind} {id}: `{name}` is {property}"));
                }
            }
        }
    }
    assert!(options > 60, "{options} options");
    assert!(bare.is_empty(), "options without a description or a default:\n{}", bare.join("\n"));
}

/// The kit's cases, on the records themselves. Those that cross the interface of run-time plugins pass through it as well
/// (`tests/end_to_end/plugin_kit.rs`).
#[test]
fn every_linked_algorithm_passes_the_kit() {
    let (mut tried, mut bad) = (0, Vec::new());
    for record in algorithms().values() {
        for case in conformance::record_cases(record) {
            let outcome = conformance::run_record(record, &case, 0).unwrap();
            tried += usize::from(!matches!(outcome, conformance::Outcome::Skipped(_)));
            if !outcome.is_fine() {
                bad.push(format!("{case}: {outcome}"));
            }
        }
    }
    assert!(tried > 200, "{tried} cases");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Why an algorithm with these options cannot be loaded at run time, asked as a library asks.
fn refused(record: &AlgorithmRecord, options: &Value) -> Option<&'static str> {
    let registry = Registry::builtin().unwrap();
    let architecture = registry.architecture("llama").unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    });
    let topology = architecture.topology(&architecture.parse(&config, &|_| false).unwrap());
    let sites: Vec<&Linear> = topology.linears.iter().filter(|l| l.site.block.is_some()).collect();
    let spec = Sample::new(0, Kind::Plain, (8, 32), "int4", Granularity::group(16)).unwrap().spec;
    let (weights, inputs) = (vec![&spec; sites.len()], vec![None; sites.len()]);
    let (algorithm, _) = (record.build)(options).unwrap();
    let cx = PlanContext { topology: &topology, sites: &sites, weights: &weights, inputs: &inputs, stream: Stream::Quantized };
    link_time_only(&*algorithm).or_else(|| NeedsWire::of(&algorithm.needs(&cx).unwrap()).err())
}

/// The table of `docs/plugins.md` is what the algorithms say of themselves: every one is in it, with its reason, or is loaded by a test.
#[test]
fn the_guide_lists_what_can_be_linked_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let guide = text("docs/plugins.md");
    let table = guide.split("| linked only | why |\n|---|---|\n").nth(1).expect("the table is there");
    let loaded = qfw_loader::Manifest::parse(&text("tests/plugins/loadable/plugin.toml")).unwrap();
    let (algorithms, mut told) = (algorithms(), BTreeMap::new());
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let [ids, why] = row.trim_matches('|').splitn(2, '|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        for entry in ids.split(", `") {
            let words: Vec<&str> = entry.split('`').map(str::trim).filter(|w| !w.is_empty()).collect();
            let options = words.get(2).map_or_else(|| json!({}), |options| serde_json::from_str(options).unwrap());
            assert_eq!(refused(algorithms[words[0]], &options), Some(why.trim()), "{entry}");
            told.insert(words[0].to_owned(), options);
        }
    }
    for (id, record) in &algorithms {
        let is_loaded = loaded.algos.iter().any(|a| a.id == *id);
        match refused(record, &json!({})) {
            Some(why) => assert!(told.contains_key(*id) && !is_loaded, "`{id}` is link-time only: {why}"),
            None => assert!(is_loaded, "`{id}` can be loaded, and no test does"),
        }
    }
}

/// What the guide shows of a `plugin.toml` is one.
#[test]
fn the_guide_s_manifest_is_accepted() {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md")).unwrap();
    let manifest = guide.split("```toml\n").find_map(|text| text.split("\n```").next().filter(|t| t.contains("[[algo]]"))).unwrap();
    let read = qfw_loader::Manifest::parse(manifest).unwrap();
    assert_eq!((read.algos.len(), read.formats.len(), read.targets.len()), (1, 1, 1));
    assert_eq!(serde_json::to_value(&read.algos[0]).unwrap()["phase"], Value::from("round"));
}
