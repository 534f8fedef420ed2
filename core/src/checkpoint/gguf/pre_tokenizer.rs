//! The pre-tokenizers of byte-level vocabularies, by their names in `tokenizer.ggml.pre`.
//!
//! A name stands for the expression that splits a text into words before merging. Names that share an expression share a row.

use serde_json::{Value, json};

/// What a name in `tokenizer.ggml.pre` stands for.
pub(super) struct PreTokenizer {
    /// The bos token is added unless the file says otherwise.
    pub(super) add_bos: bool,
    /// A word that is a token is that token, whatever its merges give.
    pub(super) ignore_merges: bool,
    pub(super) normalizer: Value,
    pub(super) steps: Value,
}

enum Words {
    /// The expression of GPT-2, built into the byte-level step.
    Gpt2,
    /// Every digit is a word, then the expression of GPT-2.
    DigitsThenGpt2,
    /// An expression of its own.
    Expression(&'static str),
}

struct Row {
    names: &'static [&'static str],
    words: Words,
    nfc: bool,
    add_bos: bool,
    ignore_merges: bool,
}

/// `default` stands in files without a name of their own; they are taken as GPT-2's.
const ROWS: &[Row] = &[
    Row { names: &["default", "gpt-2"], words: Words::Gpt2, nfc: false, add_bos: false, ignore_merges: false },
    Row {
        names: &["llama-bpe", "llama3", "llama-v3"],
        words: Words::Expression(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: false,
        add_bos: true,
        ignore_merges: true,
    },
    Row {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: Words::Expression(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: true,
        add_bos: false,
        ignore_merges: false,
    },
    Row { names: &["smollm"], words: Words::DigitsThenGpt2, nfc: false, add_bos: false, ignore_merges: false },
];

/// All names, for messages.
pub(super) fn known() -> String {
    ROWS.iter().flat_map(|r| r.names).copied().collect::<Vec<_>>().join(", ")
}

/// The name of what a `tokenizer.json` does before merging: its normalizer, its pre-tokenizer and whether whole words skip the merges.
/// `None` if no name known here stands for exactly that.
pub fn pre_tokenizer_name(tokenizer: &Value) -> Option<&'static str> {
    let skips = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let (normalizer, steps) = (plain(&tokenizer["normalizer"]), plain(&tokenizer["pre_tokenizer"]));
    // The first row is for files without a name, and shares its expression with a real one.
    ROWS.iter().flat_map(|r| r.names).filter(|name| **name != "default").copied().find(|name| {
        pre_tokenizer(name).is_some_and(|p| p.ignore_merges == skips && plain(&p.normalizer) == normalizer && plain(&p.steps) == steps)
    })
}

/// A step without what does not decide ids: offsets, and sequences of one.
fn plain(step: &Value) -> Value {
    let parts = step["pretokenizers"].as_array().or_else(|| step["normalizers"].as_array());
    match parts.map(Vec::as_slice) {
        Some([one]) => plain(one),
        Some([]) => Value::Null,
        Some(parts) => Value::Array(parts.iter().map(plain).collect()),
        None => {
            let mut step = step.clone();
            if let Some(keys) = step.as_object_mut() {
                keys.remove("trim_offsets");
                // Absent, these hold.
                if keys.get("type").and_then(Value::as_str) == Some("ByteLevel") {
                    keys.entry("use_regex").or_insert(Value::Bool(true));
                }
            }
            step
        }
    }
}

/// The pre-tokenizer called `name`.
pub(super) fn pre_tokenizer(name: &str) -> Option<PreTokenizer> {
    let row = ROWS.iter().find(|r| r.names.contains(&name))?;
    let bytes = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits});
    let sequence = |first: Value, splits: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(splits)]});
    let steps = match row.words {
        Words::Gpt2 => bytes(true),
        Words::DigitsThenGpt2 => sequence(json!({"type": "Digits", "individual_digits": true}), true),
        Words::Expression(e) => sequence(json!({"type": "Split", "pattern": {"Regex": e}, "behavior": "Isolated", "invert": false}), false),
    };
    let normalizer = if row.nfc { json!({"type": "NFC"}) } else { Value::Null };
    Some(PreTokenizer { add_bos: row.add_bos, ignore_merges: row.ignore_merges, normalizer, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again() {
        for name in ["gpt-2", "llama-bpe", "qwen2", "smollm"] {
            let p = pre_tokenizer(name).unwrap();
            let mut tokenizer = json!({
                "normalizer": p.normalizer, "pre_tokenizer": p.steps, "model": { "ignore_merges": p.ignore_merges },
            });
            assert_eq!(pre_tokenizer_name(&tokenizer), Some(name));
            tokenizer["model"]["ignore_merges"] = json!(!p.ignore_merges);
            assert_eq!(pre_tokenizer_name(&tokenizer), None);
        }
    }

    #[test]
    fn what_decides_no_id_does_not_count() {
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false });
        let tokenizer = json!({ "normalizer": null, "pre_tokenizer": { "type": "Sequence", "pretokenizers": [bytes] }, "model": {} });
        assert_eq!(pre_tokenizer_name(&tokenizer), Some("gpt-2"));
        let spaced = json!({ "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": true, "use_regex": true }, "model": {} });
        assert_eq!(pre_tokenizer_name(&spaced), None);
        assert_eq!(pre_tokenizer_name(&json!({})), None);
    }
}
