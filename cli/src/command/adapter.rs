//! How a model with branches in an adapter beside it is served.

use std::path::Path;

use qfw_core::plan::Plan;

use crate::terminal::say;

/// Ranks that vLLM makes room for (`MaxLoRARanks` in its `config/lora.py`).
const RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// Says what has to be loaded with the models in `dirs`, which `plan` made, where there is anything.
pub(crate) fn say_how(dirs: &[String], plan: &Plan) {
    let adapters: Vec<&String> = dirs.iter().filter(|dir| Path::new(dir).join("adapter").exists()).collect();
    let Some(dir) = adapters.first() else { return };
    let names: Vec<String> = adapters.iter().map(|dir| format!("`{dir}/adapter`")).collect();
    say(&format!("the branches are an adapter, without which it is another model: {}", names.join(", ")));
    let most = plan.branches.iter().map(|b| b.rank).max().unwrap_or(0);
    match RANKS.iter().find(|r| **r >= most) {
        Some(rank) => {
            say(&format!("  vLLM          vllm serve {dir} --enable-lora --max-lora-rank {rank} --lora-modules branches={dir}/adapter"));
            say("                and name the model `branches` in requests");
        }
        None => say(&format!("  vLLM          has no room for branches of rank {most}")),
    }
    say(&format!("  transformers  PeftModel.from_pretrained(model, \"{dir}/adapter\")"));
    // PEFT looks for the weights that it adds to.
    if plan.output.formats.iter().any(|f| f.starts_with("compressed-tensors")) {
        say("                and load compressed-tensors with quantization_config=CompressedTensorsConfig(dequantize=True) for it");
    }
}
