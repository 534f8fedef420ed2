//! The arguments that rules give for something that loads: pasted to the plans that the rules decide, what they give loads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Ran, asset, copied, qfw};

/// Arguments that name a value: `scheme.weights.format` and what it is.
type Sets = BTreeMap<String, String>;

/// A rule that is not about what loads, or one that is.
struct Rule {
    name: String,
    loads: bool,
    recipe: Option<String>,
    examples: Vec<toml::Table>,
}

fn rules() -> BTreeMap<String, Vec<Rule>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src/target/rules");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let file: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let text = |rule: &toml::Value, key: &str| rule.get(key).and_then(|v| v.as_str()).map(ToOwned::to_owned);
        let rule = |r: &toml::Value| Rule {
            name: text(r, "name").unwrap(),
            loads: text(r, "outcome").unwrap() == "loads",
            recipe: text(r, "recipe"),
            examples: r["yes"].as_array().unwrap().iter().map(|e| e.as_table().unwrap().clone()).collect(),
        };
        let engine = path.file_stem().unwrap().to_str().unwrap().to_owned();
        found.insert(engine, file["rule"].as_array().unwrap().iter().map(rule).collect());
    }
    found
}

/// The words of a command line as a shell takes them apart: single quotes hold.
fn words(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => out.push(String::new()),
            c => out.last_mut().unwrap().push(c),
        }
    }
    out
}

/// What an example can say of a plan, as `run_of` can make it. What it does not say is as in an ordinary run.
const SAID: [&str; 18] = [
    "act-order",
    "architecture",
    "bits",
    "branches",
    "container",
    "granularity",
    "group",
    "head-quantized",
    "input-granularity",
    "input-numbers",
    "inputs",
    "kept-layers",
    "mixed-widths",
    "multipliers",
    "online-rotations",
    "role",
    "symmetric",
    "weights",
];

/// An ordinary run, changed as an example says: format, algorithm and settings.
fn run_of(example: &toml::Table) -> (String, String, Sets) {
    let strange: Vec<&String> = example.keys().filter(|k| !SAID.contains(&k.as_str()) && *k != "version").collect();
    assert!(strange.is_empty(), "no run is known for {strange:?}");
    let mut sets = Sets::new();
    let mut set = |path: &str, value: &str| {
        sets.insert(path.to_owned(), value.to_owned());
    };
    let text = |key: &str, ordinary: &str| example.get(key).map_or(ordinary.to_owned(), |v| v.as_str().unwrap().to_owned());
    let flag = |key: &str| example.get(key).is_some_and(|v| v.as_bool().unwrap());
    let number = |key: &str, ordinary: i64| example.get(key).map_or(ordinary, |v| v.as_integer().unwrap());
    let numbers = text("weights", "int");
    match numbers.as_str() {
        "int" => {
            set("scheme.weights.format", &format!("int{}", number("bits", 4)));
            set(
                "scheme.weights.symmetric",
                if example.get("symmetric").is_some_and(|s| s.as_bool() == Some(false)) { "false" } else { "true" },
            );
        }
        "mxfp8" => set("scheme.weights.format", "mxfp8-e4m3"),
        other => set("scheme.weights.format", other),
    }
    let group = number("group", 128);
    match text("granularity", "group").as_str() {
        // The formats of four bits have groups of their own.
        "group" if numbers == "int" => set("scheme.weights.granularity.group", &group.to_string()),
        "group" => {}
        "block" => set("scheme.weights.granularity.block", &format!("[{group},{group}]")),
        other => set("scheme.weights.granularity", other),
    }
    if text("inputs", "kept") != "kept" {
        set("scheme.inputs.format", &text("input-numbers", "int8"));
        set("scheme.inputs.timing", &text("inputs", "kept"));
        set("scheme.inputs.granularity", &text("input-granularity", "token"));
    }
    if flag("head-quantized") || text("role", "layer") == "head" {
        set("model.tie-policy", "untie");
        set("scheme.head.format", "int4");
        set("scheme.head.granularity.group", "32");
    }
    if flag("act-order") {
        set("gptq.act-order", "group");
    }
    if flag("online-rotations") {
        set("spinquant.rotations", "[\"r1\",\"r4\"]");
        set("spinquant.online-block", "128");
    }
    if flag("kept-layers") {
        set("scheme.skip", "['head','embed','mlp.down']");
    }
    if flag("mixed-widths") {
        set("override", "[{match=\"mlp.down\",weights={format=\"int8\"}}]");
    }
    if flag("multipliers") {
        set("smoothquant.stand-alone", "true");
    }
    let algo = match () {
        () if flag("multipliers") => "smoothquant,rtn",
        () if flag("act-order") => "gptq",
        () if flag("online-rotations") => "spinquant,rtn",
        () if flag("branches") => "svdquant,rtn",
        () => "rtn",
    };
    (text("container", "compressed-tensors"), algo.to_owned(), sets)
}

