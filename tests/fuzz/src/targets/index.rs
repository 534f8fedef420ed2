//! `model.safetensors.index.json` over two sound shards.

use super::shards::sharded;
use crate::Target;
use crate::stage::Stage;
use crate::verdict::Readers;

pub(crate) const TARGET: Target = Target { name: "index", about: "model.safetensors.index.json", run, seeds };

pub(crate) const FILE: &str = "model.safetensors.index.json";

thread_local!(static STATE: (Readers, Stage) = (Readers::new(), sharded()));

fn run(data: &[u8]) {
    STATE.with(|(readers, stage)| {
        stage.put(FILE, data);
        readers.read(stage.path());
    });
}

#[allow(clippy::expect_used, reason = "it was just written")]
fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![("index".to_owned(), std::fs::read(sharded().path().join(FILE)).expect("the index can be read"))]
}
