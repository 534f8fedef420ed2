//! Sizes of the model that both the tensors and the configuration need.

use super::header::GgufFile;
use super::names::Architecture;
use crate::error::{Error, Result};

/// Sizes stated in the metadata.
pub(super) struct Sizes {
    pub(super) hidden: u64,
    pub(super) blocks: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) ffn: u64,
    pub(super) context: u64,
    pub(super) head_dim: u64,
}

impl Sizes {
    pub(super) fn of(file: &GgufFile, architecture: &Architecture) -> Result<Self> {
        let a = architecture.id;
        let heads = per_block(file, &format!("{a}.attention.head_count"))?;
        let heads = positive(&format!("{a}.attention.head_count"), heads)?;
        let hidden = required(file, &format!("{a}.embedding_length"))?;
        let head_dim = match file.metadata.uint(&format!("{a}.attention.key_length"))? {
            Some(length) => positive(&format!("{a}.attention.key_length"), Some(length))?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(Error::input("gguf::config", format!("{heads} attention heads do not divide the width {hidden}"))
                    .hint("the metadata is damaged; convert the model again"));
            }
        };
        let kv_key = format!("{a}.attention.head_count_kv");
        Ok(Self {
            hidden,
            blocks: required(file, &format!("{a}.block_count"))?,
            heads,
            kv_heads: positive(&kv_key, Some(per_block(file, &kv_key)?.unwrap_or(heads)))?,
            ffn: positive(&format!("{a}.feed_forward_length"), per_block(file, &format!("{a}.feed_forward_length"))?)?,
            context: required(file, &format!("{a}.context_length"))?,
            head_dim,
        })
    }
}

fn required(file: &GgufFile, key: &str) -> Result<u64> {
    positive(key, file.metadata.uint(key)?)
}

fn positive(key: &str, value: Option<u64>) -> Result<u64> {
    value.filter(|v| *v > 0).ok_or_else(|| {
        Error::input("gguf::missing-key", format!("metadata `{key}` is missing or zero"))
            .hint("convert the model again with a current llama.cpp")
    })
}

/// A value that may be a list with an entry per block, which then have to agree.
fn per_block(file: &GgufFile, key: &str) -> Result<Option<u64>> {
    if !matches!(file.metadata.get(key), Some(super::metadata::Value::List(_))) {
        return file.metadata.uint(key);
    }
    let values = file.metadata.ints(key)?.unwrap_or_default();
    match values.first() {
        Some(first) if values.iter().all(|v| v == first) => Ok(u64::try_from(*first).ok()),
        _ => Err(Error::input("gguf::config", format!("metadata `{key}` differs between blocks, which is not supported"))
            .hint("give the Hugging Face checkpoint of a model with equal blocks")),
    }
}
