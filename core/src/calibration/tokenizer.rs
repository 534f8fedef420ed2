//! The tokenizer of a model: `tokenizer.json` with the special tokens and the chat template that live beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;

use super::template::ChatTemplate;
use crate::error::{Error, Result};

/// A model's tokenizer, its beginning and end of sequence tokens, and its chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    template: Option<ChatTemplate>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab", &self.inner.get_vocab_size(true))
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("chat_template", &self.template.is_some())
            .finish()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a checkpoint directory, and, where present, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja`.
    ///
    /// A template file goes before the template of the configuration. A special token that the vocabulary lacks counts as absent.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let json = read_json(&path)?.ok_or_else(|| {
            Error::input("tokenizer::missing", format!("`{}` has no tokenizer.json", dir.display()))
                .hint("save the fast tokenizer beside the model")
        })?;
        let inner = build(&json).map_err(|e| e.within(format_args!("`{}`", path.display())))?;
        let config = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
        let special = read_json(&dir.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
        let id = |key: &str| {
            let name = token_text(&config[key]).or_else(|| token_text(&special[key]))?;
            inner.token_to_id(name)
        };
        let (bos, eos) = (id("bos_token"), id("eos_token"));
        let file = dir.join("chat_template.jinja");
        let template = if file.is_file() {
            Some(std::fs::read_to_string(&file).map_err(|e| Error::io(&file, "read", e))?)
        } else {
            configured_template(&config["chat_template"])
        };
        Ok(Self { inner, bos, eos, template: template.map(ChatTemplate::new) })
    }

    /// A tokenizer from the content of `tokenizer.json`, for formats that store one inside another file.
    pub fn from_json(tokenizer: &Value, chat_template: Option<String>, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        Ok(Self { inner: build(tokenizer)?, bos, eos, template: chat_template.map(ChatTemplate::new) })
    }

    /// Ids of `text`. `add_special` adds what the tokenizer's post-processor adds, such as a beginning-of-sequence token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        contained(|| {
            let encoding = self.inner.encode_fast(text, add_special);
            let encoding =
                encoding.map_err(|e| Error::input("tokenizer::encode", format!("cannot tokenize the text: {e}")).with_source(e))?;
            Ok(encoding.get_ids().to_vec())
        })
    }

    /// Text of `ids`, special tokens included.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        contained(|| {
            let text = self.inner.decode(ids, false);
            text.map_err(|e| Error::input("tokenizer::decode", format!("cannot decode the ids: {e}")).with_source(e))
        })
    }

    /// Id of the beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Id of the end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The text of a conversation, `[{"role": …, "content": …}, …]`, through the chat template, without a generation prompt.
    pub fn render_chat(&self, messages: &Value) -> Result<String> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::input("tokenizer::no-chat-template", "the tokenizer has no chat template")
                .hint("add chat_template.jinja beside tokenizer.json, or use data with a text column")
        })?;
        let text = |id: Option<u32>| id.and_then(|id| self.inner.id_to_token(id)).unwrap_or_default();
        template.render(messages, &text(self.bos), &text(self.eos))
    }
}

fn build(json: &Value) -> Result<tokenizers::Tokenizer> {
    let malformed = |e: String| Error::input("tokenizer::malformed", format!("cannot load the tokenizer: {e}"));
    templates_hold(&json["post_processor"]).map_err(malformed)?;
    let bytes = serde_json::to_vec(json).map_err(|e| malformed(e.to_string()))?;
    let mut inner = contained(|| tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| malformed(e.to_string())))?;
    // Files often carry the truncation and padding of their last training run; a corpus must come through whole.
    inner.with_truncation(None).map_err(|e| malformed(e.to_string()))?;
    inner.with_padding(None);
    Ok(inner)
}

/// That the templates of a post-processor, or of the steps of one, name nothing that is not there: the library looks it up unchecked where
/// they come from a file.
fn templates_hold(processor: &Value) -> Result<(), String> {
    for step in processor["processors"].as_array().into_iter().flatten() {
        templates_hold(step)?;
    }
    for template in ["single", "pair"] {
        for piece in processor[template].as_array().into_iter().flatten() {
            let token = piece["SpecialToken"]["id"].as_str();
            if let Some(token) = token.filter(|t| processor["special_tokens"].get(t).is_none()) {
                return Err(format!("the template `{template}` has the token `{token}`, which is not among its special tokens"));
            }
            if template == "single" && piece["Sequence"]["id"] == "B" {
                return Err("the template `single` has a second text".to_owned());
            }
        }
    }
    Ok(())
}

/// What the tokenizer's library makes of a file that contradicts itself may be a panic, which is an error like any other here.
fn contained<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::input("tokenizer::malformed", "the tokenizer contradicts itself: the library that runs it stopped")
            .hint("get tokenizer.json again from where the model is from"))
    })
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::input("tokenizer::malformed", format!("`{}` is not JSON: {e}", path.display())).with_source(e))
}

/// A special token is stored as its text, or as an object with its `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A template is stored as its text, or as a list of named ones, of which `default` is for plain conversations.
fn configured_template(value: &Value) -> Option<String> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?.get("template")?.as_str();
    value.as_str().or_else(named).map(str::to_owned)
}

/// A tokenizer of single letters: `?` 0, `a` 1, `b` 2, `c` 3, `d` 4, `<s>` 5, `</s>` 6.
#[cfg(test)]
pub(super) fn fixture_json() -> Value {
    let special = |id: u32, content: &str| serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [special(5, "<s>"), special(6, "</s>")],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "b": 2, "c": 3, "d": 4, "<s>": 5, "</s>": 6}},
    })
}

#[cfg(test)]
pub(super) fn fixture() -> Tokenizer {
    let template = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}".to_owned();
    Tokenizer::from_json(&fixture_json(), Some(template), Some(5), Some(6)).unwrap()
}

#[cfg(test)]
pub(super) fn fixture_without_bos() -> Tokenizer {
    Tokenizer::from_json(&fixture_json(), None, None, None).unwrap()
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
