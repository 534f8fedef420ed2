//! The vocabulary of a GGUF file as a Hugging Face `tokenizer.json`.
//!
//! `tokenizer.ggml.model` is `gpt2` for byte-level BPE, whose merges are in the file, or `llama` for SentencePiece BPE, whose merges
//! are recovered from the scores: a piece can be made from every split of it into two pieces, and the better its score the earlier.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::header::GgufFile;
use super::metadata::Metadata;
use super::pre_tokenizer::{PreTokenizer, pre_tokenizer};
use crate::error::{Error, Result};

/// Token types of `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// The chat template, a Jinja text, if there is one.
pub fn chat_template(file: &GgufFile) -> Option<&str> {
    file.metadata.text("tokenizer.chat_template").ok().flatten()
}

/// `tokenizer.json` for the vocabulary in `file`.
///
/// Errors: no vocabulary, a kind of vocabulary or pre-tokenizer that is not known, lists that contradict each other.
pub fn tokenizer_json(file: &GgufFile) -> Result<Value> {
    make(&file.metadata).map_err(|e| e.within(format_args!("`{}`", file.path.display())))
}

/// `tokenizer_config.json` for the vocabulary in `file`: special tokens, whether the first one is added, chat template.
pub fn tokenizer_config(file: &GgufFile) -> Result<Value> {
    let make = || {
        let vocabulary = Vocabulary::of(&file.metadata)?;
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("add_bos_token".into(), json!(vocabulary.add_bos()?));
        for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")] {
            if let Some(id) = vocabulary.special(ours)? {
                config.insert(format!("{theirs}_token"), json!(vocabulary.tokens[id]));
            }
        }
        if let Some(template) = chat_template(file) {
            config.insert("chat_template".into(), json!(template));
        }
        Ok(Value::Object(config))
    };
    make().map_err(|e: Error| e.within(format_args!("`{}`", file.path.display())))
}

/// The vocabulary part of the metadata, with its lists checked against each other.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    model: &'a str,
    pre: &'a str,
    tokens: &'a [String],
    types: Vec<i64>,
    /// Only looked up, never walked: its order does not matter.
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self> {
        let missing = |key: &str| {
            Error::input("gguf::tokenizer", format!("metadata `{key}` is missing"))
                .hint("the file has no tokenizer; give it as `tokenizer.json`")
        };
        let model = metadata.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
        if !matches!(model, "gpt2" | "llama") {
            return Err(Error::input("gguf::tokenizer", format!("tokenizer model `{model}` is not supported; `gpt2` and `llama` are"))
                .hint("give the Hugging Face checkpoint, which has a `tokenizer.json`"));
        }
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
        let types = metadata.ints("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
        same_length("tokenizer.ggml.token_type", types.len(), tokens.len())?;
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(before) = ids.insert(token.as_str(), id) {
                return Err(Error::input("gguf::tokenizer", format!("tokens {before} and {id} are both `{token}`"))
                    .hint("the vocabulary is damaged; convert the model again"));
            }
        }
        let pre = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
        Ok(Self { metadata, model, pre, tokens, types, ids })
    }

    /// The identifier of a special token: `bos`, `eos`, `unknown`, `padding`. SentencePiece vocabularies have llama.cpp's defaults.
    fn special(&self, role: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let default = match (self.model, role) {
            ("llama", "unknown") => Some(0),
            ("llama", "bos") => Some(1),
            ("llama", "eos") => Some(2),
            _ => None,
        };
        let stated = self.metadata.uint(&key)?;
        let Some(id) = stated.or(default) else { return Ok(None) };
        match usize::try_from(id).ok().filter(|id| *id < self.tokens.len()) {
            Some(id) => Ok(Some(id)),
            None if stated.is_none() => Ok(None),
            None => Err(Error::input("gguf::tokenizer", format!("metadata `{key}` is {id} and there are {} tokens", self.tokens.len()))
                .hint("the vocabulary is damaged; convert the model again")),
        }
    }

    /// Whether texts begin with the bos token; without a statement llama.cpp's defaults hold.
    fn add_bos(&self) -> Result<bool> {
        let default = self.model == "llama" || pre_tokenizer(self.pre).is_some_and(|p| p.add_bos);
        Ok(self.metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(default))
    }

    fn added_tokens(&self) -> Vec<Value> {
        let special = |kind: i64| kind == CONTROL || (kind == UNKNOWN && self.model == "llama");
        let added = self.types.iter().enumerate().filter(|(_, kind)| special(**kind) || **kind == USER_DEFINED);
        added
            .map(|(id, kind)| {
                json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": special(*kind)})
            })
            .collect()
    }

    fn vocabulary(&self) -> Value {
        Value::Object(self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect())
    }

    /// The template that puts bos before and eos after each text, or null.
    fn template(&self) -> Result<Value> {
        let add_eos = self.metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let mut tokens = Map::new();
        let mut role = |role: &str, add: bool| -> Result<Option<&str>> {
            if !add {
                return Ok(None);
            }
            let id = self.special(role)?.ok_or_else(|| {
                Error::input("gguf::tokenizer", format!("the {role} token is to be added, and `tokenizer.ggml.{role}_token_id` is missing"))
                    .hint("convert the model again with a current llama.cpp")
            })?;
            let token = self.tokens[id].as_str();
            tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
            Ok(Some(token))
        };
        let (bos, eos) = (role("bos", self.add_bos()?)?, role("eos", add_eos)?);
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let around = |sequence: &str, type_id: u32| {
            let special = |token: &str| json!({"SpecialToken": {"id": token, "type_id": type_id}});
            let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
            bos.map(special).into_iter().chain([text]).chain(eos.map(special)).collect::<Vec<_>>()
        };
        let single = around("A", 0);
        let pair = [around("A", 0), around("B", 1)].concat();
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}))
    }
}

