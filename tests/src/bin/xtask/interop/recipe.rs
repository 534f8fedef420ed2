//! How models are quantized, and into what.

use super::engine::Limits;

/// One way to quantize.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    /// Unique, and how the page calls it.
    pub(super) name: &'static str,
    /// Words of the command line; one without a dash is a setting.
    pub(super) words: &'static str,
    /// What of `run.toml` words cannot say.
    pub(super) config: &'static str,
    pub(super) formats: &'static [&'static str],
    /// Whether it is run on all models, and not only on those of the first table.
    pub(super) everywhere: bool,
    /// The only model it is run on, where that is so.
    pub(super) model: Option<&'static str>,
    /// What an engine is allowed more than it is by itself.
    pub(super) limits: Option<Limits>,
    /// What an engine that can choose computes in.
    pub(super) numbers: &'static str,
}

const PLAIN: Recipe =
    Recipe { name: "", words: "", config: "", formats: &[], everywhere: false, model: None, limits: None, numbers: "f32" };

const ONNX: &[&str] = &["onnx", "onnx-qdq", "onnx-qcdq", "onnx-matmulnbits"];

/// All of them, in the order of the page.
pub(super) const RECIPES: &[Recipe] = &[
    Recipe {
        name: "4 bits",
        words: "--algo rtn scheme.weights.format=int4 scheme.weights.granularity.group=32",
        formats: &["compressed-tensors", "gptq", "gptq-v2", "awq", "gguf", ONNX[0], ONNX[1], ONNX[2], ONNX[3], "safetensors-f32", "shark"],
        everywhere: true,
        ..PLAIN
    },
    Recipe {
        name: "4 bits affine",
        words: "--algo rtn scheme.weights.format=uint4 scheme.weights.symmetric=false scheme.weights.granularity.group=32",
        formats: &["compressed-tensors", "gptq-v2", "awq", "gguf", "onnx", "onnx-qdq", "shark"],
        ..PLAIN
    },
    Recipe {
        name: "4 bits per channel",
        words: "--algo rtn scheme.weights.format=int4 scheme.weights.granularity=channel",
        formats: &["compressed-tensors", "gptq", "gguf", "onnx", "shark"],
        ..PLAIN
    },
    Recipe {
        name: "8 bits",
        words: "--algo rtn scheme.weights.format=int8 scheme.weights.granularity.group=32",
        formats: &["compressed-tensors", "gptq", "gguf", "onnx", "shark"],
        ..PLAIN
    },
    Recipe {
        name: "8 bits per channel",
        words: "--algo rtn scheme.weights.format=int8 scheme.weights.granularity=channel",
        formats: &["compressed-tensors", "gptq", "gguf", "onnx-qdq", "shark"],
        ..PLAIN
    },
    Recipe {
        name: "3 bits",
        words: "--algo rtn scheme.weights.format=int3 scheme.weights.granularity.group=32",
        formats: &["compressed-tensors", "gptq", "onnx", "shark"],
        ..PLAIN
    },
    Recipe {
        name: "2 bits affine",
        words: "--algo rtn scheme.weights.format=uint2 scheme.weights.symmetric=false scheme.weights.granularity.group=16",
        formats: &["gptq-v2", "onnx", "shark"],
        ..PLAIN
    },
    Recipe {
        name: "5 bits",
        words: "--algo rtn scheme.weights.format=int5 scheme.weights.granularity.group=32",
        formats: &["gguf"],
        ..PLAIN
    },
    Recipe {
        name: "5 bits affine",
        words: "--algo rtn scheme.weights.format=uint5 scheme.weights.symmetric=false scheme.weights.granularity.group=32",
        formats: &["gguf"],
        ..PLAIN
    },
    Recipe {
        name: "4 bits, order of activity",
        words: "--algo gptq gptq.act-order=group scheme.weights.format=int4 scheme.weights.granularity.group=32",
        formats: &["gptq", "gptq-v2"],
        ..PLAIN
    },
    Recipe {
        name: "8 bits, inputs of 8 bits by token",
        words: "--preset w8a8",
        formats: &["compressed-tensors", "compressed-tensors-int8", "onnx"],
        limits: Some(Limits::ROUNDED),
        ..PLAIN
    },
    Recipe {
        name: "8 bits, inputs of 8 bits with one scale",
        words: "--preset w8a8 scheme.inputs.timing=static scheme.inputs.granularity=tensor",
        formats: &["shark"],
        limits: Some(Limits::ROUNDED),
        ..PLAIN
    },
    Recipe {
        name: "fp8, inputs of fp8 with one scale",
        words: "--preset fp8",
        formats: &["shark"],
        limits: Some(Limits::ROUNDED),
        ..PLAIN
    },
    Recipe {
        name: "fp8, inputs of fp8 by token",
        words: "--preset fp8-dynamic",
        formats: &["compressed-tensors"],
        limits: Some(Limits::ROUNDED),
        ..PLAIN
    },
    Recipe {
        name: "nvfp4",
        words: "--preset nvfp4",
        formats: &["compressed-tensors", "gguf", "safetensors-f32"],
        limits: Some(Limits::BF16),
        numbers: "bf16",
        ..PLAIN
    },
    Recipe {
        name: "mxfp4",
        words: "--preset mxfp4",
        formats: &["compressed-tensors", "gguf", "shark", "safetensors-f32"],
        limits: Some(Limits::BF16),
        numbers: "bf16",
        ..PLAIN
    },
    Recipe {
        name: "mxfp8",
        words: "--algo rtn scheme.weights.format=mxfp8-e4m3",
        formats: &["compressed-tensors", "safetensors-f32"],
        limits: Some(Limits::BF16),
        numbers: "bf16",
        ..PLAIN
    },
    Recipe {
        name: "4 bits, layers kept in every block",
        words: "--algo rtn scheme.weights.format=int4 scheme.weights.granularity.group=32 scheme.skip=[\"head\",\"embed\",\"mlp.down\"]",
        formats: &["compressed-tensors", "gptq", "awq", "gguf"],
        model: Some("llama"),
        ..PLAIN
    },
    Recipe {
        name: "4 bits, a layer of one block kept",
        words: "--algo rtn scheme.weights.format=int4 scheme.weights.granularity.group=32",
        config: "[[override]]\nmatch = 'blocks.2.mlp.down'\nweights = 'keep'\n",
        formats: &["compressed-tensors", "gptq", "awq", "gguf", "onnx", "shark"],
        model: Some("llama"),
        ..PLAIN
    },
    Recipe {
        name: "4 bits and 8",
        words: "--algo rtn scheme.weights.format=int4 scheme.weights.granularity.group=32",
        config: "[[override]]\nmatch = 'blocks.1.attn.(q|k|v)'\nweights = { format = 'int8' }\n",
        formats: &["compressed-tensors", "gptq", "gguf", "onnx", "shark"],
        model: Some("llama"),
        ..PLAIN
    },
    Recipe {
        name: "4 bits, and the head of 8",
        words: "--algo rtn scheme.weights.format=int4 scheme.weights.granularity.group=32 model.tie-policy=untie scheme.head.format=int8 scheme.head.granularity.group=32",
        formats: &["gptq", "gguf"],
        model: Some("llama"),
        ..PLAIN
    },
    Recipe {
        name: "4 bits with branches",
        words: "--algo svdquant,rtn svdquant.rank=16 scheme.weights.format=int4 scheme.weights.granularity.group=64",
        formats: &["compressed-tensors", "gptq", "awq", "safetensors-f32"],
        ..PLAIN
    },
    Recipe {
        name: "4 bits with shared branches, rotated",
        words: "--algo quarot,svdquant,gptq svdquant.rank=16 svdquant.shared=true scheme.weights.format=int4 scheme.weights.granularity.group=64",
        formats: &["compressed-tensors", "safetensors-f32"],
        model: Some("llama"),
        ..PLAIN
    },
    Recipe {
        name: "2 bits with wide branches of f32",
        words: "--algo svdquant,rtn svdquant.rank=100 svdquant.dtype=float32 scheme.weights.format=int2 scheme.weights.granularity.group=32",
        formats: &["safetensors-f32"],
        model: Some("llama"),
        ..PLAIN
    },
    Recipe {
        name: "4 bits, rotated while it runs",
        words: "--algo quarot,rtn quarot.rotations=[\"r1\",\"r2\",\"r4\"] scheme.weights.format=int4 scheme.weights.granularity.group=32",
        formats: &["compressed-tensors-online"],
        model: Some("llama"),
        ..PLAIN
    },
];

impl Recipe {
    /// Its arguments of `qfw plan` and `qfw apply`.
    pub(super) fn arguments(&self) -> Vec<String> {
        settings(self.words)
    }
}

/// Words of a command line; what holds a `=` is a setting.
pub(super) fn settings(words: &str) -> Vec<String> {
    let each = words.split_whitespace().map(|w| if w.contains('=') { vec!["--set".to_owned(), w.to_owned()] } else { vec![w.to_owned()] });
    each.flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_one_recipe_is_run_everywhere() {
        let names: BTreeSet<&str> = RECIPES.iter().map(|r| r.name).collect();
        assert_eq!(names.len(), RECIPES.len());
        assert!(RECIPES.iter().any(|r| r.everywhere));
        assert!(RECIPES.iter().all(|r| !r.formats.is_empty() && !r.name.contains('|')));
    }

    #[test]
    fn words_with_a_value_are_settings() {
        assert_eq!(settings("--algo rtn a.b=c"), ["--algo", "rtn", "--set", "a.b=c"]);
    }
}
