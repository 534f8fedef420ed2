//! `run.toml`, read, planned on a sound model and printed. What it says of the place of model and data is not followed.

use std::path::PathBuf;

use qfw_core::calibration::DataFile;
use qfw_core::plan::layer::Layers;
use qfw_core::session::Session;
use tempfile::TempDir;

use crate::stage::directory;
use crate::verdict::sound;
use crate::{Target, bases};

pub(crate) const TARGET: Target = Target { name: "run-toml", about: "run.toml, to its plan", run, seeds };

thread_local!(static STATE: (qfw_core::registry::Registry, TempDir, TempDir, PathBuf) = {
    let dir = directory();
    let ids = bases::ids(&dir);
    (bases::registry(), bases::float(), dir, ids)
});

fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    STATE.with(|(registry, base, _, ids)| {
        let Some((raw, _)) = sound(Layers::new().file("`run.toml`", text).finish()) else { return };
        if let Some(printed) = sound(raw.to_toml()) {
            let again = sound(Layers::new().file("what was printed", &printed).finish());
            assert!(again.is_some_and(|(again, _)| again == raw), "what is printed is not what was read");
        }
        let mut data = |_: &_| Ok(DataFile::local(ids, None));
        if let Some(session) = sound(Session::open_at(raw, registry, false, base.path(), &mut data)) {
            assert!(!session.resolved.plan.to_string().is_empty());
        }
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let own = "schema = 1\nmodel = \"m\"\n[calibration]\nsource = \"d\"\nsamples = 4\nseq-len = 16\nseed = 1\n\
        [scheme.weights]\nformat = \"int4\"\nsymmetric = true\ngranularity = { group = 16 }\nobserver = \"mse\"\n\
        [scheme.inputs]\nformat = \"int8\"\ngranularity = \"token\"\ntiming = \"dynamic\"\n\
        [[override]]\nmatch = \"blocks.*.mlp.down\"\nweights = { format = \"int8\", granularity = \"channel\" }\n\
        [[pass]]\nalgo = \"smoothquant\"\noptions = { alpha = 0.5 }\n[[pass]]\nalgo = \"gptq\"\noptions = { damp = 0.01, act-order = \"static\" }\n\
        [harness]\nsequence = \"block\"\nbudget = \"1GiB\"\n[output]\nformat = [\"compressed-tensors\"]\ntarget = \"vllm\"\n";
    let mut seeds = vec![("own".to_owned(), own.as_bytes().to_vec())];
    for preset in qfw_core::plan::preset::presets() {
        seeds.push((preset.name.to_owned(), format!("{}\n[model]\npath = \"m\"\n", preset.text).into_bytes()));
    }
    seeds
}
