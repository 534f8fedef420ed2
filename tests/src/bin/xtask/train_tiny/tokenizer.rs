//! The byte-level BPE tokenizer: trained on the training text, saved as `tokenizer.json`.

use std::path::Path;

use qfw_core::{Error, Result};
use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as Decoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use super::network::Family;
use super::{CONTEXT, VOCABULARY, corpus, write};

/// Trains the tokenizer of a family on `text`.
///
/// # Errors
/// If the training fails.
pub(super) fn train(text: &str, family: Family) -> Result<Tokenizer> {
    let specials: Vec<AddedToken> = family.special_tokens().iter().map(|token| AddedToken::from(*token, true)).collect();
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials)
        .show_progress(false)
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(Decoder::default()));
    tokenizer.train(&mut trainer, text.lines()).map_err(|e| failed("train", &*e))?;
    match family {
        // As LLaMA's tokenizers do: a text starts with the first special token.
        Family::Llama => {
            let start = family.special_tokens()[0];
            let template = TemplateProcessing::builder()
                .try_single(format!("{start} $A"))
                .and_then(|t| t.try_pair(format!("{start} $A {start} $B")))
                .map_err(Error::internal)?
                .special_tokens(vec![(start, 0)])
                .build()
                .map_err(|e| failed("finish", &e))?;
            tokenizer.with_post_processor(Some(template));
        }
        Family::Gpt2 => {
            tokenizer.with_post_processor(Some(ByteLevel::new(false, true, true)));
        }
    }
    Ok(tokenizer)
}

/// Token ids of a text, with the special tokens that the tokenizer adds.
///
/// # Errors
/// If the tokenizer fails.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode(text, true).map_err(|e| failed("encode", &*e))?.get_ids().to_vec())
}

/// The training stream: each document between the tokens that start and end one.
///
/// # Errors
/// If the tokenizer fails.
pub(super) fn stream(tokenizer: &Tokenizer, text: &str, family: Family) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for document in corpus::documents(text) {
        let encoding = tokenizer.encode(document, false).map_err(|e| failed("encode", &*e))?;
        ids.push(family.start_token());
        ids.extend_from_slice(encoding.get_ids());
        if family.end_token() != family.start_token() {
            ids.push(family.end_token());
        }
    }
    Ok(ids)
}

/// Writes `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn save(tokenizer: &Tokenizer, family: Family, folder: &Path) -> Result<()> {
    let text = tokenizer.to_string(false).map_err(|e| failed("write", &*e))?;
    write(&folder.join("tokenizer.json"), &format!("{text}\n"))?;
    let tokens = family.special_tokens();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[0],
        "eos_token": tokens[tokens.len() - 1],
        "clean_up_tokenization_spaces": false,
        "model_max_length": CONTEXT,
    });
    write(&folder.join("tokenizer_config.json"), &format!("{config:#}\n"))
}

fn failed(action: &str, error: &dyn std::error::Error) -> Error {
    Error::internal(format!("cannot {action} the tokenizer: {error}"))
}
