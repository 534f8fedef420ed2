//! Hostile and damaged headers: each has its message.

use super::fixture::{Fixture, string, written};
use super::header::GgufFile;
use super::metadata::{List, Value};

fn model() -> Fixture {
    let mut f = Fixture::new("llama");
    f.counted("a", &[2, 3], 0.0);
    f.counted("b", &[4], 0.0);
    f
}

/// The message without the path, and the hint.
fn refusal(bytes: &[u8]) -> (String, String) {
    let file = written(bytes);
    let error = GgufFile::open(&file.path).expect_err("the file should be refused");
    let message = error.to_string();
    let rest = message.strip_prefix(&format!("`{}`: ", file.path.display())).expect("the message begins with the file").to_owned();
    (rest, error.hint_text().expect("every refusal has a hint").to_owned())
}

#[test]
fn a_sound_file_is_read() {
    let mut f = model();
    f.texts("list", &["x", "y"]);
    f.raw("wide", 12, &2.5_f64.to_le_bytes());
    f.raw("byte", 1, &[0xff]);
    let file = f.write();
    let read = GgufFile::open(&file.path).unwrap();
    assert_eq!(read.metadata.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(read.metadata.get("list"), Some(&Value::List(List::Text(vec!["x".into(), "y".into()]))));
    assert_eq!((read.metadata.float("wide").unwrap(), read.metadata.get("byte")), (Some(2.5), Some(&Value::Int(-1))));
    let a = &read.tensors["a"];
    assert_eq!((&a.shape[..], a.row_bytes, a.rows(), a.columns()), (&[2, 3][..], 12, 2, 3));
    assert_eq!(read.tensors["b"].offset - a.offset, 32);
    assert_eq!(read.metadata.uint("list").unwrap_err().to_string(), "metadata `list` should be a non-negative integer and is a list");
}

#[test]
fn another_file_is_named_as_such() {
    assert_eq!(refusal(b"PK\x03\x04 zip").0, r"not a GGUF file: it begins with `PK\x03\x04` instead of `GGUF`");
    assert_eq!(refusal(b"GG").0, "the file ends at byte 2 inside the magic number");
    assert_eq!(refusal(b"").0, "the file ends at byte 0 inside the magic number");
}

#[test]
fn a_missing_file_is_named_once() {
    let error = GgufFile::open(std::path::Path::new("nowhere/model.gguf")).unwrap_err();
    assert_eq!(error.to_string(), "cannot open `nowhere/model.gguf`");
}

#[test]
fn versions_other_than_two_and_three_are_refused() {
    let mut f = model();
    for version in [2, 3] {
        f.version = version;
        assert!(GgufFile::open(&f.write().path).is_ok());
    }
    f.version = 1;
    assert_eq!(refusal(&f.bytes()).0, "GGUF version 1 is not supported; versions 2 and 3 are");
    f.version = 3_u32.swap_bytes();
    let (message, hint) = refusal(&f.bytes());
    assert_eq!(message, "a big-endian GGUF file is not supported");
    assert_eq!(hint, "convert it with `gguf-convert-endian FILE little`");
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    let mut bytes = model().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(refusal(&bytes).0.starts_with("the number of tensors is 18446744073709551615, more than the remaining"));
    let mut bytes = model().bytes();
    bytes[16..24].copy_from_slice(&1_000_000_u64.to_le_bytes());
    assert!(refusal(&bytes).0.starts_with("the number of metadata keys is 1000000, more than the remaining"));
    let mut bytes = model().bytes();
    bytes[24..32].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    assert!(refusal(&bytes).0.starts_with("the length of metadata key 0 is 1152921504606846976, more than the remaining"));
}

#[test]
fn hostile_lists_are_refused() {
    let list = |kind: u32, count: u64, rest: &[u8]| {
        let mut f = model();
        f.raw("k", 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), rest].concat());
        refusal(&f.bytes()).0
    };
    assert!(list(4, u64::MAX / 2, &[]).starts_with("the length of metadata `k` is 9223372036854775807, more than"));
    assert_eq!(list(9, 1, &[0; 16]), "metadata `k` is a list of lists, which is not supported");
    assert_eq!(list(77, 0, &[]), "metadata `k` has the unknown value type 77");
    let mut f = model();
    f.raw("k", 13, &[0; 8]);
    assert_eq!(refusal(&f.bytes()).0, "metadata `k` has the unknown value type 13");
    let mut f = model();
    f.raw("k", 8, &[&1_u64.to_le_bytes()[..], &[0xff]].concat());
    assert_eq!(refusal(&f.bytes()).0, "metadata `k` is not valid UTF-8");
}

