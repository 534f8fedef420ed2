//! Vocabularies made here, loaded by Hugging Face's own library.

use tokenizers::Tokenizer;

use super::fixture::Fixture;
use super::{GgufFile, chat_template, tokenizer_config, tokenizer_json};

/// The 256 byte characters of byte-level BPE, in the order of the bytes: printable ones stand for themselves, the rest follow from 256.
fn byte_characters() -> Vec<String> {
    let printable = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = |b: u32| if printable(&b) { b } else { 256 + (0..b).filter(|b| !printable(b)).count() as u32 };
    (0..256).map(|b| char::from_u32(code(b)).unwrap().to_string()).collect()
}

/// Byte-level BPE: `<|end|>`, the bytes, and a few merges.
fn byte_level(pre: &str) -> Fixture {
    let merges = ["h e", "l l", "he ll", "hell o", "\u{120} hello", "1 2", "12 3", "123 4", "' S"];
    let mut tokens = vec!["<|end|>".to_owned()];
    tokens.extend(byte_characters());
    tokens.extend(merges.iter().map(|m| m.replacen(' ', "", 1)));
    let mut f = Fixture::new("gpt2");
    f.text("tokenizer.ggml.model", "gpt2");
    f.text("tokenizer.ggml.pre", pre);
    f.texts("tokenizer.ggml.tokens", &tokens.iter().map(String::as_str).collect::<Vec<_>>());
    let mut types = vec![1; tokens.len()];
    types[0] = 3;
    f.ints("tokenizer.ggml.token_type", &types);
    f.texts("tokenizer.ggml.merges", &merges);
    f.uint("tokenizer.ggml.bos_token_id", 0);
    f
}

