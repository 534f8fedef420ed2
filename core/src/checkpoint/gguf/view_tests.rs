//! Names, layouts and configuration, on files made here.

use std::sync::Arc;

use half::f16;
use serde_json::{Value, json};

use super::fixture::Fixture;
use super::{GgufFile, GgufTensors, ROPE_FACTORS, open};
use crate::checkpoint::{Checkpoint, StoredDtype, TensorSource};

/// Metadata of a LLaMA-like model: width 32, two blocks of which tests fill one, four heads of 8, two key heads.
fn decoder(architecture: &str) -> Fixture {
    let mut f = Fixture::new(architecture);
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 48),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        f.uint(&format!("{architecture}.{key}"), value);
    }
    f.float(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5);
    f.float(&format!("{architecture}.rope.freq_base"), 50_000.0);
    f.counted("token_embd.weight", &[6, 32], 0.0);
    f
}

fn gpt2() -> Fixture {
    let mut f = Fixture::new("gpt2");
    for (key, value) in
        [("block_count", 1), ("context_length", 16), ("embedding_length", 32), ("feed_forward_length", 64), ("attention.head_count", 2)]
    {
        f.uint(&format!("gpt2.{key}"), value);
    }
    f.float("gpt2.attention.layer_norm_epsilon", 1e-5);
    f.counted("token_embd.weight", &[6, 32], 0.0);
    f
}

fn refusal(f: &Fixture) -> String {
    let file = f.write();
    let error = open(&file.path).err().expect("the file should be refused");
    assert!(error.hint_text().is_some());
    error.to_string().strip_prefix(&format!("`{}`: ", file.path.display())).expect("the message begins with the file").to_owned()
}

fn rows(c: &Checkpoint, name: &str, range: std::ops::Range<usize>) -> Vec<f32> {
    let mut out = vec![9.0; 3];
    c.tensors.read_f32(name, range, &mut out).unwrap();
    out
}

