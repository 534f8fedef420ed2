//! Tensor names of GGUF files and of Hugging Face checkpoints, one table per architecture.
//!
//! GPT-2 gets the names of the checkpoints of the original models, without the prefix `transformer.`: `wte.weight`,
//! `h.0.attn.c_attn.weight`, `ln_f.bias`; an untied head is `lm_head.weight`.

use super::header::GgufFile;
use crate::error::{Error, Result, did_you_mean};

/// How the rows in the file relate to the rows of the Hugging Face tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row for row.
    Plain,
    /// The rows of each query head are interleaved for rotary positions: first half and second half alternate.
    Queries,
    /// The same for key heads.
    Keys,
    /// The Hugging Face tensor is `[in, out]`, that of the file `[out, in]`.
    Transposed,
}

impl Layout {
    /// The row of the Hugging Face tensor that is row `i` of the file's; heads have `head_dim` rows.
    pub fn source_row(self, i: usize, head_dim: usize) -> usize {
        match self {
            Self::Queries | Self::Keys => {
                let (head, within) = (i / head_dim, i % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
            Self::Plain | Self::Transposed => i,
        }
    }
}

/// An architecture that can be read and written.
pub struct Architecture {
    /// Name in `general.architecture`.
    pub id: &'static str,
    /// `architectures` in `config.json`; `model_type` is `id`.
    pub(super) class: &'static str,
    /// Name of a block, before its number.
    blocks: &'static str,
    whole: &'static [(&'static str, &'static str)],
    parts: &'static [(&'static str, &'static str, Layout)],
}

static LLAMA: Architecture = Architecture {
    id: "llama",
    class: "LlamaForCausalLM",
    blocks: "model.layers",
    whole: DECODER,
    parts: &[
        ("attn_norm", "input_layernorm", Layout::Plain),
        ("attn_q", "self_attn.q_proj", Layout::Queries),
        ("attn_k", "self_attn.k_proj", Layout::Keys),
        ("attn_v", "self_attn.v_proj", Layout::Plain),
        ("attn_output", "self_attn.o_proj", Layout::Plain),
        ("ffn_norm", "post_attention_layernorm", Layout::Plain),
        ("ffn_gate", "mlp.gate_proj", Layout::Plain),
        ("ffn_up", "mlp.up_proj", Layout::Plain),
        ("ffn_down", "mlp.down_proj", Layout::Plain),
    ],
};

/// Qwen2 and Qwen3 differ from LLaMA in that their rows are as in the Hugging Face checkpoint. Qwen2 has no query and key norms.
const QWEN: &[(&str, &str, Layout)] = &[
    ("attn_norm", "input_layernorm", Layout::Plain),
    ("attn_q", "self_attn.q_proj", Layout::Plain),
    ("attn_k", "self_attn.k_proj", Layout::Plain),
    ("attn_v", "self_attn.v_proj", Layout::Plain),
    ("attn_q_norm", "self_attn.q_norm", Layout::Plain),
    ("attn_k_norm", "self_attn.k_norm", Layout::Plain),
    ("attn_output", "self_attn.o_proj", Layout::Plain),
    ("ffn_norm", "post_attention_layernorm", Layout::Plain),
    ("ffn_gate", "mlp.gate_proj", Layout::Plain),
    ("ffn_up", "mlp.up_proj", Layout::Plain),
    ("ffn_down", "mlp.down_proj", Layout::Plain),
];

const DECODER: &[(&str, &str)] = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

static QWEN2: Architecture = Architecture { id: "qwen2", class: "Qwen2ForCausalLM", blocks: "model.layers", whole: DECODER, parts: QWEN };

static QWEN3: Architecture = Architecture { id: "qwen3", class: "Qwen3ForCausalLM", blocks: "model.layers", whole: DECODER, parts: QWEN };

static GPT2: Architecture = Architecture {
    id: "gpt2",
    class: "GPT2LMHeadModel",
    blocks: "h",
    whole: &[("token_embd", "wte"), ("position_embd", "wpe"), ("output_norm", "ln_f"), ("output", "lm_head")],
    parts: &[
        ("attn_norm", "ln_1", Layout::Plain),
        ("attn_qkv", "attn.c_attn", Layout::Transposed),
        ("attn_output", "attn.c_proj", Layout::Transposed),
        ("ffn_norm", "ln_2", Layout::Plain),
        ("ffn_up", "mlp.c_fc", Layout::Transposed),
        ("ffn_down", "mlp.c_proj", Layout::Transposed),
    ],
};

const KNOWN: [&Architecture; 4] = [&GPT2, &LLAMA, &QWEN2, &QWEN3];

impl Architecture {
    /// The architecture of `file`.
    pub(super) fn of(file: &GgufFile) -> Result<&'static Self> {
        let kind = file.metadata.text("general.type")?.unwrap_or("model");
        if kind != "model" {
            return Err(Error::input("gguf::not-a-model", format!("the file holds `{kind}` and not a model"))
                .hint("give the model's own GGUF file"));
        }
        if let Some(parts) = file.metadata.uint("split.count")?.filter(|parts| *parts > 1) {
            return Err(Error::input("gguf::split", format!("the file is one of {parts} parts of a model, and parts are not supported"))
                .hint("join them with `llama-gguf-split --merge FIRST-PART model.gguf`"));
        }
        let id = file.metadata.text("general.architecture")?.ok_or_else(|| {
            Error::input("gguf::missing-key", "metadata `general.architecture` is missing")
                .hint("convert the model again with a current llama.cpp")
        })?;
        KNOWN.into_iter().find(|a| a.id == id).ok_or_else(|| {
            let known = KNOWN.map(|a| a.id);
            Error::input("gguf::architecture", format!("architecture `{id}` is unknown{}", did_you_mean(id, known)))
                .hint(format!("known are {}; for others give the Hugging Face checkpoint", known.join(", ")))
        })
    }

    /// The architecture called `id` in `general.architecture`.
    pub fn named(id: &str) -> Option<&'static Self> {
        KNOWN.into_iter().find(|a| a.id == id)
    }

