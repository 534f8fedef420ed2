use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::super::tokenizer::{fixture, fixture_without_bos};
use super::*;

fn read(name: &str, content: &[u8], tokenizer: Option<&Tokenizer>) -> Result<Corpus> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    read_corpus(&path, "text", tokenizer)
}

/// The message without the directory.
fn refused(name: &str, content: &[u8], tokenizer: Option<&Tokenizer>) -> String {
    let message = read(name, content, tokenizer).unwrap_err().to_string();
    let (_, rest) = message.split_once(name).unwrap();
    format!("{name}{rest}")
}

fn stored(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
    safetensors::serialize(BTreeMap::from([(name, view)]), None).unwrap()
}

fn le<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| bytes(*value)).collect()
}

#[test]
fn text_is_one_document_as_stored() {
    assert_eq!(read("a.txt", "a\r\n\nü ".as_bytes(), None).unwrap(), Corpus::Documents(vec!["a\r\n\nü ".to_owned()]));
}

#[test]
fn a_line_is_a_document_of_text_or_messages() {
    let lines = "{\"text\": \"one\", \"messages\": 3}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n";
    let expected = Corpus::Documents(vec!["one".to_owned(), "<s> two".to_owned()]);
    assert_eq!(read("a.jsonl", lines.as_bytes(), Some(&fixture())).unwrap(), expected);
}

fn gzipped(content: &str) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut out, content.as_bytes()).unwrap();
    out.finish().unwrap()
}

