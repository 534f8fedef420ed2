//! One file per target.

pub(crate) mod archive;
pub(crate) mod config;
pub(crate) mod gguf;
pub(crate) mod index;
pub(crate) mod manifest;
pub(crate) mod onnx;
pub(crate) mod quantization;
pub(crate) mod run_toml;
pub(crate) mod safetensors;
pub(crate) mod shards;
pub(crate) mod tokenizer;
