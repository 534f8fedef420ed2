//! The files that `from_pretrained` reads: weights in float16 and the two configurations.

use std::collections::HashMap;
use std::path::Path;

use candle_core::DType;
use qfw_core::{Error, Result};
use serde_json::{Value, json};

use super::network::{EPS, Family, GPT2_INNER, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, LLAMA_INNER, Network, ROPE_THETA};
use super::{CONTEXT, VOCABULARY, write};

/// Writes `model.safetensors`, `config.json` and `generation_config.json`.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn save(network: &Network, folder: &Path) -> Result<()> {
    let family = network.family;
    let mut tensors = Vec::new();
    for (name, var) in &network.weights {
        tensors.push((name.clone(), var.to_dtype(DType::F16)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write(&folder.join("config.json"), &format!("{:#}\n", config(family)))?;
    let generation = json!({ "bos_token_id": family.start_token(), "eos_token_id": family.end_token() });
    write(&folder.join("generation_config.json"), &format!("{generation:#}\n"))?;
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors.iter().map(|(name, t)| (name.as_str(), t)), Some(metadata), &path)
        .map_err(|e| Error::internal(format!("cannot write `{}`: {e}", path.display())))
}

/// `config.json`.
pub(super) fn config(family: Family) -> Value {
    match family {
        Family::Llama => json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": LLAMA_INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": EPS,
            "rope_theta": ROPE_THETA,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": true,
            "bos_token_id": family.start_token(),
            "eos_token_id": family.end_token(),
            "torch_dtype": "float16",
        }),
        Family::Gpt2 => json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": VOCABULARY,
            "n_positions": CONTEXT,
            "n_embd": HIDDEN,
            "n_inner": GPT2_INNER,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": EPS,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "tie_word_embeddings": true,
            "bos_token_id": family.start_token(),
            "eos_token_id": family.end_token(),
            "torch_dtype": "float16",
        }),
    }
}
