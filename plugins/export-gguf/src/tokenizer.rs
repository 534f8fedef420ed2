//! The tokenizer of a checkpoint as the keys of a file.
//!
//! Byte-level BPE is stored with its merges and the name of what splits texts into words, SentencePiece BPE as `sentence_piece.rs` says.

use std::collections::BTreeMap;
use std::path::Path;

use qfw_core::checkpoint::Checkpoint;
use qfw_core::checkpoint::gguf::{List, Value as Key, pre_tokenizer_name};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::sentence_piece::{self, SentencePiece};

/// Numbers of `tokenizer.ggml.token_type`.
pub(crate) const NORMAL: i64 = 1;
pub(crate) const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
pub(crate) const BYTE: i64 = 6;

pub(crate) fn refused(what: impl Into<String>) -> Error {
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
            serde_json::from_str(&text).map_err(|e| {
                Error::input("tokenizer::malformed", format!("`{name}` is not JSON: {e}")).hint("the file is damaged; get it again")
            })
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
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(mark) = model[key].as_str().filter(|m| !m.is_empty()) {
            return Err(refused(format!("the tokenizer has `{key}` = `{mark}`, which llama.cpp has no place for")));
        }
    }
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
            let SentencePiece { types, scores, blank_before } = sentence_piece::of(&files.tokenizer, &tokens, &merges)?;
            push("ggml.model", text("llama"));
            push("ggml.pre", text("default"));
            push("ggml.tokens", Key::List(List::Text(tokens.texts.clone())));
            push("ggml.scores", Key::List(List::F32(scores)));
            push("ggml.token_type", Key::List(List::Int(types)));
            push("ggml.add_space_prefix", Key::Bool(blank_before));
        }
    }
    let (first, last) = around(&files.tokenizer["post_processor"])?;
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
pub(crate) struct Tokens {
    pub texts: Vec<String>,
    pub types: Vec<i64>,
    pub ids: BTreeMap<String, usize>,
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

/// The tokens that are put before and after a single text.
///
/// # Errors
/// If it is more than one on either side, or done by a step that llama.cpp has no counterpart of.
fn around(processor: &Value) -> Result<(Option<String>, Option<String>)> {
    let steps: Vec<&Value> = match (processor, processor["processors"].as_array()) {
        (Value::Null, _) => Vec::new(),
        (_, Some(steps)) => steps.iter().collect(),
        (one, None) => vec![one],
    };
    // A step that only moves offsets decides no id.
    let mut adding = steps.into_iter().filter(|s| s["type"] != "ByteLevel");
    let Some(step) = adding.next() else { return Ok((None, None)) };
    let kind = |s: &Value| s["type"].as_str().unwrap_or("without a type").to_owned();
    if step["type"] != "TemplateProcessing" {
        return Err(refused(format!("llama.cpp has no counterpart of the post-processor `{}`", kind(step))));
    }
    if let Some(second) = adding.next() {
        return Err(refused(format!("llama.cpp has no counterpart of the post-processor `{}` behind a template", kind(second))));
    }
    let pieces = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let token = |piece: &Value| piece["SpecialToken"]["id"].as_str().map(ToOwned::to_owned);
    let (before, after) = match pieces.iter().position(|p| p["Sequence"].is_object()) {
        Some(at) => (&pieces[..at], &pieces[at + 1..]),
        None => return Err(refused(format!("the post-processor's template has no place for the text: {}", step["single"]))),
    };
    let one = |side: &[Value]| match side {
        [] => Ok(None),
        [piece] if token(piece).is_some_and(|t| step["special_tokens"][&t]["ids"].as_array().is_none_or(|ids| ids.len() == 1)) => {
            Ok(token(piece))
        }
        _ => Err(refused(format!("llama.cpp puts one token before a text and one behind it, and the template is {}", step["single"]))),
    };
    Ok((one(before)?, one(after)?))
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