/// Large sets are cut into gzip members; what lies beyond the documents asked for is not even unpacked.
#[test]
fn gzipped_lines_are_read_as_far_as_needed() {
    let two = [gzipped("{\"text\": \"one\"}\n\n{\"text\": \"t"), gzipped("wo\"}\n{\"text\": \"three\"}")].concat();
    let all = ["one", "two", "three"].map(str::to_owned).to_vec();
    for name in ["a.jsonl.gz", "a.JSON.gz"] {
        assert_eq!(read(name, &two, None).unwrap(), Corpus::Documents(all.clone()), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json.gz");
    std::fs::write(&path, [two.as_slice(), b"no gzip"].concat()).unwrap();
    let part = DataFile { documents: Some(2), join: Some(" "), ..DataFile::local(&path, None) };
    assert_eq!(part.read(None).unwrap(), Corpus::Documents(vec!["one two".to_owned()]));
    let error = read_corpus(&path, "text", None).unwrap_err();
    assert_eq!(error.to_string(), format!("`{}`: not a readable gzip file", path.display()));
}

#[test]
fn a_file_goes_before_the_data_set_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c4");
    let name = path.to_str().unwrap();
    assert_eq!(Source::find("c4").unwrap(), Source::Named(NamedSet::find("c4").unwrap()));
    std::fs::write(&path, "x").unwrap();
    assert_eq!(Source::find(name).unwrap(), Source::File(path.clone()));
    let hint = "give a text or token file (`.txt`, `.jsonl`, `.jsonl.gz`, `.parquet`, `.safetensors`, `.npy`), \
                or one of: c4, pile, ptb, wikitext2";
    for (source, message) in [
        ("wikitext", "`wikitext` is neither a file nor the name of a data set (did you mean `wikitext2`?)"),
        ("no/such.txt", "`no/such.txt` is neither a file nor the name of a data set"),
        ("", "no data was given"),
    ] {
        let error = Source::find(source).unwrap_err();
        assert_eq!((error.code(), error.to_string().as_str(), error.hint_text()), ("data::not-found", message, Some(hint)));
    }
}

#[test]
fn files_that_cannot_be_read() {
    let missing = read_corpus(Path::new("no/such.txt"), "text", None).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read `no/such.txt`");
    assert_eq!(missing.hint_text(), Some("check the path of the data file"));
    let unknown = read_corpus(Path::new("data.csv"), "text", None).unwrap_err();
    assert_eq!(unknown.to_string(), "cannot read `data.csv`: unknown data format `.csv`");
    assert_eq!(unknown.hint_text(), Some("known are `.txt`, `.jsonl`, `.jsonl.gz`, `.parquet`, `.safetensors`, `.npy`"));
    for (name, content) in [("a.txt", ""), ("a.txt", " \n"), ("a.jsonl", "\n\n"), ("a.npy", ""), ("a.parquet", ""), ("a.safetensors", "")] {
        assert_eq!(refused(name, content.as_bytes(), None), format!("{name}` is empty"));
    }
    assert_eq!(refused("a.txt", b"ab\xff", None), "a.txt`: not UTF-8 text at byte 2");
}

#[test]
fn lines_that_are_no_documents_are_named_by_number() {
    let error = refused("a.jsonl", b"{\"text\": \"x\"}\n\n{oops\n", None);
    assert!(error.starts_with("a.jsonl`: line 3: not JSON: "), "{error}");
    assert_eq!(refused("a.jsonl", b"[1]", None), "a.jsonl`: line 1: not a JSON object");
    assert_eq!(refused("a.jsonl", b"{\"text\": 3}", None), "a.jsonl`: line 1: `text` is not a string");
    let neither = refused("a.jsonl", b"{\"id\": 1, \"content\": \"x\"}", None);
    assert_eq!(neither, "a.jsonl`: line 1: neither `text` nor `messages`; the keys are: id, content");
    let chat = b"{\"messages\": []}";
    let no_template = refused("a.jsonl", chat, Some(&fixture_without_bos()));
    assert_eq!(no_template, "a.jsonl`: line 1: the tokenizer has no chat template");
    let no_tokenizer = refused("a.jsonl", chat, None);
    assert_eq!(no_tokenizer, "a.jsonl`: line 1: `messages` need the chat template of a tokenizer, and the model has none");
}

#[test]
fn stored_ids_keep_their_rows() {
    let rows = Corpus::Ids(vec![vec![1, 2, 3], vec![4, 5, 70_000]]);
    let i64s = stored("input_ids", Dtype::I64, &[2, 3], &le(&[1i64, 2, 3, 4, 5, 70_000], i64::to_le_bytes));
    let i32s = stored("input_ids", Dtype::I32, &[2, 3], &le(&[1i32, 2, 3, 4, 5, 70_000], i32::to_le_bytes));
    let u32s = stored("input_ids", Dtype::U32, &[2, 3], &le(&[1u32, 2, 3, 4, 5, 70_000], u32::to_le_bytes));
    for content in [i64s, i32s, u32s] {
        assert_eq!(read("a.safetensors", &content, None).unwrap(), rows);
    }
    let flat = stored("input_ids", Dtype::I32, &[3], &le(&[1i32, 2, 3], i32::to_le_bytes));
    assert_eq!(read("a.safetensors", &flat, None).unwrap(), Corpus::Ids(vec![vec![1, 2, 3]]));
}

#[test]
fn tensors_that_are_no_ids() {
    let name = refused("a.safetensors", &stored("tokens", Dtype::I32, &[1], &[0; 4]), None);
    assert_eq!(name, "a.safetensors`: no tensor `input_ids`; the tensors are: tokens");
    let float = refused("a.safetensors", &stored("input_ids", Dtype::F32, &[1], &[0; 4]), None);
    assert_eq!(float, "a.safetensors`: `input_ids` has the type F32, which is not one of I64, I32, U32");
    let negative = refused("a.safetensors", &stored("input_ids", Dtype::I32, &[2, 2], &le(&[1i32, 2, 3, -100], i32::to_le_bytes)), None);
    assert_eq!(negative, "a.safetensors`: id -100 at position 1 of row 1 is negative");
    let large = refused("a.safetensors", &stored("input_ids", Dtype::I64, &[1], &le(&[1i64 << 32], i64::to_le_bytes)), None);
    assert_eq!(large, "a.safetensors`: id 4294967296 at position 0 of row 0 is beyond 32 bits");
    let cube = refused("a.safetensors", &stored("input_ids", Dtype::I32, &[1, 1, 1], &[0; 4]), None);
    assert_eq!(cube, "a.safetensors`: the ids have the shape [1, 1, 1], with 3 dimensions");
    assert_eq!(refused("a.safetensors", &stored("input_ids", Dtype::I32, &[0], &[]), None), "a.safetensors` is empty");
    let broken = refused("a.safetensors", b"not one", None);
    assert!(broken.starts_with("a.safetensors`: not a readable safetensors file: "), "{broken}");
}
