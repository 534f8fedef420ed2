//! What is written is what is read, by our reader and by candle's.

use candle_core::quantized::gguf_file;

use super::fixture::written;
use super::{GgufFile, GgufWriter, List, Value};
use crate::checkpoint::writer::ContainerWriter;
use crate::checkpoint::{StoredDtype, TensorDecl};

fn decl(name: &str, dtype: StoredDtype, shape: &[usize]) -> TensorDecl {
    TensorDecl { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn pairs() -> Vec<(String, Value)> {
    let list = |l| Value::List(l);
    [
        ("general.architecture", Value::Text("llama".to_owned())),
        ("a.uint", Value::Uint(7)),
        ("a.long", Value::Uint(1 << 40)),
        ("an.int", Value::Int(-7)),
        ("a.long.int", Value::Int(-(1 << 40))),
        ("a.float", Value::F32(1e-5)),
        ("a.double", Value::F64(0.1)),
        ("a.truth", Value::Bool(true)),
        ("texts", list(List::Text(vec!["a".to_owned(), "β".to_owned()]))),
        ("uints", list(List::Uint(vec![1, 2]))),
        ("ints", list(List::Int(vec![-1, 2]))),
        ("long.ints", list(List::Int(vec![-1, 1 << 40]))),
        ("floats", list(List::F32(vec![0.5, -2.0]))),
        ("doubles", list(List::F64(vec![0.25]))),
        ("truths", list(List::Bool(vec![true, false]))),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .to_vec()
}

#[test]
fn what_is_written_is_read_back() {
    let file = written(b"");
    let tensors =
        [decl("one", StoredDtype::F32, &[3]), decl("two", StoredDtype::Ggml("Q8_0"), &[2, 64]), decl("three", StoredDtype::BF16, &[2, 3])];
    let mut writer = GgufWriter::create(&file.path, &pairs(), &tensors).unwrap();
    let blocks: Vec<u8> = (0..4 * 34).map(|i| if i % 34 == 1 { 0x3c } else { (i % 100) as u8 * u8::from(i % 34 > 1) }).collect();
    // In another order than declared, and in parts.
    writer.write("three", &[0; 12]).unwrap();
    writer.write("two", &blocks[..34]).unwrap();
    writer.write("one", &[1.0_f32, 2.0, 3.0].map(f32::to_le_bytes).concat()).unwrap();
    writer.write("two", &blocks[34..]).unwrap();
    writer.finish().unwrap();

    let read = GgufFile::open(&file.path).unwrap();
    let mut expected = pairs();
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    let found: Vec<(String, Value)> = read.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    assert_eq!(found, expected);
    assert_eq!(read.tensors["two"].shape, [2, 64]);
    assert!(read.tensors.values().all(|t| t.offset.is_multiple_of(32)));

    let mut reader = std::fs::File::open(&file.path).unwrap();
    let candle = gguf_file::Content::read(&mut reader).unwrap();
    assert_eq!(candle.metadata["a.uint"].to_u32().unwrap(), 7);
    assert_eq!(candle.metadata["an.int"].to_i32().unwrap(), -7);
    let two = candle.tensor(&mut reader, "two", &candle_core::Device::Cpu).unwrap().dequantize(&candle_core::Device::Cpu).unwrap();
    let expected: Vec<f32> = blocks.chunks(34).flat_map(|b| b[2..].iter().map(|q| f32::from(q.cast_signed()))).collect();
    assert_eq!(two.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
}

#[test]
fn what_was_not_declared_or_not_written_is_named() {
    let file = written(b"");
    let one = decl("one", StoredDtype::F32, &[2]);
    let create = |tensors: &[TensorDecl]| GgufWriter::create(&file.path, &[], tensors);
    let mut writer = create(std::slice::from_ref(&one)).unwrap();
    assert_eq!(writer.write("two", &[]).unwrap_err().to_string(), "tensor `two` was not declared");
    assert_eq!(writer.write("one", &[0; 9]).unwrap_err().to_string(), "tensor `one` has 1 bytes too many");
    writer.write("one", &[0; 3]).unwrap();
    assert_eq!(writer.finish().unwrap_err().to_string(), "tensor `one` lacks 5 bytes");
    let error = |tensors: &[TensorDecl]| create(tensors).err().unwrap().to_string();
    assert_eq!(error(&[one.clone(), one]), "tensor `one` was declared twice");
    assert_eq!(error(&[decl("x", StoredDtype::U8, &[2])]), "`x` is of type U8, which ggml lacks");
    assert_eq!(error(&[decl("x", StoredDtype::Ggml("Q4_0"), &[2, 48])]), "`x` of shape [2, 48] has no whole blocks of Q4_0");
}