/// SentencePiece: `<unk> <s> </s>`, the bytes, letters and pieces with scores.
fn sentence_piece() -> Fixture {
    let pieces =
        [("\u{2581}", -9.0), ("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -1.0), ("bc", -0.5), ("\u{2581}ab", -2.0), ("abc", -3.0)];
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(pieces.iter().map(|(p, _)| (*p).to_owned()));
    let mut types = vec![1; tokens.len()];
    types[..3].copy_from_slice(&[2, 3, 3]);
    types[3..259].fill(6);
    let mut scores = vec![0.0; 259];
    scores.extend(pieces.iter().map(|(_, s)| *s));
    let mut f = Fixture::new("llama");
    f.text("tokenizer.ggml.model", "llama");
    f.texts("tokenizer.ggml.tokens", &tokens.iter().map(String::as_str).collect::<Vec<_>>());
    f.ints("tokenizer.ggml.token_type", &types);
    f.floats("tokenizer.ggml.scores", &scores);
    f
}

fn tokenizer(f: &Fixture) -> Tokenizer {
    let file = f.write();
    let json = tokenizer_json(&GgufFile::open(&file.path).unwrap()).unwrap();
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn pieces(f: &Fixture, text: &str) -> Vec<String> {
    tokenizer(f).encode(text, true).unwrap().get_tokens().to_vec()
}

fn refusal(f: &Fixture) -> String {
    let file = f.write();
    let error = tokenizer_json(&GgufFile::open(&file.path).unwrap()).unwrap_err();
    assert!(error.hint_text().is_some());
    error.to_string().strip_prefix(&format!("`{}`: ", file.path.display())).expect("the message begins with the file").to_owned()
}

/// Digits, letter case of contractions and line ends are where the expressions differ.
#[test]
fn each_pre_tokenizer_splits_as_its_model_does() {
    let text = "hello hello 12345'S";
    let with = |pre: &str| pieces(&byte_level(pre), text).join("|");
    assert_eq!(with("gpt-2"), "hello|\u{120}hello|\u{120}|1234|5|'|S");
    assert_eq!(with("default"), with("gpt-2"));
    assert_eq!(with("llama-bpe"), "<|end|>|hello|\u{120}hello|\u{120}|123|4|5|'S");
    assert_eq!(with("qwen2"), "hello|\u{120}hello|\u{120}|1|2|3|4|5|'S");
    assert_eq!(with("smollm"), "hello|\u{120}hello|\u{120}|1|2|3|4|5|'|S");
    let known = "default, gpt-2, llama-bpe, llama3, llama-v3, qwen2, deepseek-r1-qwen, smollm";
    let file = byte_level("tekken").write();
    let error = tokenizer_json(&GgufFile::open(&file.path).unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("pre-tokenizer `tekken` is not supported"));
    assert_eq!(error.hint_text().unwrap(), format!("known are {known}; give the Hugging Face checkpoint"));
}

#[test]
fn byte_level_text_comes_back() {
    let t = tokenizer(&byte_level("smollm"));
    for text in ["hello", "Grüße, 世界 🙂\n\n\t1 + 2 = 3;", "  two  spaces "] {
        let ids = t.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(t.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn control_tokens_are_found_in_text_and_normal_ones_are_not_special() {
    assert_eq!(pieces(&byte_level("gpt-2"), "hello<|end|>hello"), ["hello", "<|end|>", "hello"]);
    let t = tokenizer(&byte_level("gpt-2"));
    assert_eq!(t.decode(&[0, 1 + u32::from(b'h')], true).unwrap(), "h");
}

/// `bc` has the best score, so `abc` is `a bc` first, and `a bc` has a merge to `abc`.
#[test]
fn sentence_piece_merges_follow_the_scores() {
    let f = sentence_piece();
    assert_eq!(pieces(&f, "ab"), ["<s>", "\u{2581}ab"]);
    assert_eq!(pieces(&f, "abc"), ["<s>", "\u{2581}", "abc"]);
    assert_eq!(pieces(&f, "ab ab"), ["<s>", "\u{2581}ab", "\u{2581}ab"]);
    assert_eq!(pieces(&f, "é"), ["<s>", "\u{2581}", "<0xC3>", "<0xA9>"]);
    let t = tokenizer(&f);
    let ids = t.encode("ab éc", true).unwrap().get_ids().to_vec();
    assert_eq!(t.decode(&ids, true).unwrap(), "ab éc");
}

#[test]
fn stated_options_of_sentence_piece_are_followed() {
    let mut f = sentence_piece();
    f.bool("tokenizer.ggml.add_space_prefix", false);
    f.bool("tokenizer.ggml.add_bos_token", false);
    f.bool("tokenizer.ggml.add_eos_token", true);
    assert_eq!(pieces(&f, "ab"), ["ab", "</s>"]);
}

#[test]
fn the_tokenizer_configuration_names_the_special_tokens() {
    let mut f = byte_level("gpt-2");
    f.text("tokenizer.chat_template", "{{ messages }}");
    let file = f.write();
    let file = GgufFile::open(&file.path).unwrap();
    assert_eq!(chat_template(&file), Some("{{ messages }}"));
    let config = tokenizer_config(&file).unwrap();
    assert_eq!((&config["bos_token"], &config["add_bos_token"]), (&"<|end|>".into(), &false.into()));
    assert_eq!(config["chat_template"], "{{ messages }}");
}

#[test]
fn damaged_vocabularies_are_refused() {
    let bare = |tokens: &[&str], merges: &[&str]| {
        let mut f = Fixture::new("gpt2");
        f.text("tokenizer.ggml.model", "gpt2");
        f.texts("tokenizer.ggml.tokens", tokens);
        f.texts("tokenizer.ggml.merges", merges);
        f
    };
    assert_eq!(refusal(&Fixture::new("gpt2")), "metadata `tokenizer.ggml.model` is missing");
    assert_eq!(refusal(&bare(&["a", "b", "a"], &[])), "tokens 0 and 2 are both `a`");
    assert_eq!(refusal(&bare(&["a"], &["ab"])), "merge `ab` has no space between two pieces");
    assert_eq!(refusal(&bare(&["a"], &[""])), "merge `` has no space between two pieces");
    assert_eq!(refusal(&bare(&["a", "b"], &["a b"])), "merge `a b` needs the token `ab`, which is not in the vocabulary");
    let mut f = bare(&["a"], &[]);
    f.ints("tokenizer.ggml.token_type", &[1, 1]);
    assert_eq!(refusal(&f), "metadata `tokenizer.ggml.token_type` has 2 entries and there are 1 tokens");
    let mut f = bare(&["a"], &[]);
    f.bool("tokenizer.ggml.add_bos_token", true);
    assert_eq!(refusal(&f), "the bos token is to be added, and `tokenizer.ggml.bos_token_id` is missing");
    f.uint("tokenizer.ggml.bos_token_id", 7);
    assert_eq!(refusal(&f), "metadata `tokenizer.ggml.bos_token_id` is 7 and there are 1 tokens");
    let mut f = Fixture::new("llama");
    f.text("tokenizer.ggml.model", "bert");
    assert_eq!(refusal(&f), "tokenizer model `bert` is not supported; `gpt2` and `llama` are");
    let mut f = Fixture::new("llama");
    f.text("tokenizer.ggml.model", "llama");
    f.texts("tokenizer.ggml.tokens", &["a"]);
    assert_eq!(refusal(&f), "metadata `tokenizer.ggml.scores` is missing");
    f.floats("tokenizer.ggml.scores", &[f32::NAN]);
    f.uint("tokenizer.ggml.bos_token_id", 0);
    assert_eq!(refusal(&f), "the score of token 0 is not a number");
}
