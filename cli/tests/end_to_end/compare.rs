//! Two models side by side.

use std::path::Path;

use candle_core::{Device, Tensor};
use qfw_core::evaluate::logits;
use qfw_core::model::WeightSource;
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::topology::{Part, Role, SiteId};
use serde_json::{Value, json};

use super::{Ran, apply, args, asset, copied, eval, qfw};

const WINDOWS: &str = "--seq-len 128 --max-windows 24";

fn compared(a: &Path, b: &Path, more: &str) -> Ran {
    let data = asset("text/evaluation.txt");
    let all = args(&format!("compare {more}"), &[&a.display().to_string(), &b.display().to_string()]);
    qfw(&all.into_iter().map(|word| if word == "DATA" { data.clone() } else { word }).collect::<Vec<_>>())
}

fn object(a: &Path, b: &Path, more: &str) -> Value {
    compared(a, b, &format!("--json {more}")).ok().json()
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is no number"))
}

/// All of it, in f64 from whole logits and whole weights: what it is by definition.
#[test]
fn it_is_the_definition() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let three = "--set scheme.weights.format=int3 --set scheme.weights.granularity.group=32";
    apply("tiny-gpt2", &out, &format!("--algo svdquant,rtn --set svdquant.rank=4 --format qfw {three}"));
    let (float, ids) = (asset("tiny-gpt2"), dir.path().join("ids.safetensors"));
    let float = Path::new(&float);
    let windows: Vec<Vec<u32>> = (0..3).map(|w| (0..40).map(|t| (w * 131 + t * t * 17 + 5) % 500).collect()).collect();
    Tensor::new(windows.clone(), &Device::Cpu).unwrap().save_safetensors("input_ids", &ids).unwrap();
    let got = object(float, &out, &format!("--data {} --seq-len 40 --threads 2", ids.display()));
    let registry = Registry::linked().unwrap();
    let [a, b] = [float, &out].map(|path| Opened::open(path, &registry).unwrap().model);
    let (mut kl, mut same, mut losses) = (vec![], vec![], vec![]);
    for ids in &windows {
        let rows = |m| -> Vec<Vec<f64>> {
            let z: Vec<Vec<f32>> = logits(m, ids).unwrap().to_vec2().unwrap();
            z.iter().map(|row| log_softmax(row)).collect()
        };
        let (a, b) = (rows(&a), rows(&b));
        let scored = ids.len() - 1;
        let mean = |f: &dyn Fn(usize) -> f64| (0..scored).map(f).sum::<f64>() / scored as f64;
        kl.push(mean(&|t| a[t].iter().zip(&b[t]).map(|(p, q)| p.exp() * (p - q)).sum()));
        same.push(mean(&|t| f64::from(u8::from(likeliest(&a[t]) == likeliest(&b[t])))));
        losses.push(mean(&|t| a[t][ids[t + 1] as usize] - b[t][ids[t + 1] as usize]));
    }
    let on_data = &got["on_data"];
    for (name, values) in [("kl", &kl), ("top1", &same), ("loss_difference", &losses)] {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let error = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
        for (key, want) in [(name.to_owned(), mean), (format!("{name}_stderr"), error)] {
            let found = number(&on_data[&key]);
            assert!((found - want).abs() < 2e-6 * want.abs().max(0.1), "{key}: {found}, not {want}");
        }
    }
    assert!(kl.iter().all(|k| *k > 0.01), "{kl:?}");
    let down = SiteId::in_block(3, Role::MlpDown);
    let whole = |m: &qfw_core::model::Model| {
        let w = m.weights.get(down, Part::Weight).unwrap();
        let branch = m.weights.branch(down).unwrap().map(|x| x.b.matmul(&x.a).unwrap());
        branch.map_or(w.clone(), |x| (w + x).unwrap())
    };
    let (a, b) = (whole(&a), whole(&b));
    let norm = |t: Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
    let want = norm((&b - &a).unwrap()) / norm(a);
    let found = got["weights"]["matrices"].as_array().unwrap().iter().find(|m| m["site"] == "blocks.3.mlp.down");
    let found = number(&found.unwrap_or_else(|| panic!("{}", got["weights"]))["error"]);
    assert!((found - want).abs() < 1e-4 * want && want > 0.01, "{found}, not {want}");
}

