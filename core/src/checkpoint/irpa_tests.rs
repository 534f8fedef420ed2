//! Archives, whole and damaged.

use std::path::{Path, PathBuf};

use super::data_file::places;
use super::{ContainerWriter, DataWriter, SafetensorsSource, StoredDtype, TensorDecl, TensorSource, irpa};

fn decl(name: &str, dtype: StoredDtype, shape: &[usize]) -> TensorDecl {
    TensorDecl { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

/// Three tensors, of which one is a page.
fn written(dir: &Path) -> PathBuf {
    let path = dir.join("x.irpa");
    let decls =
        [decl("a:d", StoredDtype::F32, &[]), decl("b", StoredDtype::parse("F8_E4M3FNUZ"), &[2, 3]), decl("c", StoredDtype::U8, &[4096])];
    let places = places(&decls).unwrap();
    let mut writer = DataWriter::behind(&path, &irpa::head(&decls, &places).unwrap(), places).unwrap();
    writer.write("c", &[7; 4096]).unwrap();
    writer.write("b", &[1, 2, 3, 4, 5, 6]).unwrap();
    writer.write("a:d", &1.5f32.to_le_bytes()).unwrap();
    writer.finish().unwrap();
    path
}

#[test]
fn what_is_written_lies_where_the_header_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let bytes = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    // IREE's `parameter_archive.h`: 4 + 2 + 2 + 3 * 8 bytes, the number of entries, three ranges.
    assert_eq!(&bytes[..8], b"IRPA\0\0\0\0");
    assert_eq!([number(8), number(16), number(24), number(32)], [88, 0, 0, 3]);
    let (table, texts, data) = (number(40), number(56), number(72));
    assert_eq!((table % 16, number(48)), (0, 3 * 80));
    assert_eq!((texts, data), (table + 240, 4096));
    assert_eq!(number(80), 8192, "a page of `c` begins at the second page");
    // The second entry: 8 + 4 + 8 bytes, ranges of name and description, alignment, range of the data.
    let at = table as usize + 80;
    assert_eq!((number(at), bytes[at + 8], number(at + 52), number(at + 60), number(at + 68)), (76, 2, 64, 64, 6));
    let text = |at: usize| std::str::from_utf8(&bytes[(texts + number(at)) as usize..][..number(at + 8) as usize]).unwrap();
    assert_eq!(text(at + 20), "b");
    assert_eq!(text(at + 36), r#"PYTORCH:{"type":"Tensor","dtype":"float8_e4m3fnuz","shape":[2,3]}"#);
    assert_eq!(&bytes[(data + 64) as usize..][..6], [1, 2, 3, 4, 5, 6]);
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let source = SafetensorsSource::open_archive(&written(dir.path())).unwrap();
    assert_eq!(source.names(), ["a:d", "b", "c"]);
    assert_eq!(source.info("a:d").unwrap().shape, [0usize; 0]);
    assert_eq!(source.info("b").unwrap().dtype.name(), "F8_E4M3FNUZ");
    assert_eq!(source.read_bytes("b").unwrap(), [1, 2, 3, 4, 5, 6]);
    let mut out = Vec::new();
    source.read_f32("a:d", 0..1, &mut out).unwrap();
    assert_eq!(out, [1.5]);
}

#[test]
fn what_an_archive_cannot_name_is_said() {
    let decls = [decl("x", StoredDtype::U32, &[1])];
    let e = irpa::head(&decls, &places(&decls).unwrap()).unwrap_err();
    assert_eq!(e.to_string(), "`x` is of type U32, for which a parameter archive has no name");
}

/// Each damage, and a part of what is said of it.
#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path());
    let sound = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_le_bytes(*sound[at..].first_chunk().unwrap());
    let (table, texts) = (number(40) as usize, number(56) as usize);
    let damaged = |at: usize, bytes: &[u8]| {
        let mut file = sound.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, file).unwrap();
        irpa::read_header(&path).unwrap_err().to_string()
    };
    let large = u64::MAX.to_le_bytes();
    let cases: [(usize, &[u8], &str); 16] = [
        (0, b"GGUF", "it begins with `GGUF`, and a parameter archive with `IRPA`"),
        (4, &[1], "is of version 1.0 with 88 bytes of header; 0.0 with 88 is known"),
        (8, &[89], "is of version 0.0 with 89 bytes of header"),
        (16, &[1], "is several archives, one behind the other"),
        (32, &large, "18446744073709551615 entries in a table of 240 bytes"),
        (40, &large, "240 bytes of entries at 18446744073709551615 end outside of the 12288 bytes of the file"),
        (64, &large, "bytes of texts at"),
        (80, &large, "bytes of data at 4096 end outside"),
        (table, &large, "entry 0 of 3 has 18446744073709551615 bytes, and 240 are left"),
        (table, &[61], "the entry of `a:d` has 61 bytes"),
        (table + 8, &[1], "the numbers of `a:d` are not in"),
        (table + 20, &large, "entry 0 has no name that can be read"),
        (table + 36, &large, "what `a:d` is cannot be read"),
        (table + 60, &large, "`a:d`, 4 bytes at 18446744073709551615, ends outside of 8192 bytes of data"),
        (table + 68, &[8], "`a:d` is float32 [] in 8 bytes"),
        (texts + 3, b"pytorch", "is described as `pytorch:"),
    ];
    for (at, bytes, part) in cases {
        let message = damaged(at, bytes);
        assert!(message.contains(part), "{message}\n{part}");
    }
    std::fs::write(&path, &sound[..80]).unwrap();
    assert!(irpa::read_header(&path).unwrap_err().to_string().contains("80 bytes are no parameter archive"));
    // A file without blocks behind its end says that it has a gigabyte of entries.
    std::fs::write(&path, &sound).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 31).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &(1_u64 << 30).to_le_bytes(), 48).unwrap();
    assert!(irpa::read_header(&path).unwrap_err().to_string().contains("bytes, above the limit of 100000000"));
    // Erased entries are as if they were not there; the name of the second is that of the first.
    let mut file = sound.clone();
    file[table + 8] = 0;
    std::fs::write(&path, &file).unwrap();
    assert_eq!(irpa::read_header(&path).unwrap().len(), 2);
    let mut file = sound.clone();
    file.copy_within(table + 20..table + 36, table + 100);
    std::fs::write(&path, &file).unwrap();
    assert!(irpa::read_header(&path).unwrap_err().to_string().contains("`a:d` is in it twice"));
}
