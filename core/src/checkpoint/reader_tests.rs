//! What people feed in: each defect is an error that names the file and the tensor, and sound files read as they were written.

use std::path::Path;

use ::safetensors::tensor::{Dtype, TensorView};
use half::{bf16, f16};
use tempfile::TempDir;

use super::*;

const LLAMA: &str = r#"{"model_type": "llama"}"#;

/// A safetensors file with this header, right or wrong.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

/// A sound file with one `[2, 2]` f32 tensor per name.
fn sound(names: &[&str]) -> Vec<u8> {
    let entry = |(i, n): (usize, &&str)| format!(r#""{n}":{{"dtype":"F32","shape":[2,2],"data_offsets":[{},{}]}}"#, 16 * i, 16 * i + 16);
    let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
    file(&format!("{{{}}}", entries.join(",")), 16 * names.len())
}

fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Message and hint of a failed opening, with `DIR` for the directory.
fn failure(files: &[(&str, &[u8])]) -> String {
    let dir = dir(files);
    describe(Checkpoint::open(dir.path()).err().expect("the checkpoint is refused"), dir.path())
}

fn describe(error: Error, dir: &Path) -> String {
    let text = format!("[{}] {error} | {}", error.code(), error.hint_text().unwrap_or("no hint"));
    text.replace(&dir.display().to_string(), "DIR")
}

/// The failure of a checkpoint whose only weights are these bytes.
fn weights(bytes: &[u8]) -> String {
    let text = failure(&[("config.json", LLAMA.as_bytes()), ("model.safetensors", bytes)]);
    let prefix = "[checkpoint::malformed] `DIR/model.safetensors` is not a sound safetensors file: ";
    let text = text.strip_prefix(prefix).unwrap_or_else(|| panic!("{text}"));
    text.strip_suffix(" | fetch or save the file again").unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// The failure of a header with `data` bytes behind it.
fn header(text: &str, data: usize) -> String {
    weights(&file(text, data))
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let dir_ = dir(&[("config.json", LLAMA.as_bytes()), ("w.safetensors", &sound(&["w"]))]);
    let open = |name: &str| describe(Checkpoint::open(&dir_.path().join(name)).err().unwrap(), dir_.path());
    let hint = "give a directory with config.json and *.safetensors, or a .gguf file";
    assert_eq!(open("none"), format!("[checkpoint::not-found] there is no model at `DIR/none` | {hint}"));
    assert_eq!(open("w.safetensors"), format!("[checkpoint::not-found] `DIR/w.safetensors` is not a checkpoint directory | {hint}"));
    assert_eq!(
        failure(&[("model.safetensors", &sound(&["w"]))]),
        "[checkpoint::no-config] `DIR` has no config.json | a Hugging Face checkpoint directory holds config.json beside its weights"
    );
    assert_eq!(
        failure(&[("config.json", LLAMA.as_bytes())]),
        "[checkpoint::no-weights] `DIR` holds no *.safetensors file | give the directory that holds the weights"
    );
    for (name, file) in [("onnx", "config.json"), ("gguf", "model.gguf"), ("empty", "README.md")] {
        std::fs::create_dir_all(dir_.path().join("several").join(name)).unwrap();
        std::fs::write(dir_.path().join("several").join(name).join(file), "").unwrap();
    }
    assert_eq!(
        open("several"),
        "[checkpoint::no-config] `DIR/several` has no config.json | give the one that is meant: `DIR/several/gguf`, `DIR/several/onnx`"
    );
    assert_eq!(failure(&[("a.gguf", b""), ("b.gguf", b"")]), "[checkpoint::ambiguous] `DIR` holds 2 .gguf files | name one of them");
}

#[test]
fn pickled_weights_are_never_read() {
    for name in ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"] {
        assert_eq!(
            failure(&[("config.json", LLAMA.as_bytes()), (name, b"\x80\x02}q\x00.")]),
            format!(
                "[checkpoint::pickled] `DIR/{name}` is a pickled checkpoint, which can run code when read | \
                 save the model as safetensors with the program that made it; pickles are never read"
            )
        );
    }
}

#[test]
fn a_broken_configuration_is_placed() {
    let config = |text: &str| failure(&[("config.json", text.as_bytes()), ("model.safetensors", &sound(&["w"]))]);
    assert_eq!(
        config("{\n  \"a\": 1,\n}"),
        "[checkpoint::bad-config] `DIR/config.json` is not valid JSON: trailing comma at line 3 column 1 | no hint"
    );
    assert_eq!(config("[1]"), "[checkpoint::bad-config] `DIR/config.json` is not a JSON object | no hint");
}

#[test]
fn damaged_files_are_refused() {
    assert_eq!(weights(b"abc"), "it has 3 bytes, less than the length of a header");
    assert_eq!(weights(&200u64.to_le_bytes()), "its header claims 200 bytes, but only 0 follow");
    assert_eq!(weights(&u64::MAX.to_le_bytes()), "its header claims 18446744073709551615 bytes, above the limit of 100000000");
    let mut cut = sound(&["a", "b"]);
    cut.truncate(cut.len() - 1);
    assert_eq!(weights(&cut), "tensor `b` lies at bytes 16..32 of 31 bytes of data: the file is truncated or the header wrong");
    let mut long = sound(&["a"]);
    long.push(0);
    assert_eq!(weights(&long), "bytes 16..17 of its data belong to no tensor");
}

#[test]
fn hostile_headers_are_refused() {
    let mut bytes = 4u64.to_le_bytes().to_vec();
    bytes.extend([b'"', 0xff, 0xfe, b'"']);
    assert_eq!(weights(&bytes), "its header is not UTF-8");
    assert!(header("{\"a\"", 0).starts_with("its header is not valid JSON: tensor `a`: EOF while parsing an object"));
    assert!(header("[]", 0).starts_with("its header is not valid JSON: invalid type: sequence, expected an object of tensors"));
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(header(&deep, 0).starts_with("its header is not valid JSON: tensor `a`"), "deep nesting neither panics nor overflows");
    let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    assert_eq!(header(&format!(r#"{{"a":{one},"a":{one}}}"#), 4), "its header lists tensor `a` twice");
    let twice = r#"{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(header(twice, 4).starts_with("its header is not valid JSON: tensor `a`: duplicate field `dtype`"));
    let negative = r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#;
    assert!(header(negative, 4).starts_with("its header is not valid JSON: tensor `a`: invalid value"));
    let lacking = r#"{"a":{"dtype":"F32","shape":[1]}}"#;
    assert!(header(lacking, 4).starts_with("its header is not valid JSON: tensor `a`: missing field `data_offsets`"));
}

#[test]
fn offsets_have_to_fit() {
    let two = |a: (u64, u64), b: (u64, u64), data| {
        let entry = |(s, e): (u64, u64)| format!(r#"{{"dtype":"U8","shape":[{}],"data_offsets":[{s},{e}]}}"#, e.saturating_sub(s));
        header(&format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b)), data)
    };
    let outside = "the file is truncated or the header wrong";
    assert_eq!(two((0, 8), (4, 12), 12), "tensors `a` and `b` overlap");
    assert_eq!(two((0, 8), (0, 8), 8), "tensors `a` and `b` overlap");
    assert_eq!(two((0, 4), (8, 12), 12), "bytes 4..8 of its data belong to no tensor");
    assert_eq!(two((0, 4), (4, 9), 8), format!("tensor `b` lies at bytes 4..9 of 8 bytes of data: {outside}"));
    assert_eq!(two((0, 4), (6, 4), 8), format!("tensor `b` lies at bytes 6..4 of 8 bytes of data: {outside}"));
    assert_eq!(two((0, 4), (4, u64::MAX), 8), format!("tensor `b` lies at bytes 4..18446744073709551615 of 8 bytes of data: {outside}"));
}

#[test]
fn length_type_and_shape_have_to_agree() {
    let one = |dtype: &str, shape: &str| header(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,8]}}}}"#), 8);
    assert_eq!(one("F32", "[3]"), "tensor `a` of type F32 and shape [3] cannot have 8 bytes");
    assert_eq!(one("F16", "[2]"), "tensor `a` of type F16 and shape [2] cannot have 8 bytes");
    let huge = "[4294967296, 4294967296, 4]";
    assert_eq!(one("F32", huge), format!("tensor `a` of type F32 and shape {huge} cannot have 8 bytes"), "the product overflows");
    let edge = "[4611686018427387906]";
    assert_eq!(
        one("F32", edge),
        format!("tensor `a` of type F32 and shape {edge} cannot have 8 bytes"),
        "times the element size, it overflows"
    );
}

