//! What both systems have in common, and how their tests look at a translation.

use qfw_core::Error;
use toml::{Table, Value};

use super::{System, Translation, translate};

/// The translation of words separated by blanks.
pub(super) fn translated(system: System, words: &str) -> Result<Translation, Error> {
    let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    translate(system, &words)
}

/// Fails unless all of `fragment`, a piece of TOML, stands in `toml`.
#[track_caller]
pub(super) fn holds(toml: &str, fragment: &str, what: &str) {
    let read = |text: &str| Value::Table(text.parse::<Table>().unwrap_or_else(|e| panic!("{what}: {e}\n{text}")));
    assert!(contains(&read(toml), &read(fragment)), "{what}: `{fragment}` is not in\n{toml}");
}

fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Table(whole), Value::Table(part)) => part.iter().all(|(key, p)| whole.get(key).is_some_and(|w| contains(w, p))),
        (Value::Array(whole), Value::Array(part)) => whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| contains(w, p)),
        (whole, part) => whole == part,
    }
}

fn message(system: System, words: &str) -> String {
    let e = translated(system, words).unwrap_err();
    format!("{}: {e}", e.code())
}

#[test]
fn what_cannot_be_read_is_named() {
    let brevitas = |words| message(System::Brevitas, words);
    for (words, expected) in [
        (
            "--weight-bit-witdh 4",
            "compat::unknown-flag: `--weight-bit-witdh` is not known of Brevitas (did you mean `--weight-bit-width`?)",
        ),
        ("--frobnicate", "compat::unknown-flag: `--frobnicate` is not known of Brevitas"),
        ("--weight-bit-width", "compat::value: `--weight-bit-width`: a value is missing; it takes a whole number"),
        ("--weight-bit-width --gptq", "compat::value: `--weight-bit-width`: a value is missing; it takes a whole number"),
        ("--weight-bit-width=four", "compat::value: `--weight-bit-width`: expected a whole number, got `four`"),
        ("--scaling-min-val nan", "compat::value: `--scaling-min-val`: expected a finite number, got `nan`"),
        ("--gptq=perhaps", "compat::value: `--gptq`: expected `true` or `false`, got `perhaps`"),
        (
            "--weight-quant-type asymm",
            "compat::value: `--weight-quant-type`: unknown value `asymm` (did you mean `asym`?); known: sym, asym",
        ),
        ("model.safetensors", "compat::usage: `model.safetensors` is neither a flag nor the value of one"),
        ("--config", "compat::usage: `--config` needs a file"),
        ("--config no/such/file.yml", "io: cannot read `no/such/file.yml`"),
    ] {
        assert_eq!(brevitas(words), expected, "{words}");
    }
    assert_eq!(
        message(System::MiOptimize, "w_dtpye=int4"),
        "compat::unknown-flag: `w_dtpye` is not known of MI-optimize (did you mean `w-dtype`?)"
    );
}

#[test]
fn files_that_are_no_tables_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yml");
    let shown = path.display().to_string();
    for (text, expected) in [
        ("- gptq\n", format!("compat::file: `{shown}` holds a list, not keys with values")),
        ("gptq\n", format!("compat::file: `{shown}` holds a single value, not keys with values")),
        ("a: [\n", format!("compat::file: `{shown}` is neither YAML nor JSON")),
        ("few_shot_tasks: [{a: 1}]\n", format!("compat::file: `few_shot_tasks` of `{shown}`: an element is a table")),
        ("weight_bit_width: [4, 8]\n", format!("compat::value: `weight_bit_width` of `{shown}`: expected a whole number, got a list of 2")),
        ("weight_bit_wdith: 4\n", {
            format!("compat::unknown-flag: `weight_bit_wdith` of `{shown}` is not known of Brevitas (did you mean `weight-bit-width`?)")
        }),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(message(System::Brevitas, &format!("--config {shown}")), expected, "{text}");
    }
    std::fs::write(&path, "").unwrap();
    translated(System::Brevitas, &format!("--config {shown}")).unwrap();
}
