//! GGUF files in candle's own reader: another program's parser of the header and decoder of the blocks, in this process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;

use qfw_core::candle::quantized::gguf_file::Content;
use qfw_core::candle::{DType, Device};
use qfw_core::checkpoint::Checkpoint;

use super::apply;

/// Our name of a tensor in the file, and the rows of a head where llama.cpp stores them in pairs.
fn ours(name: &str, model: &str) -> (String, Option<usize>) {
    let gpt2 = model == "tiny-gpt2";
    let whole = match (name, gpt2) {
        ("token_embd.weight", false) => "model.embed_tokens.weight",
        ("token_embd.weight", true) => "wte.weight",
        ("position_embd.weight", _) => "wpe.weight",
        ("output_norm.weight", false) => "model.norm.weight",
        ("output_norm.weight", true) => "ln_f.weight",
        ("output_norm.bias", _) => "ln_f.bias",
        ("output.weight", _) => "lm_head.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return (whole.to_owned(), None);
    }
    let [_, block, part, kind] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name} is no tensor of a block") };
    let (path, head) = match (part, gpt2) {
        ("attn_q", _) => ("self_attn.q_proj", Some(32)),
        ("attn_k", _) => ("self_attn.k_proj", Some(32)),
        ("attn_v", _) => ("self_attn.v_proj", None),
        ("attn_output", false) => ("self_attn.o_proj", None),
        ("ffn_gate", _) => ("mlp.gate_proj", None),
        ("ffn_up", false) => ("mlp.up_proj", None),
        ("ffn_down", false) => ("mlp.down_proj", None),
        ("attn_norm", false) => ("input_layernorm", None),
        ("ffn_norm", false) => ("post_attention_layernorm", None),
        ("attn_qkv", _) => ("attn.c_attn", None),
        ("attn_output", true) => ("attn.c_proj", None),
        ("ffn_up", true) => ("mlp.c_fc", None),
        ("ffn_down", true) => ("mlp.c_proj", None),
        ("attn_norm", true) => ("ln_1", None),
        ("ffn_norm", true) => ("ln_2", None),
        _ => panic!("{name} is no tensor of {model}"),
    };
    let root = if gpt2 { "h" } else { "model.layers" };
    (format!("{root}.{block}.{path}.{kind}"), head)
}

/// Every tensor of a file has the shape, and to the last bit the numbers, that we read from it; each type of block occurs.
#[test]
fn candle_decodes_what_is_written_as_we_do() {
    let mut seen = BTreeSet::new();
    for (model, words) in [
        ("tiny-llama", "format=int4"),
        ("tiny-llama", "format=uint4 symmetric=false"),
        ("tiny-llama", "format=int5"),
        ("tiny-llama", "format=uint5 symmetric=false"),
        ("tiny-llama", "format=int8"),
        ("tiny-gpt2", "format=int8"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let sets: Vec<String> = words.split(' ').map(|w| format!("--set scheme.weights.{w}")).collect();
        apply(model, &out, &format!("--algo rtn --format gguf --set scheme.weights.granularity.group=32 {}", sets.join(" ")));
        let own = Checkpoint::open(&out).unwrap();
        let mut file = BufReader::new(File::open(out.join("model.gguf")).unwrap());
        let content = Content::read(&mut file).unwrap();
        let blocks = if model == "tiny-gpt2" { "gpt2.block_count" } else { "llama.block_count" };
        assert_eq!(content.metadata[blocks].to_u32().unwrap(), 6, "{model}");
        let mut names = BTreeSet::new();
        let stored: BTreeSet<&String> = content.tensor_infos.keys().collect();
        for name in stored {
            let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            seen.insert(format!("{:?}", tensor.dtype()));
            let theirs = tensor.dequantize(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
            let shape = theirs.dims().to_vec();
            let theirs = theirs.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (ours, head) = ours(name, model);
            let info = own.tensors.info(&ours).unwrap_or_else(|| panic!("{name}: there is no {ours}"));
            let mut values = Vec::new();
            own.tensors.read_f32(&ours, 0..info.shape[0], &mut values).unwrap();
            // GPT-2's matrices are [in, out] by our names, and in a GGUF file as in any other.
            let turned = model == "tiny-gpt2" && shape.len() == 2 && ours.contains(".c_");
            let expected: Vec<usize> = if turned { shape.iter().rev().copied().collect() } else { shape.clone() };
            assert_eq!(info.shape, expected, "{name}");
            let columns = shape.get(1).copied().unwrap_or(1);
            for (i, value) in theirs.iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let row = head.map_or(row, |d| row / d * d + row % 2 * (d / 2) + row % d / 2);
                let at = if turned { column * shape[0] + row } else { row * columns + column };
                assert_eq!(
                    values[at].to_bits(),
                    value.to_bits(),
                    "{model} {words}: {name} at [{row}, {column}]: {} and {value}",
                    values[at]
                );
            }
            names.insert(ours);
        }
        assert_eq!(names.len(), if model == "tiny-gpt2" { 2 + 2 + 12 * 6 } else { 2 + 9 * 6 }, "{model}: {names:?}");
    }
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, ["F16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]);
}
