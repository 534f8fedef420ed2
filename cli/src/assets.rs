//! The models and texts that travel inside the binary. Provenance: `cli/assets/README.md`.

use std::path::Path;

use qfw_core::{Error, Result};

/// A file of an embedded model.
type File = (&'static str, &'static [u8]);

macro_rules! model {
    ($name:literal) => {
        (
            $name,
            &[
                ("config.json", include_bytes!(concat!("../assets/", $name, "/config.json")) as &[u8]),
                ("generation_config.json", include_bytes!(concat!("../assets/", $name, "/generation_config.json"))),
                ("model.safetensors", include_bytes!(concat!("../assets/", $name, "/model.safetensors"))),
                ("tokenizer.json", include_bytes!(concat!("../assets/", $name, "/tokenizer.json"))),
                ("tokenizer_config.json", include_bytes!(concat!("../assets/", $name, "/tokenizer_config.json"))),
            ],
        )
    };
}

/// The tiny models, by name.
pub(crate) const MODELS: [(&str, &[File]); 2] = [model!("tiny-llama"), model!("tiny-gpt2")];

/// Text to calibrate on.
pub(crate) const CALIBRATION: File = ("calibration.txt", include_bytes!("../assets/text/calibration.txt"));

/// Text to measure on; the models have not seen it.
pub(crate) const EVALUATION: File = ("evaluation.txt", include_bytes!("../assets/text/evaluation.txt"));

/// Writes files into a directory, which is created.
pub(crate) fn unpack(dir: &Path, files: &[File]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, "create", e))?;
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io(&path, "write", e))?;
    }
    Ok(())
}