#[test]
fn duplicates_are_refused() {
    let mut f = model();
    f.counted("a", &[1], 0.0);
    assert_eq!(refusal(&f.bytes()).0, "tensor `a` appears twice");
    let mut f = model();
    f.text("general.architecture", "qwen2");
    assert_eq!(refusal(&f.bytes()).0, "metadata `general.architecture` appears twice");
}

#[test]
fn damaged_tensor_descriptions_are_refused() {
    let tensor = |lengths: &[u64], format: u32| {
        let mut f = model();
        f.tensors.push(("t".into(), lengths.to_vec(), format, vec![0; 64]));
        refusal(&f.bytes()).0
    };
    assert_eq!(tensor(&[4], 5), "tensor `t`: its number format 5 is unknown");
    assert_eq!(tensor(&[33, 2], 2), "tensor `t`: its rows of 33 elements are not whole blocks of Q4_0, which has 32 elements a block");
    assert_eq!(tensor(&[1; 5], 0), "tensor `t`: it has 5 dimensions and should have 1 to 4");
    assert_eq!(tensor(&[], 0), "tensor `t`: it has 0 dimensions and should have 1 to 4");
    assert_eq!(tensor(&[4, 0], 0), "tensor `t`: its lengths [4, 0] have a product of zero or beyond 2^64");
    let huge = tensor(&[1 << 40, 1 << 40], 0);
    assert_eq!(huge, "tensor `t`: its lengths [1099511627776, 1099511627776] have a product of zero or beyond 2^64");
    assert!(tensor(&[1 << 40], 0).starts_with("tensor `t`: its 4398046511104 bytes at data offset 64 end outside of the file"));
    assert!(tensor(&[1 << 62, 2], 0).starts_with("tensor `t`: its"));
}

#[test]
fn offsets_are_checked() {
    let f = model();
    let bytes = f.bytes();
    // The offset of `b` is the last field before the data.
    let name = string("b");
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8 + 4;
    let patched = |offset: u64| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        refusal(&bytes).0
    };
    assert_eq!(patched(33), "tensor `b`: its offset 33 is not a multiple of the alignment 32");
    let outside = format!("tensor `b`: its 16 bytes at data offset 4096 end outside of the file, which has {} bytes", bytes.len());
    assert_eq!(patched(4096), outside);
    assert!(patched(u64::MAX - 31).contains("end outside of the file"));
    let mut f = model();
    f.uint("general.alignment", 24);
    assert_eq!(refusal(&f.bytes()).0, "`general.alignment` is 24 and has to be a power of two up to 1048576");
}

/// Every prefix of a file is refused, and none panics.
#[test]
fn truncation_anywhere_is_an_error() {
    let mut f = model();
    f.texts("list", &["x", "yy"]);
    f.tensors.truncate(1);
    let bytes = f.bytes();
    let end = bytes.len() - 8; // The last tensor has 24 bytes, padded to 32.
    for length in 0..end {
        let (message, _) = refusal(&bytes[..length]);
        let known = ["the file ends at byte", "more than the remaining", "end outside of the file"];
        assert!(known.iter().any(|k| message.contains(k)), "{length}: {message}");
    }
    assert!(GgufFile::open(&written(&bytes[..end]).path).is_ok());
}

/// Any one damaged byte gives a result or an error, never a panic.
#[test]
fn no_damaged_byte_panics() {
    let bytes = model().bytes();
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            drop(GgufFile::open(&written(&damaged).path));
        }
    }
}
