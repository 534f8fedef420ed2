//! Tokens to windows.
//!
//! Calibration draws windows at random: window `i` starts at `u(seed, i)`, uniform over `[0, len − seq_len]`, so that the first windows
//! are the same whatever the number asked for. Evaluation cuts consecutive windows and drops the tail.

use serde::{Deserialize, Serialize};

use super::{Corpus, Tokenizer};
use crate::error::{Error, Result};
use crate::numeric::uniform_below;

/// Windows drawn from a token stream when the number is not given.
const DEFAULT_SAMPLES: usize = 128;
/// Tokens a window when the length is not given.
const DEFAULT_SEQ_LEN: usize = 2048;

/// Where the beginning-of-sequence token goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Bos {
    /// Nowhere.
    #[default]
    None,
    /// Before each document.
    Document,
    /// Before each window, as one of its `seq_len` tokens.
    Sequence,
}

/// How many windows of which length to draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleSpec {
    /// Number of windows. `None`: 128, or every row of stored rows.
    pub samples: Option<usize>,
    /// Tokens a window. `None`: 2048, or the length of stored rows.
    pub seq_len: Option<usize>,
    /// Key of the random starts.
    pub seed: u64,
    /// Where the beginning-of-sequence token goes.
    pub bos: Bos,
}

/// Token windows and the hash of their content.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Ids, one vector a window.
    pub ids: Vec<Vec<u32>>,
    /// BLAKE3, in hexadecimal, over each window's length and ids as little-endian `u32`.
    pub hash: String,
}

impl Windows {
    /// Windows with these ids; computes the hash.
    pub fn new(ids: Vec<Vec<u32>>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for window in &ids {
            let mut bytes = Vec::with_capacity(4 * (window.len() + 1));
            bytes.extend_from_slice(&(window.len() as u32).to_le_bytes());
            bytes.extend(window.iter().flat_map(|id| id.to_le_bytes()));
            hasher.update(&bytes);
        }
        Self { ids, hash: hasher.finalize().to_hex().to_string() }
    }

    /// Tokens in all windows together.
    pub fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }

    /// Fails when an id is not below `vocab`: the data was tokenized for another model.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        for (index, window) in self.ids.iter().enumerate() {
            if let Some((position, id)) = window.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
                return Err(Error::input(
                    "data::id-outside-vocabulary",
                    format!("token id {id} at position {position} of window {index} is outside the model's vocabulary of {vocab}"),
                )
                .hint("use data tokenized with this model's tokenizer"));
            }
        }
        Ok(())
    }
}

/// Draws the calibration windows.
///
/// Text and a single row of ids are a token stream, from which windows start at random. Several rows of ids are taken as stored, the
/// first `samples` of them in order. Fails when there is too little data, when `seq_len` is not the rows' length, and when a
/// beginning-of-sequence token is asked for that the tokenizer lacks.
pub fn sample_windows(corpus: &Corpus, tokenizer: Option<&Tokenizer>, spec: &SampleSpec) -> Result<Windows> {
    if spec.samples == Some(0) {
        return Err(Error::config("data::no-samples", "`samples` is 0").hint("ask for at least one window"));
    }
    match corpus {
        Corpus::Ids(rows) if rows.len() > 1 => stored_rows(rows, tokenizer, spec),
        _ => random_windows(&token_stream(corpus, tokenizer, spec.bos)?, tokenizer, spec),
    }
}

/// The whole data in order as one stream of ids.
///
/// Documents are joined by a blank line and tokenized as one text; with [`Bos::Document`] each is tokenized by itself and gets the
/// beginning-of-sequence token, unless its text already starts with it, as a rendered chat does. Rows of ids are concatenated.
/// [`Bos::Sequence`] belongs to the windows and changes nothing here, beyond the check that the tokenizer has the token.
pub fn token_stream(corpus: &Corpus, tokenizer: Option<&Tokenizer>, bos: Bos) -> Result<Vec<u32>> {
    let bos_id = bos_id(tokenizer, bos)?;
    let documents = match corpus {
        Corpus::Ids(_) if bos == Bos::Document => {
            return Err(Error::config("data::bos", "`bos = \"document\"` needs text: stored token ids have no documents")
                .hint("use `bos = \"sequence\"` or `bos = \"none\"`"));
        }
        Corpus::Ids(rows) => return Ok(rows.concat()),
        Corpus::Documents(documents) => documents,
    };
    let tokenizer = tokenizer.ok_or_else(|| {
        Error::input("data::no-tokenizer", "text needs a tokenizer, and the model has none")
            .hint("put tokenizer.json beside the model, or give token ids (.safetensors, .npy)")
    })?;
    match (bos, bos_id) {
        (Bos::Document, Some(id)) => {
            let mut stream = Vec::new();
            for document in documents {
                let ids = tokenizer.encode(document, false)?;
                if ids.first() != Some(&id) {
                    stream.push(id);
                }
                stream.extend(ids);
            }
            Ok(stream)
        }
        _ => match documents.as_slice() {
            [document] => tokenizer.encode(document, false),
            _ => tokenizer.encode(&documents.join("\n\n"), false),
        },
    }
}