/// What llama.cpp's converter does to queries and keys: reshape to (heads, 2, d/2, in), swap the middle two.
fn as_converted(hf: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let half = hf.len() / columns / heads / 2;
    let mut out = Vec::new();
    for head in 0..heads {
        for j in 0..half {
            for side in 0..2 {
                let row = (head * 2 + side) * half + j;
                out.extend_from_slice(&hf[row * columns..(row + 1) * columns]);
            }
        }
    }
    out
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn counting(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// Q8_0 blocks whose scales differ from block to block.
fn q8_0(blocks: usize) -> Vec<u8> {
    let block = |b: usize| {
        let codes = (0..32).map(move |i| ((b * 31 + i * 7) % 255) as u8);
        f16::from_f32(0.01 + b as f32 * 0.003).to_le_bytes().into_iter().chain(codes)
    };
    (0..blocks).flat_map(block).collect()
}

#[test]
fn queries_and_keys_of_llama_get_their_row_order_back() {
    let (q, k, b) = (counting(32 * 32), counting(16 * 32), counting(32));
    let mut f = decoder("llama");
    f.stored("blk.0.attn_q.weight", &[32, 32], 0, bytes_of(&as_converted(&q, 4, 32)));
    f.stored("blk.0.attn_k.weight", &[16, 32], 0, bytes_of(&as_converted(&k, 2, 32)));
    f.stored("blk.0.attn_q.bias", &[32], 0, bytes_of(&as_converted(&b, 4, 1)));
    f.counted("blk.0.attn_v.weight", &[16, 32], 0.0);
    let file = f.write();
    let c = open(&file.path).unwrap();
    assert_eq!(rows(&c, "model.layers.0.self_attn.q_proj.weight", 0..32), q);
    assert_eq!(rows(&c, "model.layers.0.self_attn.q_proj.weight", 5..18), q[5 * 32..18 * 32]);
    assert_eq!(rows(&c, "model.layers.0.self_attn.k_proj.weight", 0..16), k);
    assert_eq!(rows(&c, "model.layers.0.self_attn.q_proj.bias", 3..21), b[3..21]);
    assert_eq!(rows(&c, "model.layers.0.self_attn.v_proj.weight", 0..16), k);
    assert_eq!(c.tensors.read_bytes("model.layers.0.self_attn.q_proj.weight").unwrap(), bytes_of(&q));
    assert_eq!(c.tensors.read_bytes("model.layers.0.self_attn.q_proj.bias").unwrap(), bytes_of(&b));
}

#[test]
fn queries_of_qwen_stay_as_they_are() {
    let mut f = decoder("qwen2");
    f.counted("blk.0.attn_q.weight", &[32, 32], 0.0);
    let file = f.write();
    let c = open(&file.path).unwrap();
    assert_eq!(rows(&c, "model.layers.0.self_attn.q_proj.weight", 0..32), counting(32 * 32));
}

#[test]
fn gpt2_matrices_are_transposed() {
    let mut f = gpt2();
    f.counted("blk.0.attn_qkv.weight", &[96, 32], 0.0);
    f.counted("blk.0.attn_qkv.bias", &[96], 0.0);
    let file = f.write();
    let c = open(&file.path).unwrap();
    assert_eq!(c.tensors.names(), ["h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight", "wte.weight"]);
    assert_eq!(c.tensors.info("h.0.attn.c_attn.weight").unwrap().shape, [32, 96]);
    let transposed: Vec<f32> = (0..32).flat_map(|i| (0..96).map(move |o| (o * 32 + i) as f32)).collect();
    assert_eq!(rows(&c, "h.0.attn.c_attn.weight", 0..32), transposed);
    assert_eq!(c.tensors.read_bytes("h.0.attn.c_attn.weight").unwrap(), bytes_of(&transposed));
    assert_eq!(rows(&c, "h.0.attn.c_attn.bias", 0..96), counting(96));
}

/// A range of rows is that part of the whole, for every layout and for ranges that cut through blocks.
#[test]
fn row_ranges_are_parts_of_the_whole() {
    let mut f = decoder("llama");
    f.stored("blk.0.attn_q.weight", &[32, 32], 8, q8_0(32));
    f.stored("blk.0.ffn_down.weight", &[32, 48], 1, (0..32 * 48).flat_map(|i| f16::from_f32(i as f32).to_le_bytes()).collect());
    let mut g = gpt2();
    g.stored("blk.0.ffn_down.weight", &[32, 64], 8, q8_0(64));
    for (f, name, columns) in [
        (&f, "model.layers.0.self_attn.q_proj.weight", 32),
        (&f, "model.layers.0.mlp.down_proj.weight", 48),
        (&f, "model.embed_tokens.weight", 32),
        (&g, "h.0.mlp.c_proj.weight", 32),
    ] {
        let file = f.write();
        let c = open(&file.path).unwrap();
        let count = c.tensors.info(name).unwrap().shape[0];
        let whole = rows(&c, name, 0..count);
        assert_eq!(whole.len(), count * columns);
        for (start, end) in [(0, 1), (1, 3), (3, count), (count - 1, count), (2, 2)] {
            assert_eq!(rows(&c, name, start..end), whole[start * columns..end * columns], "{name} {start}..{end}");
        }
        let beyond = c.tensors.read_f32(name, 0..count + 1, &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(beyond, format!("rows 0..{} of tensor `{name}` were asked for, which has {count}", count + 1));
    }
}

#[test]
fn formats_that_cannot_be_decoded_are_listed_and_refused_on_reading() {
    let mut f = decoder("llama");
    f.stored("blk.0.ffn_up.weight", &[48, 32], 20, vec![0; 48 * 18]);
    let file = f.write();
    let c = open(&file.path).unwrap();
    assert_eq!(c.tensors.info("model.layers.0.mlp.up_proj.weight").unwrap().dtype, StoredDtype::Ggml("IQ4_NL"));
    let error = c.tensors.read_f32("model.layers.0.mlp.up_proj.weight", 0..1, &mut Vec::new()).unwrap_err();
    let expected =
        format!("`{}`: tensor `model.layers.0.mlp.up_proj.weight`: numbers of format IQ4_NL cannot be read", file.path.display());
    assert_eq!(error.to_string(), expected);
    assert!(
        error.hint_text().unwrap().starts_with("readable are F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, BF16")
    );
    let error = c.tensors.read_f32("model.layers.0.mlp.upproj.weight", 0..1, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("is not in") && error.contains("did you mean `model.layers.0.mlp.up_proj.weight`"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_the_layout_are_refused() {
    let mut f = decoder("llama");
    f.counted("blk.0.attn_q.weight", &[30, 32], 0.0);
    assert_eq!(refusal(&f), "tensor `blk.0.attn_q.weight` has 30 rows, which 4 heads of an even size cannot share");
    let mut f = gpt2();
    f.counted("blk.0.attn_qkv.weight", &[96], 0.0);
    assert_eq!(refusal(&f), "tensor `blk.0.attn_qkv.weight` has 1 dimensions and should have 2");
    let mut f = decoder("llama");
    f.counted("blk.0.ffn_gate_exps.weight", &[2, 4, 32], 0.0);
    assert_eq!(refusal(&f), "tensor `blk.0.ffn_gate_exps.weight` has no place in a llama model of 2 blocks");
}

#[test]
fn the_configuration_is_that_of_hugging_face() {
    let mut f = decoder("qwen2");
    f.uint("tokenizer.ggml.eos_token_id", 5);
    f.counted("output.weight", &[6, 32], 1.0);
    f.counted("blk.0.attn_q.bias", &[32], 0.0);
    let file = f.write();
    let expected = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "rope_scaling": null, "attention_bias": true, "vocab_size": 6,
        "tie_word_embeddings": false, "eos_token_id": 5, "torch_dtype": "float32", "use_cache": true,
    });
    let c = open(&file.path).unwrap();
    assert_eq!(c.config, expected);
    assert_eq!(serde_json::from_str::<Value>(&c.config_text).unwrap(), expected);
    let file = gpt2().write();
    let expected = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_inner": 64,
        "n_positions": 16, "n_ctx": 16, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "vocab_size": 6,
        "tie_word_embeddings": true, "torch_dtype": "float32", "use_cache": true,
    });
    assert_eq!(open(&file.path).unwrap().config, expected);
}

#[test]
fn a_head_with_the_bytes_of_the_embedding_is_tied() {
    let mut f = gpt2();
    f.counted("output.weight", &[6, 32], 0.0);
    let file = f.write();
    let c = open(&file.path).unwrap();
    assert_eq!(c.config["tie_word_embeddings"], json!(true));
    assert!(c.tensors.info("lm_head.weight").is_none());
    let mut f = gpt2();
    f.counted("output.weight", &[6, 32], 1.0);
    let file = f.write();
    assert!(open(&file.path).unwrap().tensors.info("lm_head.weight").is_some());
}

#[test]
fn missing_and_contradictory_metadata_are_named() {
    let mut f = decoder("llama");
    f.pairs.remove(1);
    assert_eq!(refusal(&f), "metadata `llama.block_count` is missing or zero");
    let mut f = decoder("llama");
    f.uint("llama.expert_count", 8);
    assert_eq!(refusal(&f), "a llama model with 8 experts is not supported");
    let mut f = decoder("llama");
    f.uint("llama.rope.dimension_count", 4);
    assert_eq!(refusal(&f), "rotary positions on 4 of 8 dimensions of a head are not supported");
    let mut f = decoder("llama");
    f.text("llama.rope.scaling.type", "longrope");
    assert_eq!(refusal(&f), "rotary scaling of type `longrope` is not supported; linear and yarn are");
    let mut f = decoder("llama");
    f.tensors.clear();
    assert_eq!(refusal(&f), "the matrix `token_embd.weight` is missing");
    let mut f = decoder("llama");
    f.pairs.remove(4);
    f.ints("llama.feed_forward_length", &[48, 64]);
    assert_eq!(refusal(&f), "metadata `llama.feed_forward_length` differs between blocks, which is not supported");
}

#[test]
fn rotary_scaling_is_kept() {
    let scaling = |f: &Fixture| open(&f.write().path).unwrap().config["rope_scaling"].clone();
    let mut f = decoder("llama");
    f.text("llama.rope.scaling.type", "linear");
    f.float("llama.rope.scaling.factor", 4.0);
    assert_eq!(scaling(&f), json!({"rope_type": "linear", "factor": 4.0}));
    let mut f = decoder("qwen2");
    f.text("qwen2.rope.scaling.type", "yarn");
    f.float("qwen2.rope.scaling.factor", 4.0);
    f.uint("qwen2.rope.scaling.original_context_length", 32768);
    assert_eq!(scaling(&f), json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}));
}

