//! The parameter archive of a sharktank dataset, with its `config.json` as it was.
//!
//! The first byte says what the rest is: even, the whole file; odd, all before the first tensor, after which sound data are put where they
//! were.

use crate::stage::Stage;
use crate::verdict::Readers;
use crate::{Target, bases};

pub(crate) const TARGET: Target =
    Target { name: "archive", about: "a parameter archive of sharktank: entries, texts, datasets", run, seeds };

const FILE: &str = "dataset.irpa";

struct State {
    readers: Readers,
    stage: Stage,
    /// Where the first tensor lies, and all from there on.
    at: usize,
    data: Vec<u8>,
}

thread_local!(static STATE: State = {
    let stage = made("rounded");
    let file = file(&stage);
    let at = head(&file);
    State { readers: Readers::new(), stage, at, data: file[at..].to_vec() }
});

fn made(scheme: &str) -> Stage {
    let group = "scheme.weights.granularity.group=32";
    let weights = match scheme {
        "rounded" => vec!["scheme.weights.format=int4", group],
        "affine" => vec!["scheme.weights.format=uint4", "scheme.weights.symmetric=false", group],
        _ => vec!["scheme.weights.format=mxfp4"],
    };
    bases::quantized("shark", &["rtn"], &weights)
}

#[allow(clippy::expect_used, reason = "it was just written")]
fn file(stage: &Stage) -> Vec<u8> {
    std::fs::read(stage.path().join(FILE)).expect("a base can be read")
}

/// The offset of the data, which the header of an archive has in its bytes 72 to 80.
fn head(file: &[u8]) -> usize {
    file.get(72..).and_then(|f| f.first_chunk()).map_or(0, |n| u64::from_le_bytes(*n) as usize).min(file.len())
}

fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    STATE.with(|s| {
        let mut file = rest.to_vec();
        if first % 2 == 1 {
            file.resize(s.at, 0);
            file.extend(&s.data);
        }
        s.stage.put(FILE, &file);
        s.readers.read(s.stage.path());
    });
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    ["rounded", "affine", "blocks"]
        .into_iter()
        .map(|scheme| {
            let file = file(&made(scheme));
            let head = &file[..head(&file)];
            let written = head.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            (scheme.to_owned(), [b"1", &head[..written]].concat())
        })
        .collect()
}
