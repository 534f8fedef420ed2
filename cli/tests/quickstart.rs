//! The first thing a new user runs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::process::Command;

/// Perplexity by model and method, from the command's JSON.
fn quickstart() -> BTreeMap<(String, String), f64> {
    let out = Command::new(env!("CARGO_BIN_EXE_qfw")).args(["quickstart", "--json"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let rows: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let mut table = BTreeMap::new();
    for row in rows.as_array().unwrap() {
        let path = std::path::PathBuf::from(row["path"].as_str().unwrap());
        assert!(path.join("config.json").exists() && path.join("tokenizer.json").exists(), "{}", path.display());
        let key = (row["model"].as_str().unwrap().to_owned(), row["method"].as_str().unwrap().to_owned());
        table.insert(key, row["perplexity"].as_f64().unwrap());
    }
    let first = rows[0]["path"].as_str().unwrap();
    let _ = std::fs::remove_dir_all(std::path::Path::new(first).parent().unwrap());
    table
}

#[test]
fn the_binary_stays_below_60_megabytes() {
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_qfw")).unwrap().len();
    // What is built for debugging carries its symbols.
    assert!(cfg!(debug_assertions) || size < 60_000_000, "{size} bytes");
}

#[test]
fn gptq_beats_rounding_to_nearest_and_fewer_bits_cost_more() {
    let table = quickstart();
    for model in ["tiny-llama", "tiny-gpt2"] {
        let p = |method: &str| table[&(model.to_owned(), method.to_owned())];
        assert!(p("float") < p("GPTQ W4"), "{model}: {table:?}");
        assert!(p("GPTQ W4") < p("RTN W4"), "{model}: {table:?}");
        assert!(p("GPTQ W4") < p("GPTQ W3") && p("GPTQ W3") < p("GPTQ W2"), "{model}: {table:?}");
    }
    // What its training recorded (cli/assets/README.md). The other model's figure there begins with a BOS token, which shifts every window.
    assert!((table[&("tiny-gpt2".to_owned(), "float".to_owned())] - 35.427).abs() < 0.02, "{table:?}");
    assert_eq!(table, quickstart(), "two runs differ");
}