/// LLaMA 3's own factors become its rule; others are listed; never both.
#[test]
fn rotary_factors_become_a_rule_or_a_list() {
    let with = |factors: &[f32]| {
        let mut f = decoder("llama");
        f.stored("rope_freqs.weight", &[factors.len()], 0, bytes_of(factors));
        f
    };
    // θ = 50000, d = 8: wavelengths 6.28, 93.96, 1405, 21009; only the last is longer than 8192.
    let config = open(&with(&[1.0, 1.0, 1.0, 8.0]).write().path).unwrap().config;
    let rule = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192});
    assert_eq!((&config["rope_scaling"], config.get(ROPE_FACTORS)), (&rule, None));
    let config = open(&with(&[1.0, 1.1, 2.0, 8.0]).write().path).unwrap().config;
    assert_eq!((&config["rope_scaling"], &config[ROPE_FACTORS]), (&Value::Null, &json!([1.0, 1.1, 2.0, 8.0])));
    assert_eq!(refusal(&with(&[1.0, 2.0])), "tensor `rope_freqs.weight` is F32 [2] and should be F32 [4]");
    assert_eq!(refusal(&with(&[1.0, 2.0, 0.0, 1.0])), "tensor `rope_freqs.weight` holds 0; its factors have to be positive");
}

