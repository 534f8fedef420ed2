//! Every shipped architecture passes the check, the rows that must break included; and the check finds wrong declarations.

use serde_json::{Value, json};

use super::*;
use crate::error::Result;
use crate::model::{BUILTIN, Block, Edges, WeightSource};
use crate::topology::{Role, Space, Tie, Topology};

fn builtin(id: &str) -> &'static dyn Architecture {
    BUILTIN.iter().find(|r| r.id == id).unwrap().architecture
}

fn config(id: &str) -> Value {
    if id == "gpt2" {
        return json!({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 61, "n_positions": 20});
    }
    if id == "opt" {
        return json!({
            "model_type": "opt", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "ffn_dim": 48, "vocab_size": 61,
            "max_position_embeddings": 20
        });
    }
    let mut c = json!({
        "model_type": id, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
        "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 61, "max_position_embeddings": 64
    });
    match id {
        "mistral" => c["sliding_window"] = json!(5),
        "qwen2" => c["tie_word_embeddings"] = json!(true),
        "qwen3" => c["head_dim"] = json!(12),
        _ => {}
    }
    c
}

fn dims(id: &str) -> Dims {
    builtin(id).parse(&config(id), &|_| false).unwrap()
}

fn rows(id: &str) -> CheckTable {
    let table = check_architecture(builtin(id), &dims(id), 1).unwrap();
    assert!(table.ok(), "{id}\n{table}");
    table
}

fn verdicts(table: &CheckTable) -> Vec<(String, Must)> {
    table.rows.iter().map(|r| (format!("{}: {}", r.region, r.action), r.must)).collect()
}

fn has(table: &CheckTable, row: &str, must: Must) {
    let all = verdicts(table);
    assert!(all.contains(&(row.to_owned(), must)), "no row `{row}` that must {must}\n{table}");
}

#[test]
fn the_architectures_of_one_decoder_family_pass() {
    for id in ["llama", "mistral", "qwen2", "qwen3"] {
        let table = rows(id);
        for row in [
            "norms: fold into their readers",
            "residual: rotate (R1), norms folded",
            "blocks.*.attn.in: scale norm → readers",
            "blocks.*.mlp.in: scale norm → readers",
            "head.in: scale norm → readers",
            "blocks.*.values: scale v → o",
            "blocks.*.values: permute v → o",
            "blocks.*.values: rotate each head v → o (R2)",
            "blocks.*.heads: scale k → q",
            "blocks.*.heads: rotate q and k online (R3)",
            "blocks.*.mlp.hidden: scale up → down",
            "blocks.*.mlp.hidden: permute",
            "blocks.*.mlp.hidden: rotate online (R4), inverse in down",
        ] {
            has(&table, row, Must::Hold);
        }
        for row in [
            "residual: rotate (R1), norms not folded",
            "residual: rotate (R1), forgetting attn.v",
            "residual: rotate (R1), forgetting mlp.gate",
            "residual: rotate (R1), forgetting embed",
            "residual: scale",
            "blocks.0.values: scale v → o, query heads in the other order",
            "blocks.0.values: permute v → o across heads",
            "blocks.0.heads: scale k → q, rope pairs not tied",
            "blocks.0.heads: rotate k and q in their weights (fused R3)",
            "blocks.0.mlp.hidden: permute, forgetting the gate",
            "blocks.0.mlp.hidden: scale gate → down",
            "blocks.0.mlp.hidden: rotate in the weights (fused R4)",
        ] {
            has(&table, row, Must::Break);
        }
    }
}

#[test]
fn what_only_some_have_is_checked_where_it_is() {
    has(&rows("qwen2"), "norms: fold, the head still the embedding", Must::Break);
    has(&rows("qwen3"), "blocks.0.heads: scale k → q before the norms on their heads", Must::Break);
    assert!(!verdicts(&rows("llama")).iter().any(|(row, _)| row.contains("norms on their heads") || row.contains("embedding")));
}

#[test]
fn the_layer_norm_family_passes() {
    for id in ["gpt2", "opt"] {
        layer_norm_rows(&rows(id));
    }
    // Between up and down stands GELU in the one and ReLU, which a positive factor passes, in the other.
    has(&rows("gpt2"), "blocks.0.mlp.hidden: scale up → down", Must::Break);
    has(&rows("opt"), "blocks.*.mlp.hidden: scale up → down", Must::Hold);
    for role in ["attn.q", "attn.k", "attn.v"] {
        has(&rows("opt"), &format!("residual: centre, rotate (R1), RMSNorm, forgetting {role}"), Must::Break);
    }
}

fn layer_norm_rows(table: &CheckTable) {
    for row in [
        "norms: fold into their readers",
        "residual: rotate with R·1 = 1 (R1), norms folded",
        "residual: centre the writers, LayerNorm → RMSNorm",
        "residual: centre, rotate freely (R1), RMSNorm",
        "blocks.*.attn.in: scale norm → readers",
        "blocks.*.values: rotate each head v → o (R2)",
        "blocks.*.heads: rotate k and q in their weights (fused R3)",
        "blocks.*.values: scale v → o",
        "blocks.*.heads: scale k → q",
        "blocks.*.mlp.hidden: permute",
    ] {
        has(table, row, Must::Hold);
    }
    for row in [
        "residual: rotate freely, LayerNorm",
        "residual: writers not centred, LayerNorm → RMSNorm",
        "residual: rotate with R·1 = 1 (R1), forgetting position-embed",
        "residual: centre, rotate (R1), RMSNorm, forgetting position-embed",
        "residual: centre, rotate (R1), RMSNorm, forgetting attn.o (bias)",
        "residual: centre, rotate (R1), RMSNorm, forgetting final-norm (bias)",
        "blocks.0.values: permute v → o across heads",
        "blocks.0.mlp.hidden: rotate in the weights (fused R4)",
    ] {
        has(table, row, Must::Break);
    }
}

