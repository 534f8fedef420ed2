//! Which tensors a model has: names, shapes, and what GGUF calls them.
//!
//! Shapes are `[outputs, inputs]`; GPT-2 stores its linears turned (`Conv1D`), except in GGUF. Names and orders of rows: transformers,
//! `models/*/modeling_*.py`; llama.cpp, `gguf-py/gguf/tensor_mapping.py` and `conversion/*.py`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::gguf_file::Key;

/// Buffers of older checkpoints, which no model needs and GGUF has no place for.
pub(crate) const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];

/// A tensor that a model has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expected {
    pub name: String,
    /// Its name in a GGUF file.
    pub gguf: String,
    pub shape: Vec<usize>,
    /// Its role, of weights of linears and the embedding: `blocks.0.attn.q`.
    pub path: Option<String>,
    /// The weight of a linear.
    pub linear: bool,
    /// Stored as `[inputs, outputs]` in safetensors.
    pub turned: bool,
    /// A checkpoint may go without.
    pub optional: bool,
    /// Rows of a head that GGUF keeps in pairs.
    pub head: Option<usize>,
}

/// What a model is, from `config.json` or the keys of a GGUF file.
struct Dims {
    hidden: usize,
    ffn: usize,
    blocks: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    /// Biases of queries, keys and values; of the output; of the feed-forward layers.
    biases: [Bias; 3],
    /// Norms of queries and keys.
    norms: bool,
    tied: bool,
    /// GGUF keeps rows of queries and keys in pairs.
    paired: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Bias {
    No,
    Maybe,
    Yes,
}

fn number(value: &Value) -> Option<usize> {
    value.as_u64().and_then(size)
}

fn size(n: u64) -> Option<usize> {
    usize::try_from(n).ok().filter(|n| (1..=1 << 32).contains(n))
}

/// The tensors of the model that `config.json` describes, if its architecture is known here.
pub(crate) fn of_config(config: &Value) -> Option<Vec<Expected>> {
    let get = |key: &str| number(&config[key]);
    let model = config["model_type"].as_str()?;
    let tied = config["tie_word_embeddings"].as_bool();
    if model == "gpt2" {
        let hidden = get("n_embd")?;
        let ffn = get("n_inner").unwrap_or(4 * hidden);
        let (blocks, vocab, positions) = (get("n_layer")?, get("vocab_size")?, get("n_positions")?);
        return Some(gpt2(hidden, ffn, blocks, vocab, positions, tied.unwrap_or(true)));
    }
    if model == "opt" {
        return opt(config, tied.unwrap_or(true));
    }
    let stated = |key: &str| if config[key] == true { Bias::Yes } else { Bias::No };
    let biases = match model {
        "llama" => [stated("attention_bias"), stated("attention_bias"), stated("mlp_bias")],
        "mistral" => [Bias::No; 3],
        "qwen2" => [Bias::Yes, Bias::No, Bias::No],
        "qwen3" => [stated("attention_bias"), stated("attention_bias"), Bias::No],
        _ => return None,
    };
    let (hidden, heads) = (get("hidden_size")?, get("num_attention_heads")?);
    Some(llama(&Dims {
        hidden,
        ffn: get("intermediate_size")?,
        blocks: get("num_hidden_layers")?,
        heads,
        kv_heads: get("num_key_value_heads").unwrap_or(heads),
        head_dim: get("head_dim").unwrap_or(if model == "qwen3" { 128 } else { hidden / heads }),
        vocab: get("vocab_size")?,
        biases,
        norms: model == "qwen3",
        tied: tied.unwrap_or(false),
        paired: model == "llama" || model == "mistral",
    }))
}

/// The tensors of the model in a GGUF file, if its architecture is known here.
pub(crate) fn of_gguf(keys: &BTreeMap<String, Key>) -> Option<Vec<Expected>> {
    let architecture = keys.get("general.architecture")?.text()?;
    let get = |key: &str| keys.get(&format!("{architecture}.{key}")).and_then(Key::number).and_then(size);
    let tokens = keys.get("tokenizer.ggml.tokens").and_then(|k| if let Key::List(n) = k { size(*n) } else { None });
    let vocab = tokens.or_else(|| get("vocab_size"))?;
    let (hidden, ffn, blocks) = (get("embedding_length")?, get("feed_forward_length")?, get("block_count")?);
    if architecture == "gpt2" {
        return Some(gpt2(hidden, ffn, blocks, vocab, get("context_length")?, true));
    }
    if !["llama", "qwen2", "qwen3"].contains(&architecture) {
        return None;
    }
    let heads = get("attention.head_count")?;
    Some(llama(&Dims {
        hidden,
        ffn,
        blocks,
        heads,
        kv_heads: get("attention.head_count_kv").unwrap_or(heads),
        head_dim: get("attention.key_length").unwrap_or(hidden / heads),
        vocab,
        biases: [Bias::Maybe; 3],
        norms: architecture == "qwen3",
        tied: true,
        paired: architecture == "llama",
    }))
}

/// Most blocks that are listed: counts come from anywhere.
const BLOCKS: usize = 1024;

fn llama(d: &Dims) -> Vec<Expected> {
    let (q, kv) = (d.heads.saturating_mul(d.head_dim), d.kv_heads.saturating_mul(d.head_dim));
    let mut out = vec![
        in_role("embed", tensor("model.embed_tokens.weight", "token_embd.weight", &[d.vocab, d.hidden])),
        tensor("model.norm.weight", "output_norm.weight", &[d.hidden]),
        in_role("head", Expected { linear: true, optional: d.tied, ..tensor("lm_head.weight", "output.weight", &[d.vocab, d.hidden]) }),
    ];
    let head = Some(d.head_dim).filter(|n| d.paired && *n > 0 && n.is_multiple_of(2));
    let [qkv, o, mlp] = d.biases;
    for b in 0..d.blocks.min(BLOCKS) {
        let (theirs, ours) = (format!("model.layers.{b}"), format!("blk.{b}"));
        for (name, gguf, role, shape, bias, head) in [
            ("self_attn.q_proj", "attn_q", "attn.q", [q, d.hidden], qkv, head),
            ("self_attn.k_proj", "attn_k", "attn.k", [kv, d.hidden], qkv, head),
            ("self_attn.v_proj", "attn_v", "attn.v", [kv, d.hidden], qkv, None),
            ("self_attn.o_proj", "attn_output", "attn.o", [d.hidden, q], o, None),
            ("mlp.gate_proj", "ffn_gate", "mlp.gate", [d.ffn, d.hidden], mlp, None),
            ("mlp.up_proj", "ffn_up", "mlp.up", [d.ffn, d.hidden], mlp, None),
            ("mlp.down_proj", "ffn_down", "mlp.down", [d.hidden, d.ffn], mlp, None),
        ] {
            let named = |part: &str, shape: &[usize]| tensor(&format!("{theirs}.{name}.{part}"), &format!("{ours}.{gguf}.{part}"), shape);
            out.push(in_role(&format!("blocks.{b}.{role}"), Expected { linear: true, head, ..named("weight", &shape) }));
            if bias != Bias::No {
                out.push(Expected { optional: bias == Bias::Maybe, head, ..named("bias", &shape[..1]) });
            }
        }
        let norms = [("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm")];
        let heads = norms.into_iter().filter(|_| d.norms).map(|(a, b)| (a, b, d.head_dim));
        let blocks = [("input_layernorm", "attn_norm", d.hidden), ("post_attention_layernorm", "ffn_norm", d.hidden)];
        for (name, gguf, width) in blocks.into_iter().chain(heads) {
            out.push(tensor(&format!("{theirs}.{name}.weight"), &format!("{ours}.{gguf}.weight"), &[width]));
        }
    }
    out
}

fn gpt2(hidden: usize, ffn: usize, blocks: usize, vocab: usize, positions: usize, tied: bool) -> Vec<Expected> {
    let mut out = vec![
        in_role("embed", tensor("transformer.wte.weight", "token_embd.weight", &[vocab, hidden])),
        tensor("transformer.wpe.weight", "position_embd.weight", &[positions, hidden]),
        tensor("transformer.ln_f.weight", "output_norm.weight", &[hidden]),
        tensor("transformer.ln_f.bias", "output_norm.bias", &[hidden]),
        in_role("head", Expected { linear: true, optional: tied, ..tensor("lm_head.weight", "output.weight", &[vocab, hidden]) }),
    ];
    for b in 0..blocks.min(BLOCKS) {
        let (theirs, ours) = (format!("transformer.h.{b}"), format!("blk.{b}"));
        for (name, gguf, role, shape) in [
            ("attn.c_attn", "attn_qkv", "attn.qkv", [hidden.saturating_mul(3), hidden]),
            ("attn.c_proj", "attn_output", "attn.o", [hidden, hidden]),
            ("mlp.c_fc", "ffn_up", "mlp.up", [ffn, hidden]),
            ("mlp.c_proj", "ffn_down", "mlp.down", [hidden, ffn]),
        ] {
            let named = |part: &str, shape: &[usize]| tensor(&format!("{theirs}.{name}.{part}"), &format!("{ours}.{gguf}.{part}"), shape);
            out.push(in_role(&format!("blocks.{b}.{role}"), Expected { linear: true, turned: true, ..named("weight", &shape) }));
            out.push(named("bias", &shape[..1]));
        }
        for (name, gguf) in [("ln_1", "attn_norm"), ("ln_2", "ffn_norm")] {
            for part in ["weight", "bias"] {
                out.push(tensor(&format!("{theirs}.{name}.{part}"), &format!("{ours}.{gguf}.{part}"), &[hidden]));
            }
        }
    }
    out
}

/// OPT: positions are counted from 2, and GGUF has no place for it. Those of other widths inside and outside of blocks are not known here.
fn opt(config: &Value, tied: bool) -> Option<Vec<Expected>> {
    let get = |key: &str| number(&config[key]);
    let flag = |key: &str| config[key].as_bool().unwrap_or(true);
    let (hidden, ffn, blocks) = (get("hidden_size")?, get("ffn_dim")?, get("num_hidden_layers")?);
    let (vocab, positions) = (get("vocab_size")?, get("max_position_embeddings")?);
    if get("word_embed_proj_dim").is_some_and(|n| n != hidden) {
        return None;
    }
    let (biases, affine) = (flag("enable_bias"), flag("layer_norm_elementwise_affine"));
    let own = |name: &str, shape: &[usize]| tensor(&format!("model.decoder.{name}"), "", shape);
    let norm = |name: &str| ["weight", "bias"].map(|part| own(&format!("{name}.{part}"), &[hidden])).into_iter().filter(move |_| affine);
    let mut out = vec![
        in_role("embed", own("embed_tokens.weight", &[vocab, hidden])),
        own("embed_positions.weight", &[positions.saturating_add(2), hidden]),
        in_role("head", Expected { linear: true, optional: tied, ..tensor("lm_head.weight", "", &[vocab, hidden]) }),
    ];
    // Norms behind blocks leave none for the end.
    out.extend(norm("final_layer_norm").filter(|_| flag("do_layer_norm_before") && config["_remove_final_layer_norm"] != true));
    for b in 0..blocks.min(BLOCKS) {
        for (name, role, shape) in [
            ("self_attn.q_proj", "attn.q", [hidden, hidden]),
            ("self_attn.k_proj", "attn.k", [hidden, hidden]),
            ("self_attn.v_proj", "attn.v", [hidden, hidden]),
            ("self_attn.out_proj", "attn.o", [hidden, hidden]),
            ("fc1", "mlp.up", [ffn, hidden]),
            ("fc2", "mlp.down", [hidden, ffn]),
        ] {
            let weight = Expected { linear: true, ..own(&format!("layers.{b}.{name}.weight"), &shape) };
            out.push(in_role(&format!("blocks.{b}.{role}"), weight));
            out.extend(biases.then(|| own(&format!("layers.{b}.{name}.bias"), &shape[..1])));
        }
        out.extend(["self_attn_layer_norm", "final_layer_norm"].into_iter().flat_map(|n| norm(&format!("layers.{b}.{n}"))));
    }
    Some(out)
}

fn tensor(name: &str, gguf: &str, shape: &[usize]) -> Expected {
    Expected {
        name: name.to_owned(),
        gguf: gguf.to_owned(),
        shape: shape.to_vec(),
        path: None,
        linear: false,
        turned: false,
        optional: false,
        head: None,
    }
}

fn in_role(role: &str, of: Expected) -> Expected {
    Expected { path: Some(role.to_owned()), ..of }
}

/// What is left of a name without the module that the whole model is in, which some checkpoints leave out.
pub(crate) fn short(name: &str) -> &str {
    name.strip_prefix("transformer.").or_else(|| name.strip_prefix("model.")).unwrap_or(name)
}
