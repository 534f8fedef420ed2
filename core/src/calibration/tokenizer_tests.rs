use serde_json::json;

use super::*;

fn files(entries: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in entries {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn encodes_and_decodes() {
    let tokenizer = fixture();
    assert_eq!(tokenizer.encode("a c b", false).unwrap(), [1, 3, 2]);
    assert_eq!(tokenizer.encode("a <s>", true).unwrap(), [1, 5]);
    assert_eq!(tokenizer.decode(&[5, 1, 3]).unwrap(), "<s> a c");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(5), Some(6)));
}

/// The file's own truncation and padding would cut or lengthen the corpus.
#[test]
fn truncation_and_padding_of_the_file_are_off() {
    let mut json = fixture_json();
    json["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "?"});
    let tokenizer = Tokenizer::from_json(&json, None, None, None).unwrap();
    assert_eq!(tokenizer.encode("a b c", false).unwrap(), [1, 2, 3]);
}

#[test]
fn special_tokens_come_from_either_file() {
    let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null});
    let dir = files(&[
        ("tokenizer.json", fixture_json()),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", json!({"bos_token": "a", "eos_token": "</s>"})),
    ]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(5), Some(6)));

    let dir = files(&[("tokenizer.json", fixture_json()), ("tokenizer_config.json", json!({"bos_token": "<absent>"}))]);
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().bos(), None);
}

#[test]
fn the_template_file_goes_before_the_configured_one() {
    let messages = json!([]);
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    for (config, file, expected) in [(json!("one"), None, "one"), (named, None, "plain"), (json!("one"), Some("two"), "two")] {
        let mut entries = vec![("tokenizer.json", fixture_json()), ("tokenizer_config.json", json!({ "chat_template": config }))];
        entries.extend(file.map(|text| ("chat_template.jinja", json!(text))));
        let dir = files(&entries);
        assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().render_chat(&messages).unwrap(), expected);
    }
}

#[test]
fn errors_name_the_file_and_the_reason() {
    let dir = files(&[]);
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("`{}` has no tokenizer.json", dir.path().display()));
    let dir = files(&[("tokenizer.json", json!("{not json"))]);
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json` is not JSON: "), "{error}");
    let dir = files(&[("tokenizer.json", json!({"model": 3}))]);
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json`: cannot load the tokenizer: "), "{error}");
    let error = fixture_without_bos().render_chat(&json!([])).unwrap_err().to_string();
    assert_eq!(error, "the tokenizer has no chat template");
}

/// The library looks up what a template names without asking whether it is there, and would panic.
#[test]
fn templates_that_name_what_is_not_there_are_refused() {
    let with = |processor: Value| {
        let mut json = fixture_json();
        json["post_processor"] = processor;
        Tokenizer::from_json(&json, None, None, None)
    };
    let piece = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let template = |single: Value| {
        let tokens = json!({ "<s>": { "id": "<s>", "ids": [5], "tokens": ["<s>"] } });
        json!({ "type": "TemplateProcessing", "single": single, "pair": [text("A"), text("B")], "special_tokens": tokens })
    };
    assert_eq!(with(template(json!([piece("<s>"), text("A")]))).unwrap().encode("a", true).unwrap(), [5, 1]);
    let message = |processor: Value| with(processor).unwrap_err().to_string();
    let unknown = template(json!([piece("<t>"), text("A")]));
    let says = "cannot load the tokenizer: the template `single` has the token `<t>`, which is not among its special tokens";
    assert_eq!(message(unknown.clone()), says);
    assert_eq!(message(json!({ "type": "Sequence", "processors": [unknown] })), says);
    assert!(message(template(json!([text("B")]))).contains("the template `single` has a second text"));
}

/// Whatever else the library stops at is an error too.
#[test]
fn a_panic_of_the_library_is_an_error() {
    let e = super::contained(|| -> Result<()> { panic!("as the library might") }).unwrap_err();
    assert_eq!(e.code(), "tokenizer::malformed");
}
