//! Planning and applying a quantization inside another program: a private registry, no globals, no output from the library.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use qfw_core::Result;
use qfw_core::harness::{Control, Mode};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::Session;

#[allow(clippy::print_stdout, reason = "an example program may print")]
fn main() -> Result<()> {
    let mut registry = Registry::builtin()?;
    registry.add_algorithm(&qfw_gptq::RECORD)?;

    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets");
    let text = |path: &str| assets.join(path).display().to_string();
    let (raw, _notes) = Layers::new()
        .preset("w4a16")
        .set("model.path", text("tiny-llama"), "embed")
        .set("calibration.source", text("text/calibration.txt"), "embed")
        .set("calibration.samples", 8, "embed")
        .set("calibration.seq-len", 128, "embed")
        .set("output.format", toml::Value::Array(vec!["qfw".into()]), "embed")
        .finish()?;

    let session = Session::open(raw, &registry, false)?;
    let out = std::env::temp_dir().join(format!("qfw-embed-{}", std::process::id()));
    let never = AtomicBool::new(false);
    let summary = session.execute(&registry, &out, Mode::Fresh, &Control::new(&|_| (), &never))?;
    println!("{} layers, {} bytes in {}", summary.sites.len(), summary.bytes, out.display());
    let _ = std::fs::remove_dir_all(&out);
    Ok(())
}
