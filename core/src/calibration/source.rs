//! Files to documents or stored ids.

use std::path::Path;

use serde_json::Value;

use super::{Tokenizer, ids, npy};
use crate::error::{Error, Result};

/// Extensions that [`read_corpus`] reads, for messages.
const KNOWN: &str = "`.txt`, `.jsonl`, `.parquet`, `.safetensors`, `.npy`";

/// Data before windows are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// Texts, in the order of the file.
    Documents(Vec<String>),
    /// Token ids, rows as stored; a one-dimensional file is one row.
    Ids(Vec<Vec<u32>>),
}

/// Reads a data file; its extension decides the format.
///
/// `.txt` is one document. A line of `.jsonl` is an object with `text_column`, or with `messages`, which go through the chat template of
/// `tokenizer`. `.parquet` has a string column `text_column`. Ids come from `input_ids` of `.safetensors` or from `.npy`, of shape
/// `[tokens]` or `[samples, seq_len]`.
pub fn read_corpus(path: &Path, text_column: &str, tokenizer: Option<&Tokenizer>) -> Result<Corpus> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !matches!(extension.as_str(), "txt" | "jsonl" | "parquet" | "safetensors" | "npy") {
        return Err(Error::input(
            "data::unknown-extension",
            format!("cannot read `{}`: unknown data format `.{extension}`", path.display()),
        )
        .hint(format!("known are {KNOWN}")));
    }
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e).hint("check the path of the data file"))?;
    if metadata.len() == 0 {
        return Err(empty(path));
    }
    let bytes = || std::fs::read(path).map_err(|e| Error::io(path, "read", e));
    let corpus = match extension.as_str() {
        "txt" => text(bytes()?).map(|text| Corpus::Documents(vec![text])),
        "jsonl" => text(bytes()?).and_then(|text| jsonl(&text, text_column, tokenizer)).map(Corpus::Documents),
        "parquet" => parquet_documents(path, text_column).map(Corpus::Documents),
        "safetensors" => ids::from_safetensors(&bytes()?).map(Corpus::Ids),
        _ => npy::read(&bytes()?).map(Corpus::Ids),
    }
    .map_err(|e| e.within(format_args!("`{}`", path.display())))?;
    let nothing = match &corpus {
        Corpus::Documents(documents) => documents.iter().all(|document| document.trim().is_empty()),
        Corpus::Ids(rows) => rows.iter().all(Vec::is_empty),
    };
    if nothing { Err(empty(path)) } else { Ok(corpus) }
}

fn empty(path: &Path) -> Error {
    Error::input("data::empty", format!("`{}` is empty", path.display())).hint("give a file with text or token ids")
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::input("data::not-utf8", format!("not UTF-8 text at byte {at}")).hint("convert the file to UTF-8")
    })
}

#[cfg(feature = "parquet")]
fn parquet_documents(path: &Path, text_column: &str) -> Result<Vec<String>> {
    super::parquet::read(path, text_column)
}

#[cfg(not(feature = "parquet"))]
fn parquet_documents(_path: &Path, _text_column: &str) -> Result<Vec<String>> {
    Err(Error::input("data::no-parquet", "this build cannot read parquet files")
        .hint("build with the feature `parquet`, or convert to .jsonl"))
}

/// One document a line; blank lines are skipped.
fn jsonl(text: &str, text_column: &str, tokenizer: Option<&Tokenizer>) -> Result<Vec<String>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(index, line)| document(line, text_column, tokenizer).map_err(|e| e.within(format_args!("line {}", index + 1)))).collect()
}

fn document(line: &str, text_column: &str, tokenizer: Option<&Tokenizer>) -> Result<String> {
    let value: Value = serde_json::from_str(line)
        .map_err(|e| Error::input("data::not-json", format!("not JSON: {e}")).hint("a .jsonl file has one JSON object a line"))?;
    let object = value.as_object().ok_or_else(|| {
        Error::input("data::not-json", "not a JSON object").hint("a .jsonl file has one JSON object a line, such as {\"text\": \"…\"}")
    })?;
    match (object.get(text_column), object.get("messages")) {
        (Some(Value::String(text)), _) => Ok(text.clone()),
        (Some(_), _) if text_column != "messages" => Err(Error::input("data::not-text", format!("`{text_column}` is not a string"))),
        (_, Some(messages)) => {
            let tokenizer = tokenizer.ok_or_else(|| {
                Error::input("data::no-tokenizer", "`messages` need the chat template of a tokenizer, and the model has none")
                    .hint("put tokenizer.json beside the model, or use data with a text column")
            })?;
            tokenizer.render_chat(messages)
        }
        _ => {
            let has: Vec<&str> = object.keys().map(String::as_str).collect();
            Err(Error::input("data::no-column", format!("neither `{text_column}` nor `messages`; the keys are: {}", has.join(", ")))
                .hint("name the column with `text-column`"))
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