#[test]
fn a_source_can_be_shared_between_threads() {
    let file = decoder("llama").write();
    let tensors = GgufTensors::new(Arc::new(GgufFile::open(&file.path).unwrap())).unwrap();
    std::thread::scope(|s| {
        for row in 0..6 {
            let tensors = &tensors;
            s.spawn(move || {
                let mut out = Vec::new();
                tensors.read_f32("model.embed_tokens.weight", row..row + 1, &mut out).unwrap();
                assert_eq!(out[0], (row * 32) as f32);
            });
        }
    });
}

/// Any one damaged byte gives a result or an error on the whole way from the header to the numbers, never a panic.
#[test]
fn no_damaged_byte_panics() {
    let mut f = decoder("llama");
    f.stored("blk.0.attn_q.weight", &[32, 32], 8, q8_0(32));
    f.counted("blk.0.attn_q.bias", &[32], 0.0);
    f.stored("rope_freqs.weight", &[4], 0, bytes_of(&[1.0, 1.1, 2.0, 8.0]));
    let mut g = gpt2();
    g.stored("blk.0.ffn_down.weight", &[32, 64], 8, q8_0(64));
    for f in [f, g] {
        let bytes = f.bytes();
        let header = bytes.len() - f.tensors.iter().map(|t| t.3.len().next_multiple_of(32)).sum::<usize>();
        let file = f.write();
        for at in 0..header {
            for value in [0, 1, 5, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                std::fs::write(&file.path, &damaged).unwrap();
                let Ok(c) = open(&file.path) else { continue };
                for name in c.tensors.names() {
                    let rows = c.tensors.info(&name).unwrap().shape[0];
                    drop(c.tensors.read_f32(&name, 0..rows, &mut Vec::new()));
                    drop(c.tensors.read_bytes(&name));
                }
            }
        }
    }
}

/// Two rows of 64 in NVFP4, all codes 2 (1.0) with scales 1, times a factor beside them.
#[test]
fn a_factor_beside_a_matrix_multiplies_it() {
    let file = |dtype: u32, factor: Vec<u8>| {
        let mut f = decoder("llama");
        f.stored("output.weight", &[2, 64], 40, [vec![0x38; 4], vec![0x22; 32]].concat().repeat(2));
        f.stored("output.scale", &[factor.len() / 4], dtype, factor);
        f
    };
    let written = file(0, bytes_of(&[0.375])).write();
    let checkpoint = open(&written.path).unwrap();
    assert_eq!(rows(&checkpoint, "lm_head.weight", 0..2), [0.375; 128]);
    assert_eq!(checkpoint.tensors.info("lm_head.weight").unwrap().byte_len(), 72);
    assert_eq!(refusal(&file(0, bytes_of(&[1.0, 1.0]))), "tensor `output.weight`: its factor is F32 [2] and should be F32 [1]");
    assert_eq!(refusal(&file(26, bytes_of(&[1.0]))), "tensor `output.weight`: its factor is I32 [1] and should be F32 [1]");
    assert_eq!(refusal(&file(0, bytes_of(&[f32::NAN]))), "tensor `output.weight`: its factor is NaN");
    // A factor of nothing has no place.
    let mut f = decoder("llama");
    f.stored("output.scale", &[1], 0, bytes_of(&[1.0]));
    assert_eq!(refusal(&f), "tensor `output.scale` has no place in a llama model of 2 blocks");
}
