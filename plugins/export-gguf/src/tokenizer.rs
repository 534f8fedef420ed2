//! The tokenizer of a checkpoint as the keys of a file.
//!
//! Byte-level BPE is stored with its merges and the name of what splits texts into words. SentencePiece BPE is stored with scores, from
//! which its merges follow: those that make a token rank as its score does.

use std::collections::BTreeMap;
use std::path::Path;

use qfw_core::checkpoint::Checkpoint;
use qfw_core::checkpoint::gguf::{List, Value as Key, pre_tokenizer_name};
use qfw_core::{Error, Result};
use serde_json::Value;

/// Numbers of `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// What SentencePiece writes for a blank.
const BLANK: char = '\u{2581}';

fn refused(what: impl Into<String>) -> Error {
    Error::plan("plan::container", what).hint("use `--format compressed-tensors` or `qfw`, which leave the tokenizer in its own files")
}

/// Files of a tokenizer.
struct Files {
    tokenizer: Value,
    config: Value,
    special: Value,
    template: Option<String>,
}

impl Files {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let read = |name: &str| -> Result<Option<String>> {
            if let Some((_, text)) = checkpoint.made_files.iter().find(|(n, _)| n == name) {
                return Ok(Some(text.clone()));
            }
            if !checkpoint.side_files.iter().any(|f| f == Path::new(name)) {
                return Ok(None);
            }
            let path = checkpoint.path.join(name);
            std::fs::read_to_string(&path).map(Some).map_err(|e| Error::io(&path, "read", e))
        };
        let json = |name: &str| -> Result<Value> {
            let Some(text) = read(name)? else { return Ok(Value::Null) };
            serde_json::from_str(&text).map_err(|e| Error::input("tokenizer::malformed", format!("`{name}` is not JSON: {e}")))
        };
        let tokenizer = json("tokenizer.json")?;
        if tokenizer.is_null() {
            return Err(Error::plan("plan::container", "a GGUF file holds its tokenizer, and there is no tokenizer.json beside the model")
                .hint("save the fast tokenizer beside the model, or use another format"));
        }
        let (config, special) = (json("tokenizer_config.json")?, json("special_tokens_map.json")?);
        Ok(Self { tokenizer, config, special, template: read("chat_template.jinja")? })
    }
}

/// The keys of the tokenizer of a model that embeds `vocab` tokens.
///
/// # Errors
/// If there is none, or none that llama.cpp has.
pub(crate) fn keys(checkpoint: &Checkpoint, vocab: usize) -> Result<Vec<(String, Key)>> {
    let files = Files::of(checkpoint)?;
    let model = &files.tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("unknown");
    if kind != "BPE" {
        return Err(refused(format!("a tokenizer of type {kind} is not written to GGUF files, only BPE is")));
    }
    let text = |t: &str| Key::Text(t.to_owned());
    let mut keys = Vec::new();
    let mut push = |key: &str, value: Key| keys.push((format!("tokenizer.{key}"), value));
    let tokens = Tokens::of(&files.tokenizer, vocab)?;
    let merges = merges(model)?;
    match pre_tokenizer_name(&files.tokenizer) {
        Some(name) => {
            push("ggml.model", text("gpt2"));
            push("ggml.pre", text(name));
            push("ggml.tokens", Key::List(List::Text(tokens.texts.clone())));
            push("ggml.token_type", Key::List(List::Int(tokens.types.clone())));
            push("ggml.merges", Key::List(List::Text(listed(&merges)?)));
        }
        None => {
            let (types, scores) = sentence_piece(&files.tokenizer, &tokens, &merges)?;
            push("ggml.model", text("llama"));
            push("ggml.pre", text("default"));
            push("ggml.tokens", Key::List(List::Text(tokens.texts.clone())));
            push("ggml.scores", Key::List(List::F32(scores)));
            push("ggml.token_type", Key::List(List::Int(types)));
            push("ggml.add_space_prefix", Key::Bool(adds_blank(&files.tokenizer["normalizer"])));
        }
    }
    let (first, last) = around(&files.tokenizer["post_processor"]);
    let mut special = BTreeMap::new();
    for (role, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
        // What is put around every text is what it is called, if nothing is.
        let added = match role {
            "bos" => first.as_ref(),
            "eos" => last.as_ref(),
            _ => None,
        };
        let added = || added.and_then(|token| tokens.ids.get(token).copied());
        if let Some(id) = tokens.special(&files, &checkpoint.config, role).or_else(added) {
            push(&format!("ggml.{key}_token_id"), Key::Uint(id as u64));
            special.insert(role, tokens.texts[id].as_str());
        }
    }
    for (role, added) in [("bos", first), ("eos", last)] {
        if let Some(token) = added.as_deref().filter(|t| special.get(role) != Some(t)) {
            return Err(refused(format!("the tokenizer adds `{token}` to every text, which is not its {role} token")));
        }
        push(&format!("ggml.add_{role}_token"), Key::Bool(added.is_some()));
    }
    for (name, template) in templates(&files) {
        push(&if name == "default" { "chat_template".to_owned() } else { format!("chat_template.{name}") }, Key::Text(template));
    }
    Ok(keys)
}