#[test]
fn large_models_are_cut_down_and_variants_pass() {
    let large = json!({
        "model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672,
        "num_hidden_layers": 80, "vocab_size": 128256, "max_position_embeddings": 131072
    });
    let small = reduced(&builtin("llama").parse(&large, &|_| true).unwrap());
    assert_eq!((small.blocks, small.hidden, small.heads, small.kv_heads, small.head_dim), (3, 512, 4, 2, 128));
    assert_eq!((small.windows.len(), small.score_scale.len(), small.vocab), (3, 3, 256));

    let variants = [
        ("llama", "attention_bias", json!(true)),
        ("llama", "mlp_bias", json!(true)),
        ("llama", "partial_rotary_factor", json!(0.5)),
        ("llama", "num_key_value_heads", json!(8)),
        ("llama", "num_key_value_heads", json!(1)),
        ("qwen3", "attention_bias", json!(true)),
        ("gpt2", "activation_function", json!("relu")),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
        ("gpt2", "tie_word_embeddings", json!(false)),
        ("opt", "activation_function", json!("gelu")),
        ("opt", "enable_bias", json!(false)),
        ("opt", "tie_word_embeddings", json!(false)),
    ];
    for (id, key, value) in variants {
        let mut config = config(id);
        config[key] = value.clone();
        let dims = builtin(id).parse(&config, &|_| true).unwrap();
        let table = check_architecture(builtin(id), &dims, 2).unwrap();
        assert!(table.ok(), "{id}, {key} = {value}\n{table}");
    }
}

/// LLaMA with a mistake in its declarations.
struct Mistaken(Mistake);

type Mistake = fn(&mut Topology);

impl Architecture for Mistaken {
    fn id(&self) -> &'static str {
        "mistaken"
    }
    fn parse(&self, config: &Value, has_tensor: &dyn Fn(&str) -> bool) -> Result<Dims> {
        builtin("llama").parse(config, has_tensor)
    }
    fn topology(&self, dims: &Dims) -> Topology {
        let mut topology = builtin("llama").topology(dims);
        self.0(&mut topology);
        topology
    }
    fn block(&self, dims: &Dims, b: u32, weights: &dyn WeightSource) -> Result<Box<dyn Block>> {
        builtin("llama").block(dims, b, weights)
    }
    fn edges(&self, dims: &Dims, weights: std::sync::Arc<dyn WeightSource>) -> Result<Box<dyn Edges>> {
        builtin("llama").edges(dims, weights)
    }
}

#[test]
fn wrong_declarations_are_found() {
    let mistakes: [(&str, Mistake); 5] = [
        ("residual: rotate (R1), norms folded", |t| t.regions[0].consumers.retain(|s| s.site.role != Role::MlpUp)),
        ("blocks.*.mlp.hidden: rotate in the weights (fused R4)", |t| {
            t.regions.iter_mut().filter(|r| r.space == Space::MlpHidden).for_each(|r| r.allows.orthogonal = Tie::Free);
        }),
        ("blocks.*.heads: scale k → q", |t| {
            t.regions
                .iter_mut()
                .filter(|r| r.space == Space::Heads)
                .for_each(|r| r.allows.diagonal = Tie::PerKvHead { width: 8, repeat: 2 });
        }),
        // Wrong in the last block only.
        ("blocks.*.mlp.in: scale norm → readers", |t| {
            let last = t.regions.iter_mut().rfind(|r| r.space == Space::MlpIn).unwrap();
            last.consumers.retain(|s| s.site.role != Role::MlpGate);
        }),
        ("blocks.*.mlp.hidden: permute", |t| {
            t.regions.iter_mut().filter(|r| r.space == Space::MlpHidden).for_each(|r| r.companions.clear());
        }),
    ];
    for (row, mistake) in mistakes {
        let table = check_architecture(&Mistaken(mistake), &dims("llama"), 1).unwrap();
        let failed: Vec<String> = table.rows.iter().filter(|r| !r.ok).map(|r| format!("{}: {}", r.region, r.action)).collect();
        assert!(failed.contains(&row.to_owned()), "`{row}` did not fail, but {failed:?}");
    }
}

#[test]
fn a_row_that_is_not_a_number_is_never_as_it_has_to_be() {
    assert!(!CheckRow::new("r", "a", Must::Hold, f64::NAN).ok);
    assert!(!CheckRow::new("r", "a", Must::Break, f64::NAN).ok);
}

#[test]
fn the_table_has_aligned_columns() {
    let rows = vec![
        CheckRow::new("residual", "rotate (R1)", Must::Hold, 3.21e-15),
        CheckRow::new("blocks.*.values", "scale v → o", Must::Break, 0.0),
    ];
    let expected = "\
region           action       must     error  ok
residual         rotate (R1)  hold   3.2e-15  yes
blocks.*.values  scale v → o  break    0.0e0  NO";
    assert_eq!(CheckTable { rows }.to_string(), expected);
}

#[test]
fn verdicts_do_not_hang_on_the_seed_or_on_few_heads() {
    for seed in 0..12 {
        for id in ["llama", "qwen3", "gpt2"] {
            let mut d = dims(id);
            d.blocks = 1 + (seed % 3) as usize;
            if id != "gpt2" {
                (d.heads, d.kv_heads) = (2, 1 + (seed % 2) as usize);
            }
            let table = check_architecture(builtin(id), &d, seed).unwrap();
            assert!(table.ok(), "{id}, seed {seed}\n{table}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_table() {
    assert_eq!(rows("llama"), rows("llama"));
}