fn same_length(key: &str, length: usize, tokens: usize) -> Result<()> {
    if length == tokens {
        return Ok(());
    }
    Err(Error::input("gguf::tokenizer", format!("metadata `{key}` has {length} entries and there are {tokens} tokens"))
        .hint("the vocabulary is damaged; convert the model again"))
}

fn make(metadata: &Metadata) -> Result<Value> {
    let vocabulary = Vocabulary::of(metadata)?;
    let parts = if vocabulary.model == "gpt2" { byte_level(&vocabulary)? } else { sentence_piece(&vocabulary)? };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added_tokens(),
        "normalizer": parts.normalizer, "pre_tokenizer": parts.pre_tokenizer, "post_processor": parts.post_processor,
        "decoder": parts.decoder, "model": parts.model,
    }))
}

struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Value,
}

/// Byte-level BPE: the merges are listed in the file.
fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let PreTokenizer { ignore_merges, normalizer, steps, .. } = pre_tokenizer(vocabulary.pre).ok_or_else(|| {
        Error::input("gguf::tokenizer", format!("pre-tokenizer `{}` is not supported", vocabulary.pre))
            .hint(format!("known are {}; give the Hugging Face checkpoint", super::pre_tokenizer::known()))
    })?;
    let merges = vocabulary.metadata.texts("tokenizer.ggml.merges")?.ok_or_else(|| {
        Error::input("gguf::tokenizer", "metadata `tokenizer.ggml.merges` is missing")
            .hint("convert the model again with a current llama.cpp")
    })?;
    let merges = merges.iter().map(|merge| listed_merge(vocabulary, merge)).collect::<Result<Vec<_>>>()?;
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let post_processor = match vocabulary.template()? {
        Value::Null => bytes,
        template => json!({"type": "Sequence", "processors": [bytes, template]}),
    };
    Ok(Parts {
        normalizer,
        pre_tokenizer: steps,
        post_processor,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary.vocabulary(), "merges": merges,
        }),
    })
}

/// `left right`, checked against the vocabulary: a tokenizer with a merge outside of it cannot be loaded.
fn listed_merge(vocabulary: &Vocabulary<'_>, merge: &str) -> Result<Value> {
    let damaged = |reason: String| {
        Error::input("gguf::tokenizer", format!("merge `{merge}` {reason}")).hint("the vocabulary is damaged; convert the model again")
    };
    // The first character is never the separator: a piece may begin with a space.
    let first = merge.chars().next().map_or(0, char::len_utf8);
    let at = merge[first..].find(' ').ok_or_else(|| damaged("has no space between two pieces".into()))? + first;
    let (left, right) = (&merge[..at], &merge[at + 1..]);
    let whole = [left, right].concat();
    for piece in [left, right, &whole] {
        if !vocabulary.ids.contains_key(piece) {
            return Err(damaged(format!("needs the token `{piece}`, which is not in the vocabulary")));
        }
    }
    Ok(json!([left, right]))
}

/// SentencePiece BPE: spaces become `▁`, unknown characters fall back to byte tokens, merges come from the scores.
fn sentence_piece(vocabulary: &Vocabulary<'_>) -> Result<Parts> {
    let scores = vocabulary.metadata.floats("tokenizer.ggml.scores")?.ok_or_else(|| {
        Error::input("gguf::tokenizer", "metadata `tokenizer.ggml.scores` is missing")
            .hint("convert the model again with a current llama.cpp")
    })?;
    same_length("tokenizer.ggml.scores", scores.len(), vocabulary.tokens.len())?;
    let space = "\u{2581}";
    let prefix = vocabulary.metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
    let normalizer =
        if prefix { json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": space}, replace]}) } else { replace };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.special("unknown")?.map(|id| &vocabulary.tokens[id]);
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        post_processor: vocabulary.template()?,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": vocabulary.types.contains(&BYTE), "ignore_merges": false,
            "vocab": vocabulary.vocabulary(), "merges": merges_from_scores(vocabulary, scores)?,
        }),
    })
}

/// Every split of a piece into two pieces, best score first; ties in the order of the vocabulary, as in Hugging Face's conversion.
fn merges_from_scores(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Result<Vec<Value>> {
    if let Some(id) = scores.iter().position(|s| s.is_nan()) {
        return Err(Error::input("gguf::tokenizer", format!("the score of token {id} is not a number"))
            .hint("the vocabulary is damaged; convert the model again"));
    }
    // Control symbols and bytes are never made by merging.
    let merged = |id: usize| matches!(vocabulary.types[id], 1 | USER_DEFINED);
    let mut merges = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| merged(*id)) {
        let mut splits: Vec<(usize, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*vocabulary.ids.get(&token[..at])?, *vocabulary.ids.get(&token[at..])?)))
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(left, right)| (scores[id], left, right)));
    }
    merges.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    Ok(merges.into_iter().map(|(_, left, right)| json!([vocabulary.tokens[left], vocabulary.tokens[right]])).collect())
}
