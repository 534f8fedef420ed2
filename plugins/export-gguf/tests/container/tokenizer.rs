//! Tokenizers as keys of a file, and what has none.

use qfw_core::checkpoint::gguf::{self, GgufFile};
use serde_json::{Value, json};

use super::header::model;
use super::models::{Model, llama, tokenizer};

/// SentencePiece's BPE as Hugging Face stores it: merges by rank, which become scores and again merges.
#[test]
fn sentence_piece_is_read_back() {
    let blank = "\u{2581}";
    let normalizer = json!({ "type": "Sequence", "normalizers": [
        { "type": "Prepend", "prepend": blank }, { "type": "Replace", "pattern": { "String": " " }, "content": blank },
    ] });
    let vocab = json!({ "<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, blank: 4, "a": 5, format!("{blank}a"): 6, "aa": 7 });
    let merges = json!([[blank, "a"], ["a", "a"]]);
    let spm = json!({
        "added_tokens": [
            { "id": 0, "content": "<unk>", "special": true }, { "id": 1, "content": "<s>", "special": true }, { "id": 2, "content": "</s>", "special": true },
        ],
        "normalizer": normalizer, "pre_tokenizer": null, "post_processor": tokenizer()["post_processor"],
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges },
    });
    let config = r#"{ "bos_token": { "content": "<s>" }, "eos_token": "</s>", "chat_template": [{ "name": "default", "template": "T" }, { "name": "tools", "template": "U" }] }"#;
    let made = |spm: &Value| model(llama()).with("tokenizer.json", &spm.to_string()).with("tokenizer_config.json", config);
    let file = GgufFile::open(&made(&spm).write()).unwrap();
    let read = gguf::tokenizer_json(&file).unwrap();
    for key in ["vocab", "merges", "byte_fallback", "unk_token"] {
        assert_eq!(read["model"][key], spm["model"][key], "{key}");
    }
    assert_eq!((&read["normalizer"], &read["post_processor"]["single"]), (&spm["normalizer"], &spm["post_processor"]["single"]));
    assert_eq!(file.metadata.text("tokenizer.chat_template").unwrap(), Some("T"));
    assert_eq!(file.metadata.text("tokenizer.chat_template.tools").unwrap(), Some("U"));
    let types = file.metadata.ints("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types, [2, 3, 3, 6, 1, 1, 1, 1]);
    // Merges that make one token, with others between them, have no score.
    let mut apart = spm.clone();
    apart["model"]["vocab"] = json!({ "<unk>": 0, "<s>": 1, "</s>": 2, blank: 3, "a": 4, "aa": 5, "aaa": 6, format!("{blank}a"): 7 });
    apart["model"]["merges"] = json!(["a a", "a aa", [blank, "a"], "aa a"]);
    let files = "use `--format compressed-tensors` or `qfw`, which leave the tokenizer in its own files";
    assert_eq!(made(&apart).refusal(), format!("merges that make `aaa` are apart, and the scores of a GGUF file cannot say so | {files}"));
}

/// A vocabulary of SentencePiece with every merge there is, and steps around it that a test changes.
fn pieces(change: &dyn Fn(&mut Value)) -> Model {
    let blank = "\u{2581}";
    let mut spm = json!({
        "added_tokens": [
            { "id": 0, "content": "<unk>", "special": true }, { "id": 1, "content": "<s>", "special": true }, { "id": 2, "content": "</s>", "special": true },
        ],
        "normalizer": null, "pre_tokenizer": { "type": "Metaspace", "replacement": blank, "prepend_scheme": "first", "split": false },
        "post_processor": null,
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, blank: 4, "a": 5, format!("{blank}a"): 6, "aa": 7 },
            "merges": [[blank, "a"], ["a", "a"]] },
    });
    change(&mut spm);
    let config = r#"{ "bos_token": "<s>", "eos_token": "</s>" }"#;
    model(llama()).with("tokenizer.json", &spm.to_string()).with("tokenizer_config.json", config)
}