/// `qfw plan` of an example with a recipe pasted behind it.
fn planned(target: &str, model: &Path, example: &toml::Table, recipe: &str) -> Ran {
    let (mut format, mut algo, mut sets) = run_of(example);
    let mut preset = None;
    let given = if recipe.is_empty() { Vec::new() } else { words(recipe) };
    for pair in given.chunks(2) {
        let [flag, value] = pair else { panic!("`{recipe}` is no list of pairs") };
        match flag.as_str() {
            "--format" => format.clone_from(value),
            "--algo" => algo.clone_from(value),
            "--preset" => {
                preset = Some(value.clone());
                algo.clear();
                sets.retain(|path, _| !path.starts_with("scheme."));
            }
            "--set" => {
                let (path, value) = value.split_once('=').unwrap();
                // A part of the scheme is one thing, however it is spelled.
                let part = path.split('.').take(if path.starts_with("scheme.head") { 2 } else { 3 }).collect::<Vec<_>>().join(".");
                sets.retain(|p, _| !p.starts_with(&part));
                sets.insert(path.to_owned(), value.to_owned());
            }
            other => panic!("`{other}` in `{recipe}`"),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (out, data) = (dir.path().join("out").display().to_string(), asset("text/calibration.txt"));
    let mut all: Vec<String> =
        ["plan", "--json", "--target", target, "--data", &data, "-o", &out, "--format", &format].map(ToOwned::to_owned).to_vec();
    all.push(model.display().to_string());
    all.extend(preset.into_iter().flat_map(|p| ["--preset".to_owned(), p]));
    all.extend(Some(algo).filter(|a| !a.is_empty()).into_iter().flat_map(|a| ["--algo".to_owned(), a]));
    sets.insert("calibration.samples".to_owned(), "2".to_owned());
    sets.insert("calibration.seq-len".to_owned(), "32".to_owned());
    all.extend(sets.iter().flat_map(|(path, value)| ["--set".to_owned(), format!("{path}={value}")]));
    qfw(&all)
}

/// A tiny model of an architecture.
fn model(architecture: &str, dir: &Path) -> PathBuf {
    match architecture {
        "llama" => asset("tiny-llama").into(),
        "gpt2" => asset("tiny-gpt2").into(),
        "mistral" => {
            let out = dir.join(architecture);
            if !out.exists() {
                copied(Path::new(&asset("tiny-llama")), &out);
                let file = out.join("config.json");
                let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
                config["model_type"] = architecture.into();
                config["sliding_window"] = serde_json::Value::Null;
                std::fs::write(file, config.to_string()).unwrap();
            }
            out
        }
        other => panic!("no tiny model of `{other}`"),
    }
}

/// Every rule's recipe, on every plan that the rule says it decides, and of rules about what loads those plans themselves.
#[test]
fn every_recipe_gives_something_that_loads() {
    let dir = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for (engine, rules) in rules() {
        for rule in rules {
            let Some(recipe) = &rule.recipe else { continue };
            for example in &rule.examples {
                let architecture = example.get("architecture").map_or("llama", |a| a.as_str().unwrap());
                let keeps = |k: &str| ["architecture", "version"].contains(&k);
                let ordinary: toml::Table = example.iter().filter(|(k, _)| keeps(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
                let target = example.get("version").map_or_else(|| engine.clone(), |v| format!("{engine}@{}", v.as_str().unwrap()));
                // A rule about what loads has its recipe for whoever begins, and its examples load as they are.
                let runs = if rule.loads { vec![(example, ""), (&ordinary, recipe.as_str())] } else { vec![(example, recipe.as_str())] };
                for (example, recipe) in runs {
                    let what = format!("{target} `{}` {example:?} {recipe}", rule.name);
                    let ran = planned(&target, &model(architecture, dir.path()), example, recipe);
                    assert_eq!(ran.code, Some(0), "{what}: {}", ran.stderr);
                    let judged = ran.json()["target"]["formats"][0].clone();
                    assert_eq!(judged["outcome"], "loads", "{what}: {judged}");
                    assert!(!recipe.is_empty() || judged["because"][0]["rule"] == rule.name, "{what}: {judged}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 60, "{tried}");
}
