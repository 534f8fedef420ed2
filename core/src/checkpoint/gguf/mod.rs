//! GGUF model files, read as if they were Hugging Face checkpoints.
//!
//! [`open`] gives tensors under Hugging Face names and in Hugging Face layout, decoded to f32 row by row, and a `config.json` made
//! from the metadata. [`tokenizer_json`] and [`chat_template`] give the rest of a checkpoint. Read are the architectures LLaMA (with
//! Mistral), Qwen2, Qwen3 and GPT-2. [`GgufWriter`] writes a file whose tensors are all known beforehand.

mod codes;
mod config;
mod dequantize;
mod ggml_type;
mod header;
mod metadata;
mod names;
mod pre_tokenizer;
mod shape;
mod tokenizer;
mod view;
mod writer;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod tokenizer_tests;
#[cfg(test)]
mod view_tests;
#[cfg(test)]
mod writer_tests;

use std::path::Path;
use std::sync::Arc;

pub use config::ROPE_FACTORS;
pub use ggml_type::GgmlType;
pub(crate) use ggml_type::wanted;
pub use header::{GgufFile, StoredTensor};
pub use metadata::{List, Metadata, Value};
pub use names::{Architecture, Layout};
pub use pre_tokenizer::pre_tokenizer_name;
pub use tokenizer::{chat_template, tokenizer_config, tokenizer_json};
pub use view::GgufTensors;
pub use writer::GgufWriter;

use super::Checkpoint;
use crate::error::{Error, Result};

/// Opens a GGUF file as a checkpoint. Nothing but its header is read.
///
/// Errors name the file and what is wrong: see [`GgufFile::open`], and for sound files unknown architectures, tensors without a place
/// in the architecture, and features that are not supported (experts, split files, partial rotary positions).
pub fn open(path: &Path) -> Result<Checkpoint> {
    view(Arc::new(GgufFile::open(path)?))
}

/// The checkpoint in a file that is open already.
pub fn view(file: Arc<GgufFile>) -> Result<Checkpoint> {
    let path = file.path.clone();
    let make = || {
        let tensors = GgufTensors::new(Arc::clone(&file))?;
        let config = config::config(&file, &tensors)?;
        Ok((tensors, config))
    };
    let (tensors, config) = make().map_err(|e: Error| e.within(format_args!("`{}`", path.display())))?;
    let config_text = serde_json::to_string_pretty(&config).map_err(|e| Error::internal("the configuration is not JSON").with_source(e))?;
    // A model without a tokenizer we can state is still a model: token ids work without one.
    let made_files = match (tokenizer_json(&file), tokenizer_config(&file)) {
        (Ok(tokenizer), Ok(config)) => {
            vec![("tokenizer.json".to_owned(), tokenizer.to_string()), ("tokenizer_config.json".to_owned(), config.to_string())]
        }
        _ => Vec::new(),
    };
    Ok(Checkpoint { path, config, config_text, tensors: Arc::new(tensors), side_files: Vec::new(), made_files, adapter: None })
}
