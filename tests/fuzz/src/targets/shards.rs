//! A checkpoint in two shards: the index and both headers, with a line of `=====` between them.

use crate::stage::Stage;
use crate::verdict::Readers;
use crate::{Target, bases, frame};

pub(crate) const TARGET: Target = Target { name: "shards", about: "two safetensors headers and the index over them", run, seeds };

pub(crate) const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// What tells the tensors of the second shard from those of the first.
const SECOND: &str = "mlp";

struct State {
    readers: Readers,
    stage: Stage,
    data: [Vec<u8>; 2],
}

thread_local!(static STATE: State = {
    let stage = sharded();
    let data = shard_bytes(&stage).map(|file| frame::split(&file).1.to_vec());
    State { readers: Readers::new(), stage, data }
});

/// The float model in two shards with their index.
#[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
pub(crate) fn sharded() -> Stage {
    let stage = Stage::copy(bases::float().path());
    stage.remove("model.safetensors");
    let (second, first): (Vec<_>, Vec<_>) = bases::tensors("").into_iter().partition(|(decl, _)| decl.name.contains(SECOND));
    let mut map = serde_json::Map::new();
    let mut total = 0;
    for (name, tensors) in SHARDS.into_iter().zip([first, second]) {
        for (decl, bytes) in &tensors {
            map.insert(decl.name.clone(), name.into());
            total += bytes.len();
        }
        qfw_core::checkpoint::write_small(&stage.path().join(name), tensors).expect("a shard can be written");
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    stage.put(super::index::FILE, index.to_string().as_bytes());
    stage
}

#[allow(clippy::expect_used, reason = "they were just written")]
fn shard_bytes(stage: &Stage) -> [Vec<u8>; 2] {
    SHARDS.map(|name| std::fs::read(stage.path().join(name)).expect("a shard can be read"))
}

fn run(data: &[u8]) {
    STATE.with(|s| {
        let parts = frame::parts(data);
        let part = |i: usize| parts.get(i).copied().unwrap_or_default();
        s.stage.put(super::index::FILE, part(0));
        for (i, name) in SHARDS.into_iter().enumerate() {
            s.stage.put(name, &frame::safetensors(part(i + 1), &s.data[i]));
        }
        s.readers.read(s.stage.path());
    });
}

#[allow(clippy::expect_used, reason = "it was just written")]
fn seeds() -> Vec<(String, Vec<u8>)> {
    let stage = sharded();
    let index = std::fs::read(stage.path().join(super::index::FILE)).expect("the index can be read");
    let [first, second] = shard_bytes(&stage);
    let all = [&index, frame::split(&first).0, frame::split(&second).0].join(frame::BETWEEN);
    vec![("both".to_owned(), all)]
}