/// The vocabulary, by id.
struct Tokens {
    texts: Vec<String>,
    types: Vec<i64>,
    ids: BTreeMap<String, usize>,
}

impl Tokens {
    /// Ids that no token has are padded, as llama.cpp's converter does.
    fn of(tokenizer: &Value, vocab: usize) -> Result<Self> {
        let mut texts: Vec<Option<(String, i64)>> = vec![None; vocab];
        let mut put = |text: &str, id: Option<u64>, kind: i64| {
            let id = id.and_then(|id| usize::try_from(id).ok());
            match id.and_then(|id| texts.get_mut(id)) {
                Some(slot) => {
                    *slot = Some((text.to_owned(), kind));
                    Ok(())
                }
                None => {
                    let id = id.map_or_else(|| "none".to_owned(), |id| id.to_string());
                    Err(refused(format!("the id of token `{text}` is {id}, and the model embeds {vocab} tokens")))
                }
            }
        };
        let list = tokenizer["model"]["vocab"].as_object().ok_or_else(|| refused("tokenizer.json has no vocabulary"))?;
        list.iter().try_for_each(|(text, id)| put(text, id.as_u64(), NORMAL))?;
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let kind = if token["special"] == true { CONTROL } else { USER_DEFINED };
            put(token["content"].as_str().unwrap_or_default(), token["id"].as_u64(), kind)?;
        }
        let (mut types, mut ids) = (Vec::with_capacity(vocab), BTreeMap::new());
        let mut stored = Vec::with_capacity(vocab);
        for (id, slot) in texts.into_iter().enumerate() {
            let (text, kind) = slot.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
            if let Some(other) = ids.insert(text.clone(), id) {
                return Err(refused(format!("tokens {other} and {id} are both `{text}`")));
            }
            types.push(kind);
            stored.push(text);
        }
        Ok(Self { texts: stored, types, ids })
    }

    /// The id of a special token: as the tokenizer's files name it, else as the model's configuration does. Of several the first.
    fn special(&self, files: &Files, config: &Value, role: &str) -> Option<usize> {
        let key = format!("{role}_token");
        let text = |v: &Value| v.as_str().or_else(|| v["content"].as_str()).map(ToOwned::to_owned);
        let named = text(&files.config[&key]).or_else(|| text(&files.special[&key])).and_then(|t| self.ids.get(&t).copied());
        let stated = &config[format!("{key}_id")];
        let stated = stated.as_u64().or_else(|| stated[0].as_u64()).and_then(|id| usize::try_from(id).ok());
        named.or(stated).filter(|id| *id < self.texts.len())
    }
}

/// The merges, each of two pieces; they are written in one text or in two.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let merge = |m: &Value| match m {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(pair) => match &pair[..] {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    let list = model["merges"].as_array().ok_or_else(|| refused("tokenizer.json has no merges"))?;
    list.iter().map(|m| merge(m).ok_or_else(|| refused(format!("tokenizer.json has the merge {m}, which is no two pieces")))).collect()
}