/// Cuts `stream` into consecutive windows of `seq_len` tokens, at most `max_windows`; the tail that does not fill one is dropped.
///
/// With `bos_id` each window is that id and `seq_len − 1` tokens of the stream. Fails when not even one window fits.
pub fn evaluation_windows(stream: &[u32], seq_len: usize, max_windows: Option<usize>, bos_id: Option<u32>) -> Result<Windows> {
    let payload = payload(seq_len, bos_id)?;
    if stream.len() < payload {
        return Err(too_little(stream.len(), payload, seq_len));
    }
    let limit = max_windows.unwrap_or(usize::MAX);
    Ok(Windows::new(stream.chunks_exact(payload).take(limit).map(|tokens| window(bos_id, tokens)).collect()))
}

fn random_windows(stream: &[u32], tokenizer: Option<&Tokenizer>, spec: &SampleSpec) -> Result<Windows> {
    let bos = if spec.bos == Bos::Sequence { bos_id(tokenizer, spec.bos)? } else { None };
    let seq_len = spec.seq_len.unwrap_or(DEFAULT_SEQ_LEN);
    let payload = payload(seq_len, bos)?;
    let Some(last) = stream.len().checked_sub(payload) else { return Err(too_little(stream.len(), payload, seq_len)) };
    let windows = (0..spec.samples.unwrap_or(DEFAULT_SAMPLES) as u64).map(|index| {
        let start = uniform_below(&[spec.seed, index], last as u64 + 1) as usize;
        window(bos, &stream[start..start + payload])
    });
    Ok(Windows::new(windows.collect()))
}

fn stored_rows(rows: &[Vec<u32>], tokenizer: Option<&Tokenizer>, spec: &SampleSpec) -> Result<Windows> {
    if spec.bos == Bos::Document {
        token_stream(&Corpus::Ids(Vec::new()), tokenizer, spec.bos)?;
    }
    let bos = bos_id(tokenizer, spec.bos)?;
    let samples = spec.samples.unwrap_or(rows.len());
    if samples > rows.len() {
        return Err(Error::input(
            "data::too-few-rows",
            format!("{samples} samples were asked for, but the data has {} rows of ids", rows.len()),
        )
        .hint("lower `samples`, or leave it out to use every row"));
    }
    let seq_len = spec.seq_len.unwrap_or(rows[0].len());
    for (index, row) in rows[..samples].iter().enumerate() {
        if row.len() != seq_len {
            return Err(Error::input(
                "data::row-length",
                format!("`seq-len` is {seq_len}, but row {index} of the stored ids has {} tokens", row.len()),
            )
            .hint("stored rows are used as they are: leave `seq-len` out, or store rows of that length"));
        }
        // Rows are used as they are; replacing a token of the caller's would be a silent change of the data.
        if bos.is_some() && row.first() != bos.as_ref() {
            return Err(Error::input(
                "data::bos",
                format!("`bos = \"sequence\"`, but row {index} of the stored ids does not start with the BOS token"),
            )
            .hint("stored rows are used as they are: set `bos = \"none\"`, or store rows that start with the token"));
        }
    }
    Ok(Windows::new(rows[..samples].to_vec()))
}

/// The id that `bos` asks for, `None` if it asks for none.
fn bos_id(tokenizer: Option<&Tokenizer>, bos: Bos) -> Result<Option<u32>> {
    if bos == Bos::None {
        return Ok(None);
    }
    match tokenizer.map(Tokenizer::bos) {
        Some(Some(id)) => Ok(Some(id)),
        known => {
            let reason = if known.is_none() { "the model has no tokenizer" } else { "the tokenizer has no BOS token" };
            let name = if bos == Bos::Document { "document" } else { "sequence" };
            Err(Error::config("data::bos", format!("`bos = \"{name}\"`, but {reason}")).hint("set `bos = \"none\"`"))
        }
    }
}

/// Tokens of the stream in a window of `seq_len`.
fn payload(seq_len: usize, bos: Option<u32>) -> Result<usize> {
    let payload = seq_len.saturating_sub(usize::from(bos.is_some()));
    if payload == 0 {
        return Err(Error::config("data::seq-len", format!("`seq-len` is {seq_len}, which leaves no room for text")).hint("use at least 2"));
    }
    Ok(payload)
}

fn window(bos: Option<u32>, tokens: &[u32]) -> Vec<u32> {
    bos.into_iter().chain(tokens.iter().copied()).collect()
}

fn too_little(have: usize, need: usize, seq_len: usize) -> Error {
    Error::input("data::too-little", format!("the data has {have} tokens, but one window of {seq_len} needs {need}"))
        .hint("give more text, or lower `seq-len`")
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
