//! What the writer makes is read back by the reference implementation of the format, and by us.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::SafeTensors;

use super::*;

fn decl(name: &str, dtype: StoredDtype, shape: &[usize]) -> TensorDecl {
    TensorDecl { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn bytes_of(decl: &TensorDecl) -> Vec<u8> {
    (0..decl.byte_len().unwrap()).map(|i| (i as u8).wrapping_mul(31) ^ decl.name.as_bytes()[0]).collect()
}

fn mixed() -> Vec<TensorDecl> {
    vec![
        decl("a", StoredDtype::F16, &[3]),
        decl("b", StoredDtype::I32, &[2, 2]),
        decl("c", StoredDtype::U8, &[5]),
        decl("d", StoredDtype::I64, &[2]),
        decl("e", StoredDtype::BF16, &[0, 4]),
    ]
}

/// Writes all of `decls` in the order of `order`.
fn write(dir: &Path, decls: &[TensorDecl], order: impl Iterator<Item = usize>, max_shard: u64) -> (Vec<PathBuf>, Option<String>) {
    let metadata = BTreeMap::from([("plan".to_owned(), "abc".to_owned())]);
    let mut writer = SafetensorsWriter::create(dir, "model", decls, max_shard, &metadata).unwrap();
    for i in order {
        // In two parts.
        let bytes = bytes_of(&decls[i]);
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        writer.write(&decls[i].name, head).unwrap();
        writer.write(&decls[i].name, tail).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn the_reference_reader_finds_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let (files, index) = write(dir.path(), &mixed(), 0..5, u64::MAX);
    assert_eq!((files, index), (vec![dir.path().join("model.safetensors")], None));
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let written: BTreeMap<&str, &str> = metadata.metadata().iter().flatten().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(written, BTreeMap::from([("format", "pt"), ("plan", "abc")]));
    assert_eq!(header % 8, 0, "data start at a multiple of eight");
    let read = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), 5);
    for decl in mixed() {
        let tensor = read.tensor(&decl.name).unwrap();
        assert_eq!((tensor.shape(), tensor.data()), (&decl.shape[..], &bytes_of(&decl)[..]), "{}", decl.name);
        assert_eq!(tensor.dtype().to_string(), decl.dtype.name());
        let offset = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset as u64 % decl.dtype.size().unwrap(), 0, "`{}` can be viewed in place", decl.name);
    }
}

#[test]
fn aligned_tensors_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let decls = [decl("z", StoredDtype::F16, &[4]), decl("y", StoredDtype::I64, &[1]), decl("x", StoredDtype::U8, &[1])];
    write(dir.path(), &decls, 0..3, u64::MAX);
    let header = super::header::read_header(&dir.path().join("model.safetensors")).unwrap();
    assert_eq!(header.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["z", "y", "x"]);
}

#[test]
fn shards_and_index_agree_and_do_not_depend_on_the_order_of_writing() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (files, index) = write(one.path(), &mixed(), 0..5, 20);
    let (_, again) = write(two.path(), &mixed(), (0..5).rev(), 20);
    let index = index.expect("several shards have an index");
    assert_eq!(Some(&index), again.as_ref());
    let names: Vec<_> = files.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    let want = [
        "model-00001-of-00004.safetensors",
        "model-00002-of-00004.safetensors",
        "model-00003-of-00004.safetensors",
        "model-00004-of-00004.safetensors",
    ];
    assert_eq!(names, want, "6, 16, 5, and 16 + 0 bytes: any two neighbours are more than 20");
    for name in names {
        assert_eq!(std::fs::read(one.path().join(name)).unwrap(), std::fs::read(two.path().join(name)).unwrap(), "{name}");
    }
    assert!(index.contains("\"total_size\": 43"), "{index}");
    std::fs::write(one.path().join("model.safetensors.index.json"), index).unwrap();
    let source = SafetensorsSource::open_dir(one.path()).unwrap();
    for decl in mixed() {
        assert_eq!(source.read_bytes(&decl.name).unwrap(), bytes_of(&decl));
    }
}

#[test]
fn what_does_not_match_the_declarations_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let decls = mixed();
    let create = |decls: &[TensorDecl]| SafetensorsWriter::create(dir.path(), "model", decls, u64::MAX, &BTreeMap::new());
    let message = |r: Result<()>| r.unwrap_err().to_string();
    let mut writer = create(&decls).unwrap();
    assert_eq!(message(writer.write("z", &[])), "tensor `z` was not declared");
    assert_eq!(message(writer.write("a", &[0; 7])), "tensor `a` has 1 bytes too many");
    writer.write("a", &[0; 4]).unwrap();
    assert_eq!(message(writer.write("a", &[0; 4])), "tensor `a` has 2 bytes too many");
    assert_eq!(writer.finish().unwrap_err().to_string(), "tensor `a` lacks 2 bytes");
    let twice = [decls[0].clone(), decls[0].clone()];
    assert_eq!(create(&twice).err().unwrap().to_string(), "tensor `a` was declared twice");
    let block = [decl("q", StoredDtype::Ggml("Q4_0"), &[32])];
    assert_eq!(create(&block).err().unwrap().to_string(), "`q` of type Q4_0 has no fixed size");
    let huge = [decl("h", StoredDtype::F32, &[usize::MAX, 2])];
    assert_eq!(create(&huge).err().unwrap().to_string(), "`h` of shape [18446744073709551615, 2] is larger than a file can be");
}