fn log_softmax(z: &[f32]) -> Vec<f64> {
    let max = z.iter().copied().fold(f32::MIN, f32::max);
    let sum = z.iter().map(|z| f64::from(z - max).exp()).sum::<f64>().ln() + f64::from(max);
    z.iter().map(|z| f64::from(*z) - sum).collect()
}

fn likeliest(z: &[f64]) -> usize {
    (0..z.len()).rev().max_by(|i, j| z[*i].total_cmp(&z[*j])).unwrap()
}

/// A model and itself, in whatever container, and at any number of threads and any budget.
#[test]
fn a_model_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, "--algo rtn --format qfw,compressed-tensors,gguf --set scheme.weights.granularity.group=32");
    let native = out.join("qfw");
    let data = format!("--data DATA {WINDOWS}");
    for part in ["qfw", "compressed-tensors", "gguf"] {
        let same = object(&native, &out.join(part), &data);
        let c = &same["on_data"];
        for key in ["embedding_error", "kl", "kl_stderr", "top1_stderr", "loss_difference", "loss_difference_stderr"] {
            assert_eq!(c[key], 0.0, "{part}: {key}");
        }
        assert_eq!(c["top1"], 1.0, "{part}");
        assert!(c["block_errors"].as_array().unwrap().iter().all(|e| *e == 0.0), "{part}: {c}");
        assert!(same["weights"]["matrices"].as_array().unwrap().iter().all(|m| m["error"] == 0.0), "{part}");
    }
    // Both perplexities are those of `eval`, which adds exponentials in f32, and the loss differs by what they differ.
    let float = asset("tiny-llama");
    let float = Path::new(&float);
    let c = &object(float, &native, &data)["on_data"];
    assert!(number(&c["kl"]) > 1e-3 && number(&c["top1"]) < 1.0, "{c}");
    for (key, path) in [("a", float), ("b", &native)] {
        let alone: Value = serde_json::from_str(&eval(path)).unwrap();
        for field in ["tokens", "windows", "seq_len", "protocol", "data_hash"] {
            assert_eq!(c[key][field], alone[field], "{key}: {field}");
        }
        for field in ["perplexity", "perplexity_stderr"] {
            assert!((number(&c[key][field]) / number(&alone[field]) - 1.0).abs() < 1e-6, "{key}: {c} {alone}");
        }
    }
    let difference = (number(&c["b"]["perplexity"]) / number(&c["a"]["perplexity"])).ln();
    assert!((number(&c["loss_difference"]) - difference).abs() < 1e-9, "{c}");
    let one = compared(float, &native, &format!("--json {data} --threads 1")).ok().stdout;
    for other in ["--threads 3", "--threads 3 --budget 100kB"] {
        let other = compared(float, &native, &format!("--json {data} {other}")).ok().stdout;
        assert!(one == other);
    }
}