    /// The name in a file, and the layout, of the Hugging Face tensor called `name`: the inverse of what a reader does.
    pub fn place(&self, name: &str) -> Option<(String, Layout)> {
        let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
        if let Some((theirs, _)) = self.whole.iter().find(|(_, ours)| *ours == stem) {
            return Some((format!("{theirs}.{suffix}"), Layout::Plain));
        }
        let (number, part) = stem.strip_prefix(self.blocks)?.strip_prefix('.')?.split_once('.')?;
        let block: usize = number.parse().ok().filter(|b: &usize| b.to_string() == number)?;
        let (theirs, ..) = self.parts.iter().find(|(_, ours, _)| *ours == part)?;
        let stored = format!("blk.{block}.{theirs}.{suffix}");
        let (_, layout) = self.renamed(&stored, block + 1)?;
        Some((stored, layout))
    }

    /// The Hugging Face name of the tensor called `name` in a file.
    pub fn name_of(&self, name: &str) -> Option<String> {
        self.renamed(name, usize::MAX).map(|(theirs, _)| theirs)
    }

    /// The Hugging Face name and the layout of the tensor called `name` in the file; the block number is checked against `blocks`.
    pub(super) fn rename(&self, name: &str, blocks: usize) -> Result<(String, Layout)> {
        self.renamed(name, blocks).ok_or_else(|| {
            Error::input("gguf::unknown-tensor", format!("tensor `{name}` has no place in a {} model of {blocks} blocks", self.id))
                .hint("a variant of the architecture that is not supported; give the Hugging Face checkpoint")
        })
    }

