//! The one weight file of a float checkpoint.
//!
//! The first byte says what the rest is: even, the whole file; odd, its header as JSON, before which the length and after which sound data
//! are put, so that what is behind the length is reached too.

use std::path::PathBuf;

use crate::stage::Stage;
use crate::verdict::Readers;
use crate::{Target, bases, frame};

pub(crate) const TARGET: Target = Target { name: "safetensors", about: "model.safetensors of a float checkpoint", run, seeds };

struct State {
    readers: Readers,
    stage: Stage,
    data: Vec<u8>,
}

thread_local!(static STATE: State = {
    let base = bases::float();
    let data = frame::split(&weights(base.path().join("model.safetensors"))).1.to_vec();
    State { readers: Readers::new(), stage: Stage::copy(base.path()), data }
});

#[allow(clippy::expect_used, reason = "it was just written")]
fn weights(path: PathBuf) -> Vec<u8> {
    std::fs::read(path).expect("the base can be read")
}

fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    STATE.with(|s| {
        let file = if first % 2 == 0 { rest.to_vec() } else { frame::safetensors(rest, &s.data) };
        s.stage.put("model.safetensors", &file);
        s.readers.read(s.stage.path());
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let base = bases::float();
    let file = weights(base.path().join("model.safetensors"));
    let header = frame::split(&file).0;
    let head = [b"1", header].concat();
    vec![("header".to_owned(), head), ("length".to_owned(), [b"0", &file[..8 + header.len()]].concat())]
}