#[test]
fn shards_without_an_index_are_checked() {
    let config = ("config.json", LLAMA.as_bytes());
    assert_eq!(
        failure(&[config, ("a.safetensors", &sound(&["v", "w"])), ("b.safetensors", &sound(&["w"]))]),
        "[checkpoint::duplicate-tensor] tensor `w` is in both `DIR/a.safetensors` and `DIR/b.safetensors` | \
         remove the file that does not belong to the model, or add an index that names its shards"
    );
    assert_eq!(
        failure(&[config, ("m-00001-of-00003.safetensors", &sound(&["v"])), ("m-00003-of-00003.safetensors", &sound(&["w"]))]),
        "[checkpoint::missing-shard] `DIR` lacks shard 2 of 3 of `m` | fetch the missing shard, and the index with it"
    );
    let both = dir(&[config, ("a.safetensors", &sound(&["v"])), ("b.safetensors", &sound(&["w"]))]);
    assert_eq!(Checkpoint::open(both.path()).unwrap().tensors.names(), ["v", "w"]);
    let adapter = dir(&[config, ("model.safetensors", &sound(&["w"])), ("consolidated.safetensors", &sound(&["w"]))]);
    assert_eq!(Checkpoint::open(adapter.path()).unwrap().tensors.names(), ["w"], "`model.safetensors` is the model");
}