    fn renamed(&self, name: &str, blocks: usize) -> Option<(String, Layout)> {
        let (stem, suffix) = name.rsplit_once('.').filter(|(_, suffix)| matches!(*suffix, "weight" | "bias"))?;
        let Some(rest) = stem.strip_prefix("blk.") else {
            let (_, theirs) = self.whole.iter().find(|(ours, _)| *ours == stem)?;
            return Some((format!("{theirs}.{suffix}"), Layout::Plain));
        };
        let (number, part) = rest.split_once('.')?;
        // The number is parsed and written again, so that `blk.01` does not become a second name of `blk.1`.
        let block: usize = number.parse().ok().filter(|b: &usize| *b < blocks && b.to_string() == number)?;
        let (_, theirs, layout) = self.parts.iter().find(|(ours, ..)| *ours == part)?;
        // Conv1D biases are vectors, which have nothing to transpose.
        let layout = if *layout == Layout::Transposed && suffix == "bias" { Layout::Plain } else { *layout };
        Some((format!("{}.{block}.{theirs}.{suffix}", self.blocks), layout))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn names_become_those_of_hugging_face() {
        let name = |a: &Architecture, n: &str| a.rename(n, 2).unwrap();
        assert_eq!(name(&LLAMA, "token_embd.weight"), ("model.embed_tokens.weight".into(), Layout::Plain));
        assert_eq!(name(&LLAMA, "blk.1.attn_q.weight"), ("model.layers.1.self_attn.q_proj.weight".into(), Layout::Queries));
        assert_eq!(name(&LLAMA, "blk.0.attn_k.bias"), ("model.layers.0.self_attn.k_proj.bias".into(), Layout::Keys));
        assert_eq!(name(&QWEN2, "blk.0.attn_k.bias"), ("model.layers.0.self_attn.k_proj.bias".into(), Layout::Plain));
        assert_eq!(name(&QWEN3, "blk.0.attn_q_norm.weight"), ("model.layers.0.self_attn.q_norm.weight".into(), Layout::Plain));
        assert_eq!(name(&GPT2, "blk.0.attn_qkv.weight"), ("h.0.attn.c_attn.weight".into(), Layout::Transposed));
        assert_eq!(name(&GPT2, "blk.0.attn_qkv.bias"), ("h.0.attn.c_attn.bias".into(), Layout::Plain));
        assert_eq!(name(&GPT2, "output_norm.bias"), ("ln_f.bias".into(), Layout::Plain));
    }

    #[test]
    fn names_go_both_ways() {
        for a in KNOWN {
            for (ours, ..) in a.whole {
                let (theirs, layout) = a.rename(&format!("{ours}.weight"), 3).unwrap();
                assert_eq!(a.place(&theirs), Some((format!("{ours}.weight"), layout)));
            }
            for (ours, ..) in a.parts {
                for suffix in ["weight", "bias"] {
                    let name = format!("blk.2.{ours}.{suffix}");
                    let (theirs, layout) = a.rename(&name, 3).unwrap();
                    assert_eq!(a.place(&theirs), Some((name, layout)));
                }
            }
        }
        for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.01.mlp.up_proj.weight", "h.0.ln_1.weight", "lm_head"] {
            assert_eq!(LLAMA.place(name), None);
        }
    }

    /// In a head of 8 rows the halves 0..4 and 4..8 alternate.
    #[test]
    fn rows_of_a_head_alternate() {
        let rows: Vec<usize> = (0..16).map(|i| Layout::Keys.source_row(i, 8)).collect();
        assert_eq!(rows, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
        assert_eq!(Layout::Transposed.source_row(5, 8), 5);
    }

    #[test]
    fn tensors_without_a_place_are_refused() {
        for name in ["blk.2.attn_q.weight", "blk.01.attn_q.weight", "blk.0.ffn_gate_exps.weight", "blk.0.attn_q", "mystery.weight"] {
            let error = LLAMA.rename(name, 2).unwrap_err();
            assert_eq!(error.to_string(), format!("tensor `{name}` has no place in a llama model of 2 blocks"));
        }
    }

    #[test]
    fn files_that_are_no_known_model_are_refused() {
        let refusal = |f: &Fixture| {
            let file = GgufFile::open(&f.write().path).unwrap();
            let error = Architecture::of(&file).err().unwrap();
            (error.to_string(), error.hint_text().unwrap().to_owned())
        };
        let (message, hint) = refusal(&Fixture::new("qwen"));
        assert_eq!(message, "architecture `qwen` is unknown (did you mean `qwen2`?)");
        assert_eq!(hint, "known are gpt2, llama, qwen2, qwen3; for others give the Hugging Face checkpoint");
        let mut f = Fixture::new("llama");
        f.text("general.type", "imatrix");
        assert_eq!(refusal(&f).0, "the file holds `imatrix` and not a model");
        let mut f = Fixture::new("llama");
        f.raw("split.count", 2, &3_u16.to_le_bytes());
        assert_eq!(refusal(&f).0, "the file is one of 3 parts of a model, and parts are not supported");
        let mut f = Fixture::new("llama");
        f.pairs.clear();
        assert_eq!(refusal(&f).0, "metadata `general.architecture` is missing");
    }
}
