//! BPE of SentencePiece: a vocabulary with a score for each token, and blanks written as `▁`.
//!
//! llama.cpp has no list of merges. It joins any two neighbours that make a token together, those of the best score first. So a list of
//! merges becomes scores, the negative rank of the first merge that makes a token, if three things are so: all merges of a token follow each
//! other, every two pieces that make a token are a merge, and all that is done to a text before is that blanks are written as `▁` and one is put
//! before it. Source: llama.cpp, `src/llama-vocab.cpp`, `llm_tokenizer_spm_session`.

use std::collections::BTreeSet;

use qfw_core::Result;
use serde_json::Value;

use crate::tokenizer::{BYTE, NORMAL, Tokens, UNKNOWN, refused};

/// What SentencePiece writes for a blank.
const BLANK: &str = "\u{2581}";

/// What a file says of such a vocabulary.
pub(crate) struct SentencePiece {
    pub types: Vec<i64>,
    pub scores: Vec<f32>,
    /// A blank is put before texts. llama.cpp puts one behind special tokens within a text too, which Hugging Face's scheme `first` does not.
    pub blank_before: bool,
}

/// The vocabulary of a `tokenizer.json`, if it is one of SentencePiece.
///
/// # Errors
/// If it is another, or one that scores cannot say.
pub(crate) fn of(tokenizer: &Value, tokens: &Tokens, merges: &[(String, String)]) -> Result<SentencePiece> {
    let model = &tokenizer["model"];
    let words = &tokenizer["pre_tokenizer"];
    let unnamed = || refused(format!("llama.cpp has no name that is known here for how this tokenizer splits texts into words: {words}"));
    if model["byte_fallback"] != true || model["ignore_merges"] == true {
        return Err(unnamed());
    }
    let mut blanks = Blanks::default();
    blanks.normalizer(&tokenizer["normalizer"])?;
    if !blanks.words(words) || !blanks.written {
        return Err(unnamed());
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
    let scores = scores(tokens, &types, merges)?;
    Ok(SentencePiece { types, scores, blank_before: blanks.before })
}

/// What is done to blanks before merging.
#[derive(Default)]
struct Blanks {
    /// They are written as `▁`.
    written: bool,
    /// One is put before a text.
    before: bool,
}

impl Blanks {
    /// Takes in a normalizer.
    ///
    /// # Errors
    /// If it does anything else.
    fn normalizer(&mut self, step: &Value) -> Result<()> {
        match step["type"].as_str() {
            None if step.is_null() => {}
            Some("Sequence") => {
                return step["normalizers"].as_array().into_iter().flatten().try_for_each(|s| self.normalizer(s));
            }
            Some("Prepend") if step["prepend"] == BLANK => self.before = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == BLANK => self.written = true,
            _ => return Err(refused(format!("llama.cpp has no place for the normalizer of this tokenizer: {step}"))),
        }
        Ok(())
    }

    /// Takes in a pre-tokenizer: nothing is split off, since SentencePiece merges across words. Whether it does no more than that.
    fn words(&mut self, step: &Value) -> bool {
        match step["type"].as_str() {
            None => step.is_null(),
            Some("Sequence") => step["pretokenizers"].as_array().into_iter().flatten().all(|s| self.words(s)),
            Some("Metaspace") => {
                self.before |= step["prepend_scheme"] != "never";
                self.written = true;
                step["split"] == false && step["replacement"] == BLANK
            }
            Some(_) => false,
        }
    }
}

/// The score of each token.
fn scores(tokens: &Tokens, types: &[i64], merges: &[(String, String)]) -> Result<Vec<f32>> {
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
    let listed: BTreeSet<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let piece = |text: &str| tokens.ids.contains_key(text) || text.chars().count() == 1;
    for text in tokens.texts.iter().zip(types).filter(|(_, kind)| [NORMAL, BYTE].contains(*kind)).map(|(text, _)| text) {
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        if let Some((a, b)) = splits.filter(|(a, b)| piece(a) && piece(b)).find(|split| !listed.contains(split)) {
            return Err(refused(format!("llama.cpp would make `{text}` of `{a}` and `{b}`, which no merge of this tokenizer does")));
        }
    }
    Ok(scores)
}