/// `Tokenizer.encode("a")` of `tokenizers` 0.23.3 begins with a blank for those, and only those, that say so here.
#[test]
fn blanks_before_texts_are_those_of_the_tokenizer() {
    let blank = "\u{2581}";
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": blank });
    let prepend = json!({ "type": "Prepend", "prepend": blank });
    let space = |scheme: &str| json!({ "type": "Metaspace", "replacement": blank, "prepend_scheme": scheme, "split": false });
    for (normalizer, words, before) in [
        (json!(null), space("always"), true),
        (json!(null), space("first"), true),
        (json!(null), space("never"), false),
        (json!(null), json!({ "type": "Sequence", "pretokenizers": [space("never")] }), false),
        (replace.clone(), json!(null), false),
        (json!({ "type": "Sequence", "normalizers": [replace.clone(), prepend.clone()] }), json!(null), true),
        (prepend.clone(), space("never"), true),
    ] {
        let file = GgufFile::open(
            &pieces(&|t| {
                t["normalizer"] = normalizer.clone();
                t["pre_tokenizer"] = words.clone();
            })
            .write(),
        );
        assert_eq!(file.unwrap().metadata.bool("tokenizer.ggml.add_space_prefix").unwrap(), Some(before), "{normalizer} {words}");
    }
}

/// What llama.cpp does to a text and its pieces is told by a flag and by scores, and what those cannot say is refused.
#[test]
fn what_scores_and_flags_cannot_say_is_refused() {
    let blank = "\u{2581}";
    let says = |change: &dyn Fn(&mut Value)| pieces(change).refusal();
    for (normalizer, kind) in [
        (json!({ "type": "NFKC" }), "NFKC"),
        (json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }), "Precompiled"),
        (json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }), "Regex"),
        (json!({ "type": "Sequence", "normalizers": [{ "type": "Lowercase" }, { "type": "Prepend", "prepend": blank }] }), "Lowercase"),
    ] {
        let text = says(&|t| t["normalizer"] = normalizer.clone());
        assert!(text.starts_with("llama.cpp has no place for the normalizer of this tokenizer: ") && text.contains(kind), "{text}");
    }
    for words in [
        json!({ "type": "Metaspace", "replacement": blank, "prepend_scheme": "always" }),
        json!({ "type": "Metaspace", "replacement": "_", "split": false }),
        json!({ "type": "Sequence", "pretokenizers": [{ "type": "Digits" }] }),
        json!(null),
    ] {
        let text = says(&|t| t["pre_tokenizer"] = words.clone());
        assert!(text.starts_with("llama.cpp has no name that is known here for how this tokenizer splits"), "{words}: {text}");
    }
    // A token that no merge makes, and one that only one of its two merges makes.
    let text = says(&|t| t["model"]["merges"] = json!([[blank, "a"]]));
    assert!(text.starts_with("llama.cpp would make `aa` of `a` and `a`, which no merge of this tokenizer does"), "{text}");
    let text = says(&|t| {
        t["model"]["vocab"] =
            json!({ "<unk>": 0, "<s>": 1, "</s>": 2, blank: 3, "a": 4, "aa": 5, format!("{blank}a"): 6, format!("{blank}aa"): 7 });
        t["model"]["merges"] = json!([["a", "a"], [blank, "a"], [blank, "aa"]]);
    });
    assert!(text.starts_with("llama.cpp would make `\u{2581}aa` of `\u{2581}a` and `a`"), "{text}");
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        assert!(says(&|t| t["model"][key] = json!("##")).contains(&format!("`{key}` = `##`")));
    }
}

