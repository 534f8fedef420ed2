//! `model.onnx`, which the second reader decodes. The file with its weights beside it is sound.

use tempfile::TempDir;

use crate::stage::Stage;
use crate::verdict::sound_second;
use crate::{Target, bases};

pub(crate) const TARGET: Target = Target { name: "onnx", about: "model.onnx with its weights beside it", run, seeds };

const FILE: &str = "model.onnx";

thread_local!(static STATE: (TempDir, Stage) = (bases::float(), made()));

fn made() -> Stage {
    bases::quantized("onnx", &["rtn"], &["scheme.weights.format=int4", "scheme.weights.granularity.group=16"])
}

fn run(data: &[u8]) {
    STATE.with(|(base, stage)| {
        stage.put(FILE, data);
        sound_second(qfw_verify::verify(&stage.path().join(FILE), Some(base.path())));
    });
}

#[allow(clippy::expect_used, reason = "it was just written")]
fn seeds() -> Vec<(String, Vec<u8>)> {
    let read = |stage: &Stage| std::fs::read(stage.path().join(FILE)).expect("a base can be read");
    let inputs = [
        "scheme.weights.format=int8",
        "scheme.inputs.format=uint8",
        "scheme.inputs.symmetric=false",
        "scheme.inputs.granularity=\"tensor\"",
        "scheme.inputs.timing=static",
    ];
    vec![("int4".to_owned(), read(&made())), ("int8-inputs".to_owned(), read(&bases::quantized("onnx", &["rtn"], &inputs)))]
}
