//! `model.safetensors.index.json` over two sound shards.

use tempfile::TempDir;

use super::shards::sharded;
use crate::stage::Stage;
use crate::{Target, bases, verdict};

pub(crate) const TARGET: Target = Target { name: "index", about: "model.safetensors.index.json", run, seeds };

pub(crate) const FILE: &str = "model.safetensors.index.json";

thread_local!(static STATE: (qfw_core::registry::Registry, TempDir, Stage) = (bases::registry(), bases::float(), sharded()));

fn run(data: &[u8]) {
    STATE.with(|(registry, base, stage)| {
        stage.put(FILE, data);
        verdict::every_reader(stage.path(), registry, base.path());
    });
}

#[allow(clippy::expect_used, reason = "it was just written")]
fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![("index".to_owned(), std::fs::read(sharded().path().join(FILE)).expect("the index can be read"))]
}
