//! `tokenizer.json`, and with a line of `=====` between them, `tokenizer_config.json` with its chat template.

use qfw_core::calibration::Tokenizer;
use serde_json::json;

use crate::stage::Stage;
use crate::verdict::sound;
use crate::{Target, bases, frame};

pub(crate) const TARGET: Target = Target { name: "tokenizer", about: "tokenizer.json and tokenizer_config.json", run, seeds };

thread_local!(static STATE: Stage = Stage::empty());

fn run(data: &[u8]) {
    STATE.with(|stage| {
        let parts = frame::parts(data);
        stage.put("tokenizer.json", parts[0]);
        match parts.get(1) {
            Some(config) => stage.put("tokenizer_config.json", config),
            None => stage.remove("tokenizer_config.json"),
        }
        let Some(tokenizer) = sound(Tokenizer::from_dir(stage.path())) else { return };
        if let Some(ids) = sound(tokenizer.encode(" a man\u{e9} said: <s>12 things</s>\n", true)) {
            sound(tokenizer.decode(&ids));
        }
        sound(tokenizer.decode(&[0, 1, 7, 4_000_000_000]));
        sound(tokenizer.render_chat(&json!([{ "role": "user", "content": "a man" }])));
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let with = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut tokenizer = bases::tokenizer();
        change(&mut tokenizer);
        (name.to_owned(), tokenizer.to_string().into_bytes())
    };
    let template = "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {{ m.content.strip() | tojson(indent=1) }}{% endfor %}";
    let config = json!({ "bos_token": { "content": "<s>" }, "eos_token": "</s>", "chat_template": template }).to_string();
    let chat = [bases::tokenizer().to_string().as_bytes(), config.as_bytes()].join(frame::BETWEEN);
    vec![
        ("chat".to_owned(), chat),
        with("bpe", &|_| ()),
        with("wordlevel", &|t| {
            t["model"] = json!({ "type": "WordLevel", "unk_token": "?", "vocab": { "?": 0, "a": 1, "man": 2 } });
            t["pre_tokenizer"] =
                json!({ "type": "Sequence", "pretokenizers": [{ "type": "Whitespace" }, { "type": "Digits", "individual_digits": true }] });
        }),
        with("wordpiece", &|t| {
            t["model"] = json!({ "type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                "vocab": { "?": 0, "a": 1, "m": 2, "##an": 3 } });
            t["normalizer"] = json!({ "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true });
            t["pre_tokenizer"] = json!({ "type": "BertPreTokenizer" });
            t["decoder"] = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
        }),
        with("unigram", &|t| {
            t["model"] = json!({ "type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": [["<unk>", 0.0], ["\u{2581}a", -1.5], ["man", -2.0], ["<0x0A>", -3.0]] });
            t["normalizer"] = json!({ "type": "Sequence", "normalizers": [{ "type": "NFKC" }, { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }, { "type": "Prepend", "prepend": "\u{2581}" }] });
            t["pre_tokenizer"] = json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": true });
            t["decoder"] = json!({ "type": "Sequence", "decoders": [{ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] });
        }),
        with("split", &|t| {
            t["pre_tokenizer"] =
                json!({ "type": "Split", "pattern": { "Regex": "\\p{L}+|\\s+(?!\\S)|." }, "behavior": "Isolated", "invert": false });
            t["model"]["byte_fallback"] = true.into();
        }),
    ]
}