#[test]
fn index_and_shards_have_to_agree() {
    let index = |text: &str| {
        let shard = sound(&["v", "w"]);
        let text = failure(&[
            ("config.json", LLAMA.as_bytes()),
            ("a.safetensors", &shard),
            ("b.safetensors", &sound(&["x"])),
            ("model.safetensors.index.json", text.as_bytes()),
        ]);
        text.strip_prefix("[checkpoint::bad-index] `DIR/model.safetensors.index.json`: ").unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let map = |pairs: &str| index(&format!(r#"{{"weight_map": {{{pairs}}}}}"#));
    assert_eq!(index("{"), "not a valid index: EOF while parsing an object at line 1 column 1 | no hint");
    assert_eq!(index("{}"), "not a valid index: missing field `weight_map` at line 1 column 2 | no hint");
    assert_eq!(
        map(r#""v": "a.safetensors", "w": "c.safetensors""#),
        "it names shard `c.safetensors`, which does not exist | fetch the missing shard"
    );
    assert_eq!(
        map(r#""v": "a.safetensors", "w": "a.safetensors", "z": "a.safetensors""#),
        "it places tensor `z` in `a.safetensors`, which does not hold it | no hint"
    );
    assert_eq!(
        map(r#""v": "a.safetensors", "w": "a.safetensors", "x": "a.safetensors""#),
        "it places tensor `x` in `a.safetensors`, which does not hold it | no hint",
        "a shard that the index does not name is not read"
    );
    assert_eq!(
        map(r#""v": "a.safetensors", "w": "b.safetensors", "x": "b.safetensors""#),
        "it places tensor `w` in `b.safetensors`, but `DIR/a.safetensors` holds it | no hint"
    );
    assert_eq!(
        map(r#""v": "a.safetensors""#),
        "it does not list tensor `w`, which `DIR/a.safetensors` holds | the index belongs to other weights; fetch both again"
    );
    assert_eq!(map(r#""v": "a.safetensors", "v": "b.safetensors""#), "it lists tensor `v` twice | no hint");
    for outside in ["../a.safetensors", "/a.safetensors", "sub/a.safetensors", ".."] {
        let message = format!("`weight_map.v` is `{outside}`, which is not a plain file name | no hint");
        assert_eq!(map(&format!(r#""v": "{outside}""#)), message);
    }
}

#[test]
fn tensors_that_are_not_what_is_asked_for_are_named() {
    let header = r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"odd":{"dtype":"F7","shape":[3],"data_offsets":[8,16]},
        "w.weight":{"dtype":"F32","shape":[2,1],"data_offsets":[16,24]},"x":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[24,32]}}"#;
    let dir = dir(&[("config.json", LLAMA.as_bytes()), ("model.safetensors", &file(header, 32))]);
    let checkpoint = Checkpoint::open(dir.path()).expect("an unknown type is no reason to refuse the file");
    let tensors = &checkpoint.tensors;
    let read = |name: &str| describe(tensors.read_f32(name, 0..1, &mut Vec::new()).unwrap_err(), dir.path());
    let missing = "[checkpoint::missing-tensor] the checkpoint has no tensor `w.wieght` (did you mean `w.weight`?) | \
         is every shard there, and does config.json belong to these weights?";
    assert_eq!(read("w.wieght"), missing);
    assert_eq!(describe(tensors.require("w.wieght").unwrap_err(), dir.path()), missing);
    for (name, dtype) in [("ids", "I64"), ("odd", "F7"), ("x", "F8_E4M3")] {
        assert_eq!(
            read(name),
            format!(
                "[checkpoint::wrong-dtype] tensor `{name}` in `DIR/model.safetensors` is of type {dtype}, not a float type | \
                 the checkpoint is already quantized, or config.json does not say how it is"
            )
        );
        assert_eq!(tensors.read_bytes(name).unwrap(), [0; 8], "bytes can be had of any type");
    }
    assert_eq!(tensors.expect_shape("w.weight", &[2, 1]).unwrap().dtype, StoredDtype::F32);
    assert_eq!(
        describe(tensors.expect_shape("w.weight", &[1, 2]).unwrap_err(), dir.path()),
        "[checkpoint::wrong-shape] tensor `w.weight` in `DIR/model.safetensors` has shape [2, 1], but config.json asks for [1, 2] | \
         does config.json belong to these weights?"
    );
    assert!(tensors.read_f32("w.weight", 1..3, &mut Vec::new()).is_err(), "rows end with the tensor");
}

#[test]
fn values_that_are_not_finite_are_found() {
    let mut values = vec![1.0f32; 10_000];
    values[3] = f32::MAX;
    values[4] = f32::MIN_POSITIVE / 2.0;
    check_finite("w", &values).unwrap();
    for (at, x, shown) in [(0, f32::NAN, "NaN"), (4095, f32::INFINITY, "inf"), (9999, f32::NEG_INFINITY, "-inf")] {
        let mut values = values.clone();
        values[at] = x;
        let error = check_finite("w", &values).unwrap_err();
        assert_eq!(error.to_string(), format!("tensor `w` holds {shown} at flat index {at}"));
        assert_eq!(error.hint_text(), Some("the checkpoint is damaged, or was saved from a diverged run"));
    }
}

/// Every bit pattern of both half types, widened as the `half` crate does it value by value, from files that the reference
/// implementation of the format wrote.
#[test]
fn floats_are_decoded_exactly() {
    let patterns: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let doubles: Vec<u8> = [1.0f64, -0.5, 1e300, 0.1].iter().flat_map(|x| x.to_le_bytes()).collect();
    let scalar = 2.5f32.to_le_bytes();
    let tensors = [
        ("half", TensorView::new(Dtype::F16, vec![1024, 64], &patterns).unwrap()),
        ("brain", TensorView::new(Dtype::BF16, vec![1024, 64], &patterns).unwrap()),
        ("double", TensorView::new(Dtype::F64, vec![2, 2], &doubles).unwrap()),
        ("scalar", TensorView::new(Dtype::F32, vec![], &scalar).unwrap()),
        ("empty", TensorView::new(Dtype::F32, vec![0, 4], &[]).unwrap()),
    ];
    let bytes = ::safetensors::serialize(tensors, None).unwrap();
    let dir = dir(&[("config.json", LLAMA.as_bytes()), ("model.safetensors", &bytes)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let read = |name: &str, rows: Range<usize>| {
        let mut out = vec![7.0; 3];
        checkpoint.tensors.read_f32(name, rows, &mut out).unwrap();
        out
    };
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    // A signalling NaN may come out quiet.
    let same = |got: Vec<f32>, want: Vec<f32>| {
        got.len() == want.len() && got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
    };
    assert!(same(read("half", 0..1024), (0..=u16::MAX).map(|b| f16::from_bits(b).to_f32()).collect()));
    assert!(same(read("brain", 0..1024), (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f32()).collect()));
    assert!(same(read("half", 3..5), (192..320).map(|b| f16::from_bits(b).to_f32()).collect()), "rows 3 and 4");
    assert_eq!(bits(read("double", 1..2)), bits(vec![f32::INFINITY, 0.1]));
    assert_eq!(read("scalar", 0..1), [2.5]);
    assert!(read("empty", 0..0).is_empty());
    assert!(read("half", 9..9).is_empty());
    assert_eq!(checkpoint.tensors.names(), ["brain", "double", "empty", "half", "scalar"]);
}

/// A tensor longer than one piece of the reader.
#[test]
fn long_tensors_are_read_whole() {
    let values: Vec<f32> = (0..700_000u32).map(|i| i as f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![700, 1000], &bytes).unwrap();
    let dir = dir(&[("config.json", LLAMA.as_bytes()), ("w.safetensors", &::safetensors::serialize([("w", view)], None).unwrap())]);
    let tensors = Checkpoint::open(dir.path()).unwrap().tensors;
    let mut out = Vec::new();
    tensors.read_f32("w", 0..700, &mut out).unwrap();
    assert_eq!(out, values);
    tensors.read_f32("w", 1..699, &mut out).unwrap();
    assert_eq!(out, values[1000..699_000]);
    assert_eq!(tensors.read_bytes("w").unwrap(), bytes);
}

#[test]
fn the_hash_follows_the_model_and_not_its_place() {
    let hash = |config: &str, weights: &[u8]| {
        let dir = dir(&[("config.json", config.as_bytes()), ("model.safetensors", weights), ("tokenizer.json", b"{}")]);
        Checkpoint::open(dir.path()).unwrap().content_hash().unwrap()
    };
    let weights = sound(&["v", "w"]);
    let base = hash(LLAMA, &weights);
    assert_eq!(base, hash(LLAMA, &weights));
    assert_ne!(base, hash(r#"{"model_type": "gpt2"}"#, &weights));
    assert_ne!(base, hash(LLAMA, &sound(&["v", "x"])));
    let mut tuned = weights.clone();
    *tuned.last_mut().unwrap() = 1;
    assert_ne!(base, hash(LLAMA, &tuned), "same header, other values");
}

#[test]
fn side_files_are_listed_without_weights() {
    let names = ["tokenizer.json", "chat_template.jinja", "modeling_x.py", "generation_config.json", "pytorch_model.bin", ".gitattributes"];
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|n| (*n, &b"x"[..])).collect();
    let weights = sound(&["w"]);
    files.extend([("config.json", LLAMA.as_bytes()), ("model.safetensors", &weights)]);
    let dir = dir(&files);
    let side = Checkpoint::open(dir.path()).unwrap().side_files;
    let want = ["chat_template.jinja", "generation_config.json", "modeling_x.py", "tokenizer.json"];
    assert_eq!(side, want.map(PathBuf::from));
}
