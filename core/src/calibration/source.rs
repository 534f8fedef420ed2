//! Files to documents or stored ids.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use serde_json::Value;

use super::{NamedSet, Tokenizer, ids, npy, unknown_source};
use crate::error::{Error, Result};

/// Extensions that are read, for messages.
pub(super) const KNOWN_FILES: &str = "`.txt`, `.jsonl`, `.jsonl.gz`, `.parquet`, `.safetensors`, `.npy`";

/// Data before windows are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Corpus {
    /// Texts, in the order of the file.
    Documents(Vec<String>),
    /// Token ids, rows as stored; a one-dimensional file is one row.
    Ids(Vec<Vec<u32>>),
}

/// What a name for data stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file on this machine.
    File(PathBuf),
    /// A data set of the Hub.
    Named(&'static NamedSet),
}

impl Source {
    /// A file if there is one of that name, else the data set of that name.
    ///
    /// # Errors
    /// If `source` is neither.
    pub fn find(source: &str) -> Result<Self> {
        let path = Path::new(source);
        if path.exists() {
            return Ok(Self::File(path.to_owned()));
        }
        NamedSet::find(source).map(Self::Named).ok_or_else(|| unknown_source(source))
    }
}

/// A data file on this machine, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is; its extension decides the format.
    pub path: PathBuf,
    /// Column or key of the text.
    pub text_column: String,
    /// Only so many documents, from the start.
    pub documents: Option<usize>,
    /// What joins the documents to one; without it they stay apart.
    pub join: Option<&'static str>,
    /// Evaluate at most so many windows.
    pub windows: Option<usize>,
}

impl DataFile {
    /// All of a file; the text is in `text_column`, or else in `text`.
    pub fn local(path: &Path, text_column: Option<&str>) -> Self {
        let text_column = text_column.unwrap_or("text").to_owned();
        Self { path: path.to_owned(), text_column, documents: None, join: None, windows: None }
    }

    /// Reads the file.
    ///
    /// `.txt` is one document. A line of `.jsonl` (or gzipped: `.jsonl.gz`, `.json.gz`) is an object with the text column, or with
    /// `messages`, which go through the chat template of `tokenizer`. `.parquet` has a text column of strings. Ids come from `input_ids` of
    /// `.safetensors` or from `.npy`, of shape `[tokens]` or `[samples, seq_len]`.
    ///
    /// # Errors
    /// If the format is unknown, the file cannot be read or is not what its extension says, has no such column, or is empty.
    pub fn read(&self, tokenizer: Option<&Tokenizer>) -> Result<Corpus> {
        let path = self.path.as_path();
        let extension = extension(path);
        if !matches!(extension.as_str(), "txt" | "jsonl" | "jsonl.gz" | "parquet" | "safetensors" | "npy") {
            return Err(Error::input(
                "data::unknown-extension",
                format!("cannot read `{}`: unknown data format `.{extension}`", path.display()),
            )
            .hint(format!("known are {KNOWN_FILES}")));
        }
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e).hint("check the path of the data file"))?;
        if metadata.len() == 0 {
            return Err(empty(path));
        }
        let (column, limit) = (self.text_column.as_str(), self.documents.unwrap_or(usize::MAX));
        let bytes = || std::fs::read(path).map_err(|e| Error::io(path, "read", e));
        let corpus = match extension.as_str() {
            "txt" => text(bytes()?).map(|text| Corpus::Documents(vec![text])),
            "jsonl" => text(bytes()?).and_then(|text| jsonl(&text, column, limit, tokenizer)).map(Corpus::Documents),
            "jsonl.gz" => gunzip_lines(path, limit).and_then(|text| jsonl(&text, column, limit, tokenizer)).map(Corpus::Documents),
            "parquet" => parquet_documents(path, column, limit).map(Corpus::Documents),
            "safetensors" => ids::from_safetensors(&bytes()?).map(Corpus::Ids),
            _ => npy::read(&bytes()?).map(Corpus::Ids),
        }
        .map_err(|e| e.within(format_args!("`{}`", path.display())))?;
        let nothing = match &corpus {
            Corpus::Documents(documents) => documents.iter().all(|document| document.trim().is_empty()),
            Corpus::Ids(rows) => rows.iter().all(Vec::is_empty),
        };
        match (corpus, self.join) {
            _ if nothing => Err(empty(path)),
            (Corpus::Documents(documents), Some(join)) => Ok(Corpus::Documents(vec![documents.join(join)])),
            (corpus, _) => Ok(corpus),
        }
    }
}

/// Reads all of a local file, as [`DataFile::read`] does.
///
/// # Errors
/// As [`DataFile::read`].
pub fn read_corpus(path: &Path, text_column: &str, tokenizer: Option<&Tokenizer>) -> Result<Corpus> {
    DataFile::local(path, Some(text_column)).read(tokenizer)
}

/// The extension in lower case; gzipped lines of JSON, under either of their names, are `jsonl.gz`.
fn extension(path: &Path) -> String {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    if name.ends_with(".jsonl.gz") || name.ends_with(".json.gz") {
        return "jsonl.gz".to_owned();
    }
    Path::new(&name).extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned()
}

/// The first `limit` lines that are not blank; the rest is not unpacked.
fn gunzip_lines(path: &Path, limit: usize) -> Result<String> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut reader = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
    let (mut bytes, mut lines) = (Vec::new(), 0);
    while lines < limit {
        let start = bytes.len();
        let read = reader.read_until(b'\n', &mut bytes);
        if read.map_err(|e| Error::input("data::gzip", "not a readable gzip file").with_source(e).hint("fetch or pack it again"))? == 0 {
            break;
        }
        lines += usize::from(!bytes[start..].trim_ascii().is_empty());
    }
    text(bytes)
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
fn parquet_documents(path: &Path, text_column: &str, limit: usize) -> Result<Vec<String>> {
    super::parquet::read(path, text_column, limit)
}

#[cfg(not(feature = "parquet"))]
fn parquet_documents(_path: &Path, _text_column: &str, _limit: usize) -> Result<Vec<String>> {
    Err(Error::input("data::no-parquet", "this build cannot read parquet files")
        .hint("build with the feature `parquet`, or convert to .jsonl"))
}

/// One document a line; blank lines are skipped.
fn jsonl(text: &str, text_column: &str, limit: usize, tokenizer: Option<&Tokenizer>) -> Result<Vec<String>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(limit);
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
