//! A GGUF file.
//!
//! The first byte says what the rest is: even, the whole file; odd, the head of one up to its tensors, after which sound data are put.

use qfw_core::checkpoint::gguf::GgufFile;

use crate::stage::Stage;
use crate::verdict::Readers;
use crate::{Target, bases};

pub(crate) const TARGET: Target = Target { name: "gguf", about: "a GGUF file: keys, tokenizer, tensor infos, blocks", run, seeds };

const FILE: &str = "model.gguf";

struct State {
    readers: Readers,
    stage: Stage,
    data: Vec<u8>,
}

thread_local!(static STATE: State = {
    let file = made("q4_0");
    let data = file[head(&file)..].to_vec();
    State { readers: Readers::new(), stage: Stage::empty(), data }
});

/// The float model in blocks of ggml of one type.
#[allow(clippy::expect_used, reason = "it was just written")]
fn made(format: &str) -> Vec<u8> {
    let group = "scheme.weights.granularity.group=32";
    let weights = match format {
        "q4_0" => vec!["scheme.weights.format=int4", group],
        "q4_1" => vec!["scheme.weights.format=uint4", "scheme.weights.symmetric=false", "scheme.weights.zero-point=\"float\"", group],
        _ => vec!["scheme.weights.format=int8", group],
    };
    let stage = bases::quantized("gguf", &["rtn"], &weights);
    std::fs::read(stage.path().join(FILE)).expect("a base can be read")
}

/// Where the tensors' bytes begin.
#[allow(clippy::expect_used, reason = "it was just written")]
fn head(file: &[u8]) -> usize {
    let stage = Stage::empty();
    stage.put(FILE, file);
    let opened = GgufFile::open(&stage.path().join(FILE)).expect("a base is sound");
    opened.tensors.values().map(|t| t.offset).min().unwrap_or(0) as usize
}

fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    STATE.with(|s| {
        if first % 2 == 0 {
            s.stage.put(FILE, rest);
        } else {
            let padding = vec![0; rest.len().next_multiple_of(32) - rest.len()];
            s.stage.put(FILE, &[rest, &padding, &s.data].concat());
        }
        s.readers.read(&s.stage.path().join(FILE));
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    ["q4_0", "q4_1", "q8_0"]
        .into_iter()
        .map(|format| {
            let file = made(format);
            let head = &file[..head(&file)];
            (format.to_owned(), [b"1", head].concat())
        })
        .collect()
}