/// The worse it is rounded, the further away; a rotated one computes the same with other weights, and that is said.
#[test]
fn what_a_person_reads() {
    let dir = tempfile::tempdir().unwrap();
    let float = asset("tiny-llama");
    let float = Path::new(&float);
    let [four, two, rotated] = ["four", "two", "rotated"].map(|n| dir.path().join(n));
    let group = "--format qfw --set scheme.weights.granularity.group=32";
    apply("tiny-llama", &four, &format!("--algo rtn {group}"));
    apply("tiny-llama", &two, &format!("--algo rtn {group} --set scheme.weights.format=int2"));
    apply("tiny-llama", &rotated, "--algo quarot --format qfw --set harness.no-quantize=true --set model.dtype=float32");
    let data = format!("--data DATA {WINDOWS}");
    let (near, far) = (object(float, &four, &data), object(float, &two, &data));
    for key in ["kl", "loss_difference"] {
        assert!(number(&far["on_data"][key]) > 5.0 * number(&near["on_data"][key]), "{key}");
    }
    assert!(number(&far["on_data"]["top1"]) < number(&near["on_data"]["top1"]));
    let text = compared(float, &four, &data).ok().stdout;
    for part in [
        "weights     relative error",
        "  mlp.down  0.",
        "blocks.",
        "  embed     0.0000\n",
        "blocks      relative error",
        "after 0.0000 of the embedding",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    for part in ["KL(A‖B)     0.", "top-1       ", "loss        ", "perplexity  ", "protocol    gptq: 24 windows of 128 tokens"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let other = "one of the models is rotated or scaled";
    assert!(!text.contains(other), "{text}");
    let turned = compared(float, &rotated, &data).ok().stdout;
    assert!(turned.contains(other) && turned.contains("top-1       100.00 %"), "{turned}");
    let weights = compared(float, &four, "").ok().stdout;
    assert!(weights.contains("give `--data FILE` to compare what they compute") && !weights.contains("KL"), "{weights}");
    assert_eq!(object(float, &four, "")["on_data"], json!(null));
    // Weights of a family that is not known have the names they are stored by, and the same errors.
    let known = object(float, &four, "");
    let [float, four] = [float.to_owned(), four].map(|from| {
        let to = dir.path().join(format!("unknown-{}", from.file_name().unwrap().display()));
        copied(&from, &to);
        let path = to.join("config.json");
        let text = std::fs::read_to_string(&path).unwrap().replacen("\"model_type\": \"llama\"", "\"model_type\": \"never-heard\"", 1);
        std::fs::write(path, text).unwrap();
        to
    });
    let ran = compared(&float, &four, "--json").ok();
    assert!(ran.stderr.contains("model_type `never-heard` is unknown"), "{}", ran.stderr);
    let unknown = ran.json();
    let error = |v: &Value, site: &str| {
        let all = v["weights"]["matrices"].as_array().unwrap();
        number(&all.iter().find(|m| m["site"] == site).unwrap_or_else(|| panic!("{v}"))["error"])
    };
    assert_eq!(error(&unknown, "model.layers.2.mlp.down_proj.weight"), error(&known, "blocks.2.mlp.down"));
}

#[test]
fn what_cannot_be_compared_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let [llama, gpt2] = ["tiny-llama", "tiny-gpt2"].map(asset);
    let (llama, gpt2) = (Path::new(&llama), Path::new(&gpt2));
    let refused = |a: &Path, b: &Path, more: &str, code: i32, parts: &[&str]| {
        let ran = compared(a, b, more);
        assert_eq!(ran.code, Some(code), "{more}: {}", ran.stderr);
        for part in parts {
            assert!(ran.stderr.contains(part), "{more}: {}\n{part}", ran.stderr);
        }
    };
    // Weights of two families: what has one name and one shape.
    let said = compared(llama, gpt2, "").ok().stdout;
    assert!(said.contains("not compared: `blocks.0.attn.q` is in A only") && said.contains("`blocks.0.attn.qkv` is in B only"), "{said}");
    refused(llama, gpt2, "--seq-len 64", 2, &["--data"]);
    refused(llama, Path::new("nowhere"), "", 1, &["nowhere"]);
    refused(llama, llama, "--data DATA --protocol gtpq", 2, &["unknown protocol `gtpq`"]);
    // Other blocks, and a tokenizer that was changed.
    let shorter = dir.path().join("shorter");
    copied(llama, &shorter);
    let change = |file: &str, f: &dyn Fn(&mut Value)| {
        let path = shorter.join(file);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        f(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    };
    change("config.json", &|c| c["num_hidden_layers"] = json!(c["num_hidden_layers"].as_u64().unwrap() - 1));
    refused(llama, &shorter, "--data DATA --max-windows 2", 2, &["compare::other-model", "blocks, and B has", "hint: "]);
    change("tokenizer.json", &|t| t["model"]["merges"] = json!([]));
    refused(llama, &shorter, "--data DATA --max-windows 2", 1, &["compare::tokenizers", "hint: "]);
}