/// What is put around texts is put there by llama.cpp, or refused.
#[test]
fn tokens_around_texts_are_those_of_the_template() {
    let token = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let text = || json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = |single: Value| {
        json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {
            "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] }, "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] } } })
    };
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
    for (processor, bos, eos) in [
        (json!(null), false, false),
        (bytes.clone(), false, false),
        (template(json!([text()])), false, false),
        (template(json!([token("<s>"), text()])), true, false),
        (template(json!([text(), token("</s>")])), false, true),
        (json!({ "type": "Sequence", "processors": [bytes.clone(), template(json!([token("<s>"), text(), token("</s>")]))] }), true, true),
    ] {
        let file = GgufFile::open(&pieces(&|t| t["post_processor"] = processor.clone()).write()).unwrap();
        let said = |role: &str| file.metadata.bool(&format!("tokenizer.ggml.add_{role}_token")).unwrap();
        assert_eq!((said("bos"), said("eos")), (Some(bos), Some(eos)), "{processor}");
    }
    let mut two = template(json!([token("<s>"), text()]));
    two["special_tokens"]["<s>"] = json!({ "id": "<s>", "ids": [1, 5], "tokens": ["<s>", "a"] });
    for (processor, says) in [
        (template(json!([token("<s>"), token("</s>"), text()])), "llama.cpp puts one token before a text"),
        (template(json!([text(), token("</s>"), token("<s>")])), "llama.cpp puts one token before a text"),
        (template(json!([token("<s>")])), "has no place for the text"),
        (two, "llama.cpp puts one token before a text"),
        (
            json!({ "type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1] }),
            "no counterpart of the post-processor `BertProcessing`",
        ),
        (
            json!({ "type": "Sequence", "processors": [template(json!([text()])), template(json!([text()]))] }),
            "`TemplateProcessing` behind a template",
        ),
    ] {
        let text = pieces(&|t| t["post_processor"] = processor.clone()).refusal();
        assert!(text.contains(says), "{processor}: {text}");
    }
}

#[test]
fn tokenizers_without_a_place_are_refused() {
    let files = "use `--format compressed-tensors` or `qfw`, which leave the tokenizer in its own files";
    let refusal = |change: &dyn Fn(&mut Value)| {
        let mut changed = tokenizer();
        change(&mut changed);
        model(llama()).with("tokenizer.json", &changed.to_string()).refusal()
    };
    assert_eq!(
        refusal(&|t| t["model"]["type"] = json!("Unigram")),
        format!("a tokenizer of type Unigram is not written to GGUF files, only BPE is | {files}")
    );
    assert_eq!(
        refusal(&|t| t["pre_tokenizer"] = json!({ "type": "Whitespace" })),
        format!(
            "llama.cpp has no name that is known here for how this tokenizer splits texts into words: {{\"type\":\"Whitespace\"}} | {files}"
        )
    );
    assert_eq!(
        refusal(&|t| t["model"]["vocab"]["z"] = json!(8)),
        format!("the id of token `z` is 8, and the model embeds 8 tokens | {files}")
    );
    assert_eq!(
        refusal(&|t| t["model"]["vocab"]["z"] = json!("8")),
        format!("the id of token `z` is none, and the model embeds 8 tokens | {files}")
    );
    assert_eq!(refusal(&|t| t["added_tokens"][1]["content"] = json!("a")), format!("tokens 1 and 5 are both `a` | {files}"));
    assert_eq!(
        refusal(&|t| t["model"]["merges"][0] = json!("ab")),
        format!("tokenizer.json has the merge \"ab\", which is no two pieces | {files}")
    );
    assert_eq!(
        refusal(&|t| t["model"]["merges"][0] = json!(["a ", "b"])),
        format!("the merge of `a ` and `b` has a blank in it, which a GGUF file takes for the space between | {files}")
    );
    assert_eq!(refusal(&|t| t["model"]["merges"] = json!(null)), format!("tokenizer.json has no merges | {files}"));
    assert_eq!(
        refusal(&|t| t["post_processor"]["single"][0]["SpecialToken"]["id"] = json!("a")),
        format!("the tokenizer adds `a` to every text, which is not its bos token | {files}")
    );
    let mut none = model(llama());
    none.checkpoint.made_files.clear();
    assert_eq!(
        none.refusal(),
        "a GGUF file holds its tokenizer, and there is no tokenizer.json beside the model | save the fast tokenizer beside the model, or use another format"
    );
}