/// Merges as one text each.
fn listed(merges: &[(String, String)]) -> Result<Vec<String>> {
    let one = |(a, b): &(String, String)| match a.contains(' ') || b.contains(' ') {
        true => Err(refused(format!("the merge of `{a}` and `{b}` has a blank in it, which a GGUF file takes for the space between"))),
        false => Ok(format!("{a} {b}")),
    };
    merges.iter().map(one).collect()
}

/// Token types and scores of a vocabulary of SentencePiece, if it is one.
fn sentence_piece(tokenizer: &Value, tokens: &Tokens, merges: &[(String, String)]) -> Result<(Vec<i64>, Vec<f32>)> {
    let model = &tokenizer["model"];
    let blanks = tokenizer["normalizer"].to_string() + &tokenizer["pre_tokenizer"].to_string();
    if model["byte_fallback"] != true || model["ignore_merges"] == true || !blanks.contains(BLANK) || splits(&tokenizer["pre_tokenizer"]) {
        return Err(refused(format!(
            "llama.cpp has no name that is known here for how this tokenizer splits texts into words: {}",
            tokenizer["pre_tokenizer"]
        )));
    }
    let mut types = tokens.types.clone();
    let unknown = model["unk_token"].as_str().and_then(|t| tokens.ids.get(t));
    if let Some(id) = unknown {
        types[*id] = UNKNOWN;
    }
    for (kind, text) in types.iter_mut().zip(&tokens.texts).filter(|(kind, _)| **kind == NORMAL) {
        let byte = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
        if byte.is_some_and(|t| u8::from_str_radix(t, 16).is_ok()) {
            *kind = BYTE;
        }
    }
    // The first merge that makes a token ranks it. All that make it have to follow each other: one score cannot say two ranks.
    let mut scores: Vec<f32> = vec![0.0; tokens.texts.len()];
    let (mut rank, mut last) = (0_u32, None);
    for (a, b) in merges {
        let made = format!("{a}{b}");
        let id = *tokens.ids.get(&made).ok_or_else(|| refused(format!("a merge makes `{made}`, which is no token")))?;
        if last == Some(id) {
            continue;
        }
        if scores[id] != 0.0 {
            return Err(refused(format!("merges that make `{made}` are apart, and the scores of a GGUF file cannot say so")));
        }
        rank += 1;
        scores[id] = -(rank as f32);
        last = Some(id);
    }
    Ok((types, scores))
}

/// Whether a pre-tokenizer splits at more than blanks: SentencePiece merges across words.
fn splits(step: &Value) -> bool {
    match step["type"].as_str() {
        None => false,
        Some("Metaspace") => step["split"].as_bool().unwrap_or(true),
        Some("Sequence") => step["pretokenizers"].as_array().into_iter().flatten().any(splits),
        Some(_) => true,
    }
}

/// Whether a blank is put before texts.
fn adds_blank(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        Some("Prepend") => normalizer["prepend"].as_str().is_some_and(|p| p.contains(BLANK)),
        Some("Sequence") => normalizer["normalizers"].as_array().into_iter().flatten().any(adds_blank),
        _ => false,
    }
}

/// The tokens that are put before and after a single text.
fn around(processor: &Value) -> (Option<String>, Option<String>) {
    let steps: Vec<&Value> = match processor["processors"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![processor],
    };
    let Some(single) = steps.iter().find(|s| s["type"] == "TemplateProcessing").and_then(|s| s["single"].as_array()) else {
        return (None, None);
    };
    let token = |piece: Option<&Value>| piece.and_then(|p| p["SpecialToken"]["id"].as_str()).map(ToOwned::to_owned);
    (token(single.first()), if single.len() > 1 { token(single.last()) } else { None })
}

/// Chat templates by name: the file goes before the configuration, which may list several.
fn templates(files: &Files) -> Vec<(String, String)> {
    if let Some(template) = &files.template {
        return vec![("default".to_owned(), template.clone())];
    }
    match &files.config["chat_template"] {
        Value::String(template) => vec![("default".to_owned(), template.clone())],
        Value::Array(list) => {
            let named = |t: &Value| Some((t["name"].as_str()?.to_owned(), t["template"].as_str()?.to_owned()));
            list.iter().filter_map(named).collect()
        }
        _ => Vec::new(),
    }
}
